"""Cells as the tables of DARTS and NDS write them: JSON with a flat list of (operation, state), two for each node."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nni_cssnas.errors import nearest
from tables import longest_path

LENGTHS = {
    "sep_conv_3x3": 2,
    "sep_conv_5x5": 2,
    "sep_conv_7x7": 2,
    "dil_sep_conv_3x3": 2,
    "dil_conv_3x3": 1,
    "dil_conv_5x5": 1,
    "conv_1x1": 1,
    "conv_3x3": 1,
    "conv_3x1_1x3": 1,
    "conv_7x1_1x7": 1,
}
"""How many times an operation convolves and normalises, one after the other; what is not here has no convolution."""


@dataclass(frozen=True)
class FlatCell:
    """``edges[2 * i]`` and ``edges[2 * i + 1]`` lead to node ``i``, which is state ``2 + i``; ``concat`` is the output."""

    edges: tuple[tuple[str, int], ...]
    concat: tuple[int, ...]

    @property
    def loose_ends(self) -> tuple[int, ...]:
        """The nodes that no node reads."""
        read = {source for _, source in self.edges}
        return tuple(state for state in range(2, 2 + len(self.edges) // 2) if state not in read)

    @property
    def reads_twice(self) -> bool:
        """Whether both edges of a node come from one state."""
        return any(self.edges[at][1] == self.edges[at + 1][1] for at in range(0, len(self.edges), 2))

    def sample(self, label: str) -> dict[str, Any]:
        """The choices of NNI's ``Cell`` of that label."""
        sample: dict[str, Any] = {}
        for at, (operation, source) in enumerate(self.edges):
            place = f"{2 + at // 2}_{at % 2}"
            sample |= {f"{label}/op_{place}": operation, f"{label}/input_{place}": [source]}
        return sample

    def path(self) -> int:
        """Convolutions on the longest way from an input of the cell to its output."""
        edges = [
            (source, 2 + at // 2, LENGTHS.get(operation, 0))
            for at, (operation, source) in enumerate(self.edges)
            if operation != "none"
        ]
        return longest_path(edges, (0, 1), self.concat)


def parse_cells(data: Any, num_nodes: int, operations: Sequence[str]) -> dict[str, FlatCell]:
    """The cells ``normal`` and ``reduce`` of a genotype.

    Raises
    ------
    ValueError
        If it is none, or has other nodes or operations.
    """
    if not isinstance(data, dict):
        raise ValueError(
            f"a genotype is a mapping with the keys normal, normal_concat, reduce, reduce_concat, not {data!r:.60}"
        )
    cells = {}
    for name in ("normal", "reduce"):
        edges, concat = data.get(name), data.get(f"{name}_concat")
        if not isinstance(edges, list) or not isinstance(concat, list):
            raise ValueError(f"the genotype has no lists {name!r} and '{name}_concat'")
        if len(edges) != 2 * num_nodes:
            raise ValueError(f"the {name} cell has {len(edges)} edges; {num_nodes} nodes have {2 * num_nodes}")
        for at, edge in enumerate(edges):
            state = 2 + at // 2
            if not (isinstance(edge, list) and len(edge) == 2 and isinstance(edge[1], int)):
                raise ValueError(f"edge {at} of the {name} cell is {edge!r:.60}, and not [operation, state]")
            if edge[0] not in operations:
                raise ValueError(
                    f"edge {at} of the {name} cell: unknown operation {edge[0]!r:.60}{nearest(edge[0], operations)}"
                )
            if not 0 <= edge[1] < state:
                raise ValueError(
                    f"edge {at} of the {name} cell leads from state {edge[1]} to {state}; it must come from 0 to {state - 1}"
                )
        if not concat or any(state not in range(2, 2 + num_nodes) for state in concat) or len({*concat}) < len(concat):
            raise ValueError(f"{name}_concat is {concat!r:.60}; it must be distinct states from 2 to {1 + num_nodes}")
        cells[name] = FlatCell(tuple((operation, source) for operation, source in edges), tuple(concat))
    return cells


def load_json(text: str) -> Any:
    """Raises ValueError with a short message if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{text!r:.60} is not a genotype as JSON") from None


def dump_json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))


def random_cells(
    rng: Any, num_nodes: int, operations: Sequence[str], concat: str, *, twice: bool = True
) -> dict[str, Any]:
    """A genotype whose every node reads two states, ``twice`` allowed to be one; ``concat`` is ``all`` or ``loose_end``."""
    data: dict[str, Any] = {}
    for name in ("normal", "reduce"):
        edges = []
        for node in range(num_nodes):
            sources = rng.integers(node + 2, size=2) if twice else rng.permutation(node + 2)[:2]
            edges += [[operations[int(rng.integers(len(operations)))], int(source)] for source in sources]
        states = range(2, 2 + num_nodes)
        read = {source for _, source in edges} if concat == "loose_end" else set()
        data |= {name: edges, f"{name}_concat": [state for state in states if state not in read]}
    return data
