"""An architecture as plain data: what NNI samples, what JSON stores, what DARTS prints.

A *cell* is a directed acyclic graph. States 0 and 1 are the outputs of the two previous cells; state
``2 + i`` is intermediate node ``i``, the sum of its incoming edges. An *edge* is an operation on an
earlier state. The cell's output is the concatenation of the states in ``concat``.
(Liu et al., DARTS, arXiv:1806.09055; Nguyen & Chang, CSNAS, arXiv:2102.10557.)
"""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nni_cssnas.errors import GenotypeError, nearest

__all__ = ["FIELDS", "NAMED_GENOTYPES", "OPERATIONS", "TARGET", "Cell", "Choices", "Edge", "Genotype", "Sample"]

Choices = Mapping[str, Any]
"""What a tuner picks: a value for each label of ``search_space.json``. NNI calls them parameters."""

Sample = Mapping[str, Any]
"""What NNI's ``space.freeze`` takes and ``space.random`` gives: a value for each label of the space's own."""

OPERATIONS: tuple[str, ...] = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The eight candidate operations of DARTS and CSNAS, in the reference implementation's order."""


MAX_NODES = 100
"""More intermediate nodes than this are a mistake: published cells have 4 to 7."""

FORM = "Genotype(normal=[(op, index), ...], normal_concat=..., reduce=[...], reduce_concat=...)"
FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
TARGET = "target"
"""Key of a file that a search wrote: the network (:class:`nni_cssnas.config.TargetConfig`) that the cells were searched for."""


@dataclass(frozen=True, order=True)
class Edge:
    """``operation`` applied to state ``source``.

    Raises
    ------
    GenotypeError
        If the operation is unknown, or is ``none`` (an edge that does not exist is left out).
    """

    operation: str
    source: int

    def __post_init__(self) -> None:
        if not isinstance(self.operation, str):
            raise GenotypeError(
                f"operation of an edge is {_shown(self.operation)}; it must be a name, as 'skip_connect'"
            )
        if self.operation not in OPERATIONS:
            raise GenotypeError(f"unknown operation {_shown(self.operation)}{nearest(self.operation[:80], OPERATIONS)}")
        if self.operation == "none":
            raise GenotypeError("operation 'none' is the absence of an edge; leave the edge out")
        if not _is_state(self.source):
            raise GenotypeError(f"source of an edge is {_shown(self.source)}; it must be a state number from 0")


@lru_cache(4096, typed=True)
def _known_edge(operation: str, source: int) -> Edge:
    return Edge(operation, source)


def _edge(operation: Any, source: Any) -> Edge:
    """One object for each different edge: of 100,000 architectures in memory there are millions of edges."""
    try:
        return _known_edge(operation, source)
    except TypeError:  # a list, for example, which Edge refuses with a message
        return Edge(operation, source)


@dataclass(frozen=True)
class Cell:
    """One cell: ``nodes[i]`` holds the incoming edges of intermediate node ``i`` (state ``2 + i``).

    ``concat`` names the states whose concatenation is the output, in order.

    Raises
    ------
    GenotypeError
        If an edge comes from a state that is not earlier than its node, two edges of a node come
        from the same state, there are more than :data:`MAX_NODES` nodes, or ``concat`` is empty, repeats or names a
        state that is not a node.
    """

    nodes: tuple[tuple[Edge, ...], ...]
    concat: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.nodes:
            raise GenotypeError("a cell needs at least one intermediate node")
        if len(self.nodes) > MAX_NODES:
            raise GenotypeError(f"a cell has {len(self.nodes)} intermediate nodes; at most {MAX_NODES} are read")
        for index, edges in enumerate(self.nodes):
            sources = [edge.source for edge in edges]
            late = [source for source in sources if source >= index + 2]
            if late:
                raise GenotypeError(
                    f"node {index} (state {index + 2}) has an edge from state {_shown(late[0])}; "
                    f"only states 0 to {index + 1} come before it"
                )
            if len(set(sources)) != len(sources):
                raise GenotypeError(f"node {index} has two edges from one state: {sources}; keep one of them")
        states = range(2, 2 + len(self.nodes))
        if (
            not self.concat
            or not all(_is_state(state) and state in states for state in self.concat)
            or len(set(self.concat)) != len(self.concat)
        ):
            raise GenotypeError(
                f"concat is {_shown(list(self.concat))}; it must be distinct states from "
                f"{states.start} to {states.stop - 1}, at least one"
            )

    def live_nodes(self, live_inputs: frozenset[int] = frozenset({0, 1})) -> frozenset[int]:
        """The states of the nodes that depend on ``live_inputs`` *and* that the output depends on."""
        reached = set(live_inputs)
        for index, edges in enumerate(self.nodes):
            if any(edge.source in reached for edge in edges):
                reached.add(index + 2)
        needed = set(self.concat)
        for index in reversed(range(len(self.nodes))):
            if index + 2 in needed:
                needed.update(edge.source for edge in self.nodes[index] if edge.source in reached)
        return frozenset(state for state in reached & needed if state >= 2)

    def live_inputs(self, live_inputs: frozenset[int] = frozenset({0, 1})) -> frozenset[int]:
        """The inputs among ``live_inputs`` (0: the cell before last, 1: the last) that are used."""
        live = self.live_nodes(live_inputs)
        sources = {edge.source for state in live for edge in self.nodes[state - 2]}
        return frozenset(sources & live_inputs)


@dataclass(frozen=True)
class Genotype:
    """A normal and a reduction cell: the whole architecture but for depth and width.

    Raises
    ------
    GenotypeError
        If the two cells do not concatenate equally many states (their widths must agree).
    """

    normal: Cell
    reduce: Cell

    def __post_init__(self) -> None:
        if len(self.normal.concat) != len(self.reduce.concat):
            raise GenotypeError(
                f"the normal cell concatenates {len(self.normal.concat)} states and the reduction cell "
                f"{len(self.reduce.concat)}; both must concatenate the same number"
            )

    # ---- JSON -------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """``{"normal": [[[operation, source], ...], ...], "normal_concat": [...], "reduce": ...}``."""
        result: dict[str, Any] = {}
        for name, cell in (("normal", self.normal), ("reduce", self.reduce)):
            result[name] = [[[edge.operation, edge.source] for edge in edges] for edges in cell.nodes]
            result[f"{name}_concat"] = list(cell.concat)
        return result

    @classmethod
    def from_dict(cls, data: Any) -> Genotype:
        """The inverse of :meth:`to_dict`; :data:`TARGET`, which files of a search hold beside the cells, is passed over.

        Raises
        ------
        GenotypeError
            If a key is missing or unknown, or a value has another shape.
        """
        if not isinstance(data, dict):
            raise GenotypeError(f"a genotype is a mapping with the keys {sorted(FIELDS)}, not {type(data).__name__}")
        data = {key: value for key, value in data.items() if key != TARGET}
        for key in data.keys() - set(FIELDS):
            # A mapping of something else may hold what must not be shown; only a key that looks mistyped is named.
            if difflib.get_close_matches(str(key)[:80], FIELDS, n=1):
                raise GenotypeError(f"unknown key {key!r} in a genotype{nearest(key, FIELDS)}")
        for key in sorted(set(FIELDS) - data.keys()):
            raise GenotypeError(f"key {key!r} is missing in the genotype")
        if len(data) > len(FIELDS):
            raise GenotypeError(
                f"a genotype has the keys {sorted(FIELDS)} and no others, but here are {len(data)} keys"
            )

        def cell(name: str) -> Cell:
            nodes, concat = data[name], data[f"{name}_concat"]
            if not _is_nodes(nodes):
                raise GenotypeError(
                    f"{name} cell: expected a list of nodes, each a list of [operation, source] pairs; got {_shown(nodes)}"
                )
            if not isinstance(concat, (list, tuple)):
                raise GenotypeError(f"{name} cell: concat is {_shown(concat)}; it must be a list of states, as [2, 3]")
            try:
                return Cell(tuple([tuple([_edge(*pair) for pair in edges]) for edges in nodes]), tuple(concat))
            except GenotypeError as error:
                raise GenotypeError(f"{name} cell: {error}") from None

        return cls(normal=cell("normal"), reduce=cell("reduce"))

    def to_json(self) -> str:
        """One line of canonical JSON: equal genotypes give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """The inverse of :meth:`to_json`; any JSON layout is accepted."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
            raise GenotypeError(f"not JSON: {str(error).splitlines()[0]}") from None
        return cls.from_dict(data)

    # ---- DARTS ------------------------------------------------------------------------------------

    def to_darts(self) -> str:
        """``Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=[2, 3, 4, 5], ...)``.

        Raises
        ------
        GenotypeError
            If a node has not exactly two incoming edges; DARTS's flat list cannot say that.
        """
        parts = []
        for name, cell in (("normal", self.normal), ("reduce", self.reduce)):
            for index, edges in enumerate(cell.nodes):
                if len(edges) != 2:
                    raise GenotypeError(
                        f"node {index} of the {name} cell has {len(edges)} incoming edges; "
                        "the DARTS form needs exactly 2 for every node. Use the JSON form"
                    )
            pairs = [(edge.operation, edge.source) for edges in cell.nodes for edge in edges]
            parts.append(f"{name}={pairs!r}, {name}_concat={list(cell.concat)!r}")
        return f"Genotype({', '.join(parts)})"

    @classmethod
    def from_darts(cls, text: str) -> Genotype:
        """Read what DARTS, PC-DARTS and the CSNAS reference implementation print.

        Of a longer text, as the log of a search or its ``genotypes.py``, the last ``Genotype(...)`` counts.

        Raises
        ------
        GenotypeError
            If the text has no ``Genotype(...)`` call with literal arguments.
        """
        try:
            call = ast.parse(_last_call(text), mode="eval").body
        except SyntaxError as error:
            raise GenotypeError(f"not the DARTS form {FORM}: {error.msg.partition(';')[0][:80]}") from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise GenotypeError(f"not the DARTS form {FORM}: {_shown(str(error))}") from None
        assert isinstance(call, ast.Call)
        fields = FIELDS
        arguments = dict(zip(fields, call.args, strict=False))
        arguments |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg in fields}
        values: dict[str, Any] = {}
        for name in fields:
            if name not in arguments:
                raise GenotypeError(f"{name} is missing in the DARTS form {FORM}")
            values[name] = _literal(arguments[name], name)

        def nodes(name: str) -> list[list[Any]]:
            pairs = values[name]
            if not isinstance(pairs, list) or not pairs or len(pairs) % 2:
                raise GenotypeError(
                    f"{name} must be a list of (operation, index), two for each node; got {_shown(pairs)}"
                )
            return [pairs[start : start + 2] for start in range(0, len(pairs), 2)]

        return cls.from_dict(
            {
                "normal": nodes("normal"),
                "normal_concat": values["normal_concat"],
                "reduce": nodes("reduce"),
                "reduce_concat": values["reduce_concat"],
            }
        )

    @classmethod
    def parse(cls, text: str, *, quote: bool = True) -> Genotype:
        """A genotype from a known name (``DARTS_V2``), JSON, or text with the DARTS form: a line of a log, or all of it.

        Parameters
        ----------
        text
            Of a log, the last genotype counts.
        quote
            Whether an error may repeat a text that is no genotype; not for files, which may hold anything.

        Raises
        ------
        GenotypeError
            If it is none of these, or malformed.
        """
        stripped = text.removeprefix("\ufeff").strip()  # some editors begin a file with that mark
        if stripped.startswith("{"):
            return cls.from_json(stripped)
        if _CALL.search(stripped):
            return cls.from_darts(stripped)
        if stripped in NAMED_GENOTYPES:
            return NAMED_GENOTYPES[stripped]
        what, hint = "the text", ""
        if quote:
            what, hint = _shown(stripped), nearest(stripped[:80], NAMED_GENOTYPES)
        raise GenotypeError(f"{what} is neither JSON, nor the DARTS form, nor a known name{hint}")


_CALL = re.compile(r"\bGenotype\s*\(")


def _last_call(text: str) -> str:
    """The last ``Genotype(...)`` that is closed; a log that is still written may end in the middle of one."""
    for match in reversed(list(_CALL.finditer(text))):
        depth = 0
        for bracket in re.compile(r"[()]").finditer(text, match.end() - 1):
            depth += 1 if bracket[0] == "(" else -1
            if not depth:
                return text[match.start() : bracket.end()]
    raise GenotypeError(f"not the DARTS form {FORM}: no Genotype(...) that is closed")


def _shown(value: Any) -> str:
    """At most 80 characters of a value, on one line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of more digits than Python prints
        text = f"{type(value).__name__} that is too large to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_state(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_nodes(value: Any) -> bool:
    """Whether it is a list of lists of pairs. A text would be one of its letters, too."""
    listlike = (list, tuple)
    return isinstance(value, listlike) and all(
        isinstance(edges, listlike) and all(isinstance(pair, listlike) and len(pair) == 2 for pair in edges)
        for edges in value
    )


def _literal(node: ast.expr, name: str) -> Any:
    """A literal, or ``range(a, b)`` as DARTS's own code writes the concatenation."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("range", "list") and not node.keywords:
        arguments = [_literal(argument, name) for argument in node.args]
        try:
            numbers = range(*arguments) if node.func.id == "range" else list(*arguments)  # type: ignore[attr-defined]
            if len(numbers) <= MAX_NODES:
                return list(numbers)
        except (TypeError, ValueError, OverflowError):
            pass
        raise GenotypeError(f"{name} is {_source(node)}, not a list of at most {MAX_NODES} numbers")
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise GenotypeError(f"{name} is {_source(node)}, not a literal") from None
    return list(value) if isinstance(value, tuple) else value


def _source(node: ast.expr) -> str:
    try:
        text = ast.unparse(node)
    except (RecursionError, ValueError):
        text = "an expression that is too large to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


NAMED_GENOTYPES: dict[str, Genotype] = {
    # arXiv:1806.09055, first order
    "DARTS_V1": Genotype.from_darts(
        "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), "
        "('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5], "
        "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), "
        "('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"
    ),
    # arXiv:1806.09055, second order
    "DARTS_V2": Genotype.from_darts(
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
        "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
        "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
        "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
    ),
    # arXiv:1907.05737, found on CIFAR-10 and on ImageNet
    "PC-DARTS": Genotype.from_darts(
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1), "
        "('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], normal_concat=[2, 3, 4, 5], "
        "reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2), ('sep_conv_3x3', 0), "
        "('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)], reduce_concat=[2, 3, 4, 5])"
    ),
    "PC-DARTS_imagenet": Genotype.from_darts(
        "Genotype(normal=[('skip_connect', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 0), ('skip_connect', 1), "
        "('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('dil_conv_5x5', 4)], normal_concat=[2, 3, 4, 5], "
        "reduce=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_5x5', 2), ('max_pool_3x3', 1), ('sep_conv_3x3', 2), "
        "('sep_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_3x3', 3)], reduce_concat=[2, 3, 4, 5])"
    ),
    # arXiv:2102.10557, found on ISIC-2019 with 4 nodes
    "CNAS_ISIC_s4": Genotype.from_darts(
        "Genotype(normal=[('skip_connect', 0), ('avg_pool_3x3', 1), ('dil_conv_5x5', 0), ('dil_conv_3x3', 1), "
        "('skip_connect', 0), ('sep_conv_5x5', 1), ('skip_connect', 0), ('avg_pool_3x3', 1)], normal_concat=[2, 3, 4, 5], "
        "reduce=[('skip_connect', 0), ('max_pool_3x3', 1), ('dil_conv_3x3', 0), ('dil_conv_5x5', 2), ('dil_conv_3x3', 0), "
        "('sep_conv_3x3', 1), ('max_pool_3x3', 1), ('dil_conv_3x3', 2)], reduce_concat=[2, 3, 4, 5])"
    ),
    # and with 5, of which the last 4 are the output
    "CNAS_ISIC_s5": Genotype.from_darts(
        "Genotype(normal=[('avg_pool_3x3', 1), ('max_pool_3x3', 0), ('dil_conv_5x5', 0), ('sep_conv_5x5', 1), "
        "('dil_conv_3x3', 0), ('avg_pool_3x3', 1), ('dil_conv_5x5', 0), ('dil_conv_5x5', 2), ('avg_pool_3x3', 0), "
        "('max_pool_3x3', 1)], normal_concat=[3, 4, 5, 6], reduce=[('dil_conv_5x5', 0), ('max_pool_3x3', 1), "
        "('skip_connect', 0), ('avg_pool_3x3', 1), ('skip_connect', 0), ('dil_conv_5x5', 1), ('sep_conv_5x5', 0), "
        "('avg_pool_3x3', 1), ('max_pool_3x3', 0), ('dil_conv_5x5', 1)], reduce_concat=[3, 4, 5, 6])"
    ),
}
"""Published genotypes by name."""
