"""``nnictl update searchspace`` while trials run, and states that are loaded before a tuner knows its space."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nni import NoMoreTrialError

from nni_cssnas.tuners.hyperopt import Hyperopt
from nni_cssnas.tuners.journal import Entry
from nni_cssnas.tuners.tpe import Tpe

MAKERS: dict[str, Callable[[], Any]] = {
    "Tpe": lambda: Tpe(seed=0, tpe_args={"n_startup_jobs": 5}),
    "Hyperopt": lambda: Hyperopt(seed=0, n_startup_jobs=5),
    "unique": lambda: Hyperopt(seed=0, n_startup_jobs=5, unique=True),
}


def space(*values: str) -> dict[str, Any]:
    return {f"c{index}": {"_type": "choice", "_value": list(values)} for index in range(3)}


def learned(tuner: Any) -> list[tuple[dict[str, Any], float]]:
    """What the tuner's estimator knows, by value."""
    if isinstance(tuner, Tpe):
        trials = [(params, loss) for params, loss in tuner._table.trials]
    else:
        keys = list(tuner.space)
        trials = [(dict(zip(keys, trial.values, strict=True)), trial.loss) for trial in tuner._trials]
    return [
        ({key[0]: tuner.space[key].values[index] for key, index in params.items()}, loss) for params, loss in trials
    ]


def finish(tuner: Any, first: int, number: int) -> list[dict[str, Any]]:
    proposals = []
    for index in range(first, first + number):
        parameters = tuner.generate_parameters(index)
        proposals.append(parameters)
        tuner.receive_trial_result(index, parameters, float(sum(map(ord, parameters.values()))))
        tuner.trial_end(index, True)
    return proposals


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_fits_is_kept_by_value_and_the_rest_is_left_out(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    tuner = make()
    tuner.update_search_space(space("a", "b", "c", "d", "e", "f"))
    before = finish(tuner, 0, 30)
    running = [tuner.generate_parameters(100 + index) for index in range(4)]
    # Fewer, and in another order: an index of before is now another value, or none.
    with caplog.at_level(logging.INFO, "nni.tuner.cssnas"):
        tuner.update_search_space(space("f", "d", "b", "a"))
    fitting = [item for item in before if set(item.values()) <= set("fdba")]
    assert 0 < len(fitting) < 30
    assert "the search space has changed" in caplog.text
    scores = {tuple(item.values()): -float(sum(map(ord, item.values()))) for item in fitting}
    assert {tuple(item.values()): loss for item, loss in learned(tuner)} == scores
    for index, parameters in enumerate(running):  # their results still come
        tuner.receive_trial_result(100 + index, parameters, 1.0)
        tuner.trial_end(100 + index, True)
    new = [item for item in running if set(item.values()) <= set("fdba")]
    assert sum(loss == -1.0 for _, loss in learned(tuner)) == len(new)
    for parameters in finish(tuner, 200, 20):
        assert set(parameters.values()) <= set("fdba")
    # And back again: nothing that was judged is lost.
    tuner.update_search_space(space("a", "b", "c", "d", "e", "f"))
    known = {tuple(item.values()) for item, _ in learned(tuner)}
    assert {tuple(item.values()) for item in [*before, *running]} <= known
    finish(tuner, 300, 10)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_other_choices_altogether(make: Callable[[], Any]) -> None:
    tuner = make()
    tuner.update_search_space(space("a", "b", "c"))
    finish(tuner, 0, 8)
    tuner.generate_parameters(50)
    tuner.update_search_space({"x": {"_type": "uniform", "_value": [0, 1]}})
    tuner.trial_end(50, False)
    for index in range(60, 75):
        parameters = tuner.generate_parameters(index)
        assert parameters.keys() == {"x"}
        tuner.receive_trial_result(index, parameters, parameters["x"])


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_space_that_cannot_be_used_leaves_the_former(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    tuner = make()
    tuner.update_search_space(space("a", "b", "c"))
    finish(tuner, 0, 8)
    tuner.update_search_space({"x": {"_type": "chioce", "_value": [1]}})
    assert "cannot be used, so the former stays: choice x of search_space.json has _type 'chioce'" in caplog.text
    assert finish(tuner, 20, 5)[0].keys() == {"c0", "c1", "c2"}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_results_of_an_outdated_trial_are_kept_for_resuming(
    make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    tuner = make()
    tuner.update_search_space(space("a", "b"))
    parameters = tuner.generate_parameters(0)
    tuner.update_search_space(space("x", "y"))
    tuner.receive_trial_result(0, parameters, 4.0)
    assert learned(tuner) == []
    assert tuner.history() == [Entry(parameters, True, 4.0)]
    again = make()
    again.update_search_space(space("a", "b"))
    assert learned(again) == [(parameters, -4.0)]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_history_may_be_restored_before_the_space_is_known(make: Callable[[], Any]) -> None:
    first = make()
    first.update_search_space(space("a", "b", "c"))
    finish(first, 0, 6)
    second = make()
    second.restore(first.history())
    assert second.history() == first.history()
    second.update_search_space(space("a", "b", "c"))
    third = make()
    third.update_search_space(space("a", "b", "c"))
    third.restore(first.history())
    known = [sorted(learned(tuner), key=repr) for tuner in (second, third, first)]
    assert known[0] == known[1]
    # Where proposals repeat, the journal has them once.
    assert {repr(trial) for trial in known[0]} == {repr(trial) for trial in known[2]}
    assert finish(second, 10, 5) == finish(third, 10, 5)


def test_an_error_in_the_search_itself_gives_a_random_proposal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for make in MAKERS.values():
        tuner = make()
        tuner.update_search_space(space("a", "b", "c"))

        def fail(*_: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(tuner, "suggest", fail)
        monkeypatch.setattr(tuner, "learn", fail)
        assert len(finish(tuner, 0, 3)) == 3
    assert "a random one takes its place" in caplog.text
    assert "nothing was learned from" in caplog.text


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_nothing_that_goes_wrong_inside_reaches_nni(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tuner = make()
    tuner.update_search_space(space("a", "b", "c"))
    tuner.generate_parameters(0)
    tuner.import_data([1, {"parameter": 3}, None])
    assert "imported data could not be taken" in caplog.text
    monkeypatch.setattr(tuner._journal, "judged", lambda *_: 1 / 0)
    tuner.receive_trial_result(0, {}, 1.0)
    assert "a result could not be taken" in caplog.text
    monkeypatch.setattr(tuner, "begin", lambda space: 1 / 0)
    tuner.update_search_space(space("a", "b"))
    assert "the new search space cannot be used, so the former stays" in caplog.text
    monkeypatch.setattr(tuner._journal, "proposed", lambda *_: 1 / 0)
    with pytest.raises(NoMoreTrialError):
        tuner.generate_parameters(1)


def test_the_end_of_a_space_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = Tpe(seed=0)
    tuner.update_search_space({"x": {"_type": "choice", "_value": [1]}})
    tuner.generate_parameters(0)
    with pytest.raises(NoMoreTrialError):
        tuner.generate_parameters(1)
