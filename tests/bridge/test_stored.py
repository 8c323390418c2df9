"""What ``list`` shows and ``clean`` removes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nni_cssnas.bridge import stored
from nni_cssnas.cli import app
from nni_cssnas.errors import ExperimentError
from nni_cssnas.images.cache import empty_cache
from nni_cssnas.results.records import TrialRecord


class Known:
    """NNI's list of experiments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.experiments: dict[str, dict[str, Any]] = {}
        self.removed: list[str] = []

    def add(self, number: str, *, folder: bool = True, **about: Any) -> None:
        self.experiments[number] = {"logDir": str(self.folder), "status": "STOPPED", "startTime": 1e12, **about}
        if folder:
            record = TrialRecord("exp", "t", 0, 0, {"a": 1}, status="succeeded", score=2.5)
            record.write(self.folder / number / "trials" / "t")


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Known:
    known = Known(tmp_path)
    monkeypatch.setattr(stored, "known_experiments", lambda: known.experiments)

    class Experiments:
        def remove_experiment(self, number: str) -> None:
            known.removed.append(number)

    monkeypatch.setattr("nni.tools.nnictl.config_utils.Experiments", Experiments)
    return known


def test_what_is_there_the_newest_first(known: Known) -> None:
    known.add("aaaaaaaa", startTime=1e12)
    known.add("bbbbbbbb", startTime=2e12, status="RUNNING", pid=2**22 + 1)
    known.add("cccccccc", folder=False, startTime="N/A")
    found = stored.stored_experiments()
    assert [(item.id, item.status, item.trials, item.best) for item in found] == [
        ("bbbbbbbb", "KILLED", 1, 2.5),
        ("aaaaaaaa", "STOPPED", 1, 2.5),
        ("cccccccc", "GONE", 0, None),
    ]
    sizes = sum(path.stat().st_size for path in (known.folder / "aaaaaaaa").rglob("*") if path.is_file())
    assert found[1].size == sizes
    assert all(item.portal is None for item in found)


def test_one_that_runs_is_not_removed(known: Known) -> None:
    sleep = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "aaaaaaaa"])
    try:
        known.add("aaaaaaaa", status="RUNNING", pid=sleep.pid, port=8080)
        (item,) = stored.stored_experiments()
        assert (item.status, item.portal) == ("RUNNING", "http://127.0.0.1:8080")
        with pytest.raises(ExperimentError, match="is RUNNING; stop it first: nnictl stop aaaaaaaa"):
            stored.remove_experiment("aaaaaaaa")
        assert item.folder.is_dir()
    finally:
        sleep.kill()
        sleep.wait()


def test_one_is_removed_and_others_stay(known: Known) -> None:
    known.add("aaaaaaaa")
    known.add("bbbbbbbb")
    with pytest.raises(ExperimentError, match="there is no experiment 'aaaaaaab'; did you mean 'aaaaaaaa'"):
        stored.remove_experiment("aaaaaaab")
    freed = stored.remove_experiment("aaaaaaaa")
    assert freed > 0
    assert not (known.folder / "aaaaaaaa").exists()
    assert (known.folder / "bbbbbbbb").is_dir()
    assert known.removed == ["aaaaaaaa"]


def test_a_link_in_its_place_is_left_alone(known: Known, tmp_path: Path) -> None:
    known.add("aaaaaaaa", folder=False)
    (tmp_path / "mine").mkdir()
    os.symlink(tmp_path / "mine", known.folder / "aaaaaaaa")
    with pytest.raises(ExperimentError, match="is no folder that NNI has made; remove it yourself"):
        stored.remove_experiment("aaaaaaaa")
    assert (tmp_path / "mine").is_dir()


def test_the_cache_is_emptied_of_what_is_ours(tmp_path: Path) -> None:
    ours = [tmp_path / "folder-32px-0123.npy", tmp_path / "depth-0123.json"]
    for path in (*ours, tmp_path / "mine.npy", tmp_path / "notes.txt"):
        path.write_bytes(b"12345")
    assert empty_cache(tmp_path) == 10
    assert not any(path.exists() for path in ours)
    assert (tmp_path / "mine.npy").exists()
    assert (tmp_path / "notes.txt").exists()


def test_the_commands(known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "folder-32px-0123.npy").write_bytes(b"12345")
    monkeypatch.setenv("NNI_CSSNAS_CACHE", str(cache))
    known.add("aaaaaaaa", experimentName="mine")
    listed = json.loads(CliRunner().invoke(app, ["list", "--json"], catch_exceptions=False).stdout)
    assert listed["experiments"][0]["id"] == "aaaaaaaa"
    assert listed["cache"] == {"folder": str(cache), "size": 5}
    assert "mine" in CliRunner().invoke(app, ["list"], catch_exceptions=False).output
    refused = CliRunner().invoke(app, ["clean", "aaaaaaaa", "--cache"], input="n\n", catch_exceptions=False)
    assert refused.exit_code == 1
    assert (known.folder / "aaaaaaaa").is_dir()
    done = CliRunner().invoke(app, ["clean", "aaaaaaaa", "--cache", "--yes"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert not (known.folder / "aaaaaaaa").exists()
    assert not list(cache.glob("*.npy"))
