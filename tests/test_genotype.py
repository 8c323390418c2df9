from __future__ import annotations

import contextlib
import json
import random
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_cssnas.errors import GenotypeError
from nni_cssnas.genotype import NAMED_GENOTYPES, OPERATIONS, Cell, Edge, Genotype
from nni_cssnas.spaces.architecture import read_architecture


def random_genotype(rng: random.Random, num_nodes: int = 4) -> Genotype:
    def cell() -> Cell:
        nodes = []
        for state in range(2, 2 + num_nodes):
            pair = rng.choice(list(combinations(range(state), 2)))
            nodes.append(tuple(Edge(rng.choice(OPERATIONS[1:]), source) for source in pair))
        return Cell(tuple(nodes), tuple(range(2, 2 + num_nodes)))

    return Genotype(cell(), cell())


@pytest.mark.parametrize("num_nodes", [4, 5])
def test_json_and_darts_round_trips(num_nodes: int) -> None:
    rng = random.Random(num_nodes)
    for _ in range(50):
        genotype = random_genotype(rng, num_nodes)
        assert Genotype.from_json(genotype.to_json()) == genotype
        assert Genotype.from_darts(genotype.to_darts()) == genotype
        assert Genotype.parse(genotype.to_darts()) == Genotype.parse(genotype.to_json()) == genotype


def test_reads_what_darts_code_writes() -> None:
    # As in darts/cnn/genotypes.py: a namedtuple call with range() and positional arguments.
    text = (
        "Genotype([('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1)], range(2, 4), "
        "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0)], reduce_concat=range(2, 4))"
    )
    genotype = Genotype.from_darts(text)
    assert genotype.normal.concat == (2, 3)
    assert genotype.normal.nodes[0] == (Edge("sep_conv_3x3", 1), Edge("sep_conv_3x3", 0))
    assert genotype.reduce.nodes[1] == (Edge("skip_connect", 2), Edge("max_pool_3x3", 0))


def test_named_genotypes_are_those_published() -> None:
    assert NAMED_GENOTYPES["CNAS_ISIC_s4"].reduce.nodes[1] == (Edge("dil_conv_3x3", 0), Edge("dil_conv_5x5", 2))
    five = NAMED_GENOTYPES["CNAS_ISIC_s5"]
    assert (len(five.normal.nodes), five.normal.concat, five.reduce.concat) == (5, (3, 4, 5, 6), (3, 4, 5, 6))
    assert five.normal.nodes[3] == (Edge("dil_conv_5x5", 0), Edge("dil_conv_5x5", 2))
    assert Genotype.parse("DARTS_V2").normal.nodes[3] == (Edge("skip_connect", 0), Edge("dil_conv_3x3", 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DARTS_V3", "did you mean 'DARTS_V2'"),
        ("{", "not JSON"),
        ('{"normal": []}', "'normal_concat' is missing"),
        ('{"nomal": []}', "did you mean 'normal'"),
        ("Genotype(normal=print)", "is missing|not a literal"),
        ("Genotype(__import__('os'))", "not a literal"),
        ("Genotype(normal=[('sep_conv_3x4',0),('skip_connect',1)], normal_concat=[2], reduce=[('skip_connect',0),('skip_connect',1)], reduce_concat=[2])", "did you mean 'sep_conv_3x3'"),
        ("Genotype(normal=[('skip_connect',0),('skip_connect',2)], normal_concat=[2], reduce=[('skip_connect',0),('skip_connect',1)], reduce_concat=[2])", "normal cell: node 0 .* only states 0 to 1"),
        ("Genotype(normal=[('skip_connect',0),('skip_connect',0)], normal_concat=[2], reduce=[('skip_connect',0),('skip_connect',1)], reduce_concat=[2])", "two edges from one state"),
        ("Genotype(normal=[('skip_connect',0),('skip_connect',1)], normal_concat=[7], reduce=[('skip_connect',0),('skip_connect',1)], reduce_concat=[2])", "concat is"),
        ("Genotype(normal=[('none',0),('skip_connect',1)], normal_concat=[2], reduce=[('skip_connect',0),('skip_connect',1)], reduce_concat=[2])", "leave the edge out"),
    ],
)  # fmt: skip
def test_bad_text_is_explained(text: str, message: str) -> None:
    with pytest.raises(GenotypeError, match=message):
        Genotype.parse(text)


def test_darts_form_refuses_other_than_two_inputs() -> None:
    cell = Cell(((Edge("skip_connect", 0),),), (2,))
    with pytest.raises(GenotypeError, match="Use the JSON form"):
        Genotype(cell, cell).to_darts()


def brute_force_live(cell: Cell, inputs: frozenset[int]) -> frozenset[int]:
    """Nodes on some path from an input to a concatenated state, by following every path."""
    live: set[int] = set()

    def follow(state: int, path: tuple[int, ...]) -> None:
        if state in cell.concat:
            live.update(path)
        for target, edges in enumerate(cell.nodes, start=2):
            if any(edge.source == state for edge in edges):
                follow(target, (*path, target))

    for source in inputs:
        follow(source, ())
    return frozenset(live)


def test_live_nodes_are_those_on_a_path() -> None:
    rng = random.Random(0)
    for _ in range(300):
        nodes = tuple(
            tuple(Edge("skip_connect", source) for source in range(state) if rng.random() < 0.35)
            for state in range(2, 7)
        )
        concat = tuple(sorted(rng.sample(range(2, 7), rng.randint(1, 5))))
        inputs = frozenset(source for source in (0, 1) if rng.random() < 0.7)
        cell = Cell(nodes, concat)
        live = brute_force_live(cell, inputs)
        assert cell.live_nodes(inputs) == live
        used = {edge.source for state in live for edge in cell.nodes[state - 2]} & inputs
        assert cell.live_inputs(inputs) == used


DARTS = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1)], normal_concat=range(2, 3), "
    "reduce=[('max_pool_3x3', 0), ('skip_connect', 1)], reduce_concat=range(2, 3))"
)
EARLIER = DARTS.replace("sep_conv_3x3", "dil_conv_5x5")


@pytest.mark.parametrize(
    "text",
    [
        f"2019-03-01 10:12:13,456 genotype = {DARTS}",
        f"03/01 10:12:13 AM genotype = {DARTS}",
        f"genotypes.{DARTS}",
        f"MINE = {DARTS}",
        f"2019 epoch 0\ngenotype = {EARLIER}\ntrain 000 2.3e+00 (1)\n2019 genotype = {DARTS}\ntensor([[0.1, 0.2]])\nvalid_acc 51.2",
        # The process was stopped while it wrote the next one.
        f"genotype = {EARLIER}\ngenotype = {DARTS}\ngenotype = {DARTS[:60]}",
        f"Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat')\nA = {EARLIER}\nB = {DARTS}\nDARTS = B\n",
    ],
)
def test_the_last_genotype_of_a_log_counts(text: str) -> None:
    genotype = Genotype.parse(text)
    assert genotype == Genotype.from_darts(DARTS) != Genotype.from_darts(EARLIER)
    assert genotype.normal == Cell(((Edge("sep_conv_3x3", 0), Edge("sep_conv_3x3", 1)),), (2,))


NODE = [["skip_connect", 0], ["skip_connect", 1]]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("normal_concat", [[2]], r"normal cell: concat is \[\[2\]\]; it must be distinct states from 2 to 2"),
        ("normal_concat", [2.0], r"concat is \[2\.0\]"),
        ("normal_concat", [True], r"concat is \[True\]"),
        ("normal_concat", {"2": 2}, r"concat is \{'2': 2\}; it must be a list"),
        ("normal_concat", [{}], r"concat is \[\{\}\]"),
        ("normal_concat", [10**5000], r"concat is list that is too large to show"),
        ("normal_concat", [2] * 10**6, r"concat is \[2, 2, .*\.\.\.; it must"),
        ("normal", ["", ""], "expected a list of nodes"),
        ("normal", {"": 1}, "expected a list of nodes"),
        ("normal", None, "expected a list of nodes"),
        ("normal", [[[["skip_connect"], 0]]], r"operation of an edge is \['skip_connect'\]"),
        ("normal", [[["skip_connect", True]]], "source of an edge is True"),
        ("normal", [[["skip_connect", 10**5000]]], "has an edge from state int that is too large to show"),
        ("normal", [NODE] * 101, "has 101 intermediate nodes; at most 100"),
    ],
)
def test_malformed_values_are_named_in_one_line(key: str, value: object, message: str) -> None:
    good = {"normal": [NODE], "normal_concat": [2], "reduce": [NODE], "reduce_concat": [2]}
    Genotype.from_dict(good)
    with pytest.raises(GenotypeError, match=message) as caught:
        Genotype.from_dict(good | {key: value})
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "Genotype(normal={[1]: 2}, normal_concat=[2], reduce=[], reduce_concat=[2])",
        DARTS.replace("range(2, 3)", "range(10**12)"),
        DARTS.replace("range(2, 3)", "range(1000000000000)"),
        DARTS.replace("range(2, 3)", "range(2, 3, 0)"),
        DARTS.replace("range(2, 3)", "{[1]: 2}"),
        DARTS.replace("range(2, 3)", "[" * 5000 + "]" * 5000),
        DARTS.replace("range(2, 3)", "1" * 5000),
        "Genotype(\0)",
        "Genotype(",
        "{" + '"normal":' + "[" * 100_000,
        '{"normal": ' + "1" * 5000 + "}",
    ],
)
def test_malformed_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(GenotypeError) as caught:
        Genotype.parse(text)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([*OPERATIONS, *NAMED_GENOTYPES]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
KEYS = ("normal", "normal_concat", "reduce", "reduce_concat")
ALMOST = st.lists(st.lists(st.tuples(st.sampled_from(OPERATIONS) | JSON, st.integers(-1, 4) | JSON), max_size=3))
NUMBERS = st.lists(st.integers(1, 5) | JSON)


@settings(deadline=None)  # the machine may be busy
@given(JSON | st.fixed_dictionaries({key: (NUMBERS if "_" in key else ALMOST) | JSON for key in KEYS}))
def test_any_json_is_a_genotype_or_an_error(data: object) -> None:
    try:
        genotype = Genotype.parse(json.dumps(data)) if isinstance(data, dict) else Genotype.from_dict(data)
    except GenotypeError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert Genotype.from_json(genotype.to_json()) == genotype


@settings(deadline=None)  # the machine may be busy
@given(st.text() | st.text().map(lambda text: f"Genotype({text})"))
def test_any_text_is_a_genotype_or_an_error(text: str) -> None:
    with contextlib.suppress(GenotypeError):
        Genotype.parse(text)


@pytest.mark.parametrize(
    "content", ["root:$6$hunter2:19000:0:99999:7:::\n", '{"password": "hunter2", "hunter2": 1}', "hunter2", '{"hunter2'],
)  # fmt: skip
def test_a_file_that_is_no_genotype_is_not_shown(content: str, tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text(content)
    with pytest.raises(GenotypeError) as caught:
        read_architecture(str(tmp_path / "shadow"))
    assert "shadow" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    # What was typed is repeated.
    with pytest.raises(GenotypeError, match=r"'DARTS_V3' is neither .* did you mean 'DARTS_V2'"):
        read_architecture("DARTS_V3")


def test_a_byte_order_mark_is_no_part_of_a_genotype() -> None:
    genotype = NAMED_GENOTYPES["DARTS_V2"]
    for text in (genotype.to_json(), genotype.to_darts(), "DARTS_V2"):
        assert Genotype.parse("\ufeff" + text) == genotype
