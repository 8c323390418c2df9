from __future__ import annotations

import json
import os
import tempfile
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_cssnas.errors import ExperimentError
from nni_cssnas.genotype import Genotype
from nni_cssnas.results.best import export_best, rank
from nni_cssnas.results.experiments import find_experiment
from nni_cssnas.results.records import RECORD_NAME, TrialRecord, read_records
from nni_cssnas.results.report import make_report


def record(number: int, score: float | None, status: str = "succeeded", **values: object) -> TrialRecord:
    return TrialRecord("exp", f"t{number}", number, number, {"a": number}, status=status, score=score, **values)  # type: ignore[arg-type]


def test_records_round_trip_and_come_in_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        record(number, number / 10, components={"loss": 1.5}, epoch_losses=[2.0, 1.5]).write(
            tmp_path / f"trials/t{number}"
        )
    records = read_records(tmp_path)
    assert [item.sequence for item in records] == [1, 2, 10]
    assert records[0] == record(1, 0.1, components={"loss": 1.5}, epoch_losses=[2.0, 1.5])
    assert not list(tmp_path.rglob(".*"))


def test_an_advisors_id_of_the_parameters_is_a_text(tmp_path: Path) -> None:
    advised = replace(record(1, 0.5), parameter_id="2_0_1")
    advised.write(tmp_path / "a")
    assert read_records(tmp_path) == [advised]


def test_a_damaged_record_is_named_and_left_out(tmp_path: Path) -> None:
    record(1, 0.5).write(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / RECORD_NAME).write_text('{"experiment": "e", ')
    with pytest.warns(UserWarning, match=r"b/record\.json"):
        records = read_records(tmp_path)
    assert [item.sequence for item in records] == [1]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to itself", "dangling link"])
def test_what_is_no_file_is_named_and_left_out(kind: str, tmp_path: Path) -> None:
    record(1, 0.5).write(tmp_path / "a")
    path = tmp_path / "b" / RECORD_NAME
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "link to itself" else "elsewhere")
    with pytest.warns(UserWarning, match=r"b/record\.json: it is no file"):
        records = read_records(tmp_path)
    assert [item.sequence for item in records] == [1]


MISTYPED = [
    ({"score": "9999"}, "score is '9999'"),
    ({"sequence": None}, "sequence is None"),
    ({"started": "yesterday"}, "started is 'yesterday'"),
    ({"components": None}, "components is None"),
    ({"components": {"macs": "many"}}, "components.macs is 'many'"),
    ({"config": None}, "config is None"),
    ({"epoch_losses": 3}, "epoch_losses is 3"),
    ({"parameters": [1]}, "parameters is"),
    ({"genotype": {"normal": 3}}, "genotype"),
    ({"status": ["failed"]}, "status is"),
]


@pytest.mark.parametrize(("values", "message"), MISTYPED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_value_of_another_type_costs_its_own_record_only(
    values: dict[str, object], message: str, tmp_path: Path
) -> None:
    record(1, 0.5).write(tmp_path / "a")
    path = record(2, 0.6).write(tmp_path / "b")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.warns(UserWarning, match="cannot read the record") as caught:
        records = read_records(tmp_path)
    assert str(path) in str(caught[0].message)
    assert message in str(caught[0].message)
    assert [item.sequence for item in rank(records)] == [1]


JSON: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([item.name for item in fields(TrialRecord)])


@given(JSON | st.dictionaries(NAMES, JSON, min_size=1, max_size=2), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_file_is_read_or_left_out_with_a_warning(content: object, over: bool) -> None:
    if over and isinstance(content, dict):  # a valid record with some values replaced
        content = json.loads(json.dumps(asdict(record(1, 0.5)))) | content
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Path(folder, RECORD_NAME).write_text(json.dumps(content))
        found = read_records(Path(folder))
        assert len(found) + len(caught) == 1
        if found:
            rank_or_none(found)
            make_report(Path(folder), found)


def rank_or_none(records: list[TrialRecord]) -> None:
    try:
        rank(records)
    except ExperimentError as error:
        assert "no trial has finished yet" in str(error)  # noqa: PT017


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"null", b"{}", b'"text"'])
def test_bytes_that_are_no_record(content: bytes, tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).write_bytes(content)
    with pytest.warns(UserWarning, match="cannot read the record"):
        assert read_records(tmp_path) == []


def test_an_unwritable_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ExperimentError, match=r"cannot write the trial's record .*file/record\.json.*make the folder writable"
    ):
        record(1, 0.5).write(tmp_path / "file")


def test_best_is_by_score_among_finished_trials() -> None:
    records = [
        record(0, 0.1),
        record(1, 0.9, "failed"),
        record(2, 0.7),
        record(3, None, "running"),
        record(4, 0.7),
        record(5, float("nan")),
        record(6, 0.9, "stopped"),
    ]
    assert [item.sequence for item in rank(records)] == [2, 4, 0]
    with pytest.raises(
        ExperimentError, match=r"no trial has finished yet \(1 started, 1 failed\); 1 of 1 failed: boom"
    ):
        rank([record(0, None, "failed", error="boom")])
    with pytest.raises(ExperimentError, match=r"no trial has finished yet \(2 started, 0 failed, 2 stopped\)$"):
        rank([record(number, None, "stopped") for number in range(2)])
    with pytest.raises(ExperimentError, match=r"0 started"):
        rank([])


def test_export_writes_once_and_overwrites_only_when_forced(tmp_path: Path) -> None:
    darts, isic = (Genotype.parse(name).to_dict() for name in ("DARTS_V2", "CNAS_ISIC_s4"))
    files = export_best(record(1, 0.5, genotype=darts), tmp_path)
    assert Genotype.from_json(files.architecture.read_text()) == Genotype.parse("DARTS_V2")
    assert sorted(path.suffix for path in files.pictures) == [".png", ".svg"]
    export_best(record(1, 0.5, genotype=darts), tmp_path)
    with pytest.raises(ExperimentError, match="holds another architecture"):
        export_best(record(1, 0.5, genotype=isic), tmp_path)
    export_best(record(1, 0.5, genotype=isic), tmp_path, force=True)
    assert json.loads((tmp_path / "genotype.json").read_text()) == isic
    assert export_best(record(1, 0.5), tmp_path).architecture.name == "sample.json"


def test_unknown_experiment_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nni_cssnas.results.experiments.known_experiments",
        lambda: {"abcd1234": {"logDir": str(tmp_path)}, "gone5678": {"logDir": str(tmp_path)}},
    )
    (tmp_path / "abcd1234").mkdir()
    assert find_experiment("abcd1234") == tmp_path / "abcd1234"
    assert find_experiment(str(tmp_path)) == tmp_path
    with pytest.raises(ExperimentError, match=r"no experiment 'abcd1235'.*did you mean 'abcd1234'"):
        find_experiment("abcd1235")
    with pytest.raises(ExperimentError, match="is gone"):
        find_experiment("gone5678")
