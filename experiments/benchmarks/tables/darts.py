"""DARTS cells (arXiv:1806.09055) as genotypes: this package's ``CellSpace``.

A cell with a node that reads one state twice is not in that space; it is built from NNI's hub ``DARTS``.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.nas.hub.pytorch.nasnet import NDS
    from nni.nas.space import model_context

import numpy as np
from torch import nn

from nni_cssnas.genotype import OPERATIONS, Genotype
from nni_cssnas.spaces import CellSpace
from tables.cells import FlatCell, dump_json, load_json, parse_cells, random_cells

NODES = 4
TRUTHS = ("cifar10_test", "cifar10_val", "svhn_test", "svhn_val")
CEILINGS = {"cifar10_test": 0.87}
"""Two trainings of 24 of the cells of arXiv:1912.12522 agree with .76, so one of them with the truth with the root of it."""

TABLE_NETWORK: dict[str, Any] = {"num_cells": 20, "channels": 36}
TABLE_IMAGE = (3, 32, 32)
TRAINED_NETWORK: dict[str, Any] = {"num_cells": 5, "channels": 8}


def to_sample(arch: str) -> dict[str, Any]:
    """The choices of ``CellSpace``, or, where a node reads one state twice, of NNI's ``DARTS``.

    Raises
    ------
    ValueError
        If it is no genotype of four nodes with DARTS's operations.
    """
    cells = _cells(arch)
    if any(cell.reads_twice for cell in cells.values()):
        return cells["normal"].sample("normal") | cells["reduce"].sample("reduce")
    return dict(_space(3, 1).sample_of(_genotype(cells)))


ONE_CELL = 8
"""Cells of a network whose normal and reduction cells are equal. Those of the table of such cells reach 64 to 86 % on CIFAR-10,
as networks of few cells do; how many they had is not stated there."""


def build(arch: str, *, num_cells: int | None = None, channels: int = 6) -> nn.Module:
    """The network, by default as deep as the one that was trained: 20 cells, or :data:`ONE_CELL`."""
    sample = to_sample(arch)
    if num_cells is None:
        cells = _cells(arch)
        num_cells = ONE_CELL if cells["normal"] == cells["reduce"] else TABLE_NETWORK["num_cells"]
    if "normal/op_2_0" in sample:
        # Its `DARTS` with the operations that are chosen only: NNI's cell makes each candidate on every edge.
        chosen = {value for label, value in sample.items() if "/op_" in label}
        with model_context(sample):
            hub: nn.Module = NDS(sorted(chosen), "all", NODES, channels, num_cells, "cifar")
        return hub
    network: nn.Module = _space(num_cells, channels).freeze(sample)
    return network


def random_arch(rng: np.random.Generator, like: str | None = None) -> str:
    """A random genotype; where both cells of ``like`` are one, both cells are one, whose nodes may read a state twice."""
    one = like is not None and (cells := _cells(like))["normal"] == cells["reduce"]
    data = random_cells(rng, NODES, OPERATIONS[1:], "all", twice=one)
    if one:
        data |= {"reduce": data["normal"], "reduce_concat": data["normal_concat"]}
    return dump_json(data)


def path(arch: str) -> int:
    """Convolutions on the longest ways through the 20 cells of the table's network, two of which reduce, one after the other."""
    cells = _cells(arch)
    return (TABLE_NETWORK["num_cells"] - 2) * cells["normal"].path() + 2 * cells["reduce"].path()


def _cells(arch: str) -> dict[str, FlatCell]:
    cells = parse_cells(load_json(arch), NODES, OPERATIONS[1:])
    for name, cell in cells.items():
        if cell.concat != (2, 3, 4, 5):
            raise ValueError(
                f"{name}_concat is {list(cell.concat)}; the cells of DARTS concatenate all nodes, [2, 3, 4, 5]"
            )
    return cells


def _genotype(cells: dict[str, FlatCell]) -> Genotype:
    data: dict[str, Any] = {}
    for name, cell in cells.items():
        pairs = [list(edge) for edge in cell.edges]
        data |= {name: [pairs[at : at + 2] for at in range(0, len(pairs), 2)], f"{name}_concat": list(cell.concat)}
    return Genotype.from_dict(data)


@lru_cache(maxsize=8)
def _space(num_cells: int, channels: int) -> CellSpace:
    return CellSpace("two-input", NODES, num_cells, channels, num_classes=10)
