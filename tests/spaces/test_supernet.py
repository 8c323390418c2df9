from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nni_cssnas.errors import ConfigError, GenotypeError, SpaceError
from nni_cssnas.spaces import CellSpace
from nni_cssnas.spaces.supernet import CellSupernet, genotype_of_hub


def test_a_frozen_supernet_is_the_cell_spaces_network() -> None:
    """Same genotype, and features of the same width."""
    space = CellSupernet(num_nodes=4, num_cells=3, channels=4)
    sample = {str(label): leaf.random() for label, leaf in space.simplify().items()}
    genotype = space.genotype_of(sample)
    cells = CellSpace(num_nodes=4, num_cells=3, channels=4)
    network = cells.freeze(cells.sample_of(genotype))
    images = torch.randn(2, 3, 16, 16)
    assert space.freeze(sample)(images).shape == network(images).shape == (2, space.num_features)


def test_its_samples_are_the_cell_spaces() -> None:
    space, cells = CellSupernet(num_nodes=4, num_cells=3, channels=4), CellSpace(num_nodes=4, num_cells=3, channels=4)
    rng = np.random.default_rng(0)
    for _ in range(20):
        sample: dict[str, Any] = {}
        for label, leaf in space.simplify().items():
            sample[str(label)] = leaf.random(random_state=np.random.RandomState(int(rng.integers(2**31))))
        genotype = space.genotype_of(sample)
        assert cells.genotype_of(cells.sample_of(genotype)) == genotype
        for name, cell in (("normal", genotype.normal), ("reduce", genotype.reduce)):
            for state, edges in enumerate(cell.nodes, start=2):
                assert len(edges) == 2
                assert all(edge.operation == sample[f"{name}_{state}_from_{edge.source}"] for edge in edges)


def test_wrong_arguments_and_samples() -> None:
    with pytest.raises(ConfigError, match="'none' has no meaning"):
        CellSupernet(operations=["none", "skip_connect"])
    with pytest.raises(SpaceError, match="no choice 'normal_2_from_0'"):
        CellSupernet(num_nodes=4, num_cells=3, channels=4).genotype_of({})


HUB = {
    f"{name}/{kind}_{state}_{slot}": value
    for name in ("normal", "reduce")
    for state in (2, 3)
    for slot in (0, 1)
    for kind, value in (("op", "sep_conv_3x3"), ("input", [slot]))
}


def test_samples_of_nnis_darts_space() -> None:
    genotype = genotype_of_hub(HUB | {"normal/op_3_1": "skip_connect", "normal/input_3_1": 2, "reduce/op_2_0": "none"})
    assert [(edge.operation, edge.source) for edge in genotype.normal.nodes[1]] == [
        ("sep_conv_3x3", 0),
        ("skip_connect", 2),
    ]
    assert [(edge.operation, edge.source) for edge in genotype.reduce.nodes[0]] == [("sep_conv_3x3", 1)]
    assert genotype.normal.concat == (2, 3)
    with pytest.raises(GenotypeError, match=r"two edges from one state.*CellSupernet has no such cells"):
        genotype_of_hub(HUB | {"normal/input_3_1": [0]})
    with pytest.raises(SpaceError, match=r"is not one of nni.nas.hub.pytorch.DARTS"):
        genotype_of_hub({"x": 1})
