"""TransNAS-Bench-101, macro (arXiv:2105.11871), declared with NNI's primitives as a user declares a space."""

from __future__ import annotations

import re
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni import choice
    from nni.mutable import ensure_frozen
    from nni.nas.nn.pytorch import ModelSpace
    from nni.nas.space import model_context

import numpy as np
from torch import Tensor, nn

from nni_cssnas.spaces.operations import ReLUConvBN
from tables.transnas_micro import MODULES, TASKS, stem

TRUTHS = TASKS
CEILINGS: dict[str, float] = {}
TABLE_NETWORK: dict[str, Any] = {"share": 1, "stem_stride": 2, "num_labels": 47}
TABLE_IMAGE = (3, 256, 256)
TRAINED_NETWORK: dict[str, Any] = {"share": 8}

DEPTHS = (4, 5, 6)
DOUBLINGS, HALVINGS = range(1, 4), range(1, 5)
"""How many modules double the channels, and how many halve the resolution."""

_FORM = re.compile(r"(\d+)-([1-4]{4,6})-basic")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shapes differ."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ReLUConvBN(c_in, c_out, 3, stride, padding=1), ReLUConvBN(c_out, c_out, 3, padding=1)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x) + self.shortcut(x)
        return result


class TransNasMacro(ModelSpace):
    """Stem, four to six modules of two residual blocks, pooling, classifier."""

    def __init__(self, channels: int = 64, stem_stride: int = 1, num_labels: int = 10) -> None:
        super().__init__()
        self.stem = stem(channels, stem_stride)
        depth = ensure_frozen(self.add_mutable(choice("depth", list(DEPTHS))))
        kinds = [ensure_frozen(self.add_mutable(choice(f"module{at}", list(MODULES)))) for at in range(depth)]
        layers = []
        for digit in kinds:
            factor, stride = MODULES[digit]
            layers += [
                BasicBlock(channels, factor * channels, stride),
                BasicBlock(factor * channels, factor * channels, 1),
            ]
            channels *= factor
        self.layers = nn.Sequential(*layers)
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pooling(self.layers(self.stem(x))).flatten(1))
        return logits


def to_sample(arch: str) -> dict[str, Any]:
    """``64-111114-basic`` as NNI's choices ``{"depth": 6, "module0": "1", ...}``.

    Raises
    ------
    ValueError
        If the string has another form, or too many or too few modules change the channels or the resolution.
    """
    _, modules = _parse(arch)
    return {"depth": len(modules)} | {f"module{at}": digit for at, digit in enumerate(modules)}


def build(arch: str, *, share: int = 4, stem_stride: int = 1, num_labels: int = 10) -> nn.Module:
    """The network with ``1 / share`` of the channels; its stem keeps the resolution, as views of 16 pixels need."""
    channels, _ = _parse(arch)
    with model_context(to_sample(arch)):
        return TransNasMacro(max(2, channels // share), stem_stride, num_labels)  # type: ignore[no-any-return]


def random_arch(rng: np.random.Generator, like: str | None = None) -> str:
    """An architecture of the space, the depths equally likely, and so all of one depth."""
    channels = 64 if like is None else _parse(like)[0]
    depth = int(rng.choice(DEPTHS))
    while True:
        arch = f"{channels}-{''.join(rng.choice(list(MODULES), size=depth))}-basic"
        try:
            to_sample(arch)
        except ValueError:
            continue
        return arch


def _parse(arch: str) -> tuple[int, str]:
    """Channels, and the digits of the modules."""
    match = _FORM.fullmatch(arch)
    if match is None:
        raise ValueError(f"{arch!r:.60} is not of the form 64-111114-basic: channels, then four to six digits 1 to 4")
    channels, modules = match.groups()
    if int(channels) < 2:
        raise ValueError(f"{arch!r:.60} has {channels} channels; at least 2 are needed")
    for what, place, allowed in (("double the channels", 0, DOUBLINGS), ("halve the resolution", 1, HALVINGS)):
        count = sum(MODULES[digit][place] == 2 for digit in modules)
        if count not in allowed:
            raise ValueError(
                f"in {arch!r:.60} {count} modules {what}; the space has {allowed.start} to {allowed.stop - 1}"
            )
    return int(channels), modules
