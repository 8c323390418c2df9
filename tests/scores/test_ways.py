"""How many activations lie on the ways through a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_cssnas.genotype import NAMED_GENOTYPES
from nni_cssnas.scores import measured
from nni_cssnas.scores.paths import activations_on_paths
from nni_cssnas.spaces.network import CellNetwork


class Cells(nn.Module):
    """``edges[i]`` lead to node i + 1 from earlier nodes, each with so many activations; the last node is the output."""

    def __init__(self, edges: Sequence[Sequence[tuple[int, int]]]) -> None:
        super().__init__()
        self.edges = edges

    def forward(self, images: Tensor) -> Tensor:
        nodes = [images]
        for edges in self.edges:
            ways = []
            for source, number in edges:
                value = nodes[source]
                for _ in range(number):
                    value = torch.relu(value + 1)
                ways.append(value)
            nodes.append(torch.stack(ways).sum(0))
        return nodes[-1].flatten(1).mean(1, keepdim=True)


def all_ways(edges: Sequence[Sequence[tuple[int, int]]], node: int) -> list[int]:
    """The activations of every way from node 0, each followed alone."""
    if node == 0:
        return [0]
    return [number + before for source, number in edges[node - 1] for before in all_ways(edges, source)]


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_by_following_every_way(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)

    def draw(below: int) -> int:
        return int(torch.randint(below, (1,), generator=random))

    edges = [[(draw(node + 1), draw(4)) for _ in range(1 + draw(3))] for node in range(6)]
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    ways = all_ways(edges, len(edges))
    assert activations_on_paths(Cells(edges)(images), images) == (min(ways), max(ways))


@pytest.mark.parametrize(
    "function",
    [F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.softplus, torch.tanh],
)
def test_every_activation_counts(function: Any) -> None:
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert activations_on_paths(function(function(images + 0)), images) == (2, 2)
    in_place = torch.nn.ReLU(inplace=True)
    assert activations_on_paths(in_place(images * 1.0), images) == (1, 1)


def test_a_way_through_a_zero_is_none() -> None:
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    deep = torch.relu(torch.relu(images + 0))
    assert activations_on_paths(deep + images.mul(0.0), images) == (2, 2)
    assert activations_on_paths(images.mul(0.0), images) is None
    assert activations_on_paths(deep.detach().requires_grad_() * 2, images) is None
    assert activations_on_paths(torch.zeros(2, 3), images) is None
    weight = torch.zeros(1, requires_grad=True)  # a weight that is 0 now may be another later
    assert activations_on_paths(torch.relu(images * weight), images) == (1, 1)


def test_a_network_of_cells_by_hand() -> None:
    """DARTS_V2's cell reads an input by a skip connection: one activation of the preprocessing leads through it."""
    network = CellNetwork(NAMED_GENOTYPES["DARTS_V2"], 3, 4)
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    found = activations_on_paths(network(images), images)
    assert found is not None
    shortest, longest = found
    # Every cell but the first reads the one before the last: at least every second cell's preprocessing is on each way.
    assert 1 <= shortest <= 3 * 2
    assert longest > shortest


class _Seen:
    def __init__(self, ways: tuple[int, int], stages: int) -> None:
        self.ways = ways
        self.views = [type("View", (), {"stages": [None] * stages})]


@pytest.mark.parametrize(("ways", "stages"), [((10, 100), 20), ((21, 100), 20), ((21, 20), 20), ((3, 59), 4)])
def test_shortcuts_by_its_formula(ways: tuple[int, int], stages: int) -> None:
    shortest, longest = ways
    depth = 1 / (1 + (60 / (longest + 1)) ** 10)
    expected = -depth * max(0, math.log((shortest + 1) / stages / 0.5))
    assert measured.shortcuts(_Seen(ways, stages)) == pytest.approx(expected)  # type: ignore[arg-type]
