from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import nni.nas.hub.pytorch as hub
import numpy as np
import pytest

from nni_cssnas.config import SpaceConfig
from nni_cssnas.errors import InvalidSampleError, SpaceError
from nni_cssnas.spaces import CellSpace, decode, encode, make_space, random_choices, search_space
from nni_cssnas.spaces.architecture import read_architecture
from nni_cssnas.spaces.encoding import _flat, has_constraints
from nni_cssnas.spaces.primitives import Categorical, CategoricalMultiple, Constraint, ModelSpace, Numerical, choice


class NoChoice(ModelSpace):  # type: ignore[misc]
    """A space with nothing to search."""


class OneValue(ModelSpace):  # type: ignore[misc]
    """A space with a choice of one value beside a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.add_mutable(choice("fixed", [3]))
        self.add_mutable(choice("width", [8, 16]))


def test_a_space_without_choice_is_refused() -> None:
    with pytest.raises(SpaceError, match="NoChoice has no choice"):
        search_space(NoChoice())


def test_choices_of_one_value_are_not_searched_but_decoded() -> None:
    space = OneValue()
    assert search_space(space) == {"width": {"_type": "choice", "_value": [8, 16]}}
    assert decode(space, {"width": 16}) == {"fixed": 3, "width": 16}


def test_decode_refuses_what_the_space_does_not_have() -> None:
    space = CellSpace(num_nodes=4, num_cells=3, channels=4)
    parameters = random_choices(space, np.random.default_rng(0))
    assert decode(space, parameters) == parameters
    with pytest.raises(
        SpaceError, match=r"no choice 'normal_2_frist'; did you mean 'normal_2_first'.*nni-cssnas space"
    ):
        decode(space, parameters | {"normal_2_frist": "skip_connect"})
    with pytest.raises(SpaceError, match="has no value"):
        decode(space, {})
    with pytest.raises(SpaceError, match="did you mean 'skip_connect'"):
        decode(space, parameters | {"normal_2_first": "skip_conect"})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("no_such_module_x:Space", {}, "cannot import module 'no_such_module_x'"),
        ("nni_cssnas.spaces:CelSpace", {}, "did you mean 'CellSpace'"),
        ("nni.nas.hub.pytorch:NasBench201", {"no_such": 1}, "cannot be made with"),
        ("collections:OrderedDict", {}, "is no NNI ModelSpace"),
    ],
)
def test_make_space_explains(name: str, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        make_space(SpaceConfig(name=name, arguments=arguments))


def test_make_space_makes_a_hub_space() -> None:
    space = make_space(SpaceConfig(name="nni.nas.hub.pytorch:NasBench201"))
    assert len(search_space(space)) == 6


CELLS: dict[str, Any] = {"width": 8, "num_cells": 3, "dataset": "cifar"}
SPACES = {
    **dict.fromkeys(("DARTS", "NASNet", "ENAS", "AmoebaNet", "PNAS"), CELLS),
    **{name: {} for name in ("MobileNetV3Space", "ProxylessNAS", "ShuffleNetSpace", "NasBench201", "AutoFormer")},
    # All of its modules are one architecture, whose weights NNI draws one by one.
    "NasBench101": {"stem_out_channels": 16, "num_modules_per_stack": 1},
}


def random_sample(space: Any) -> dict[str, Any]:
    """NNI's own draw of every choice, without building the network."""
    leaves = {str(label): leaf for label, leaf in space.simplify().items() if not isinstance(leaf, Constraint)}
    while True:
        sample = {label: leaf.random() for label, leaf in leaves.items()}
        # On a copy, for NasBench101 writes its pruned graph into what it is asked about.
        if space.contains(dict(sample)):
            return sample


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_every_hub_space_there_and_back(name: str) -> None:
    space = make_space(SpaceConfig(name=f"nni.nas.hub.pytorch:{name}", arguments=SPACES[name]))
    choices = search_space(space)
    assert json.loads(json.dumps(choices)) == choices
    assert all(isinstance(value, (str, int, float)) for spec in choices.values() for value in spec["_value"])
    assert has_constraints(space) == (name == "NasBench101")
    rng = np.random.default_rng(0)
    for number in range(10):
        sample = random_sample(space)
        parameters = json.loads(json.dumps(encode(space, sample)))
        assert parameters.keys() == choices.keys()
        assert all(parameters[label] in spec["_value"] for label, spec in choices.items())
        assert decode(space, parameters) == sample
        drawn = decode(space, random_choices(space, rng))
        assert space.contains(drawn)
        if number == 0:
            space.freeze(drawn)


@pytest.mark.parametrize("encoding", ["two-input", "edge"])
def test_cell_spaces_there_and_back(encoding: str) -> None:
    space = CellSpace(num_nodes=4, num_cells=3, channels=4, encoding=encoding)
    for _ in range(200):
        sample = random_sample(space)
        assert decode(space, json.loads(json.dumps(encode(space, sample)))) == sample


def of(*leaves: Any) -> ModelSpace:
    space = NoChoice()
    space.add_mutable(*leaves) if len(leaves) == 1 else [space.add_mutable(leaf) for leaf in leaves]
    return space


@pytest.mark.parametrize(
    ("make", "number", "constrained"),
    [
        (lambda: CategoricalMultiple(["a", "b", "c", "d"], n_chosen=2, label="x"), 6, False),
        (lambda: CategoricalMultiple([1, 2, 3], label="x"), 8, False),
        (lambda: CategoricalMultiple(range(12), n_chosen=4, label="x"), 2, True),  # 495 combinations
        (lambda: CategoricalMultiple(range(12), label="x"), 2, False),
        (lambda: Categorical([(3, 3), (5, 5)], label="x"), 2, False),
        (lambda: Categorical([None, True, "1"], label="x"), 3, False),
        (lambda: Categorical([frozenset([1]), 2j], label="x"), 2, False),
    ],
)
def test_choices_of_any_kind(make: Callable[[], Any], number: int, constrained: bool) -> None:
    space = of(make())
    for spec in search_space(space).values():
        assert len(spec["_value"]) == number
        assert len(set(map(repr, spec["_value"]))) == number
    assert has_constraints(space) == constrained
    rng = np.random.default_rng(0)
    for _ in range(30):
        parameters = random_choices(space, rng)
        sample = decode(space, parameters)
        assert space.contains(sample)
        assert encode(space, sample) == parameters
        again = decode(space, encode(space, random_sample(space)))
        assert space.contains(again)


@pytest.mark.parametrize(
    ("leaf", "spec"),
    [
        (lambda: Numerical(0.5, 2, label="x"), {"_type": "uniform", "_value": [0.5, 2]}),
        (lambda: Numerical(1, 64, log_distributed=True, label="x"), {"_type": "loguniform", "_value": [1, 64]}),
        (lambda: Numerical(8, 64, quantize=8, label="x"), {"_type": "quniform", "_value": [8, 64, 8]}),
        (lambda: Numerical(mu=1, sigma=2, label="x"), {"_type": "normal", "_value": [1, 2]}),
    ],
)
def test_numbers(leaf: Callable[[], Any], spec: dict[str, Any]) -> None:
    space = of(leaf())
    assert search_space(space) == {"x": spec}
    rng = np.random.default_rng(0)
    for _ in range(20):
        parameters = random_choices(space, rng)
        assert encode(space, decode(space, parameters)) == parameters


def test_a_wrong_number_of_candidates_is_an_invalid_sample() -> None:
    space = of(CategoricalMultiple(range(12), n_chosen=4, label="x"))
    with pytest.raises(InvalidSampleError, match="choice x takes 1 candidates; it must take 4"):
        decode(space, {f"x/{index}": int(index == 3) for index in range(12)})


def test_a_sample_that_is_not_the_spaces() -> None:
    space = of(choice("width", [8, 16]))
    with pytest.raises(SpaceError, match="sample has no choice 'width'; did you mean 'wdth'"):
        encode(space, {"wdth": 8})
    with pytest.raises(SpaceError, match="choice width is 12"):
        encode(space, {"width": 12})


@pytest.mark.slow
def test_a_constraint_is_named_with_its_reason() -> None:
    space = make_space(SpaceConfig(name="nni.nas.hub.pytorch:NasBench101"))
    parameters = random_choices(space, np.random.default_rng(0))
    empty = {label: "[]" if "input" in label else value for label, value in parameters.items()}
    with pytest.raises(InvalidSampleError, match="constraint cell/final of space NasBench101 is not met"):
        decode(space, empty)


# What NNI 3.0 can build of the architectures that its authors searched.
SEARCHED = {
    "MobileNetV3Space": ["mobilenetv3-large-100", "cream-014", "cream-043", "cream-114", "cream-287"],
    "ProxylessNAS": ["acenas-m1", "acenas-m2", "acenas-m3", "proxyless-cpu", "proxyless-gpu", "proxyless-mobile"],
}


def searched(space: str, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any], Any]:
    """The space, the sample and the network of an architecture that comes with NNI."""
    cls = getattr(hub, space)
    caught: dict[str, Any] = {}
    original = cls.frozen_factory.__func__

    def factory(kind: Any, sample: dict[str, Any]) -> Any:
        make = original(kind, sample)
        caught["sample"] = dict(sample)

        def build(**arguments: Any) -> Any:
            caught["arguments"] = arguments
            return make(**arguments)

        return build

    monkeypatch.setattr(cls, "frozen_factory", classmethod(factory))
    network = cls.load_searched_model(name)
    monkeypatch.undo()
    return cls(**caught["arguments"]), caught["sample"], network


def count(network: Any) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("space", "name"),
    [
        pytest.param(space, name, marks=() if name == "cream-014" else pytest.mark.slow)
        for space, names in SEARCHED.items()
        for name in (names if "CSSNAS_SAMPLES" in os.environ else names[:2])
    ],
)
def test_architectures_that_nni_ships(space: str, name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, sample, network = searched(space, name, monkeypatch)
    labels = {choice.label for choice in _flat(made).choices}
    assert labels - sample.keys()  # blocks that this architecture does not have
    parameters = json.loads(json.dumps(encode(made, sample)))
    assert parameters.keys() == search_space(made).keys()
    assert count(made.freeze(decode(made, parameters))) == count(network)
    # The same file for retrain --sample.
    monkeypatch.setattr("nni_cssnas.spaces.architecture.make_space", lambda config: made)
    (tmp_path / "sample.json").write_text(json.dumps(sample))
    read = read_architecture(space=f"nni.nas.hub.pytorch:{space}", sample=tmp_path / "sample.json")
    assert read.choices == parameters


def test_a_sample_of_nnis_form_is_read_as_well_as_a_tuners(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    space = of(CategoricalMultiple(["a", "b", "c", "d"], n_chosen=2, label="x"))
    monkeypatch.setattr("nni_cssnas.spaces.architecture.make_space", lambda config: space)
    path = tmp_path / "sample.json"
    for data in ({"x": ["a", "c"]}, {"x": '["a", "c"]'}):
        path.write_text(json.dumps(data))
        assert read_architecture(space="any:Space", sample=path).choices == {"x": '["a", "c"]'}
    path.write_text(json.dumps({"x": ["a", "z"]}))
    with pytest.raises(SpaceError, match="choice x is "):
        read_architecture(space="any:Space", sample=path)


OWN = """
from collections import OrderedDict

from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import nn


class Ordered(ModelSpace):
    def __init__(self, label=None):
        super().__init__()
        candidates = OrderedDict([("three", nn.Conv2d(3, 8, 3)), ("one", nn.Conv2d(3, 8, 1))])
        self.first = LayerChoice(candidates, label=label) if label else LayerChoice(candidates)


class Unlabelled(ModelSpace):
    def __init__(self):
        super().__init__()
        self.inputs = InputChoice(n_candidates=3, n_chosen=1)


class Broken(ModelSpace):
    def __init__(self):
        super().__init__()
        [][0]
"""


def test_spaces_whose_constructor_fails(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_spaces_f.py").write_text(OWN)
    (tmp_path / "own_spaces_s.py").write_text("def x(:")
    (tmp_path / "own_spaces_n.py").write_text("\nundefined\n")
    for name, message in (
        ("own_spaces_f:Ordered", r"cannot be made with .*; give every choice a name of its own, as in LayerChoice"),
        ("own_spaces_f:Unlabelled", r"cannot be made with .*; give every choice a name of its own"),
        (
            "own_spaces_f:Broken",
            r"cannot be made with \{\}: IndexError: list index out of range \(own_spaces_f.py, line 24\)",
        ),
        ("own_spaces_s:X", r"module 'own_spaces_s' fails: invalid syntax \(own_spaces_s.py, line 1\)"),
        ("own_spaces_n:X", r"fails: NameError: name 'undefined' is not defined \(own_spaces_n.py, line 2\)"),
    ):
        with pytest.raises(SpaceError, match=message) as caught:
            make_space(SpaceConfig(name=name))
        assert len(str(caught.value).splitlines()) == 1
    space = make_space(SpaceConfig(name="own_spaces_f:Ordered", arguments={"label": "op"}))
    assert search_space(space) == {"op": {"_type": "choice", "_value": ["three", "one"]}}
    assert space.freeze(decode(space, {"op": "one"})).first.kernel_size == (1, 1)
