from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nni import NoMoreTrialError
from typer.testing import CliRunner

from nni_cssnas.bridge.evaluator import ProxyEvaluator
from nni_cssnas.cli import app
from nni_cssnas.config import ConstraintsConfig, ProxyConfig
from nni_cssnas.errors import ConfigError, ExperimentError
from nni_cssnas.genotype import Genotype
from nni_cssnas.judge.costs import Costs
from nni_cssnas.judge.feasibility import Feasibility
from nni_cssnas.judge.proxy import Candidate
from nni_cssnas.judge.screening import Screener
from nni_cssnas.results.screening_log import LOG_NAME
from nni_cssnas.scores.combine import DEAD
from nni_cssnas.scores.cost import multiply_adds, num_parameters
from nni_cssnas.spaces import CellNetwork, decode, search_space
from nni_cssnas.spaces.operations import SpareLayers, make_operation
from nni_cssnas.tuners.tpe import Tpe

SETTINGS: dict[str, Any] = {
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "images": {"source": "tiles", "num_images": 64},
    "untrained": {"batch_size": 8},
    "threads": 1,
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proxy.yml").write_text(json.dumps(SETTINGS))


def test_a_screened_score_is_the_trials(tmp_path: Path) -> None:
    screener = Screener(ProxyConfig(**SETTINGS))
    for parameters in screener.random(3, seed=1):
        item = screener.screen(parameters)
        sample = decode(screener.space, item.choices)
        trial = ProxyEvaluator(ProxyConfig(**SETTINGS)).run(
            lambda sample=sample: screener.space.freeze(sample), item.choices
        )
        assert item.score == trial.score
        assert item.components == trial.components


def test_the_draw_is_reproducible_and_never_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    screener = Screener(ProxyConfig(**SETTINGS))
    first = list(screener.random(4, seed=5))
    assert first == list(screener.random(4, seed=5))
    assert first != list(screener.random(4, seed=6))
    assert len({json.dumps(item, sort_keys=True) for item in first}) == 4
    # a space of one architecture
    monkeypatch.setattr("nni_cssnas.judge.screening.random_choices", lambda space, rng: first[0])
    assert list(screener.random(5, seed=0)) == [first[0]]


def proposals(tuner: Tpe, number: int) -> list[dict[str, Any]]:
    tuner.update_search_space(search_space(Screener(ProxyConfig(**SETTINGS)).space))
    found = []
    for index in range(number):
        found.append(tuner.generate_parameters(index))
        tuner.receive_trial_result(index, found[-1], float(index % 3))
        tuner.trial_end(index, True)
    return found


def test_the_tuner_tries_the_best_of_its_proposals() -> None:
    plain = proposals(Tpe(seed=0), 4)
    screened = proposals(Tpe(seed=0, screen={"candidates": 4}), 1)
    screener = Screener(ProxyConfig(**SETTINGS))
    # The first four of plain TPE are drawn at random: they are the candidates.
    scores = [screener.screen(item).score for item in plain]
    assert screened[0] == plain[scores.index(max(scores))]


@pytest.mark.parametrize("screen", [None, {"candidates": 1}])
def test_off_is_plain_tpe(screen: dict[str, Any] | None) -> None:
    assert proposals(Tpe(seed=0, screen=screen), 25) == proposals(Tpe(seed=0), 25)


def test_rejected_proposals_may_come_again_and_the_end_of_the_space_is_said() -> None:
    from nni import NoMoreTrialError

    tuner = Tpe(seed=0, screen={"candidates": 3})

    class Fake:
        def screen(self, parameters: dict[str, Any]) -> Any:
            return type("Scored", (), {"score": float(parameters["a"])})

    tuner._screener = Fake()
    tuner.update_search_space({"a": {"_type": "choice", "_value": list(range(5))}})
    found = []
    for index in range(5):
        found.append(tuner.generate_parameters(index)["a"])
        tuner.receive_trial_result(index, {}, 1.0)
        tuner.trial_end(index, True)
    assert sorted(found) == list(range(5))
    assert found[-2:] == [1, 0]
    with pytest.raises(NoMoreTrialError):
        tuner.generate_parameters(9)


@pytest.mark.parametrize(
    ("screen", "message"),
    [
        ({"candidates": 0}, "candidates is 0: input should be greater than or equal to 1"),
        ({"candidate": 3}, "unknown key 'candidate'; did you mean 'candidates'"),
    ],
)
def test_a_wrong_screen_is_refused_at_once(screen: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Tpe(screen=screen)
    assert message in str(caught.value)


def test_a_missing_proxy_is_named() -> None:
    # In the constructor, whose errors NNI reports.
    for setting in ("screen", "constraints"):
        with pytest.raises(ConfigError, match=rf"{setting}: proxy is 'elsewhere.yml', which is neither in"):
            Tpe(**{setting: {"proxy": "elsewhere.yml"}})
    Tpe(screen={"candidates": 1, "proxy": "elsewhere.yml"})  # no screening at all


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), TypeError("a layer of the user's")])
def test_what_fails_while_it_proposes_does_not_end_the_tuner(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ProxyConfig(**SETTINGS)
    choices = Screener(config).search_space

    def fail(*_: object) -> None:
        raise error

    tuner = Tpe(seed=0, screen={"candidates": 2})
    tuner.update_search_space(choices)
    monkeypatch.setattr("nni_cssnas.judge.screening.Screener.screen", fail)
    assert tuner.generate_parameters(0).keys() == choices.keys()
    monkeypatch.setattr("nni_cssnas.judge.screening.Screener.__init__", fail)
    other = Tpe(seed=0, screen={"candidates": 2})
    other.update_search_space(choices)
    assert other.generate_parameters(0).keys() == choices.keys()
    assert other.generate_parameters(1).keys() == choices.keys()
    monkeypatch.setattr("nni_cssnas.judge.costs.cells_cost", fail)
    parameters = tuner.generate_parameters(1)
    problem = Feasibility(ConstraintsConfig(max_params=10**9), config).problem(parameters)
    assert problem == f"the network cannot be built: {type(error).__name__}: {error}"
    monkeypatch.setattr("nni_cssnas.judge.feasibility.Feasibility.__init__", fail)
    third = Tpe(seed=0, constraints={})
    third.update_search_space(choices)
    with pytest.raises(NoMoreTrialError):
        third.generate_parameters(0)


def test_the_command_writes_a_ranked_table_and_the_best(tmp_path: Path) -> None:
    arguments = ["screen", "proxy.yml", "--num", "3", "--guided", "2", "--seed", "3", "--workers", "1", "-o", "found"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "found" / "screen.csv").open()))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    Genotype.parse((tmp_path / "found" / "genotype.json").read_text())
    assert (tmp_path / "found" / "genotype.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "found" / "screen.csv").read_bytes()
    (tmp_path / "found" / LOG_NAME).unlink()  # without it, the files may be somebody else's
    with pytest.raises(ExperimentError, match=r"screen.csv is there already"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (tmp_path / "found" / "screen.csv").read_bytes() == before


def test_constraints_are_kept_before_a_trial_is_spent() -> None:
    space = Screener(ProxyConfig(**SETTINGS)).space
    free = proposals(Tpe(seed=0), 6)

    def size(choices: Any) -> int:
        # The network that will be trained: with no target, DARTS's.
        return num_parameters(CellNetwork(space.genotype_of(decode(space, choices)), 20, 36))

    sizes = [size(item) for item in free]
    limit = sorted(sizes)[2]
    tuner = Tpe(seed=0, constraints={"max_params": limit})
    kept = proposals(tuner, 6)
    assert all(size(item) <= limit for item in kept)
    assert kept[0] == next(item for item, size in zip(free, sizes, strict=True) if size <= limit)
    rejected = [loss for _, loss in tuner._table.trials if loss == float("inf")]
    assert rejected


@pytest.mark.parametrize("name", ["max_params", "max_macs", "max_latency_ms"])
def test_a_problem_names_constraint_and_value(name: str) -> None:
    config = ProxyConfig(**SETTINGS)
    (parameters,) = Screener(config).random(1, seed=0)
    tight = Feasibility(ConstraintsConfig(**{name: 1 if name != "max_latency_ms" else 1e-6}), config)
    assert re.match(rf"{name} is \S+, and it has \S+", tight.problem(parameters) or "")
    assert Feasibility(ConstraintsConfig(**{name: 10**12}), config).problem(parameters) is None


def test_a_tuner_finds_what_no_random_draw_does(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ProxyConfig(**SETTINGS)
    costs = Costs(config, Screener(config).space)
    limit = int(1.02 * min(costs.of(item)["params"] for item in Screener(config).random(300, seed=1)))
    tuner = Tpe(seed=0, constraints={"max_params": limit})
    kept = proposals(tuner, 5)
    assert all(costs.of(item)["params"] <= limit for item in kept)
    assert len({json.dumps(item, sort_keys=True) for item in kept}) == 5


def test_constraints_that_cannot_be_kept_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nni_cssnas.tuners.base.ATTEMPTS", 5)
    with pytest.raises(NoMoreTrialError):
        proposals(Tpe(seed=0, constraints={"max_params": 1}), 1)
    with pytest.raises(ConfigError, match=r"max_parms.*did you mean 'max_params'"):
        Tpe(constraints={"max_parms": 1})


def test_the_target_is_counted_and_not_what_is_scored() -> None:
    small = ProxyConfig(**SETTINGS, target={"num_cells": 5, "channels": 6, "stem": "imagenet", "size": 64})
    screener = Screener(small)
    (choices,) = screener.random(1, seed=0)
    network = CellNetwork(screener.space.genotype_of(decode(screener.space, choices)), 5, 6, stem="imagenet")
    params, macs = num_parameters(network), multiply_adds(network, (3, 64, 64))
    for limits in ({"max_params": params}, {"max_macs": macs}):
        assert Feasibility(ConstraintsConfig(**limits), small).problem(choices) is None
        tighter = {name: value - 1 for name, value in limits.items()}
        assert Feasibility(ConstraintsConfig(**tighter), small).problem(choices) is not None
    assert Costs(small, screener.space).of(choices) == {"params": params, "macs": macs}


def test_what_is_too_large_is_mended_nearby() -> None:
    config = ProxyConfig(**SETTINGS)
    screener = Screener(config)
    sizes = sorted(Costs(config, screener.space).of(item)["params"] for item in screener.random(200, seed=0))
    within = Feasibility(ConstraintsConfig(max_params=int(sizes[2])), config)
    large = next(item for item in screener.random(50, seed=1) if within.problem(item))
    rng = np.random.default_rng(0)
    mended = within.mended(large, rng)
    assert mended is not None
    assert within.problem(mended) is None
    assert sum(mended[name] == value for name, value in large.items()) > len(large) / 3
    assert Feasibility(ConstraintsConfig(max_params=1), config).mended(large, rng) is None


@pytest.mark.parametrize("limits", [{"max_params": 1000}, {"max_params": 10**9, "max_macs": 1000}])
def test_a_limit_that_nothing_keeps_is_one_line_with_the_smallest(limits: dict[str, Any]) -> None:
    config = ProxyConfig(**SETTINGS)
    name = list(limits)[-1]
    with pytest.raises(ConfigError) as caught:
        Feasibility(ConstraintsConfig(**limits), config).check_possible(0)
    said = re.fullmatch(
        rf"{name} is 1,000, but the smallest network of nni_cssnas.spaces:CellSpace that a search through 600 found has "
        r"(\S+) \(20 cells, 36 channels, without classifier\); allow more, or search for a smaller target",
        str(caught.value),
    )
    assert said
    smallest = float(said[1].replace(",", ""))
    sizes = [Costs(config, Screener(config).space).of(item) for item in Screener(config).random(200, seed=5)]
    assert 1000 < smallest < min(size[name.removeprefix("max_")] for size in sizes)
    Feasibility(ConstraintsConfig(**{name: int(1.2 * smallest)}), config).check_possible(0)


@pytest.mark.slow
def test_what_a_space_forbids_is_worst_and_no_exception() -> None:
    # An exception in the tuner would hang the experiment.
    settings = SETTINGS | {
        "space": {"name": "nni.nas.hub.pytorch:NasBench101"},
        "views": {"input_size": 32},
    }
    screener = Screener(ProxyConfig(**settings))
    forbidden = {
        label: "[]" if "input" in label else spec["_value"][0] for label, spec in screener.search_space.items()
    }
    assert screener.screen(forbidden).score == DEAD


@pytest.mark.slow
def test_the_constraints_of_a_space_itself(tmp_path: Path) -> None:
    arguments = {"stem_out_channels": 16, "num_modules_per_stack": 1}
    space = {"name": "nni.nas.hub.pytorch:NasBench101", "arguments": arguments}
    settings = {"space": space, "images": {"size": 32}}
    (tmp_path / "proxy.yml").write_text(json.dumps(settings))
    feasible = Feasibility(ConstraintsConfig(), ProxyConfig.load("proxy.yml"))
    tuner = Tpe(seed=0, constraints={})
    tuner.update_search_space(search_space(feasible.space))
    for number in range(5):
        assert feasible.problem(tuner.generate_parameters(number)) is None
    assert any(loss == float("inf") for _, loss in tuner._table.trials)


@pytest.mark.parametrize("score", ["untrained", "contrastive"])
def test_layers_are_used_again_where_their_weights_are_drawn_anew(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"images": {"source": "tiles", "num_images": 64}, "score": score, "threads": 1}
    short = {"untrained": {"batch_size": 8}, "contrastive": {"epochs": 2, "batch_size": 32}}
    config = ProxyConfig(**settings, **short, space={"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}})
    screener = Screener(config)
    built: list[CellNetwork] = []
    build = screener.proxy.build

    def noted(candidate: Candidate) -> Any:
        built.append(build(candidate))
        return built[-1]

    monkeypatch.setattr(screener.proxy, "build", noted)
    drawn = list(screener.random(4, 0))
    found = [screener.screen(choices).score for choices in drawn]
    # Each as a screener finds it that has seen no other.
    assert found == [Screener(config, screener.proxy.images).screen(choices).score for choices in drawn]
    layers = [[edge for cell in network.cells.values() for edge in cell.edges.values()] for network in built]
    assert all(len(set(map(id, edges))) == len(edges) for edges in layers)
    again = {id(edge) for edge in layers[0]} & {id(edge) for edges in layers[1:] for edge in edges}
    assert bool(again) == (score == "untrained")


def test_spare_layers_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpareLayers, "LIMIT", 5)
    spare = SpareLayers()
    for channels in range(1, 10):
        with spare.used():
            for _ in range(3):
                make_operation("sep_conv_3x3", channels, 1)
        spare.take_back()
        assert sum(map(len, spare._spare.values())) <= 5
    # A network that is not done with keeps its layers.
    with spare.used():
        first = make_operation("sep_conv_3x3", 4, 1)
    with spare.used():
        second = make_operation("sep_conv_3x3", 4, 1)
    assert second is not first
    spare.take_back()
    with spare.used():
        assert make_operation("sep_conv_3x3", 4, 1) is second
        assert make_operation("sep_conv_3x3", 4, 2) is not second
    assert make_operation("sep_conv_3x3", 4, 1) is not second
