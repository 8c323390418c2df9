from __future__ import annotations

import cProfile
import itertools
import threading
from typing import Any

import numpy as np
import pytest
from nni import NoMoreTrialError, dump
from nni.algorithms.hpo.tpe_tuner import TpeTuner

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


def test_until_the_first_duplicate_it_is_nnis_tpe() -> None:
    choices = space(14, 8)
    ours, _ = run(Tpe(seed=3), choices, 60)
    theirs, _ = run(TpeTuner("maximize", seed=3), choices, 60)
    same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=True))))
    assert same > 20  # past the random start, so the estimator itself is compared


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


@pytest.mark.parametrize("running", [0, 3])
def test_the_estimator_is_nnis_for_every_kind_of_choice(running: int, mixed: dict[str, Any]) -> None:
    choices = space(4, 5) | mixed
    ours, theirs = Tpe(seed=2, tpe_args={"n_startup_jobs": 8}), TpeTuner("maximize", 2, {"n_startup_jobs": 8})
    for tuner in (ours, theirs):
        tuner.update_search_space(choices)
    rng = np.random.default_rng(0)
    for number in range(60):
        first, second = (tuner.generate_parameters(number) for tuner in (ours, theirs))
        assert first == second
        if number >= running:
            score = float(rng.normal())
            for tuner in (ours, theirs):
                tuner.receive_trial_result(number - running, tuner._params[number - running], score)


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
