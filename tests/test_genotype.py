from __future__ import annotations

import random
from itertools import combinations

import pytest

from nni_cssnas.errors import GenotypeError
from nni_cssnas.genotype import NAMED_GENOTYPES, OPERATIONS, Cell, Edge, Genotype


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
