"""NAS-Bench-Macro (arXiv:2103.11922), declared with NNI's primitives as a user declares a space."""

from __future__ import annotations

import re
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace
    from nni.nas.space import model_context

import numpy as np
from torch import Tensor, nn

NUM_LAYERS = (2, 3, 3)
"""Layers per stage; the first of each halves the resolution and doubles the channels."""

CHOICES = ("identity", "ir_3x3_e3", "ir_5x5_e6")
"""What the digits 0, 1 and 2 of the table mean."""

TRUTHS = ("cifar10_test",)
CEILINGS: dict[str, float] = {}
TABLE_NETWORK: dict[str, Any] = {"channels": 32}
TABLE_IMAGE = (3, 32, 32)
TRAINED_NETWORK: dict[str, Any] = {"channels": 8}


def conv_bn(c_in: int, c_out: int, k: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]


class InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, k: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.shortcut = stride == 1 and c_in == c_out
        self.layers = nn.Sequential(
            *conv_bn(c_in, hidden, 1),
            nn.ReLU(inplace=True),
            *conv_bn(hidden, hidden, k, stride, groups=hidden),
            nn.ReLU(inplace=True),
            *conv_bn(hidden, c_out, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return x + result if self.shortcut else result


def identity(c_in: int, c_out: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 and c_in == c_out else nn.Sequential(*conv_bn(c_in, c_out, 1, stride))


class NasBenchMacro(ModelSpace):
    """32x32 images, a stem, 8 searched layers in 3 stages, a head; the table has 32 ``channels`` in the stem."""

    def __init__(self, channels: int = 32, num_labels: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, channels, 3), nn.ReLU(inplace=True))
        layers = []
        c_in = channels
        for depth in NUM_LAYERS:
            for index in range(depth):
                stride, c_out = (2, 2 * c_in) if index == 0 else (1, c_in)
                candidates = {
                    "identity": identity(c_in, c_out, stride),
                    "ir_3x3_e3": InvertedResidual(c_in, c_out, 3, stride, expansion=3),
                    "ir_5x5_e6": InvertedResidual(c_in, c_out, 5, stride, expansion=6),
                }
                layers.append(LayerChoice(candidates, label=f"layer{len(layers)}"))
                c_in = c_out
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(*conv_bn(c_in, 1280, 1), nn.ReLU(inplace=True))
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.layers(self.stem(x)))
        logits: Tensor = self.classifier(self.pooling(x).flatten(1))
        return logits


def to_sample(arch: str) -> dict[str, str]:
    """Eight digits as NNI's choices ``{"layer0": choice, ...}``.

    Raises
    ------
    ValueError
        If the string is not eight digits of 0, 1 and 2.
    """
    if not re.fullmatch(r"[012]{8}", arch):
        raise ValueError(f"{arch!r} is not eight digits of 0, 1 and 2")
    return {f"layer{index}": CHOICES[int(digit)] for index, digit in enumerate(arch)}


def build(arch: str, **arguments: Any) -> nn.Module:
    """The frozen network; ``arguments`` are :class:`NasBenchMacro`'s, 16 channels by default."""
    # Only what is chosen is built: `freeze` copies the whole space, which takes as long as a score.
    with model_context(to_sample(arch)):
        network: nn.Module = NasBenchMacro(**{"channels": 16, **arguments})
    return network


def random_arch(rng: np.random.Generator, like: str | None = None) -> str:
    """An architecture of the space, all equally likely."""
    return "".join(str(digit) for digit in rng.integers(len(CHOICES), size=sum(NUM_LAYERS)))
