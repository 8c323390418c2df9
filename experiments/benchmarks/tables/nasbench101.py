"""NAS-Bench-101 (arXiv:1902.09635): from matrix and operations to NNI's own ``NasBench101`` space."""

from __future__ import annotations

import logging
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.nas.hub.pytorch import NasBench101
    from nni.nas.space import model_context

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tables import longest_path
from tables.cells import dump_json, load_json

OPERATIONS = {2: "maxpool3x3", 3: "conv1x1-bn-relu", 4: "conv3x3-bn-relu"}
"""What the numbers of the table mean to NNI; 0 is the input and 1 the output."""

logging.getLogger("nni.nas.hub.pytorch.modules.nasbench101").setLevel(logging.WARNING)  # it logs every cell

MAX_VERTICES, MAX_EDGES = 7, 9
TRUTHS = ("cifar10_val", "cifar10_test")
CEILINGS: dict[str, float] = {}

TABLE_NETWORK: dict[str, Any] = {"stem_out_channels": 128}
TABLE_IMAGE = (3, 32, 32)
TRAINED_NETWORK: dict[str, Any] = {"stem_out_channels": 8}


def to_sample(arch: str) -> dict[str, Any]:
    """NNI's choices ``{"cell/num_nodes": n, "cell/op1": ..., "cell/input1": [0], ...}`` of what reaches the output.

    Raises
    ------
    ValueError
        If it is no cell of the space: at most 7 vertices and, of what counts, 9 edges.
    """
    matrix, ops = _parse(arch)
    sample: dict[str, Any] = {"cell/num_nodes": len(ops)}
    for vertex in range(1, len(ops)):
        sample[f"cell/input{vertex}"] = [int(source) for source in np.flatnonzero(matrix[:, vertex])]
        if vertex < len(ops) - 1:
            sample[f"cell/op{vertex}"] = OPERATIONS[ops[vertex]]
    return sample


def build(arch: str, **arguments: Any) -> nn.Module:
    """The network; ``arguments`` are ``NasBench101``'s, 16 channels by default."""
    with model_context(to_sample(arch)):
        network: nn.Module = NasBench101(**{"stem_out_channels": 16, **arguments})
    # NNI makes a projection of the input for each vertex, also for those that do not read it: weights that nothing uses,
    # half of all in some cells, which the table does not count.
    for cell in network.features:
        if hasattr(cell, "connection_matrix"):
            for vertex in range(1, cell.num_nodes):
                if not cell.connection_matrix[0, vertex]:
                    cell.projections[vertex] = nn.Identity()
    return network


def random_arch(rng: np.random.Generator, like: str | None = None) -> str:
    """Matrices and operations of 7 vertices, all equally likely, until one is a cell of the space: the authors' own way."""
    while True:
        matrix = np.triu(rng.integers(2, size=(MAX_VERTICES, MAX_VERTICES)), k=1)
        ops = [0, *(int(rng.integers(2, 5)) for _ in range(MAX_VERTICES - 2)), 1]
        arch = dump_json({"matrix": matrix.tolist(), "ops": ops})
        try:
            to_sample(arch)
        except ValueError:
            continue
        return arch


def path(arch: str) -> int:
    """Convolutions on the longest way through the cell."""
    matrix, ops = _parse(arch)
    edges = [(int(a), int(b), int(ops[b] in (3, 4))) for a, b in zip(*np.nonzero(matrix), strict=True)]
    return longest_path(edges, [0], [len(ops) - 1])


def _parse(arch: str) -> tuple[NDArray[np.int64], list[int]]:
    """Matrix and operations without the vertices that are on no way from the input to the output."""
    data = load_json(arch)
    if not isinstance(data, dict) or not isinstance(data.get("ops"), list) or not isinstance(data.get("matrix"), list):
        raise ValueError(f"{arch!r:.60} has no lists 'matrix' and 'ops'")
    ops, size = data["ops"], len(data["ops"])
    if not 2 <= size <= MAX_VERTICES:
        raise ValueError(f"a cell of {size} vertices; the space has 2 to {MAX_VERTICES}")
    if ops[0] != 0 or ops[-1] != 1 or any(op not in OPERATIONS for op in ops[1:-1]):
        raise ValueError(f"ops are {ops!r:.60}; they must begin with 0, end with 1, and be 2, 3 or 4 between")
    if [len(row) if isinstance(row, list) else 0 for row in data["matrix"]] != [size] * size:
        raise ValueError(f"the matrix is not {size} x {size}, as the operations are {size}")
    matrix = np.array(data["matrix"])
    if not np.isin(matrix, (0, 1)).all() or np.tril(matrix).any():
        raise ValueError("the matrix must hold 0 and 1, and 1 only above the diagonal")
    ways = np.linalg.matrix_power(matrix + np.eye(size, dtype=int), size)
    kept = [vertex for vertex in range(size) if ways[0, vertex] and ways[vertex, -1]]
    if not ways[0, -1]:
        raise ValueError("no way leads from the input to the output")
    matrix = matrix[np.ix_(kept, kept)]
    if matrix.sum() > MAX_EDGES:
        raise ValueError(f"a cell of {matrix.sum()} edges; the space has at most {MAX_EDGES}")
    return matrix, [ops[vertex] for vertex in kept]
