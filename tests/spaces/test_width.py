from __future__ import annotations

import numpy as np
import pytest

from nni_cssnas.errors import ConfigError
from nni_cssnas.genotype import Cell, Edge, Genotype
from nni_cssnas.spaces import CellNetwork, CellSpace, decode, random_choices
from nni_cssnas.spaces.width import genotype_width


def size_of(network: CellNetwork) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("encoding", ["two-input", "edge"])
def test_no_other_width_comes_nearer(encoding: str, stem: str) -> None:
    space = CellSpace(encoding=encoding, num_nodes=4, num_cells=5, channels=4, stem=stem)
    rng = np.random.default_rng(0)
    for params in (3000, 75_000):
        genotype = space.genotype_of(decode(space, random_choices(space, rng)))
        sizes = {
            C: size_of(CellNetwork(genotype, 5, C, stem=stem, num_classes=10))
            for C in range(1 + (stem == "imagenet"), 26)
        }
        width, found = genotype_width(genotype, params, 5, stem=stem, num_classes=10)
        assert found == sizes[width]
        assert abs(found - params) == min(abs(size - params) for size in sizes.values())


def test_the_published_sizes() -> None:
    # METHOD's anchors: DARTS_V2 with 36 channels and 20 cells has 3.3 M parameters.
    width, params = genotype_width(Genotype.parse("DARTS_V2"), 3_350_000, 20, num_classes=10)
    assert (width, params) == (36, 3_349_342)


def test_the_ends_of_what_is_possible() -> None:
    genotype = Genotype.parse("DARTS_V2")
    assert genotype_width(genotype, 1, 5)[0] == 1
    assert genotype_width(genotype, 1, 5, stem="imagenet")[0] == 2
    nothing = Cell(((), ()), (2, 3))
    assert genotype_width(Genotype(nothing, nothing), 1000, 5) == (1, 0)
    # A width with nothing that grows with its square: the stem alone, seen through pooling.
    pooling = Cell(((Edge("max_pool_3x3", 0),), (Edge("avg_pool_3x3", 1),)), (2, 3))
    width, params = genotype_width(Genotype(pooling, pooling), 5000, 3)
    assert abs(params - 5000) < 1000
    assert params == size_of(CellNetwork(Genotype(pooling, pooling), 3, width))


def test_a_space_of_one_size() -> None:
    space = CellSpace(num_nodes=4, num_cells=5, params=30_000, num_classes=10, auxiliary=True)
    rng = np.random.default_rng(1)
    widths = set()
    for _ in range(8):
        sample = decode(space, random_choices(space, rng))
        network = space.freeze(sample)
        widths.add(network.channels)
        # The same width as without labels: the heads do not count.
        plain = CellSpace(num_nodes=4, num_cells=5, params=30_000).freeze(sample)
        assert plain.channels == network.channels
        assert abs(size_of(plain) - 30_000) < 0.15 * 30_000
    assert len(widths) > 1
    with pytest.raises(ConfigError, match="params is 0"):
        CellSpace(params=0)
