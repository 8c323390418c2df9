from __future__ import annotations

import cProfile
import itertools
import math
import threading
from typing import Any

import numpy as np
import pytest
from nni import NoMoreTrialError, dump
from nni.algorithms.hpo.tpe_tuner import TpeTuner

from nni_cssnas.errors import ConfigError
from nni_cssnas.tuners.base import finite_score
from nni_cssnas.tuners.tpe import Tpe


def space(count: int, size: int) -> dict[str, Any]:
    return {
        f"c{index}": {"_type": "choice", "_value": [f"v{value}" for value in range(size)]} for index in range(count)
    }


def objective(parameters: dict[str, str]) -> float:
    """Separable: the sum of every choice's own value, fixed by its name."""
    rng = np.random.default_rng(7)
    return float(sum(rng.permutation(8)[int(value[1:])] for _, value in sorted(parameters.items())))


def run(tuner: Any, choices: dict[str, Any], trials: int) -> tuple[list[dict[str, str]], float]:
    tuner.update_search_space(choices)
    proposals = []
    for number in range(trials):
        parameters = tuner.generate_parameters(number)
        proposals.append(parameters)
        tuner.receive_trial_result(number, parameters, objective(parameters))
        tuner.trial_end(number, True)
    return proposals, max(map(objective, proposals))


def test_searches_better_than_nnis_which_turns_into_a_grid() -> None:
    choices = space(14, 8)
    ours = [run(Tpe(seed=seed), choices, 100)[1] for seed in range(5)]
    theirs = [run(TpeTuner("maximize", seed=seed), choices, 100)[1] for seed in range(5)]
    assert np.mean(ours) > np.mean(theirs)


def test_never_proposes_twice_and_says_when_there_is_no_more() -> None:
    tuner = Tpe(seed=0)
    proposals, best = run(tuner, space(3, 3), 27)
    assert len({tuple(sorted(item.items())) for item in proposals}) == 27
    assert best == max(
        objective(dict(zip(("c0", "c1", "c2"), values, strict=True)))
        for values in itertools.product(("v0", "v1", "v2"), repeat=3)
    )
    with pytest.raises(NoMoreTrialError):
        tuner.generate_parameters(27)


def test_same_seed_same_proposals() -> None:
    assert run(Tpe(seed=5), space(6, 5), 60)[0] == run(Tpe(seed=5), space(6, 5), 60)[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), None, "n/a", {}, {"loss": 1.0}])
def test_scores_that_are_none_count_as_the_worst(bad: Any) -> None:
    tuner = Tpe(seed=0, tpe_args={"n_startup_jobs": 10})
    tuner.update_search_space(space(1, 4) | space(8, 4))
    for number in range(60):
        parameters = tuner.generate_parameters(number)
        tuner.receive_trial_result(number, parameters, bad if parameters["c0"] == "v0" else {"default": 1.0})
    proposals = [tuner.generate_parameters(100 + number)["c0"] for number in range(30)]
    assert proposals.count("v0") <= 4


def test_failed_trials_count_as_the_worst() -> None:
    tuner = Tpe(seed=0, tpe_args={"n_startup_jobs": 10})
    tuner.update_search_space(space(8, 4))
    for number in range(60):
        parameters = tuner.generate_parameters(number)
        if parameters["c0"] == "v0":
            tuner.trial_end(number, False)
        else:
            tuner.receive_trial_result(number, parameters, 1.0)
            tuner.trial_end(number, True)
    assert [tuner.generate_parameters(100 + number)["c0"] for number in range(30)].count("v0") <= 4


def test_any_order_of_messages_is_survived() -> None:
    tuner = Tpe(seed=0)
    tuner.update_search_space(space(4, 4))
    tuner.receive_trial_result(99, {}, 1.0)
    tuner.trial_end(99, False)
    parameters = tuner.generate_parameters(0)
    tuner.trial_end(0, True)  # NNI's other thread was faster
    tuner.receive_trial_result(0, parameters, 2.0)
    tuner.receive_trial_result(0, parameters, float("nan"))
    tuner.trial_end(0, False)
    assert [loss for _, loss in tuner._table.trials] == [-2.0]
    assert not tuner._running_params


def test_two_threads_at_once() -> None:
    tuner = Tpe(seed=0, tpe_args={"n_startup_jobs": 5})
    tuner.update_search_space(space(8, 6))
    errors: list[BaseException] = []

    def work(numbers: range) -> None:
        try:
            for number in numbers:
                parameters = tuner.generate_parameters(number)
                if number % 3:
                    tuner.receive_trial_result(number, parameters, objective(parameters))
                tuner.trial_end(number, bool(number % 3))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(range(start, start + 100),)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(tuner._table) == 300


def test_resumed_trials_are_known_and_not_repeated() -> None:
    first = Tpe(seed=0)
    choices = space(3, 3)
    proposals, _ = run(first, choices, 20)
    second = Tpe(seed=0)
    second.update_search_space(choices)
    data = [{"parameter": item, "value": {"default": objective(item)}} for item in proposals]
    second.import_data(dump([*data, {"parameter": {"other": 1}, "value": 1}, {"value": 2}]))
    assert len(second._table) == 20
    fresh = [second.generate_parameters(number) for number in range(7)]
    assert not [item for item in fresh if item in proposals]


def learned(choices: dict[str, Any], trials: int = 40, **arguments: Any) -> Tpe:
    """A tuner that knows random trials; every fourth failed."""
    tuner = Tpe(seed=1, **arguments)
    tuner.update_search_space(choices)
    other = Tpe(seed=2, tpe_args={"n_startup_jobs": 1000})
    other.update_search_space(choices)
    rng = np.random.default_rng(3)
    for number in range(trials):
        score = None if number % 4 == 0 else float(rng.normal())
        tuner.import_data([{"parameter": other.generate_parameters(number), "value": score}])
    return tuner


@pytest.mark.parametrize("gamma", [0.2, (0.05, 0.1, 0.4)])
def test_the_promise_is_the_formula(gamma: Any) -> None:
    """The mean over the splits of sum(log l - log g), each choice counted in plain loops."""
    choices = space(4, 3)
    tuner = learned(choices, tpe_args={"gamma": gamma, "n_ei_candidates": 12, "prior_weight": 0.7})
    candidates = tuner._table.suggest(tuner.args, tuner.rng, tuner.space, [])
    trials = sorted(tuner._table.trials, key=lambda trial: trial[1])
    shares = gamma if isinstance(gamma, tuple) else (gamma,)
    promises = []
    for candidate in candidates:
        promise = 0.0
        for share in shares:
            number = math.ceil(share * 30)  # of the 40, 10 failed
            for key, value in candidate.items():
                good = sum(params[key] == value for params, _ in trials[:number])
                bad = sum(params[key] == value for params, _ in trials[number:])
                promise += math.log((good + 0.7) / (number + 3 * 0.7)) - math.log((bad + 0.7) / (40 - number + 3 * 0.7))
        promises.append(promise / len(shares))
    assert len(candidates) == 12
    assert promises == pytest.approx(sorted(promises, reverse=True))
    assert promises[0] > promises[-1]


def test_numbers_are_drawn_where_good_ones_are() -> None:
    tuner = Tpe(seed=0)
    tuner.update_search_space(
        {
            "x": {"_type": "uniform", "_value": [0, 10]},
            "y": {"_type": "normal", "_value": [0, 3]},
            "n": {"_type": "randint", "_value": [0, 5]},
        }
    )
    errors = []
    for number in range(80):
        parameters = tuner.generate_parameters(number)
        errors.append(abs(parameters["x"] - 7) + abs(parameters["y"] + 2) + abs(parameters["n"] - 3))
        tuner.receive_trial_result(number, parameters, -errors[-1])
        tuner.trial_end(number, True)
    assert np.mean(errors[-20:]) < 0.5 * np.mean(errors[:10])


@pytest.mark.parametrize("objectives", [None, {"score": "maximize", "size": "minimize"}])
@pytest.mark.parametrize("running", [0, 3])
def test_every_kind_of_choice_is_proposed_from_what_was_learned(
    running: int, objectives: Any, mixed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    constant = {"one": {"_type": "uniform", "_value": [2, 2]}}
    tuner = Tpe(seed=2, tpe_args={"n_startup_jobs": 8}, objectives=objectives)
    tuner.update_search_space(space(4, 5) | mixed | constant)
    rng = np.random.default_rng(0)
    for number in range(60):
        parameters = tuner.generate_parameters(number)
        assert 1e-4 <= parameters["lr"] <= 1
        assert parameters["width"] in range(8, 65, 8)
        assert ("k" in parameters["block"]) == (parameters["block"]["_name"] == "a")
        if number >= running:
            metric = {"default": float(rng.normal()), "size": float(rng.normal())}
            tuner.receive_trial_result(number - running, parameters, metric)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


@pytest.mark.parametrize("gamma", [0, 1, -0.1, (), (0.1, 2), "0.1", True, [None]])
def test_wrong_shares_are_refused(gamma: Any) -> None:
    with pytest.raises(ConfigError, match=r"gamma is .*; it must be a number between 0 and 1, or a list of such"):
        Tpe(tpe_args={"gamma": gamma})


def test_what_was_seen_is_passed_over() -> None:
    tuner = learned(space(2, 4), trials=13, tpe_args={"n_startup_jobs": 5})
    known = {tuner.dedup.key(params) for params, _ in tuner._table.trials}
    for number in range(3):
        tuner.generate_parameters(number)
    assert len(tuner.dedup.seen) == len(known) + 3 == 16
    with pytest.raises(NoMoreTrialError):
        tuner.generate_parameters(3)


def test_a_proposal_is_quick_after_thousands_of_trials() -> None:
    tuner = Tpe(seed=0)
    tuner.update_search_space(space(32, 7))
    rng = np.random.default_rng(0)
    for _ in range(5000):
        parameters = {f"c{index}": f"v{rng.integers(7)}" for index in range(32)}
        tuner.import_data([{"parameter": parameters, "value": float(rng.normal())}])
    # Counted, not timed: NNI's would look at every record for every choice.
    profile = cProfile.Profile()
    profile.enable()
    tuner.generate_parameters(0)
    profile.disable()
    assert sum(entry.callcount for entry in profile.getstats()) < 20_000


def test_finite_score() -> None:
    assert finite_score(1) == 1.0
    assert finite_score({"default": "2.5", "loss": 1}) == 2.5
    assert [finite_score(value) for value in (None, "x", float("nan"), {}, [])] == [None] * 5
