from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from nni import NoMoreTrialError

from nni_cssnas.results.records import TrialRecord
from nni_cssnas.tuners.failures import ENOUGH
from nni_cssnas.tuners.tpe import Tpe

SPACE = {f"c{index}": {"_type": "choice", "_value": list("abcd")} for index in range(4)}
WHY = "ImagesError: images.source '../photos' has only 300 images"


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the trials of an experiment whose tuner this process is."""
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path / "checkpoint"))
    folder = tmp_path / "environments" / "local-env" / "trials"
    folder.mkdir(parents=True)
    return folder


def started() -> Tpe:
    tuner = Tpe(seed=0)
    tuner.update_search_space(SPACE)
    return tuner


def recorded(folder: Path, number: int, error: str | None, status: str = "failed") -> None:
    name = f"Tr{number:03}"
    record = TrialRecord("exp", name, number, number, {}, status=status, error=error)
    record.write(folder / name)
    (folder / name / "trial.stderr").write_text(f"UserWarning: x\nnni_cssnas: {error}\n")


def printed(folder: Path, number: int, text: str) -> None:
    (folder / f"Tr{number:03}").mkdir()
    (folder / f"Tr{number:03}" / "trial.stderr").write_text(text)


def fail(tuner: Tpe, number: int, leave: Callable[[int], None]) -> None:
    for index in range(number):
        tuner.generate_parameters(index)
        leave(index)
        tuner.trial_end(index, False)


def test_a_search_ends_when_all_trials_fail_alike(trials: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuner = started()
    fail(tuner, ENOUGH - 1, lambda index: recorded(trials, index, WHY))
    running = tuner.generate_parameters(50)
    printed(trials, 50, "UserWarning: still importing\n")  # it runs, and has no record yet
    assert tuner.generate_parameters(60)
    recorded(trials, 60, WHY)
    tuner.trial_end(60, False)
    with pytest.raises(NoMoreTrialError):
        tuner.generate_parameters(99)
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert WHY in error.getMessage()
    assert f"the first {ENOUGH} trials have all failed" in error.getMessage()
    # One that ran all the same, and whose result is still learned.
    tuner.receive_trial_result(50, running, 1.0)
    with pytest.raises(NoMoreTrialError):
        tuner.generate_parameters(100)


@pytest.mark.parametrize(
    "text",
    [
        "nni_cssnas: ConfigError: unknown key 'epochs'\n",
        "sh: 1: pyhton: not found\n",
        "Traceback (most recent call last):\n  File ...\nModuleNotFoundError: No module named 'own_space'\n\n",
        "cannot open environments/{}/data\n",
    ],
)
def test_trials_that_fail_before_they_have_a_record(text: str, trials: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuner = started()
    fail(tuner, ENOUGH, lambda index: printed(trials, index, text.format(f"Tr{index:03}")))
    with pytest.raises(NoMoreTrialError):
        tuner.generate_parameters(99)
    assert text.format("TRIAL").split()[-1] in caplog.text


@pytest.mark.parametrize(
    "leave",
    [
        lambda folder, index: recorded(folder, index, f"DivergenceError: loss is nan at step {index}"),
        lambda folder, index: recorded(folder, index, WHY if index else "another"),
        lambda folder, index: recorded(folder, index, None, "stopped"),
        lambda folder, index: recorded(folder, index, None, "running"),
        lambda folder, index: None,  # trials of another machine
        lambda folder, index: (folder / f"Tr{index}").mkdir(),
        lambda folder, index: printed(folder, index, ""),
    ],
    ids=["reasons differ", "one differs", "stopped", "killed", "elsewhere", "nothing written", "nothing said"],
)
def test_a_search_goes_on(leave: Callable[[Path, int], None], trials: Path) -> None:
    tuner = started()
    fail(tuner, ENOUGH + 3, lambda index: leave(trials, index))
    assert tuner.generate_parameters(99).keys() == SPACE.keys()


def test_a_damaged_record_says_nothing(trials: Path) -> None:
    tuner = started()
    fail(tuner, ENOUGH, lambda index: recorded(trials, index, WHY))
    (trials / "Tr000" / "record.json").write_text("{")
    assert tuner.generate_parameters(99)


def test_one_success_is_enough_to_go_on(trials: Path) -> None:
    tuner = started()
    tuner.receive_trial_result(1000, {}, 1.0)  # of nobody
    parameters = tuner.generate_parameters(100)
    tuner.receive_trial_result(100, parameters, 1.0)
    fail(tuner, 2 * ENOUGH, lambda index: recorded(trials, index, WHY))
    assert tuner.generate_parameters(200)


def test_after_resuming_the_earlier_failures_do_not_count(trials: Path) -> None:
    first = started()
    fail(first, ENOUGH, lambda index: recorded(trials, index, WHY))
    for folder in trials.iterdir():  # an hour ago; the mistake was mended since
        os.utime(folder, (folder.stat().st_mtime - 3600,) * 2)
    second = started()
    fail(second, ENOUGH, lambda index: None)
    assert second.generate_parameters(99)


def test_outside_of_nni_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NNI_CHECKPOINT_DIRECTORY", raising=False)
    tuner = started()
    fail(tuner, 3 * ENOUGH, lambda index: None)
    assert tuner.generate_parameters(99)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_those_on_other_machines_tell_a_moment_later(late: int, trials: Path) -> None:
    """The last have not arrived when the next proposal is asked for."""
    collected = trials.parents[2] / "trials"
    trials.rmdir()
    tuner = started()

    def arrive(index: int) -> None:
        if index >= late:
            recorded(collected, index - late, WHY)

    fail(tuner, ENOUGH + late, arrive)
    with pytest.raises(NoMoreTrialError):
        tuner.generate_parameters(60)


def test_those_on_other_machines_that_fail_for_several_reasons_do_not_end_a_search(trials: Path) -> None:
    collected = trials.parents[2] / "trials"
    trials.rmdir()
    tuner = started()
    fail(tuner, 2 * ENOUGH, lambda index: recorded(collected, index, WHY if index % 2 else "another"))
    assert tuner.generate_parameters(60)
