"""NAS-Bench-201 (arXiv:2001.00326): from an architecture string to NNI's own ``NasBench201`` space."""

from __future__ import annotations

import re
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.nas.hub.pytorch import NasBench201
import numpy as np
from nni.nas.space import model_context
from torch import nn

from tables import longest_path

OPERATIONS = {
    "none": "none",
    "skip_connect": "skip_connect",
    "nor_conv_1x1": "conv_1x1",
    "nor_conv_3x3": "conv_3x3",
    "avg_pool_3x3": "avg_pool_3x3",
}
"""The table's names and NNI's."""

TRUTHS = ("cifar10_test",)
CEILINGS = {"cifar10_test": 0.991}
"""Spearman correlation of two trainings of all architectures."""

# The table's network has 5 equal cells in each stage; one ranks alike in both costs, and is built 7 times faster.
TABLE_NETWORK: dict[str, Any] = {}
TABLE_IMAGE = (3, 32, 32)
TRAINED_NETWORK: dict[str, Any] = {"stem_out_channels": 8}

_NODE = re.compile(r"\|(?:[a-z0-9_]+~\d\|)+")


def to_sample(arch: str) -> dict[str, str]:
    """``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`` as NNI's choices ``{"cell/0_1": op, ...}``.

    Raises
    ------
    ValueError
        If the string has another form or an unknown operation.
    """
    form = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
    nodes = arch.split("+")
    if len(nodes) != 3 or not all(_NODE.fullmatch(node) for node in nodes):
        raise ValueError(f"{arch!r} is not of the form {form}")
    sample = {}
    for target, node in enumerate(nodes, start=1):
        edges = [edge.rsplit("~", 1) for edge in node.strip("|").split("|")]
        if [source for _, source in edges] != [str(source) for source in range(target)]:
            raise ValueError(f"{arch!r} is not of the form {form}")
        for operation, source in edges:
            if operation not in OPERATIONS:
                raise ValueError(f"unknown operation {operation!r} in {arch!r}; known: {', '.join(OPERATIONS)}")
            sample[f"cell/{source}_{target}"] = OPERATIONS[operation]
    return sample


def build(arch: str, **arguments: Any) -> nn.Module:
    """The frozen network.

    ``arguments`` are ``NasBench201``'s; the default is one cell per stage, which ranks as the table's
    five do and costs a fifth.
    """
    # Only what is chosen is built: `freeze` copies the whole space, which takes as long as a score.
    with model_context(to_sample(arch)):
        network: nn.Module = NasBench201(**{"stem_out_channels": 16, "num_modules_per_stack": 1, **arguments})
    return network


def random_arch(rng: np.random.Generator, like: str | None = None) -> str:
    """An architecture of the space, all equally likely."""
    names = list(OPERATIONS)
    nodes = []
    for target in (1, 2, 3):
        edges = [f"{names[rng.integers(len(names))]}~{source}" for source in range(target)]
        nodes.append(f"|{'|'.join(edges)}|")
    return "+".join(nodes)


def path(arch: str) -> int:
    """Convolutions on the longest way through the cell."""
    edges = []
    for label, operation in to_sample(arch).items():
        source, target = map(int, label.removeprefix("cell/").split("_"))
        if operation != "none":
            edges.append((source, target, int(operation.startswith("conv"))))
    return longest_path(edges, [0], [3])
