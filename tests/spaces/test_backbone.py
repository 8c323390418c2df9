from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.mutable import ConstraintViolation
    from nni.nas.hub import pytorch as hub

from nni_cssnas.errors import SpaceError
from nni_cssnas.genotype import Cell, Edge, Genotype
from nni_cssnas.measures import MEASURES
from nni_cssnas.scores.cost import multiply_adds, num_parameters
from nni_cssnas.scores.untrained import initialise, untrained_scores
from nni_cssnas.spaces import CellNetwork, CellSpace, decode, random_choices
from nni_cssnas.spaces.backbone import Backbone, inspect


def sample(space: Any) -> nn.Module:
    for _ in range(200):
        try:
            return space.random()
        except ConstraintViolation:
            continue
    raise AssertionError("no valid architecture in 200 draws")


def cells(name: str, **arguments: Any) -> Callable[[], Any]:
    return lambda: getattr(hub, name)(width=8, num_cells=5, **{"dataset": "cifar", **arguments})


# name, space, size of the images, classifier, names of some stages in order, least number of stages
HUB = {
    "DARTS": (
        cells("DARTS", drop_path_prob=0.2),
        32,
        "classifier",
        ["stem", "stages.0.0", "stages.1.0", "stages.2.1"],
        6,
    ),
    "DARTS-imagenet": (cells("DARTS", dataset="imagenet"), 64, "classifier", ["stem0", "stem1", "stages.0.0"], 7),
    "NASNet": (cells("NASNet"), 32, "classifier", ["stem", "stages.0.0", "stages.2.1"], 6),
    "ENAS": (cells("ENAS"), 32, "classifier", ["stem", "stages.0.0", "stages.2.1"], 6),
    "AmoebaNet": (cells("AmoebaNet"), 32, "classifier", ["stem", "stages.0.0", "stages.2.1"], 6),
    "PNAS": (cells("PNAS"), 32, "classifier", ["stem", "stages.0.0", "stages.2.1"], 6),
    "MobileNetV3Space": (lambda: hub.MobileNetV3Space(), 32, "classifier.1", ["stem", "blocks.0", "blocks.1.0"], 9),
    "ProxylessNAS": (lambda: hub.ProxylessNAS(), 32, "classifier", ["stem", "blocks.0", "feature_mix_layer"], 9),
    "ShuffleNetSpace": (
        lambda: hub.ShuffleNetSpace(),
        32,
        "classifier.0",
        ["first_conv", "features.0", "conv_last"],
        22,
    ),
    "NasBench101": (lambda: hub.NasBench101(stem_out_channels=16), 32, "classifier", ["stem_conv", "features.0"], 12),
    "NasBench201": (
        lambda: hub.NasBench201(8, 1),
        16,
        "classifier",
        ["stem", "cells.0", "cells.1", "cells.2", "cells.3", "cells.4"],
        6,
    ),
    "AutoFormer": (
        lambda: hub.AutoFormer(
            search_embed_dim=(24,), search_num_heads=(2,), search_depth=(2, 3), img_size=32, patch_size=8, num_labels=7
        ),
        32,
        "head",
        ["patch_embed", "blocks.0", "blocks.1"],
        3,
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_every_hub_space(name: str) -> None:
    make, size, classifier, expected, least = HUB[name]
    torch.manual_seed(0)
    model = sample(make())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    structure = inspect(model, size)
    assert structure.classifier == classifier
    names = [stage.name for stage in structure.stages]
    assert [stage for stage in names if stage in expected] == expected
    assert len(names) >= least
    # Nothing inside a block, nothing of the head.
    assert not any(a != b and a.startswith(f"{b}.") for a in names for b in names)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    views = torch.randn(2, 4, 3, size, size, generator=torch.Generator().manual_seed(0))
    initialise(model, 0)
    scores = untrained_scores(model, *views, stages=names, classifier=classifier)
    assert scores == untrained_scores(model, *views, stages=names, classifier=classifier)
    assert set(scores) == set(MEASURES)
    layer = model.get_submodule(classifier)
    before = num_parameters(model)
    backbone = Backbone(model, size)
    inside = [f"model.{stage}" for stage in names]
    counted = untrained_scores(backbone, *views, stages=inside, components=["macs"])["macs"]
    assert counted == multiply_adds(backbone, (3, size, size))
    features = backbone(views[0])
    assert features.shape == (4, backbone.num_features) == (4, structure.num_features)
    assert backbone.num_features == layer.in_features
    assert num_parameters(backbone) == before - num_parameters(layer)
    features.sum().backward()


def test_features_are_what_enters_the_classifier() -> None:
    model = hub.NasBench201(8, 1).random().eval()
    images = torch.randn(2, 3, 16, 16)
    logits, head = model(images), model.classifier
    assert torch.allclose(head(Backbone(model, 16).eval()(images)), logits)


# ---- networks that users write ------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Flat(nn.Module):
    """Blocks as children, features already."""

    def __init__(self) -> None:
        super().__init__()
        self.one = Block(3, 4)
        self.two = Block(4, 8, 2)
        self.unused = Block(4, 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)).mean((2, 3))


class Wrapped(nn.Module):
    """Everything inside one module, declared in another order than it is called."""

    def __init__(self, output: str = "logits") -> None:
        super().__init__()

        class Body(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.late = nn.ModuleList([Block(4, 8, 2), nn.Identity(), Block(8, 16, 2)])
                self.early = Block(3, 4)

            def forward(self, x: Tensor) -> Tensor:
                x = self.early(x)
                for block in self.late:
                    x = block(x)
                return x

        self.body = Body()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(16, 5))
        self.output = output

    def forward(self, x: Tensor) -> Any:
        maps = self.body(x)
        logits = self.head(maps)
        return {
            "logits": logits,
            "map": maps,
            "tuple": (logits, maps),
            "dict": {"logits": logits},
            "softmax": logits.softmax(1),
        }[self.output]


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("encoding", ["two-input", "edge"])
def test_what_a_cell_network_knows_of_itself_is_what_would_be_found(
    encoding: str, stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    compared = 0
    for nodes, cells, classes in itertools.product((4, 5), (3, 5, 8), (0, 3)):
        space = CellSpace(encoding=encoding, num_nodes=nodes, num_cells=3, channels=2)
        genotype = space.genotype_of(decode(space, random_choices(space, rng)))
        network = CellNetwork(genotype, cells, 2, stem=stem, num_classes=classes, auxiliary=classes > 0)
        for size in (8, 9, 12, 16) if stem == "cifar" else (64, 96):
            known = network.known_structure(size)
            if known is not None:
                with monkeypatch.context() as patch:
                    patch.setattr(CellNetwork, "known_structure", lambda self, size: None)
                    assert inspect(network, size) == known
                assert inspect(network, size) == known
                compared += 1
    assert compared >= (36 if stem == "cifar" else 12)
    # Where a cell is left out, or too small a map ends the resolutions, it does not say.
    skipping = Genotype(Cell(((Edge("sep_conv_3x3", 0),),), (2,)), Cell(((Edge("skip_connect", 0),),), (2,)))
    assert CellNetwork(skipping, 6, 2, stem=stem).known_structure(64) is None
    assert network.known_structure(4) is None
    # Nor where its classifier was taken away.
    Backbone(network, 64)
    assert network.known_structure(64) is None


def test_features_already() -> None:
    structure = inspect(Flat(), 8)
    assert structure.classifier is None
    assert structure.num_features == 8
    assert [(stage.name, stage.channels, stage.size) for stage in structure.stages] == [
        ("one", 4, (8, 8)),
        ("two", 8, (4, 4)),
    ]
    model = Flat()
    assert Backbone(model, 8)(torch.zeros(2, 3, 8, 8)).shape == (2, 8)


def test_a_chain_inside_a_module_in_the_order_of_calls() -> None:
    structure = inspect(Wrapped(), 16)
    assert structure.classifier == "head.3"
    assert [stage.name for stage in structure.stages] == ["body.early", "body.late.0", "body.late.1", "body.late.2"]
    assert [stage.size for stage in structure.stages] == [(16, 16), (8, 8), (8, 8), (4, 4)]


def test_a_map_is_pooled() -> None:
    backbone = Backbone(Wrapped("map"), 16)
    assert backbone.structure.classifier is None
    assert backbone(torch.zeros(2, 3, 16, 16)).shape == (2, 16)


def test_the_first_linear_output_of_several_is_the_classifier() -> None:
    assert inspect(Wrapped("tuple"), 16).classifier == "head.3"


def test_a_classifier_that_cannot_be_found_is_named() -> None:
    assert inspect(Wrapped("softmax"), 16).num_features == 5
    assert inspect(Wrapped("softmax"), 16, classifier="head.3").num_features == 16
    with pytest.raises(SpaceError, match=r"gives dict\. Name the layer .* as classifier; linear layers are: head\.3"):
        inspect(Wrapped("dict"), 16)
    assert inspect(Wrapped("dict"), 16, classifier="head.3").num_features == 16
    assert inspect(Wrapped(), 16, classifier="").num_features == 5


def test_errors_name_the_module() -> None:
    with pytest.raises(SpaceError, match="classifier 'haed' is not a module of the network; did you mean 'head'"):
        inspect(Wrapped(), 16, classifier="haed")
    with pytest.raises(SpaceError, match="'unused' takes no part in the forward pass"):
        inspect(Flat(), 8, classifier="unused")
    with pytest.raises(SpaceError, match="no stage with feature maps"):
        inspect(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), 8)


@pytest.mark.parametrize(("name", "size"), [("ShuffleNetSpace", 16), ("MobileNetV3Space", 8)])
def test_images_smaller_than_the_total_stride(name: str, size: int) -> None:
    model = HUB[name][0]().random()
    with pytest.raises(SpaceError, match=f"images of {size} pixels are smaller than the total stride"):
        inspect(model, size)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_network_for_another_size() -> None:
    model = HUB["AutoFormer"][0]().random()
    with pytest.raises(SpaceError, match="fails on images of 16x16 pixels"):
        inspect(model, 16)


def test_torchvision() -> None:
    import torchvision

    for name, classifier, first, last in (
        ("resnet18", "fc", "conv1", "layer4.1"),
        ("mobilenet_v3_small", "classifier.3", "features.0", "features.12"),
        ("densenet121", "classifier", "features.conv0", "features.denseblock4"),
    ):
        structure = inspect(torchvision.models.get_model(name), 64)
        assert structure.classifier == classifier
        assert (structure.stages[0].name, structure.stages[-1].name) == (first, last)


class Joined(nn.Module):
    """Two ways that are added, or put beside each other."""

    def __init__(self, first: nn.Module, second: nn.Module, joined: str) -> None:
        super().__init__()
        self.first, self.second, self.joined = first, second, joined

    def forward(self, x: Tensor) -> Tensor:
        ways = [self.first(x), self.second(x)]
        return ways[0] + ways[1] if self.joined == "add" else torch.cat(ways, 1)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise TypeError("a mistake of the user's")


def conv(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        # As the MNIST examples of NNI and PyTorch declare it.
        (
            lambda: nn.Sequential(conv(1, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 32 * 32, 10)),
            "the network is for images of 1 channel .layer Conv2d '0'., but here they always have 3.* with 3 input channels",
        ),
        (lambda: nn.Sequential(nn.BatchNorm2d(4), conv(4, 8)), "for images of 4 channels .layer BatchNorm2d '0'."),
        (
            lambda: nn.Sequential(conv(3, 8), nn.Sequential(conv(16, 8))),
            "this combination of candidates cannot run: layer Conv2d '1.0' takes 16 channels, but gets 8; let all candidates",
        ),
        (lambda: nn.Sequential(conv(3, 8), nn.BatchNorm2d(16)), "layer BatchNorm2d '1' takes 16 channels, but gets 8"),
        (
            lambda: nn.Sequential(conv(3, 8), nn.Flatten(), nn.Linear(8 * 28 * 28, 10)),
            "layer Linear '2' takes 6272 features, but gets 8192: .* another size than 32x32 pixels .*or candidates",
        ),
        (
            lambda: nn.Sequential(Joined(conv(3, 8), conv(3, 16), "add")),
            "this combination of candidates cannot run: Joined '0' joins maps of different shapes .*dimension 1",
        ),
        (
            lambda: nn.Sequential(Joined(conv(3, 8), conv(3, 8, stride=2), "cat")),
            "this combination of candidates cannot run: Joined '0' joins maps of different shapes",
        ),
        (
            lambda: nn.Sequential(conv(3, 8), nn.Conv2d(8, 8, 64)),
            "the network fails on images of 32x32 pixels in layer Conv2d '1' .*may be smaller than its total stride",
        ),
        (lambda: nn.Sequential(conv(3, 8), Fails()), "in layer Fails '1' .a mistake of the user's."),
    ],
)  # fmt: skip
def test_why_a_network_cannot_run(network: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        inspect(network(), 32)
    assert len(str(caught.value).splitlines()) == 1
