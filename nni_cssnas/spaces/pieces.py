"""A network of cells as the list of its layers, without building it: what it costs is the sum over them.

A network of 20 cells has some 200 layers, but few different ones: in each of three stages the eight operations, the layers
between cells, and the stem. Whoever knows the parameters, the multiply-adds or the time of each knows them of every network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from nni_cssnas.config import TargetConfig
from nni_cssnas.genotype import OPERATIONS, Cell, Genotype
from nni_cssnas.spaces.network import liveness, make_stem
from nni_cssnas.spaces.operations import FactorizedReduce, ReLUConvBN, make_operation

__all__ = ["Piece", "pieces"]


@dataclass(frozen=True, order=True)
class Piece:
    """One layer: ``kind`` is an operation of a cell, or a name of :meth:`build`; ``side`` is that of its input in pixels."""

    kind: str
    c_in: int
    c_out: int
    stride: int
    side: int

    def build(self) -> nn.Module:
        """The layer with freshly drawn weights: ``(B, c_in, side, side)`` to ``(B, c_out, side / stride, side / stride)``."""
        if self.kind in OPERATIONS:
            return make_operation(self.kind, self.c_in, self.stride)
        if self.kind == "reduce":
            return FactorizedReduce(self.c_in, self.c_out)
        if self.kind == "preprocess":
            return ReLUConvBN(self.c_in, self.c_out)
        if self.kind.startswith("stem"):
            _, kind, index = self.kind.split("_")
            return make_stem(kind, self.c_out // 3 if kind == "cifar" else self.c_out, frozenset({-2, -1}))[int(index)]
        return {"add": _Add, "concat": _Concat, "pool": _Pool}[self.kind](self.c_out // self.c_in)

    @property
    def has_weights(self) -> bool:
        """Whether it may have any; else it has no multiply-adds either."""
        return self.kind not in ("add", "concat", "pool", "max_pool_3x3", "avg_pool_3x3")


class _Add(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


class _Concat(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x] * self.number, dim=1)


class _Pool(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def pieces(genotype: Genotype, target: TargetConfig) -> Counter[Piece]:
    """The layers of a genotype's network, each with how often it is there; classifier and auxiliary head are left out.

    They are those that :class:`~nni_cssnas.spaces.network.CellNetwork` builds: what cannot influence the output is not among
    them. ``target.size`` is by default 32, or 224 with the ImageNet stem.
    """
    num_cells = target.num_cells
    reductions = (num_cells // 3, 2 * num_cells // 3)
    plan = [genotype.reduce if index in reductions else genotype.normal for index in range(num_cells)]
    inputs, needed = liveness(plan)
    found: Counter[Piece] = Counter()
    widths, sides, reduction_prev = _stem(found, target, needed)
    width = target.channels
    for index, cell in enumerate(plan):
        reduction = index in reductions
        width = width * 2 if reduction else width
        side = _half(sides[1]) if reduction else sides[1]
        if index in needed:
            found.update(_of_cell(cell, width, widths, sides, inputs[index], reduction, reduction_prev))
        reduction_prev = reduction
        widths, sides = (widths[1], width * len(cell.concat)), (sides[1], side)
    if num_cells - 1 in needed:
        found[Piece("pool", widths[1], widths[1], 1, sides[1])] += 1
    return found


def _stem(
    found: Counter[Piece], target: TargetConfig, needed: frozenset[int]
) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """Widths and sides of the two states before the first cell, and whether the second is a reduction of the first."""
    channels = target.channels
    if target.stem == "cifar":
        side = target.size or 32
        if needed & {-2, -1}:
            found[Piece("stem_cifar_0", 3, 3 * channels, 1, side)] += 1
        return (3 * channels, 3 * channels), (side, side), False
    side = target.size or 224
    quarter = _half(_half(side))
    if needed & {-2, -1}:
        found[Piece("stem_imagenet_0", 3, channels, 4, side)] += 1
    if -1 in needed:
        found[Piece("stem_imagenet_1", channels, channels, 2, quarter)] += 1
    return (channels, channels), (quarter, _half(quarter)), True


def _of_cell(
    cell: Cell,
    width: int,
    widths: tuple[int, int],
    sides: tuple[int, int],
    inputs: frozenset[int],
    reduction: bool,
    reduction_prev: bool,
) -> Iterator[Piece]:
    live, used = cell.live_nodes(inputs), cell.live_inputs(inputs)
    side = sides[1]
    if 0 in used:
        kind, stride = ("reduce", 2) if reduction_prev else ("preprocess", 1)
        yield Piece(kind, widths[0], width, stride, sides[0])
    if 1 in used:
        yield Piece("preprocess", widths[1], width, 1, side)
    out = _half(side) if reduction else side
    for state in sorted(live):
        edges = [edge for edge in cell.nodes[state - 2] if edge.source in used or edge.source in live]
        for edge in edges:
            outer = edge.source < 2
            yield Piece(edge.operation, width, width, 2 if reduction and outer else 1, side if outer else out)
        for _ in edges[1:]:
            yield Piece("add", width, width, 1, out)
    yield Piece("concat", width, width * len(cell.concat), 1, out)


def _half(side: int) -> int:
    return -(-side // 2)
