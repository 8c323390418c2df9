"""Contracts that a space, a score or a tuner of your own can be tested against, with pytest or unittest.

Inherit one and give it what it asks for; its tests are then yours::

    from nni_cssnas.testing import TunerContract

    class TestMyTuner(TunerContract):
        def make_tuner(self, seed):
            return MyTuner(seed=seed)

This package's own spaces, scores and tuners pass them.
"""

from __future__ import annotations

import copy
import json
import math
import threading
from typing import Any

import numpy as np
import torch
from torch import nn

from nni_cssnas.spaces.backbone import Backbone
from nni_cssnas.spaces.encoding import decode, encode, random_choices, search_space

__all__ = ["ScoreContract", "SpaceContract", "TunerContract"]


class SpaceContract:
    """What a model space must do to be searched by this package.

    Attributes
    ----------
    size
        Edge of the images in pixels.
    num_samples, num_networks
        How many random architectures are encoded and frozen, and how many of these are run.
    classifier
        The layer that gives the logits, where it cannot be found.
    """

    size = 32
    num_samples = 20
    num_networks = 3
    classifier: str | None = None

    def make_space(self) -> Any:
        """A new NNI ``ModelSpace``."""
        raise NotImplementedError

    def _drawn(self, space: Any, number: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng(0)
        return [random_choices(space, rng) for _ in range(number)]

    def test_choices_are_plain_json(self) -> None:
        """``search_space.json`` holds the choices, each with at least two different values."""
        choices = search_space(self.make_space())
        assert json.loads(json.dumps(choices)) == choices
        for label, choice in choices.items():
            if choice["_type"] == "choice":
                values = choice["_value"]
                assert len(values) > 1, f"choice {label} has one value only"
                assert len(set(map(repr, values))) == len(values), f"choice {label} has the same value twice"

    def test_encoding_loses_nothing(self) -> None:
        """Choices become a sample and the same choices again, also through JSON; the sample freezes."""
        space = self.make_space()
        for choices in self._drawn(space, self.num_samples):
            sample = decode(space, json.loads(json.dumps(choices)))
            assert encode(space, sample) == choices
            assert decode(space, encode(space, sample)) == sample
            assert isinstance(space.freeze(sample), nn.Module)

    def test_the_same_choices_make_the_same_network(self) -> None:
        """Under one seed, the weights of two networks of one sample are equal."""
        space = self.make_space()
        [choices] = self._drawn(space, 1)
        states = []
        for _ in range(2):
            torch.manual_seed(0)
            states.append(space.freeze(decode(space, choices)).state_dict())
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_networks_give_features_and_train(self) -> None:
        """Features are finite, one vector for each image, and a loss on them reaches the weights."""
        space = self.make_space()
        for choices in self._drawn(space, self.num_networks):
            backbone = Backbone(space.freeze(decode(space, choices)), self.size, self.classifier)
            features = backbone(torch.randn(4, 3, self.size, self.size))
            assert features.shape == (4, backbone.num_features)
            assert torch.isfinite(features).all()
            if features.requires_grad:
                features.square().mean().backward()
                gradients = [weight.grad for weight in backbone.parameters() if weight.grad is not None]
                assert gradients
                assert all(torch.isfinite(gradient).all() for gradient in gradients)


class ScoreContract:
    """What a label-free score of a network must do."""

    size = 16

    def score(self, network: nn.Module) -> float:
        """The score of a network, larger is better. Always on the same images and seed."""
        raise NotImplementedError

    def make_network(self, width: int = 8, seed: int = 0) -> nn.Module:
        """A small network with three stages; may be replaced by one that the score can judge."""
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        channels = 3
        for stage in range(3):
            layers.append(
                nn.Sequential(
                    nn.Conv2d(channels, width << stage, 3, stride=1 if stage == 0 else 2, padding=1, bias=False),
                    nn.BatchNorm2d(width << stage),
                    nn.ReLU(),
                )
            )
            channels = width << stage
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))

    def test_is_a_finite_number(self) -> None:
        """For networks of any width."""
        for width in (4, 8, 12):
            assert math.isfinite(self.score(self.make_network(width)))

    def test_is_deterministic(self) -> None:
        """Bit for bit, whatever was scored in between and whatever the global random state is."""
        first = self.score(self.make_network())
        self.score(self.make_network(12, seed=1))
        torch.manual_seed(123)
        np.random.seed(123)  # noqa: NPY002 - the global state is what this is about
        torch.rand(7)
        assert self.score(self.make_network()) == first

    def test_tells_networks_apart(self) -> None:
        """Different architectures do not all have one score."""
        assert len({self.score(self.make_network(width)) for width in (4, 8, 16)}) > 1

    def test_a_dead_network_has_the_worst_score(self) -> None:
        """One whose output does not depend on its input: finite, and not better than a living one."""

        class Dead(nn.Module):
            def __init__(self, network: nn.Module) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: torch.Tensor) -> Any:
                return self.network(torch.zeros_like(x))

        dead, alive = self.score(Dead(self.make_network())), self.score(self.make_network())
        assert math.isfinite(dead)
        assert dead <= alive

    def test_leaves_the_global_random_state(self) -> None:
        """Scoring draws from generators of its own."""
        network = self.make_network()
        torch.manual_seed(5)
        before = torch.get_rng_state()
        self.score(network)
        assert torch.equal(before, torch.get_rng_state())


class TunerContract:
    """What an NNI tuner must do to survive NNI 3.0: see :mod:`nni_cssnas.tuners.base`.

    Attributes
    ----------
    repeats
        Whether it may propose something twice.
    """

    repeats = False

    def make_tuner(self, seed: int) -> Any:
        """A new tuner that maximises."""
        raise NotImplementedError

    def make_search_space(self, count: int = 6, size: int = 5) -> dict[str, Any]:
        """The contents of a ``search_space.json``."""
        return {
            f"c{index}": {"_type": "choice", "_value": [f"v{value}" for value in range(size)]} for index in range(count)
        }

    def objective(self, choices: dict[str, Any]) -> float:
        """The score of a proposal, with one best value for each choice."""
        return float(sum(int(str(value)[1:]) for value in choices.values()))

    def started(self, seed: int = 0, **size: int) -> Any:
        """A tuner that knows the search space."""
        tuner = self.make_tuner(seed)
        tuner.update_search_space(self.make_search_space(**size))
        return tuner

    def search(self, tuner: Any, number: int, first: int = 0) -> list[dict[str, Any]]:
        """One trial after the other; gives the proposals."""
        proposals = []
        for index in range(first, first + number):
            choices = tuner.generate_parameters(index)
            proposals.append(copy.deepcopy(choices))
            tuner.receive_trial_result(index, choices, {"default": self.objective(choices)})
            tuner.trial_end(index, True)
        return proposals

    def test_proposals_are_of_the_space(self) -> None:
        """Every choice has one of its values; each proposal is new unless the tuner may repeat."""
        space = self.make_search_space()
        proposals = self.search(self.started(), 40)
        for choices in proposals:
            assert choices.keys() == space.keys()
            assert all(choices[label] in space[label]["_value"] for label in space)
        if not self.repeats:
            assert len({json.dumps(item, sort_keys=True) for item in proposals}) == len(proposals)

    def test_same_seed_same_proposals(self) -> None:
        """And another seed, others."""
        first, again, other = (self.search(self.started(seed), 40) for seed in (1, 1, 2))
        assert first == again
        assert first != other

    def test_learns(self) -> None:
        """Later proposals are better than the first ones."""
        scores = [list(map(self.objective, self.search(self.started(seed), 80))) for seed in range(3)]
        assert np.mean([item[60:] for item in scores]) > np.mean([item[:15] for item in scores])

    def test_concurrent_proposals_differ(self) -> None:
        """Trials that run at a time are not all the same."""
        tuner = self.started()
        self.search(tuner, 30)
        running = [tuner.generate_parameters(100 + index) for index in range(4)]
        assert len({json.dumps(item, sort_keys=True) for item in running}) > 1

    def test_no_order_of_messages_raises(self) -> None:
        """Unknown ids, results after the end, twice, without a number: an exception would hang the experiment."""
        tuner = self.started()
        tuner.receive_trial_result(99, {}, 1.0)
        tuner.trial_end(99, False)
        for index, value in enumerate([float("nan"), float("inf"), None, "n/a", {}, {"loss": 1.0}, 1.0]):
            choices = tuner.generate_parameters(index)
            tuner.trial_end(index, True)
            tuner.receive_trial_result(index, choices, value)
            tuner.receive_trial_result(index, choices, 2.0)
            tuner.trial_end(index, False)
        self.search(tuner, 30, first=200)

    def test_what_is_imported_is_learned(self) -> None:
        """``nnictl resume`` replays finished trials; some may not fit the space."""
        data = [
            {"parameter": item, "value": {"default": self.objective(item)}} for item in self.search(self.started(), 30)
        ]
        tuner = self.started()
        tuner.import_data([*data, {"parameter": {"other": 1}, "value": 1.0}, {"parameter": data[0]["parameter"]}])
        fresh = [json.dumps(item, sort_keys=True) for item in self.search(tuner, 10)]
        if not self.repeats:
            known = {json.dumps(item["parameter"], sort_keys=True) for item in data}
            assert not known & set(fresh)

    def test_two_threads(self) -> None:
        """NNI ends trials from another thread than it asks for proposals."""
        tuner = self.started(count=8)
        errors: list[BaseException] = []

        def work(first: int) -> None:
            try:
                self.search(tuner, 25, first)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1000, 2000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
