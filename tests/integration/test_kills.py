"""kill -9 of the manager, the tuner and trials; ``nni-cssnas resume`` goes on, and nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from nni_cssnas.bridge import launch
from nni_cssnas.errors import ExperimentError
from nni_cssnas.tuners.journal import NAME, Journal

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# CSSNAS_KILLS=20 for the long version.
KILLS = int(os.environ.get("CSSNAS_KILLS", "3"))
TRIAL = """
import json, os, sys, time
from nni_cssnas.bridge import pairing
import nni  # after ours, which puts some of it off

pairing.install()
parameters = nni.get_next_parameter()
time.sleep(0.3)
score = float(sum(int(value[1:]) * 10**-index for index, value in enumerate(parameters.values())))
with open(sys.argv[1], "a") as log:
    log.write(json.dumps({"parameters": parameters, "score": score}) + "\\n")
nni.report_final_result({"default": score})
time.sleep(120 * os.path.exists(sys.argv[1] + ".linger"))
"""
CHOICES = {f"c{i}": {"_type": "choice", "_value": [f"v{j}" for j in range(8)]} for i in range(6)}


class Victim:
    """A running experiment whose processes can be found and killed."""

    def __init__(self, experiment: launch.RunningExperiment, folder: Path) -> None:
        self.experiment = experiment
        self.folder = folder

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Manager, tuner and trials of this experiment, and of no other."""
        found: dict[str, list[psutil.Process]] = {"manager": [], "tuner": [], "trial": []}
        for process in psutil.process_iter(["cmdline", "environ"]):
            command = " ".join(process.info["cmdline"] or [])
            environment = process.info["environ"] or {}
            if self.experiment.id in command and "main.js" in command:
                found["manager"].append(process)
            elif "--exp_params" in command and self.experiment.id in str(environment):
                found["tuner"].append(process)
            elif environment.get("NNI_EXP_ID") == self.experiment.id and "trial.py" in command:
                found["trial"].append(process)
        return found

    def kill(self, kind: str) -> bool:
        """SIGKILL one process of a kind, if there is one."""
        for process in self.processes()[kind]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
            return True
        return False

    def sweep(self) -> None:
        """End what is left after the manager or the tuner died."""
        for processes in self.processes().values():
            for process in processes:
                try:
                    process.kill()
                    process.wait(10)
                except psutil.Error:
                    pass

    def resume(self) -> None:
        """At once, on the same port, while what the dead manager left may still run."""
        launch.resume(self.experiment.id, port=self.experiment.port)


@pytest.fixture
def victim(home: Path, tmp_path: Path) -> Any:
    (tmp_path / "trial.py").write_text(TRIAL)
    (tmp_path / "search_space.json").write_text(json.dumps(CHOICES))
    (tmp_path / "experiment.yml").write_text(
        yaml.safe_dump(
            {
                "searchSpaceFile": "search_space.json",
                "trialCommand": f"python trial.py {tmp_path / 'evaluated.jsonl'}",
                "trialCodeDirectory": ".",
                "experimentWorkingDirectory": str(home / "nni-experiments"),
                "trialConcurrency": 2,
                "maxTrialNumber": 6 + 4 * KILLS,
                "tuner": {
                    "className": "nni_cssnas.tuners.tpe.Tpe",
                    "codeDirectory": ".",
                    "classArgs": {"seed": 0, "tpe_args": {"n_startup_jobs": 5}},
                },
                "trainingService": {"platform": "local"},
            }
        )
    )
    experiment = launch.create(tmp_path / "experiment.yml", port=launch.free_port(18180))
    found = Victim(experiment, home / "nni-experiments" / experiment.id)
    try:
        yield found
    finally:
        experiment.stop()
        found.sweep()


@pytest.mark.timeout(480 + 60 * KILLS)
def test_kill_nine(victim: Victim, tmp_path: Path) -> None:
    rng = random.Random(0)
    kinds = ["manager", "tuner", "trial", "manager"]
    for number in range(KILLS):
        time.sleep(3 + 4 * rng.random())
        kind = kinds[number % len(kinds)]
        if not victim.kill(kind) or kind == "trial":
            continue
        if kind == "tuner":
            time.sleep(1)
            victim.experiment.stop()
        victim.resume()
    deadline = time.monotonic() + 240 + 15 * KILLS
    status = ""
    while time.monotonic() < deadline and status not in ("DONE", "ERROR", "TUNER_NO_MORE_TRIAL"):
        time.sleep(1)
        try:
            status = victim.experiment.progress().status
        except ExperimentError:
            continue
    assert status == "DONE", victim.experiment.progress()

    lines = [json.loads(line) for line in (tmp_path / "evaluated.jsonl").read_text().splitlines()]
    journal = Journal(next(victim.folder.rglob(NAME)))
    scores = {json.dumps(e.parameters, sort_keys=True): e.score for e in journal.entries if e.score is not None}
    evaluated = {json.dumps(line["parameters"], sort_keys=True): line["score"] for line in lines}
    # Right pairs, and nothing that the tuner did not learn of, but what was killed between evaluating and telling.
    assert all(score == evaluated[key] for key, score in scores.items())
    assert len(set(evaluated) - set(scores)) <= 2 * KILLS
    # Nothing was proposed twice, and what has a score was evaluated once.
    events = [json.loads(line) for line in journal.path.read_text().splitlines()]
    proposed = [json.dumps(event["parameters"], sort_keys=True) for event in events if "proposed" in event]
    assert len(set(proposed)) == len(proposed)
    told = [json.dumps(line["parameters"], sort_keys=True) for line in lines]
    assert len(told) - len(set(told)) <= 2 * KILLS  # killed after evaluating, before NNI knew
    # The best is the best that was reported, also where a trial was killed between reporting and its end; one that the
    # manager stored and was killed before it told the tuner may be better.
    best = victim.experiment.progress().best
    assert best is not None
    assert best >= max(scores.values()) - 1e-9
    assert any(best == pytest.approx(score, abs=1e-9) for score in evaluated.values())
    dispatcher = (victim.folder / "log" / "dispatcher.log").read_text()
    # The websocket of a tuner whose manager was killed has a traceback of its own.
    assert "nni_cssnas/" not in dispatcher


def test_killed_after_it_reported(victim: Victim, tmp_path: Path) -> None:
    """NNI withholds the score of such a trial, though its tuner has learned from it."""
    (tmp_path / "evaluated.jsonl.linger").touch()
    log = tmp_path / "evaluated.jsonl"
    deadline = time.monotonic() + 60
    while victim.experiment.progress().failed + victim.experiment.progress().stopped < 2:
        assert time.monotonic() < deadline
        time.sleep(0.5)
        if log.exists() and len(log.read_text().splitlines()) >= 2:
            time.sleep(1)  # reported
            victim.kill("trial")
    progress = victim.experiment.progress()
    reported = [json.loads(line)["score"] for line in log.read_text().splitlines()]
    assert progress.best in [pytest.approx(score) for score in reported]
