from __future__ import annotations

import torch
from torch import nn

from nni_cssnas.base.modules import evaluation_mode, walk
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


def test_what_torchscript_compiled_changes_its_mode_too() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Dropout(), nn.BatchNorm1d(32)))
    model = nn.Sequential(nn.Linear(4, 32), nn.Dropout(), scripted)
    images = torch.randn(64, 4)
    with evaluation_mode(model):
        first = model(images)
        assert torch.equal(first, model(images))
    assert model[1].training
    assert scripted.training
    assert not torch.equal(model(images), model(images))
