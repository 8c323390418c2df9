"""TransNAS-Bench-101, micro (arXiv:2105.11871), declared with NNI's primitives as a user declares a space."""

from __future__ import annotations

import re
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace
    from nni.nas.space import model_context

import numpy as np
import torch
from torch import Tensor, nn

from nni_cssnas.spaces.operations import FactorizedReduce, ReLUConvBN
from tables import longest_path

TASKS = ("class_scene", "class_object", "room_layout", "jigsaw", "segmentsemantic", "normal", "autoencoder")
TRUTHS = TASKS
CEILINGS: dict[str, float] = {}

OPERATIONS = ("none", "skip_connect", "conv_1x1", "conv_3x3")
"""What the digits 0 to 3 of a cell mean."""

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""What the digits a_bc_def of a cell stand at: source and target."""

MODULES = {"1": (1, 1), "2": (2, 1), "3": (1, 2), "4": (2, 2)}
"""What a digit of the modules does in its first cell: the factor of the channels, and the stride."""

TABLE_NETWORK: dict[str, Any] = {"share": 1, "stem_stride": 2, "num_labels": 47}
TABLE_IMAGE = (3, 256, 256)
TRAINED_NETWORK: dict[str, Any] = {"share": 8}

_FORM = re.compile(r"(\d+)-([1-4]{5})-([0-3])_([0-3]{2})_([0-3]{3})")


class Zero(nn.Module):
    """No edge: nothing of the image, in the shape that the edge would have."""

    def __init__(self, c_out: int, stride: int) -> None:
        super().__init__()
        self.c_out, self.stride = c_out, stride

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x.new_zeros(x.shape[0], self.c_out, *((edge - 1) // self.stride + 1 for edge in x.shape[2:]))
        return result


def skip(c_in: int, c_out: int, stride: int) -> nn.Module:
    if stride == 2:
        return FactorizedReduce(c_in, c_out)
    return nn.Identity() if c_in == c_out else ReLUConvBN(c_in, c_out)


class Cell(nn.Module):
    """Four states, of which the last is the output; the edges from the first change channels and resolution."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList()
        for source, target in EDGES:
            shape = (c_in, c_out, stride) if source == 0 else (c_out, c_out, 1)
            candidates = {
                "none": Zero(*shape[1:]),
                "skip_connect": skip(*shape),
                "conv_1x1": ReLUConvBN(*shape[:2], 1, shape[2]),
                "conv_3x3": ReLUConvBN(*shape[:2], 3, shape[2], padding=1),
            }
            self.edges.append(LayerChoice(candidates, label=f"edge_{source}_{target}"))

    def forward(self, x: Tensor) -> Tensor:
        states: list[Tensor] = [x]
        for target in (1, 2, 3):
            parts = [edge(states[a]) for edge, (a, b) in zip(self.edges, EDGES, strict=True) if b == target]
            states.append(torch.stack(parts).sum(0))
        return states[-1]


def stem(channels: int, stride: int) -> nn.Sequential:
    """Two convolutions; both have stride 2 on the images of 256 pixels that the table's networks see."""
    return nn.Sequential(
        nn.Conv2d(3, channels // 2, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels // 2),
        ReLUConvBN(channels // 2, channels, 3, stride, padding=1),
    )


class TransNasMicro(ModelSpace):
    """Stem, five modules of two cells, pooling, classifier; one choice of operation for each edge of all cells."""

    def __init__(self, modules: str = "41414", channels: int = 64, stem_stride: int = 1, num_labels: int = 10) -> None:
        super().__init__()
        self.stem = stem(channels, stem_stride)
        layers = []
        for digit in modules:
            factor, stride = MODULES[digit]
            layers += [Cell(channels, factor * channels, stride), Cell(factor * channels, factor * channels, 1)]
            channels *= factor
        self.layers = nn.Sequential(*layers)
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pooling(self.layers(self.stem(x))).flatten(1))
        return logits


def to_sample(arch: str) -> dict[str, str]:
    """``64-41414-a_bc_def`` as NNI's choices ``{"edge_0_1": operation, ...}``.

    Raises
    ------
    ValueError
        If the string has another form.
    """
    *_, cell = _parse(arch)
    return {f"edge_{a}_{b}": OPERATIONS[int(digit)] for (a, b), digit in zip(EDGES, cell, strict=True)}


def build(arch: str, *, share: int = 4, stem_stride: int = 1, num_labels: int = 10) -> nn.Module:
    """The network with ``1 / share`` of the channels; its stem keeps the resolution, as views of 16 pixels need."""
    channels, modules, _ = _parse(arch)
    with model_context(to_sample(arch)):
        return TransNasMicro(modules, max(2, channels // share), stem_stride, num_labels)  # type: ignore[no-any-return]


def random_arch(rng: np.random.Generator, like: str | None = None) -> str:
    """A random cell in the modules of ``like``, else in those of the table."""
    channels, modules, _ = (64, "41414", "") if like is None else _parse(like)
    a, b, c, d, e, f = rng.integers(len(OPERATIONS), size=len(EDGES))
    return f"{channels}-{modules}-{a}_{b}{c}_{d}{e}{f}"


def path(arch: str) -> int:
    """Convolutions on the longest way through the cell."""
    *_, cell = _parse(arch)
    edges = [(a, b, int(digit in "23")) for (a, b), digit in zip(EDGES, cell, strict=True) if digit != "0"]
    return longest_path(edges, [0], [3])


def _parse(arch: str) -> tuple[int, str, str]:
    """Channels, the digits of the modules, and those of the cell."""
    match = _FORM.fullmatch(arch)
    if match is None:
        raise ValueError(
            f"{arch!r:.60} is not of the form 64-41414-a_bc_def: channels, five digits 1 to 4, and digits 0 to 3"
        )
    channels, modules, a, bc, d = match.groups()
    if int(channels) < 2:
        raise ValueError(f"{arch!r:.60} has {channels} channels; at least 2 are needed")
    return int(channels), modules, a + bc + d
