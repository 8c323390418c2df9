from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_cssnas.base.modules import pooled
from nni_cssnas.errors import ConfigError, SpaceError
from nni_cssnas.genotype import NAMED_GENOTYPES
from nni_cssnas.measures import DEFAULT_WEIGHTS, MEASURES
from nni_cssnas.scores import look, measured
from nni_cssnas.scores.combine import WORST
from nni_cssnas.scores.cost import multiply_adds
from nni_cssnas.scores.statistics import (
    contrastive_loss,
    distinct_patterns,
    entropy,
    gradient_flow,
    gram,
    jacov,
    naswot,
    nonlinearity,
    scatter,
    similarity,
    zico,
)
from nni_cssnas.scores.untrained import average_scores, initialise, untrained_scores
from nni_cssnas.spaces.backbone import Backbone
from nni_cssnas.spaces.network import CellNetwork


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (torch.arange(16.0).reshape(1, 2, 2, 4), [[3.5, 11.5]]),
        (torch.arange(6.0).reshape(1, 2, 3), [[1.5, 2.5, 3.5]]),
        (torch.arange(3.0).reshape(1, 3), [[0.0, 1.0, 2.0]]),
        ([torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)], [[1.0, 1.0]]),
    ],
)
def test_pool(output: object, expected: list[list[float]]) -> None:
    assert pooled(output).tolist() == expected


# ---- one network --------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int = 1, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(c_out)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class Network(nn.Module):
    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            Block(3, 4, activation=activation), Block(4, 4, activation=activation), Block(4, 8, 2, activation)
        )
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(8, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.dropout(self.blocks(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


STAGES = ["blocks.0", "blocks.1", "blocks.2"]
VIEWS = rand(8, 3, 8, 8, seed=10), rand(8, 3, 8, 8, seed=11)


def scores_of(model: nn.Module, seed: int = 0, **arguments: Any) -> dict[str, float]:
    initialise(model, seed)
    return untrained_scores(model, *VIEWS, **{"stages": STAGES, "classifier": "classifier", **arguments})


def largest_singular_values(stages: list[Tensor]) -> list[float]:
    """Of AZ-NAS's matrix between every two stages, pixel by pixel."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for before, after in pairwise(stages):
        signs = torch.randint(0, 2, after.shape, generator=generator) * 2.0 - 1
        (gradient,) = torch.autograd.grad(after, before, signs, retain_graph=True)
        step = before.shape[2] // after.shape[2]
        total = np.zeros((before.shape[1] * step * step, after.shape[1]))
        for image in range(after.shape[0]):
            for row in range(after.shape[2]):
                for column in range(after.shape[3]):
                    patch = gradient[image, :, row * step : (row + 1) * step, column * step : (column + 1) * step]
                    total += np.outer(patch.flatten().numpy(), signs[image, :, row, column].numpy())
        total /= after.shape[0] * after.shape[2] * after.shape[3]
        found.append(float(np.linalg.svd(total, compute_uv=False)[0]))
    return found


def test_one_network_step_by_step() -> None:
    """Everything that untrained_scores measures, once more by hand."""
    model = Network()
    scores = scores_of(model)
    model.dropout.eval()
    entropies, similarities, jacobian, codes, pooled, lengths = [], [], [], [], [], []
    for view in VIEWS:
        x = view.clone().requires_grad_()
        before = [model.blocks[0].norm, model.blocks[1].norm, model.blocks[2].norm]
        signs_of: list[Tensor] = []
        handles = [norm.register_forward_hook(lambda m, a, out, s=signs_of: s.append(out > 0)) for norm in before]
        stages = [model.blocks[0](x)]
        stages.append(model.blocks[1](stages[0]))
        stages.append(model.blocks[2](stages[1]))
        for handle in handles:
            handle.remove()
        lengths.extend(largest_singular_values(stages))
        features = stages[-1].mean((2, 3))
        entropies.append([entropy(scatter(stage)) for stage in stages])
        similarities.append([similarity(gram(p), gram(q)) for p, q in pairwise(stages)])
        rows = []
        signs = [1.0 if index % 2 == 0 else -1.0 for index in range(8)]
        total = sum(sign * features[index].sum() for index, sign in enumerate(signs))
        (gradient,) = torch.autograd.grad(total, x, retain_graph=True)
        rows = [sign * gradient[index] for index, sign in enumerate(signs)]
        jacobian.extend(rows)
        codes.append(torch.cat([sign.flatten(1) for sign in signs_of], 1))
        pooled.append(features)
    weights = [model.blocks[index].conv.weight for index in range(3)]
    halves = []
    for part in (slice(0, 4), slice(4, 8)):
        halves.append(
            torch.autograd.grad(contrastive_loss(pooled[0][part], pooled[1][part]), weights, retain_graph=True)
        )
    mixed = model.blocks((VIEWS[0] + VIEWS[0].roll(1, 0)) / 2).mean((2, 3))
    expected = {
        "macs": multiply_adds(model, (3, 8, 8)),
        "effective_macs": multiply_adds(model, (3, 8, 8)),
        "expressivity": np.mean([sum(row) for row in entropies]),
        "resolution_expressivity": np.mean([row[1] + row[2] for row in entropies]),
        "progressivity": np.mean([min(row[1] - row[0], row[2] - row[1]) for row in entropies]),
        "continuity": np.mean([min(row) for row in similarities]),
        "last_entropy": np.mean([row[2] for row in entropies]),
        "trainability": np.mean([2 - value - 1 / value for value in lengths]),
        "nonlinearity": nonlinearity(mixed, (pooled[0] + pooled[0].roll(1, 0)) / 2),
        "jacov": jacov(torch.stack(jacobian)),
        "decorrelation": -math.log(-jacov(torch.stack(jacobian)) / 16 - 1),
        "depth": 4.0,
        # One activation a stage, on the only way: 4 / 3 a stage, half of which is for free; 3 activations are not deep.
        "shortcuts": -math.log(4 / 3 / 0.5) / (1 + (60 / 4) ** 10),
        "deep_continuity": (np.mean([min(row) for row in similarities]) - 0.8) / (1 + (60 / 4) ** 10),
        "naswot": naswot(torch.cat(codes)),
        "swap": distinct_patterns(codes[0]),
        "gradient_flow": gradient_flow([(a + b) / 2 for a, b in zip(*halves, strict=True)]),
        "zico": zico(*halves),
    }
    assert set(scores) == set(expected) == set(MEASURES)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(
            float(value), rel=1e-4, abs=0 if "deep" in name or name == "shortcuts" else 1e-6
        ), name


def test_the_same_bits_in_any_order_and_any_process() -> None:
    first = scores_of(Network())
    torch.manual_seed(99)
    scores_of(Network(nn.GELU), seed=3)
    assert scores_of(Network()) == first
    assert scores_of(Network(), seed=1) != first
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch; torch.set_num_threads(1)\n"
        "import test_untrained as t\n"
        "print(repr(t.scores_of(t.Network())))"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = scores_of(Network())
    finally:
        torch.set_num_threads(threads)
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == repr(here)


def test_components_do_not_depend_on_each_other() -> None:
    everything = scores_of(Network())
    for name in MEASURES:
        assert scores_of(Network(), components=[name]) == {name: everything[name]}
    assert set(DEFAULT_WEIGHTS) <= set(MEASURES)


def test_the_network_is_left_as_it_was() -> None:
    model = Network()
    model.blocks[1].eval()
    model.blocks[0].conv.weight.grad = torch.ones_like(model.blocks[0].conv.weight)
    initialise(model, 0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    views = [view.clone() for view in VIEWS]
    scores_of(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(model.blocks[0].conv.weight.grad, torch.ones_like(model.blocks[0].conv.weight))
    assert model.blocks[1].conv.weight.grad is None
    assert all(torch.equal(a, b) for a, b in zip(views, VIEWS, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_one_view_is_enough_for_what_does_not_compare_views() -> None:
    model = Network()
    initialise(model, 0)
    single = [name for name, item in MEASURES.items() if "pair" not in item.needs]
    scores = untrained_scores(model, VIEWS[0], stages=STAGES, classifier="classifier", components=single)
    assert all(math.isfinite(value) and value > WORST for value in scores.values())
    both = untrained_scores(model, VIEWS[0], VIEWS[0], stages=STAGES, classifier="classifier", components=single)
    for name in ("expressivity", "progressivity", "continuity", "nonlinearity", "effective_macs", "swap"):
        assert scores[name] == both[name]
    with pytest.raises(ConfigError, match="gradient_flow compares two views"):
        untrained_scores(model, VIEWS[0], stages=STAGES, classifier="classifier")


def test_average_scores_are_means_over_initialisations() -> None:
    names = tuple(DEFAULT_WEIGHTS)
    arguments: dict[str, Any] = {"stages": STAGES, "classifier": "classifier"}
    model = Network()
    average = average_scores(model, [(VIEWS[0],), (VIEWS[1],)], 3, **arguments)
    parts = []
    for index in range(2):
        initialise(model, 3 * 1009 + index)
        parts.append(untrained_scores(model, VIEWS[index], components=names, **arguments))
    assert parts[0] != parts[1]
    assert average == pytest.approx({name: (parts[0][name] + parts[1][name]) / 2 for name in names}, rel=1e-12)
    assert average == average_scores(Network(), [(VIEWS[0],), (VIEWS[1],)], 3, **arguments)
    dead = average_scores(Dead("detached"), [(VIEWS[0],), (VIEWS[1],)], 3, **arguments)
    assert dead == dict.fromkeys(names, WORST)
    with pytest.raises(ConfigError, match="draws is empty"):
        average_scores(model, [], 0, **arguments)


class Dead(Network):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks[0](x)
        y = {"disconnected": y * 0, "detached": y.detach(), "nan": y * math.nan, "constant": torch.ones_like(y)}[
            self.kind
        ]
        return self.classifier(self.blocks[2](self.blocks[1](y)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["disconnected", "detached", "nan", "constant"])
def test_dead_networks_get_the_worst_finite_score(kind: str) -> None:
    scores = scores_of(Dead(kind))
    assert scores == dict.fromkeys(MEASURES, WORST)


def test_layers_that_do_nothing_do_not_count() -> None:
    class Idle(Network):
        def __init__(self) -> None:
            super().__init__()
            self.unread = nn.Conv2d(4, 4, 3, padding=1)
            self.fed_zero = nn.Conv2d(4, 4, 1)
            self.annulled = nn.Conv2d(4, 4, 5, padding=2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.blocks[0](x)
            self.unread(y)
            y = y + self.fed_zero(y * 0) + self.annulled(y) * 0
            return self.classifier(self.blocks[2](self.blocks[1](y)).mean((2, 3)))

    plain = scores_of(Network(), components=["effective_macs"])
    assert multiply_adds(Idle(), (3, 8, 8)) == plain["effective_macs"] + 64 * 4 * 4 * (9 + 1 + 25)
    assert scores_of(Idle(), components=["effective_macs"]) == plain


class Mix(torch.autograd.Function):
    """A product in a function of the user's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.einsum("oc,bchw->bohw", weight, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, torch.einsum("oc,bohw->bchw", *ctx.saved_tensors, gradient)


class Product(nn.Module):
    """A convolution and a product that no layer is."""

    def __init__(self, hide: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.hide = hide

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return Mix.apply(self.weight, x) if self.hide else torch.einsum("oc,bchw->bohw", self.weight, x)


LAYERS = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1, groups=3), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, 2, bias=False))


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        (LAYERS, 0),
        (CellNetwork(NAMED_GENOTYPES["DARTS_V2"], 5, 4), 0),
        (CellNetwork(NAMED_GENOTYPES["DARTS_V1"], 5, 4, stem="imagenet"), 0),
        # What is no layer is only counted by a pass of its own.
        (nn.Sequential(nn.Conv2d(3, 6, 2, 2), nn.ConvTranspose2d(6, 4, 2, 2)), 1),
        (Product(hide=False), 1),
        (Product(hide=True), 1),
    ],
    ids=["layers", "cells", "imagenet", "transposed", "function", "hidden"],
)
def test_multiply_adds_are_known_from_the_pass_that_scores(
    model: nn.Module, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone(model, 64)
    stages = [f"model.{stage.name}" if stage.name else "model" for stage in backbone.structure.stages]
    counted = []
    monkeypatch.setattr(look, "multiply_adds", lambda *args: counted.append(args) or multiply_adds(*args))
    views = rand(2, 4, 3, 64, 64)
    scores = untrained_scores(backbone, *views, stages=stages, components=["macs"])
    assert scores["macs"] == multiply_adds(backbone, (3, 64, 64)) > 0
    assert len(counted) == passes


def test_a_network_that_ends_in_batch_norm_has_a_jacobian() -> None:
    """The sum of its features is constant; alternating signs see through that."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    initialise(model, 0)
    scores = untrained_scores(model, *VIEWS, stages=["1", "3"])
    assert -1e4 < scores["jacov"] < 0
    assert scores["effective_macs"] == multiply_adds(model, (3, 8, 8))


@pytest.mark.parametrize(
    "activation", [nn.GELU, nn.Hardswish, nn.SiLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Tanh, nn.ELU]
)
def test_any_activation_has_a_code(activation: type[nn.Module]) -> None:
    scores = scores_of(Network(activation))
    relu = scores_of(Network())
    assert all(value > WORST for value in scores.values())
    # The first block sees the same input whatever the activation is.
    assert scores["naswot"] == pytest.approx(relu["naswot"], rel=0.2)


def test_functions_have_the_codes_of_layers() -> None:
    class Functional(Block):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.conv(x)), inplace=True)

    model, same = Network(), Network()
    same.blocks = nn.Sequential(Functional(3, 4), Functional(4, 4), Functional(4, 8, 2))
    assert scores_of(same) == scores_of(model)
    method = Network()
    for block in method.blocks:
        block.activation.forward = torch.Tensor.relu  # type: ignore[method-assign]
    assert scores_of(method) == scores_of(model)


def test_a_transformer() -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 16, 4, 4)
            self.position = nn.Parameter(0.02 * torch.randn(1, 4, 16))
            layers = [nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True) for _ in range(2)]
            self.blocks = nn.Sequential(*layers)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2) + self.position
            return self.head(self.blocks(x).mean(1))

    scores = scores_of(Transformer(), stages=["patch", "blocks.0", "blocks.1"], classifier="head")
    assert all(value > WORST for value in scores.values())
    assert scores == scores_of(Transformer(), stages=["patch", "blocks.0", "blocks.1"], classifier="head")


def test_initialise_gives_a_layer_the_same_weights_whatever_is_beside_it() -> None:
    small, large = Network(), Network()
    large.extra = nn.Linear(3, 3)
    initialise(small, 5)
    initialise(large, 5)
    assert all(torch.equal(value, large.state_dict()[name]) for name, value in small.state_dict().items())
    before = small.blocks[0].conv.weight.clone()
    initialise(small, 6)
    assert not torch.equal(small.blocks[0].conv.weight, before)
    assert not torch.equal(small.blocks[1].conv.weight, small.blocks[0].conv.weight[:, :1].expand(4, 4, 3, 3))


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="unknown component 'jacof'; did you mean 'jacov'"):
        scores_of(Network(), components=["jacof"])
    model = Network()
    with pytest.raises(ConfigError, match="at least 4 images"):
        untrained_scores(model, VIEWS[0][:2], stages=STAGES)
    with pytest.raises(ConfigError, match="must be equal"):
        untrained_scores(model, VIEWS[0], VIEWS[1][:4], stages=STAGES)
    with pytest.raises(ConfigError, match="stages is empty"):
        untrained_scores(model, *VIEWS, stages=[])
    with pytest.raises(SpaceError, match="stage 'classifier' gives no features"):
        untrained_scores(model, *VIEWS, stages=["classifier"])
    assert measured.SWAP_IMAGES <= 62
