"""One real experiment for all integration tests: nnictl, manager, portal, trials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from nni_cssnas.bridge import launch
from nni_cssnas.cli import app
from nni_cssnas.results.records import TrialRecord, read_records

PROXY = {
    "preset": "cpu",
    "score": "contrastive",
    "threads": 1,
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "images": {"source": "tiles", "num_images": 64},
    "views": {"input_size": 16},
    "contrastive": {"epochs": 3, "batch_size": 32},
}

# Runs the real trial, but with the accidents of a bad day, fixed by the trial's number.
WRAPPER = """
import os, signal, sys, threading, time
from pathlib import Path

number = int(os.environ["NNI_TRIAL_SEQ_ID"])
if number == 3:
    os.kill(os.getpid(), signal.SIGKILL)  # dies before it asks for parameters
time.sleep(number * 7 % 5 / 4)  # later trials ask before earlier ones, and all last unequally long

if number == 6:
    def kill_during_the_work():
        record = Path(os.environ["NNI_OUTPUT_DIR"], "record.json")
        while not record.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=kill_during_the_work, daemon=True).start()

from nni_cssnas.trial import command
if number == 9:
    os.chdir("diverges")
sys.exit(command(["proxy.yml"]))
"""
KILLED_EARLY, KILLED_AT_WORK, DIVERGED = 3, 6, 9
TRIALS = 13


@dataclass
class Finished:
    """The experiment after its end; manager and portal are still up."""

    experiment: launch.RunningExperiment
    folder: Path
    last: launch.Progress

    @property
    def trials(self) -> list[dict[str, Any]]:
        """NNI's own listing, by sequence number."""
        return sorted(self.experiment.get("trial-jobs"), key=lambda trial: trial["sequenceId"])

    @property
    def records(self) -> dict[str, TrialRecord]:
        """The trials' own records, by NNI's id of the trial."""
        return {record.trial: record for record in read_records(self.folder)}


def write_search_space(proxy: Path) -> None:
    """As ``nni-cssnas space`` does, in this process."""
    done = CliRunner().invoke(app, ["space", str(proxy)])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of the tests' own: NNI's registry and the cache of images go there."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("NNI_CSSNAS_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="session")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    code = tmp_path_factory.mktemp("experiment")
    (code / "proxy.yml").write_text(yaml.safe_dump(PROXY))
    (code / "diverges").mkdir()
    (code / "diverges" / "proxy.yml").write_text(
        yaml.safe_dump(PROXY | {"contrastive": {"epochs": 2, "batch_size": 32, "lr": 1e30}})
    )
    (code / "trial.py").write_text(WRAPPER)
    (code / "experiment.yml").write_text(
        yaml.safe_dump(
            {
                "searchSpaceFile": "search_space.json",
                "trialCommand": "python trial.py",
                "trialCodeDirectory": ".",
                "experimentWorkingDirectory": str(home / "nni-experiments"),
                "trialConcurrency": 2,
                "maxTrialNumber": TRIALS,
                "tuner": {
                    "className": "nni_cssnas.tuners.tpe.Tpe",
                    "codeDirectory": ".",
                    "classArgs": {"seed": 0, "tpe_args": {"n_startup_jobs": 5}},
                },
                "trainingService": {"platform": "local"},
            }
        )
    )
    write_search_space(code / "proxy.yml")
    assert len(json.loads((code / "search_space.json").read_text())) == 22
    experiment = launch.create(code / "experiment.yml", port=launch.free_port(18080))
    try:
        *_, last = experiment.watch(interval=1.0)
        yield Finished(experiment, home / "nni-experiments" / experiment.id, last)
    finally:
        experiment.stop()
