"""The cell spaces of NDS (arXiv:1905.13214): NNI's hub spaces, with the width and the number of cells of each row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.nas.hub.pytorch import DARTS, ENAS, PNAS, AmoebaNet, NASNet
    from nni.nas.hub.pytorch.nasnet import NDS
    from nni.nas.space import model_context

import numpy as np
from torch import nn

from nni_cssnas.errors import nearest
from tables.cells import FlatCell, dump_json, load_json, parse_cells, random_cells

TRUTHS = ("imagenet_top1",)
CEILINGS: dict[str, float] = {}
WIDTHS = (32, 48, 64, 80, 96)
DEPTHS = (6, 10, 14, 18, 22)


@dataclass(frozen=True)
class Space:
    """One of the spaces: its operations, its nodes, and which of them are the output (``all`` or ``loose_end``)."""

    operations: tuple[str, ...]
    num_nodes: int
    merge: str


SPACES = {
    # NDS has `none` among the operations of DARTS; NNI's class has not, so it is declared with NNI's general one.
    "DARTS": Space(("none", *DARTS.DARTS_OPS), 4, "all"),
    "ENAS": Space(tuple(ENAS.ENAS_OPS), 5, "loose_end"),
    "PNAS": Space(tuple(PNAS.PNAS_OPS), 5, "all"),
    "NASNet": Space(tuple(NASNet.NASNET_OPS), 5, "loose_end"),
    "Amoeba": Space(tuple(AmoebaNet.AMOEBA_OPS), 5, "loose_end"),
}

TABLE_NETWORK: dict[str, Any] = {"dataset": "imagenet", "share": 1}
TABLE_IMAGE = (3, 224, 224)
TRAINED_NETWORK: dict[str, Any] = {"share": 8}


def row_arch(row: Mapping[str, str]) -> str:
    """Space, width, number of cells and genotype of a row, as JSON.

    Raises
    ------
    ValueError
        If the row lacks one of them.
    """
    for name in ("space", "width", "num_cells"):
        if not (row.get(name) or "").strip():
            raise ValueError(f"no column {name!r}, which NDS's networks need")
    for name in ("width", "num_cells"):
        if not row[name].strip().isdecimal():
            raise ValueError(f"{name} is {row[name]!r}; it must be a whole number")
    head = {"space": _space_name(row["space"]), "width": int(row["width"]), "num_cells": int(row["num_cells"])}
    genotype = load_json(row["arch"] or "")
    if not isinstance(genotype, dict):
        raise ValueError(f"{row['arch']!r:.60} is not a genotype")
    return dump_json(head | genotype)


def to_sample(arch: str) -> dict[str, Any]:
    """The choices of NNI's space.

    Raises
    ------
    ValueError
        If the space is unknown or does not hold the genotype.
    """
    _, cells = _parse(arch)
    return cells["normal"].sample("normal") | cells["reduce"].sample("reduce")


def build(arch: str, *, share: int = 4, dataset: str = "cifar") -> nn.Module:
    """The network with the row's number of cells and ``1 / share`` of its width.

    The stem ``cifar`` keeps the resolution, as views of 16 pixels need; what the others are trained with on 224 pixels
    divides it by 8.
    """
    data, cells = _parse(arch)
    space = SPACES[data["space"]]
    width = max(2, data["width"] // share // 2 * 2)  # half of it goes into either part of a factorized reduction
    # Only what is chosen is built: `freeze` copies the whole space, and NNI's cell makes each candidate on every edge.
    chosen = {operation for cell in cells.values() for operation, _ in cell.edges}
    with model_context(to_sample(arch)):
        network: nn.Module = NDS(sorted(chosen), space.merge, space.num_nodes, width, data["num_cells"], dataset)
    return network


def random_arch(rng: np.random.Generator, like: str | None = None) -> str:
    """An architecture of the space of ``like`` (else DARTS), with one of NDS's widths and numbers of cells."""
    name = "DARTS" if like is None else _parse(like)[0]["space"]
    space = SPACES[name]
    head = {"space": name, "width": int(rng.choice(WIDTHS)), "num_cells": int(rng.choice(DEPTHS))}
    return dump_json(head | random_cells(rng, space.num_nodes, space.operations, space.merge))


def path(arch: str) -> int:
    """Convolutions on the longest way through all cells, two of which reduce."""
    data, cells = _parse(arch)
    return (data["num_cells"] - 2) * cells["normal"].path() + 2 * cells["reduce"].path()


def _parse(arch: str) -> tuple[dict[str, Any], dict[str, FlatCell]]:
    data = load_json(arch)
    if not isinstance(data, dict) or not {"space", "width", "num_cells"} <= data.keys():
        raise ValueError(f"{arch!r:.60} has no space, width and num_cells")
    space = SPACES[_space_name(data["space"])]
    if data["num_cells"] < 3 or data["width"] < 2:
        raise ValueError(f"width is {data['width']} and num_cells {data['num_cells']}; at least 2 and 3")
    cells = parse_cells(data, space.num_nodes, space.operations)
    for name, cell in cells.items():
        expected = cell.loose_ends if space.merge == "loose_end" else tuple(range(2, 2 + space.num_nodes))
        if tuple(sorted(cell.concat)) != expected:
            raise ValueError(
                f"{name}_concat is {list(cell.concat)}; {data['space']} concatenates "
                f"{'the nodes that no node reads' if space.merge == 'loose_end' else 'all nodes'}, {list(expected)}"
            )
    return data, cells


def _space_name(text: Any) -> str:
    names = {name.lower(): name for name in SPACES} | {"amoebanet": "Amoeba"}
    if str(text).strip().lower() not in names:
        raise ValueError(f"unknown space {text!r:.60}{nearest(text, SPACES)}")
    return names[str(text).strip().lower()]
