"""Searches for a trade-off: ``objectives`` in a tuner's ``classArgs``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nni import NoMoreTrialError, dump

from nni_cssnas.base.selection import marginal_volumes
from nni_cssnas.bridge.strategies import TPE
from nni_cssnas.errors import ConfigError
from nni_cssnas.judge.screening import Screened
from nni_cssnas.results.records import TrialRecord
from nni_cssnas.spaces import CellSpace, decode, random_choices
from nni_cssnas.spaces.network import CellNetwork
from nni_cssnas.tuners.failures import ENOUGH
from nni_cssnas.tuners.journal import NAME
from nni_cssnas.tuners.objectives import Objectives
from nni_cssnas.tuners.tpe import Tpe

CHOICES: dict[str, Any] = {f"c{i}": {"_type": "choice", "_value": [f"v{j}" for j in range(5)]} for i in range(6)}
TWO = {"score": "maximize", "params": "minimize"}
THREE = TWO | {"latency_ms": "minimize"}


def metric(parameters: dict[str, str]) -> dict[str, float]:
    """Quality grows more slowly than size; one choice makes slow and nothing else."""
    values = [int(value[1:]) for _, value in sorted(parameters.items())]
    return {
        "default": float(sum(map(math.sqrt, values[:5]))),
        "params": 1e5 * sum(values[:5]),
        "latency_ms": 1.0 + values[5] + 0.1 * values[0],
    }


def tuner(objectives: Any = None, seed: int = 0, **arguments: Any) -> Tpe:
    made = Tpe(seed=seed, tpe_args={"n_startup_jobs": 8}, objectives=objectives, **arguments)
    made.update_search_space(CHOICES)
    return made


def run(
    made: Tpe, numbers: range, report: Callable[[dict[str, str]], Any] = metric, fails: int = 0
) -> list[dict[str, str]]:
    proposals = []
    for number in numbers:
        proposals.append(made.generate_parameters(number))
        failed = fails and number % fails == 0
        if not failed:
            made.receive_trial_result(number, proposals[-1], report(proposals[-1]))
        made.trial_end(number, not failed)
    return proposals


def volume(proposals: list[dict[str, str]], names: tuple[str, ...]) -> float:
    found = [[metric(item)[name] * (1 if name == "default" else -1) for name in names] for item in proposals]
    worst = {"default": 0.0, "params": -2e6, "latency_ms": -5.4}
    return float(marginal_volumes(found, [worst[name] for name in names]).sum())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(folder))
    return folder


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({"params": "minimise"}, r"objectives: params is 'minimise'; did you mean 'minimize'\?"),
        ({"params": None}, "objectives: params is None; known: 'maximize', 'minimize'"),
        ({}, r"objectives is \{\}; it must be a mapping"),
        (["score", "params"], "it must be a mapping, as {score: maximize, params: minimize}"),
        ({1: "minimize"}, "objectives names 1; a name must be a text"),
        ({"score": "maximize", "default": "maximize"}, "objectives names the score twice"),
    ],
)
def test_wrong_objectives_are_refused(objectives: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tpe(objectives=objectives)


def test_two_arguments_must_not_both_give_a_direction() -> None:
    with pytest.raises(ConfigError, match="optimize_mode is 'minimize', but objectives gives every direction"):
        Tpe("minimize", objectives=TWO)


@pytest.mark.parametrize("name", ["score", "default"])
def test_the_score_as_the_only_objective_is_the_same_search(name: str) -> None:
    assert run(tuner({name: "maximize"}), range(60), fails=7) == run(tuner(), range(60), fails=7)


def test_another_number_as_the_only_objective_is_the_same_search() -> None:
    by_score = run(
        tuner(optimize_mode="minimize"), range(60), lambda parameters: {"default": metric(parameters)["params"]}
    )
    assert run(tuner({"params": "minimize"}), range(60)) == by_score


@pytest.mark.parametrize("objectives", [TWO, THREE], ids=["two", "three"])
def test_finds_more_of_the_front_than_chance(objectives: dict[str, str]) -> None:
    names = Objectives.of(objectives, "maximize").names
    found = [volume(run(tuner(objectives, seed), range(100)), names) for seed in range(4)]
    drawn = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        drawn.append(volume([{name: f"v{rng.integers(5)}" for name in CHOICES} for _ in range(100)], names))
    assert np.mean(found) > np.mean(drawn) + np.std(drawn)


def test_running_trials_differ_and_the_search_goes_on() -> None:
    made = tuner(TWO)
    waiting: list[tuple[int, dict[str, str]]] = []
    proposals = []
    for number in range(80):
        waiting.append((number, made.generate_parameters(number)))
        proposals.append(waiting[-1][1])
        if len(waiting) == 4:
            index, parameters = waiting.pop(0)
            made.trial_end(index, True)  # NNI's other thread was faster
            made.receive_trial_result(index, parameters, metric(parameters))
    assert len({str(item) for item in proposals}) == 80
    assert volume(proposals[40:], ("default", "params")) > volume(proposals[:40], ("default", "params"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "n/a"])
def test_one_number_that_is_none_makes_a_trial_a_failed_one(bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = tuner(THREE)
    run(made, range(12), lambda parameters: metric(parameters) | ({"params": bad} if parameters["c0"] == "v0" else {}))
    for params, losses in made._table.trials:
        assert (losses == (math.inf,) * 3) == (params["c0",] == 0)
    assert "the params of parameters" in caplog.text
    assert "it counts as the worst" in caplog.text


def test_objectives_that_no_trial_reports_end_the_search(caplog: pytest.LogCaptureFixture) -> None:
    made = tuner(TWO | {"latency": "minimize"})
    run(made, range(1))
    told = "objectives names 'latency', which no trial reports: the final metric is {'default': "
    assert caplog.text.count(told) == 1  # at once, since the first trial tells it
    run(made, range(1, ENOUGH))
    with pytest.raises(NoMoreTrialError):
        made.generate_parameters(ENOUGH)
    assert caplog.text.count(told) == 2
    assert "the search ends here" in caplog.text


def test_trials_that_report_a_number_only_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    run(tuner(TWO), range(1), lambda parameters: 0.5)
    assert "objectives names 'params', which no trial reports: the final metric is 0.5;" in caplog.text


def test_one_trial_that_reports_all_keeps_the_search_going() -> None:
    made = tuner(TWO)
    run(made, range(1))
    run(made, range(1, 3 * ENOUGH), lambda parameters: metric(parameters)["default"])
    assert made.generate_parameters(99)


@pytest.mark.parametrize("objectives", [TWO, THREE, {"params": "minimize"}])
def test_a_restarted_tuner_knows_all_objectives(objectives: dict[str, str], folder: Path) -> None:
    first = tuner(objectives)
    before = run(first, range(20), fails=6)
    second = tuner(objectives)
    assert second._table.trials == first._table.trials
    after = run(second, range(10))
    assert not [item for item in after if item in before]
    assert tuner(objectives)._table.trials == second._table.trials


def test_a_line_of_the_journal(folder: Path) -> None:
    run(tuner(TWO), range(1), lambda parameters: {"default": 0.5, "params": 7, "macs": 9.0})
    assert '{"judged":0,"session":0,"score":0.5,"objectives":{"default":0.5,"params":7.0}}' in (
        folder / NAME
    ).read_text().split("\n")


def test_a_journal_without_an_objective_leaves_its_trials_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tuner(), range(5))
    made = tuner(TWO)
    assert len(made._table) == 0
    assert "of its objectives, only default are known" in caplog.text
    run(made, range(5))
    assert len(tuner()._table) == 10  # the score alone is known of all


def test_what_nni_replays(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = tuner(TWO)
    proposals = run(first, range(10), fails=5)
    second = tuner(TWO)
    fresh = [dict.fromkeys(CHOICES, f"v{index}") for index in range(3)]
    data = [{"parameter": item, "value": metric(item)} for item in [*proposals, *fresh[:2]]]
    second.import_data(dump([*data, {"parameter": fresh[2], "value": 3.0}]))
    # The two that had failed were run again.
    assert sorted(losses for _, losses in second._table.trials) == sorted(
        (-metric(item)["default"], metric(item)["params"]) for item in [*proposals, *fresh[:2]]
    )
    assert "left out a trial that reports only default" in caplog.text
    assert sorted(losses for _, losses in tuner(TWO)._table.trials) == sorted(
        losses for _, losses in second._table.trials
    )


def test_what_finished_without_a_tuner_is_learned_with_all_objectives(folder: Path) -> None:
    first = tuner(TWO)
    parameters = first.generate_parameters(0)
    record = TrialRecord("e", "a", 0, None, parameters, status="succeeded", score=7.5, components={"params": 8.0})
    record.write(folder.parent / "trials" / "a")
    assert [losses for _, losses in tuner(TWO)._table.trials] == [(-7.5, 8.0)]


def test_a_checkpoint_of_nnis_experiment_holds_all_objectives() -> None:
    first, second = TPE(objectives=TWO), TPE(objectives=TWO)
    for strategy in (first, second):
        strategy.tuner.update_search_space(CHOICES)
    run(first.tuner, range(10))
    second.load_state_dict(first.state_dict())
    assert second.tuner.history() == first.tuner.history()
    assert second.tuner._table.trials == first.tuner._table.trials


def test_a_changed_space_keeps_all_objectives() -> None:
    made = tuner(TWO)
    run(made, range(10))
    before = [losses for _, losses in made._table.trials]
    made.update_search_space({**CHOICES})
    assert [losses for _, losses in made._table.trials] == before


class Screening:
    """Of all candidates, the score and the parameters of :func:`metric`."""

    def screen(self, parameters: dict[str, str]) -> Screened:
        found = metric(parameters)
        return Screened(parameters, found["default"], {"params": found["params"]})


def test_screening_counts_the_network_that_will_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("proxy.yml").write_text("images: {source: random}\ntarget: {num_cells: 5, channels: 7}\n")
    space = CellSpace()
    choices = random_choices(space, np.random.default_rng(0))
    genotype = space.genotype_of(decode(space, choices))
    made = tuner({"params": "minimize", "depth": "maximize"}, screen={"candidates": 2})
    measured = Screened(choices, 0.5, {"params": 1.0, "depth": 3.0}, genotype)
    network = CellNetwork(genotype, 5, 7)
    assert made._untrained_scores(choices, measured) == (-sum(weight.numel() for weight in network.parameters()), 3.0)


def test_screening_takes_what_no_other_candidate_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("proxy.yml").write_text("images: {source: random}\n")
    made = tuner(TWO, screen={"candidates": 6})
    made._screener = Screening()
    seen: list[dict[str, str]] = []
    propose = made._propose
    made._propose = lambda number: seen.append(propose(number)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
    for number in range(10):
        seen.clear()
        taken = metric(made.generate_parameters(number))
        others = [metric(item) for item in seen]
        assert len(others) == 6
        assert not [
            other
            for other in others
            if other["default"] >= taken["default"]
            and other["params"] <= taken["params"]
            and (other["default"], other["params"]) != (taken["default"], taken["params"])
        ]


def test_nothing_is_logged_of_a_search_that_goes_well(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run(tuner(THREE), range(30))
    assert not caplog.records
