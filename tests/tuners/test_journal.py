from __future__ import annotations

import json
import math
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_cssnas.results.records import TrialRecord
from nni_cssnas.tuners.journal import NAME, Entry, Journal
from nni_cssnas.tuners.tpe import Tpe

CHOICES: dict[str, Any] = {f"c{i}": {"_type": "choice", "_value": [f"v{j}" for j in range(4)]} for i in range(6)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkpoint"  # of an experiment
    folder.mkdir()
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(folder))
    return folder


def objective(parameters: dict[str, str]) -> float:
    return float(sum(int(value[1:]) for value in parameters.values()))


def tuner(**values: Any) -> Tpe:
    made = Tpe(seed=0, tpe_args={"n_startup_jobs": 8}, **values)
    made.update_search_space(CHOICES)
    return made


def run(made: Tpe, numbers: range) -> list[dict[str, str]]:
    proposals = []
    for number in numbers:
        proposals.append(made.generate_parameters(number))
        if number % 5 == 4:
            made.trial_end(number, False)
        else:
            made.receive_trial_result(number, proposals[-1], {"default": objective(proposals[-1])})
            made.trial_end(number, True)
    return proposals


def history(made: Tpe) -> list[tuple[list[tuple[str, Any]], float]]:
    return [(sorted((str(key), value) for key, value in params.items()), loss) for params, loss in made._table.trials]


def test_a_restarted_tuner_knows_everything(folder: Path) -> None:
    first = tuner()
    before = run(first, range(20))
    running = first.generate_parameters(20)
    second = tuner()
    assert history(second) == history(first)
    after = run(second, range(15))  # NNI may number anew
    seen = [json.dumps(item, sort_keys=True) for item in [*before, running, *after]]
    assert len(set(seen)) == len(seen)
    third = tuner()
    assert history(third) == history(second)


def test_no_second_random_start(folder: Path) -> None:
    first = tuner()
    before = run(first, range(20))
    fresh = Tpe(seed=0, tpe_args={"n_startup_jobs": 8})
    second = tuner()
    # 20 of 20 are there: the estimator proposes, not chance. With all scores equal to the digit sum it wants large digits.
    assert np.mean([objective(item) for item in run(second, range(10))]) > np.mean(
        [objective(item) for item in before[:8]]
    )
    assert len(second._table) == 30
    assert fresh is not second


def test_a_kill_at_any_byte(folder: Path) -> None:
    first = tuner()
    run(first, range(6))
    path = folder / NAME
    data = path.read_bytes()
    whole = [number for number, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        entries = Journal(path).entries
        lines = [
            json.loads(line) for line in data[: max((end + 1 for end in whole if end < size), default=0)].splitlines()
        ]
        assert len(entries) == sum("proposed" in line for line in lines)
        assert sum(entry.judged for entry in entries) == sum("judged" in line for line in lines)
        journal = Journal(path)
        journal.proposed(99, {"c0": "v1"})
        assert Journal(path).entries == [*entries, Entry({"c0": "v1"})]


def test_a_damaged_line_costs_only_itself(folder: Path) -> None:
    run(tuner(), range(4))
    path = folder / NAME
    lines = path.read_bytes().splitlines()
    lines[2] = b"\x00\x00\xff"
    path.write_bytes(b"\n".join([*lines, b"[]", b""]))
    assert len(Journal(path).entries) == 3


MISTYPED = [
    {"judged": 3, "session": 0},
    {"judged": 1, "session": None, "score": 1.0},
    {"judged": 1, "session": 0, "score": "high"},
    {"judged": 1, "session": 0, "score": True},
    {"judged": [1], "session": 0, "score": 1.0},
    {"proposed": [1], "session": 0, "parameters": {}},
    {"proposed": 9, "session": 0, "parameters": [1]},
    {"proposed": 9, "session": 0},
    {"imported": "x", "session": 0, "score": 1.0},
    {"imported": {"c0": "v1"}, "session": "zero", "score": 1.0},
    {"imported": {"c0": "v1"}, "session": 0, "score": math.nan},
    {"session": 0},
    [],
    None,
]


@pytest.mark.parametrize("event", [*map(json.dumps, MISTYPED), "[" * 100_000])
def test_a_mistyped_line_costs_only_itself_and_is_named(
    event: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tuner(), range(4))
    path = folder / NAME
    before = Journal(path).entries
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], event, *lines[2:], ""]))
    assert Journal(path).entries == before
    assert f"{path}, line 3 is damaged and left out" in caplog.text
    assert len(tuner()._table) == 4


EVENTS = st.dictionaries(
    st.sampled_from(["proposed", "judged", "imported", "session", "score", "parameters"]),
    st.recursive(
        st.none() | st.booleans() | st.integers(0, 3) | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["c0", "c1"]), inner, max_size=2),
        max_leaves=4,
    ),
)


@given(st.lists(EVENTS, max_size=6))
@settings(max_examples=200, deadline=None)
def test_any_events_leave_a_tuner_that_proposes(events: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNI_CHECKPOINT_DIRECTORY", name)
        Path(name, NAME).write_text("".join(json.dumps(event) + "\n" for event in events))
        made = tuner()
        assert set(made.generate_parameters(0)) == set(CHOICES)


def test_what_nni_replays_is_taken_once(folder: Path) -> None:
    first = tuner()
    proposals = run(first, range(10))
    running = first.generate_parameters(10)
    second = tuner()
    replayed = [{"parameter": item, "value": {"default": objective(item)}} for item in proposals]
    second.import_data(replayed)
    # A trial that failed was run again and has a score now; so has the one that was running. The others are known.
    expected = {loss for _, loss in history(first)} - {float("inf")}
    assert len(second._table) == 10
    assert {loss for _, loss in history(second)} == expected | {-objective(item) for item in proposals}
    second.import_data([{"parameter": running, "value": 1.5}])
    second.import_data([{"parameter": running, "value": 1.5}])
    assert len(second._table) == 11
    assert sorted(history(tuner())) == sorted(history(second))


def test_a_changed_search_space_leaves_out_what_does_not_fit(folder: Path) -> None:
    run(tuner(), range(6))
    other = Tpe(seed=0)
    other.update_search_space({"x": {"_type": "choice", "_value": [1, 2, 3]}})
    assert len(other._table) == 0
    assert other.generate_parameters(0)["x"] in (1, 2, 3)


def test_outside_of_nni_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NNI_CHECKPOINT_DIRECTORY", raising=False)
    monkeypatch.chdir(tmp_path)
    run(tuner(), range(3))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_end_the_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = tuner()
    before = run(made, range(3))
    real = Path.open

    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == NAME:
            raise OSError(28, "No space left on device")
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        meanwhile = run(made, range(3, 6))
    assert len([record for record in caplog.records if "No space left" in record.message]) == 1
    after = run(made, range(6, 8))
    known = [entry.parameters for entry in Journal(folder / NAME).entries]
    assert known == [*before, *meanwhile, *after]


def test_what_a_full_disk_has_no_space_for_is_written_later_and_cuts_no_line(folder: Path) -> None:
    made = tuner()
    run(made, range(3))
    path = folder / NAME
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A write takes what there is space for, and only the next one fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 30, limits[1]))
    try:
        run(made, range(3, 6))
        assert path.read_bytes() == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run(made, range(6, 8))
    assert history(tuner()) == history(made)


def test_what_finished_while_there_was_no_manager_is_learned_from_its_record(folder: Path) -> None:
    """On a full disk the manager ends, and a trial that still runs can tell nobody but its own record."""
    first = tuner()
    run(first, range(4))
    finished, failed, unknown = (first.generate_parameters(number) for number in (10, 11, 12))
    for name, parameters, score in (("a", finished, 7.5), ("b", failed, None), ("c", {"x": "of another space"}, 1.0)):
        record = TrialRecord(
            experiment="e",
            trial=name,
            sequence=0,
            parameter_id=None,
            parameters=parameters,
            status="succeeded" if score else "failed",
            score=score,
            started=0.0,
            duration=1.0,
        )
        (folder.parent / "trials" / name).mkdir(parents=True)
        record.write(folder.parent / "trials" / name)
    second = tuner()
    scores = {json.dumps(entry.parameters, sort_keys=True): entry for entry in second.history()}
    assert scores[json.dumps(finished, sort_keys=True)] == Entry(finished, True, 7.5)
    assert not scores[json.dumps(failed, sort_keys=True)].judged
    assert not scores[json.dumps(unknown, sort_keys=True)].judged
    assert len(history(second)) == len(history(first)) + 1
    assert history(tuner()) == history(second)  # it stands in the journal now
