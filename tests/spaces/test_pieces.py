"""The layers of a network as a list, against the network itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nni_cssnas.config import TargetConfig
from nni_cssnas.genotype import NAMED_GENOTYPES, Genotype
from nni_cssnas.scores import cost
from nni_cssnas.scores.cost import cells_cost, multiply_adds, num_parameters
from nni_cssnas.spaces import CellNetwork, CellSpace, decode, random_choices
from nni_cssnas.spaces.pieces import pieces

TARGETS = (
    TargetConfig(num_cells=3, channels=4),
    TargetConfig(num_cells=7, channels=6, size=18),
    TargetConfig(num_cells=8, channels=5, stem="imagenet", size=67),
)


def network_of(genotype: Genotype, target: TargetConfig) -> CellNetwork:
    return CellNetwork(genotype, target.num_cells, target.channels, stem=target.stem)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("encoding", ["two-input", "edge"])
def test_what_it_costs_is_what_the_network_costs(encoding: str, target: TargetConfig) -> None:
    space = CellSpace(encoding, num_nodes=4)
    rng = np.random.default_rng(0)
    size = target.size or 32
    for _ in range(12):
        choices = random_choices(space, rng)
        if encoding == "edge":  # many absent edges, so that nodes and whole cells are dead
            choices = {name: "none" if rng.random() < 0.5 else value for name, value in choices.items()}
        genotype = space.genotype_of(decode(space, choices))
        network = network_of(genotype, target)
        assert cells_cost(genotype, target) == {
            "params": num_parameters(network),
            "macs": multiply_adds(network, (3, size, size)),
        }, choices


def test_large_layers_are_counted_without_computing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS[2]
    expected = cells_cost(NAMED_GENOTYPES["DARTS_V1"], target)
    monkeypatch.setattr(cost, "LARGE", 0)
    cost._piece_cost.cache_clear()
    try:
        assert cells_cost(NAMED_GENOTYPES["DARTS_V1"], target) == expected
    finally:
        cost._piece_cost.cache_clear()


def test_the_published_size_of_a_published_cell() -> None:
    # arXiv:1806.09055, table 1: 3.3 million with the classifier, which has 10 outputs and a bias.
    costs = cells_cost(NAMED_GENOTYPES["DARTS_V2"], TargetConfig())
    network = CellNetwork(NAMED_GENOTYPES["DARTS_V2"], 20, 36, num_classes=10)
    assert costs["params"] + 10 * (network.num_features + 1) == num_parameters(network)
    assert round(num_parameters(network) / 1e6, 1) == 3.3


@pytest.mark.parametrize("target", TARGETS)
def test_every_piece_takes_and_gives_what_it_says(target: TargetConfig) -> None:
    for piece in pieces(NAMED_GENOTYPES["DARTS_V1"], target):
        out = piece.build().eval()(torch.zeros(1, piece.c_in, piece.side, piece.side))
        side = -(-piece.side // piece.stride)
        assert out.shape == ((1, piece.c_out) if piece.kind == "pool" else (1, piece.c_out, side, side)), piece
