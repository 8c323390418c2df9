"""What a network costs: parameters, multiply-adds, latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nni_cssnas.base.modules import evaluation_mode
from nni_cssnas.config import TargetConfig
from nni_cssnas.errors import ConfigError, SpaceError
from nni_cssnas.genotype import Genotype
from nni_cssnas.spaces.pieces import Piece, pieces

__all__ = ["cells_cost", "latency", "multiply_adds", "num_parameters"]

LARGE = 2**21
"""Numbers that enter a layer: what is larger would take long to compute, for its cost alone."""


def num_parameters(model: nn.Module) -> int:
    """Number of trainable weights; a weight that two layers share counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def multiply_adds(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds of one forward pass: convolutions, linear layers, matrix products and attention.

    The convention of the NAS literature: norms, activations, pooling and additions are not counted. Counted by the formulas of torch's own ``FlopCounterMode``, which see
    the operations themselves, so functional calls count as layers do.

    Parameters
    ----------
    model
        A network; its mode and running statistics are left as they are.
    input_shape
        (channels, height, width) of one image, or (batch, channels, height, width).

    Raises
    ------
    ConfigError
        If ``input_shape`` is neither.
    SpaceError
        If the network fails on an input of this shape.
    """
    shape = tuple(input_shape)
    if len(shape) == 3:
        shape = (1, *shape)
    if len(shape) != 4 or min(shape) < 1:
        raise ConfigError(f"input_shape is {list(input_shape)}; it must be (channels, height, width), all at least 1")
    images = _zeros(model, shape)
    # The fused transformer layer of evaluation mode is one operation that the counter does not know.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            evaluation_mode(model),
            torch.no_grad(),
            _Counter() as counter,
        ):
            model(images)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise SpaceError(f"the network fails on an input of shape {shape}: {error}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.flops // 2


def cells_cost(genotype: Genotype, target: TargetConfig) -> dict[str, float]:
    """``params`` and ``macs`` of a genotype's network, counted without building it, in about a millisecond.

    Classifier and auxiliary head are not counted: a search without labels does not know the classes. The other numbers are
    those of :func:`num_parameters` and :func:`multiply_adds` on the network itself.
    """
    params = macs = 0
    for piece, number in pieces(genotype, target).items():
        of_one = _piece_cost(piece)
        params, macs = params + number * of_one[0], macs + number * of_one[1]
    return {"params": float(params), "macs": float(macs)}


@lru_cache(65536)
def _piece_cost(piece: Piece) -> tuple[int, int]:
    """Parameters and multiply-adds of one layer."""
    if not piece.has_weights:
        return 0, 0
    # On the meta device nothing is computed, but its batch norm is written in Python and loads TorchDynamo: two seconds.
    with torch.device("cpu" if piece.c_in * piece.side**2 <= LARGE else "meta"):
        layer = piece.build()
    params = num_parameters(layer)
    return params, multiply_adds(layer, (piece.c_in, piece.side, piece.side)) if params else 0


def latency(model: nn.Module, images: Tensor, *, repeats: int = 20, warmup: int = 3) -> float:
    """Median time of a forward pass in milliseconds, on the device of ``images``, in evaluation mode.

    Parameters
    ----------
    model
        A network on the device of ``images``.
    images
        A batch (batch, channels, height, width).
    repeats
        Timed passes.
    warmup
        Passes before the first timed one.

    Raises
    ------
    ConfigError
        If ``repeats`` is below 1 or ``warmup`` below 0.
    """
    if repeats < 1 or warmup < 0:
        raise ConfigError(f"repeats is {repeats} and warmup {warmup}; repeats must be at least 1, warmup at least 0")
    device = images.device

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    with evaluation_mode(model), torch.inference_mode():
        for turn in range(warmup + repeats):
            wait()
            start = time.perf_counter()
            model(images)
            wait()
            if turn >= warmup:
                times.append(time.perf_counter() - start)
    result = 1e3 * statistics.median(times)
    assert math.isfinite(result)
    return result


@lru_cache(1)
def _formulas() -> dict[Any, Any]:
    # Not before it is used: it loads Triton, where that is installed.
    from torch.utils.flop_counter import flop_registry, sdpa_flop_count, shape_wrapper

    def attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    found: dict[Any, Any] = dict(flop_registry)
    # Torch's counter knows the attention kernels of accelerators but not the one of CPUs.
    if hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        found[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] = shape_wrapper(attention)
    return found


class _Counter(TorchDispatchMode):
    """``FlopCounterMode`` without its account of every module, which takes longer than a small network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.formulas = _formulas()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: to keep torch.compile out of this class, where nothing is compiled, torch would load it."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = self.formulas.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        return result


def _zeros(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    parameter = next(iter(model.parameters()), None)
    if parameter is None:
        return torch.zeros(shape)
    return torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
