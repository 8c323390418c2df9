"""All cells at once, sharing their weights, for NNI's one-shot strategies (arXiv:1806.09055), and what they find as genotypes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nni_cssnas.config import CellSpaceConfig
from nni_cssnas.errors import GenotypeError, SpaceError, nearest
from nni_cssnas.genotype import OPERATIONS, Cell, Edge, Genotype, Sample
from nni_cssnas.spaces.operations import FactorizedReduce, ReLUConvBN, make_operation
from nni_cssnas.spaces.primitives import ModelSpace

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    from nni.nas.nn.pytorch import InputChoice, LayerChoice

__all__ = ["CellSupernet", "genotype_of_hub"]


class CellSupernet(ModelSpace):  # type: ignore[misc]
    """The cells of ``CellSpace(encoding="two-input")`` as one network in which every operation of every edge is computed.

    Images ``(B, 3, H, W)`` to pooled features ``(B, num_features)``. What a strategy exports is turned into a genotype
    by :meth:`genotype_of`; :class:`~nni_cssnas.spaces.cell.CellSpace` then builds its network.

    Parameters
    ----------
    num_nodes, num_cells, channels, operations
        As in :class:`~nni_cssnas.spaces.cell.CellSpace`; ``none`` is no candidate.

    Raises
    ------
    ConfigError
        If an argument is wrong.
    """

    def __init__(
        self, num_nodes: int = 4, num_cells: int = 5, channels: int = 8, operations: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        config = CellSpaceConfig(
            num_nodes=num_nodes,  # type: ignore[arg-type]
            num_cells=num_cells,
            channels=channels,
            operations=None if operations is None else tuple(operations),
        )
        self.num_nodes = num_nodes
        self.operations = config.operations or OPERATIONS[1:]
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * channels, 3, padding=1, bias=False), nn.BatchNorm2d(3 * channels))
        self.cells = nn.ModuleList()
        widths, width, reduction_prev = (3 * channels, 3 * channels), channels, False
        for index in range(num_cells):
            reduction = index in (num_cells // 3, 2 * num_cells // 3)
            width = 2 * width if reduction else width
            self.cells.append(_SuperCell(num_nodes, width, widths, self.operations, reduction, reduction_prev))
            widths, reduction_prev = (widths[1], width * num_nodes), reduction
        self.num_features = widths[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(B, 3, H, W)`` to features ``(B, num_features)``."""
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        return s1.mean((2, 3))

    def genotype_of(self, sample: Sample) -> Genotype:
        """The genotype of one sample. Raises SpaceError if a choice is missing."""
        cells = {}
        for name in ("normal", "reduce"):
            nodes = []
            for state in range(2, 2 + self.num_nodes):
                sources = [0, 1] if state == 2 else sorted(_take(sample, f"{name}_{state}_inputs"))
                nodes.append(tuple(Edge(_take(sample, f"{name}_{state}_from_{s}"), s) for s in sources))
            cells[name] = Cell(tuple(nodes), tuple(range(2, 2 + self.num_nodes)))
        return Genotype(**cells)


class _SuperCell(nn.Module):
    """One cell with every edge and operation."""

    def __init__(
        self,
        num_nodes: int,
        C: int,  # noqa: N803
        widths: tuple[int, int],
        operations: Sequence[str],
        reduction: bool,
        reduction_prev: bool,
    ) -> None:
        super().__init__()
        self.first = FactorizedReduce(widths[0], C) if reduction_prev else ReLUConvBN(widths[0], C)
        self.second = ReLUConvBN(widths[1], C)
        name = "reduce" if reduction else "normal"
        self.edges = nn.ModuleDict()
        self.inputs = nn.ModuleDict()
        self.states = range(2, 2 + num_nodes)
        for state in self.states:
            for source in range(state):
                stride = 2 if reduction and source < 2 else 1
                candidates = {op: _candidate(op, C, stride) for op in operations}
                self.edges[f"{source}-{state}"] = LayerChoice(candidates, label=f"{name}_{state}_from_{source}")
            if state > 2:  # the first node has one pair only
                self.inputs[str(state)] = InputChoice(state, n_chosen=2, label=f"{name}_{state}_inputs")

    def forward(self, s0: torch.Tensor, s1: torch.Tensor) -> torch.Tensor:
        states = [self.first(s0), self.second(s1)]
        for state in self.states:
            values = [self.edges[f"{source}-{state}"](states[source]) for source in range(state)]
            states.append(self.inputs[str(state)](values) if state > 2 else values[0] + values[1])
        return torch.cat(states[2:], dim=1)


def _candidate(name: str, C: int, stride: int) -> nn.Module:  # noqa: N803
    operation = make_operation(name, C, stride)
    # Pooling is normalised while operations are mixed, as in DARTS: the others are already.
    return nn.Sequential(operation, nn.BatchNorm2d(C, affine=False)) if "pool" in name else operation


def genotype_of_hub(sample: Sample) -> Genotype:
    """The genotype of a sample of NNI's hub space ``DARTS`` (labels ``normal/op_2_0``, ``normal/input_2_0``, ...).

    Raises
    ------
    SpaceError
        If the sample is not of that form.
    GenotypeError
        If a node reads one state twice, which NNI's space allows and a genotype cannot say.
    """
    cells = {}
    for name in ("normal", "reduce"):
        nodes: dict[int, list[Edge]] = {}
        for label, value in sample.items():
            found = re.fullmatch(rf"{name}/op_(\d+)_(\d+)", label)
            if found is None:
                continue
            node = nodes.setdefault(int(found[1]), [])
            source = _take(sample, f"{name}/input_{found[1]}_{found[2]}")
            if value != "none":
                node.append(Edge(value, int(source[0] if isinstance(source, (list, tuple)) else source)))
        if not nodes:
            raise SpaceError(f"the sample has no choice {name}/op_2_0; it is not one of nni.nas.hub.pytorch.DARTS")
        try:
            cells[name] = Cell(
                tuple(tuple(sorted(nodes[state], key=lambda edge: edge.source)) for state in sorted(nodes)),
                tuple(sorted(nodes)),
            )
        except GenotypeError as error:
            raise GenotypeError(
                f"{name} cell: {error}; nni_cssnas.spaces.supernet.CellSupernet has no such cells"
            ) from None
    return Genotype(**cells)


def _take(sample: Sample, label: str) -> Any:
    if label not in sample:
        raise SpaceError(f"the sample has no choice {label!r}{nearest(label, map(str, sample))}")
    return sample[label]
