"""The candidate operations of DARTS (arXiv:1806.09055), in ReLU-Conv-BN order.

Every operation maps ``(B, C, H, W)`` to ``(B, C, ceil(H / stride), ceil(W / stride))``, so any of
them can stand on any edge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import nn

from nni_cssnas.errors import GenotypeError, nearest

__all__ = ["DilConv", "FactorizedReduce", "ReLUConvBN", "SepConv", "SpareLayers", "make_layer", "make_operation"]


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution, batch norm: ``(B, C_in, H, W)`` to ``(B, C_out, H, W)``."""

    def __init__(self, C_in: int, C_out: int, kernel_size: int = 1, stride: int = 1, padding: int = 0) -> None:  # noqa: N803
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, kernel_size, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(C_out),
        )


class DilConv(nn.Sequential):
    """Depthwise convolution with dilation 2, then pointwise convolution."""

    def __init__(self, C: int, kernel_size: int, stride: int) -> None:  # noqa: N803
        padding = kernel_size - 1  # dilation 2 widens the kernel to 2k - 1
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(C, C, kernel_size, stride=stride, padding=padding, dilation=2, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C),
        )


class SepConv(nn.Sequential):
    """Depthwise separable convolution, applied twice; the stride is the first one's."""

    def __init__(self, C: int, kernel_size: int, stride: int) -> None:  # noqa: N803
        padding = kernel_size // 2
        layers: list[nn.Module] = []
        for step in (stride, 1):
            layers += [
                nn.ReLU(),
                nn.Conv2d(C, C, kernel_size, stride=step, padding=padding, groups=C, bias=False),
                nn.Conv2d(C, C, 1, bias=False),
                nn.BatchNorm2d(C),
            ]
        super().__init__(*layers)


class FactorizedReduce(nn.Module):
    """Half the resolution by two 1x1 convolutions with stride 2, one of them shifted by a pixel."""

    def __init__(self, C_in: int, C_out: int) -> None:  # noqa: N803
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(C_in, C_out - C_out // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(C_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C_in, H, W)`` to ``(B, C_out, ceil(H / 2), ceil(W / 2))``."""
        x = self.relu(x)
        height, width = x.shape[-2:]
        # An odd side has one pixel less on the shifted grid: pad it, or the two halves do not fit together.
        shifted = F.pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))  # type: ignore[no-any-return]


def make_operation(name: str, C: int, stride: int) -> nn.Module:  # noqa: N803
    """The operation called ``name`` on ``C`` channels.

    Raises
    ------
    GenotypeError
        If the name is unknown, or ``none``, which is the absence of an operation.
    """
    known: dict[str, Callable[[], nn.Module]] = {
        "max_pool_3x3": lambda: nn.MaxPool2d(3, stride=stride, padding=1),
        "avg_pool_3x3": lambda: nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False),
        "skip_connect": lambda: nn.Identity() if stride == 1 else FactorizedReduce(C, C),
        "sep_conv_3x3": lambda: SepConv(C, 3, stride),
        "sep_conv_5x5": lambda: SepConv(C, 5, stride),
        "dil_conv_3x3": lambda: DilConv(C, 3, stride),
        "dil_conv_5x5": lambda: DilConv(C, 5, stride),
    }
    if name not in known:
        raise GenotypeError(f"no operation is called {name!r}{nearest(name, known)}")
    return make_layer(known[name], name, C, stride)


class SpareLayers:
    """Layers of networks that nobody needs any more, for the next ones: making them anew takes a seventh of a score's time.

    A layer that is used again has whatever weights it had, so this is for networks whose weights are drawn anew.
    """

    LIMIT = 5000
    """So many are kept at most. Networks of 20 cells have some 200, and most of those of the next."""

    def __init__(self) -> None:
        self._spare: defaultdict[Hashable, list[nn.Module]] = defaultdict(list)
        self._lent: list[tuple[Hashable, nn.Module]] = []

    @contextmanager
    def used(self) -> Iterator[None]:
        """What :func:`make_layer` makes meanwhile is taken from here if there is one."""
        self._lent = []
        token = _spare_layers.set(self)
        try:
            yield
        finally:
            _spare_layers.reset(token)

    def take_back(self) -> None:
        """The network that was built last is done with."""
        if sum(map(len, self._spare.values())) + len(self._lent) > self.LIMIT:
            self._spare.clear()
        for key, layer in self._lent:
            self._spare[key].append(layer)
        self._lent = []

    def layer(self, key: Hashable, make: Callable[[], nn.Module]) -> nn.Module:
        """One of the spare ones with this key, or a new one."""
        spare = self._spare[key]
        layer = spare.pop() if spare else make()
        self._lent.append((key, layer))
        return layer


_spare_layers: ContextVar[SpareLayers | None] = ContextVar("spare_layers", default=None)


def make_layer(make: Callable[[], nn.Module], *key: Hashable) -> nn.Module:
    """``make()``, or a spare layer that was made with the same ``key``; see :class:`SpareLayers`."""
    spare = _spare_layers.get()
    return make() if spare is None else spare.layer(key, make)
