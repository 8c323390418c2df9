from __future__ import annotations

from torch import nn

from nni_cssnas.base.modules import walk
from nni_cssnas.genotype import NAMED_GENOTYPES
from nni_cssnas.spaces.network import CellNetwork


def test_walk_gives_what_torch_gives_in_its_order() -> None:
    shared = nn.Linear(2, 2)
    inner = nn.Sequential(shared, nn.ReLU())
    model = nn.ModuleDict(
        {"a": inner, "b": nn.ModuleList([shared, nn.Sequential(inner, nn.Linear(1, 1))]), "c": shared}
    )
    model.register_module("nothing", None)
    for network in (model, nn.Linear(1, 1), CellNetwork(NAMED_GENOTYPES["DARTS_V2"], 5, 4)):
        assert list(walk(network)) == list(network.named_modules())
