"""NNI's remote platform: two machines by SSH, trials that fail and die, a lost machine, a killed manager."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from nni_cssnas.bridge import launch
from nni_cssnas.errors import ExperimentError
from nni_cssnas.results.records import TrialRecord, read_records
from nni_cssnas.tuners.journal import NAME, Journal
from tests.integration.ssh_worker import SshWorker

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CHOICES = {f"c{i}": {"_type": "choice", "_value": [f"v{j}" for j in range(8)]} for i in range(6)}
TRIALS = 24
ENDED = ("SUCCEEDED", "FAILED", "EARLY_STOPPED", "USER_CANCELED", "SYS_CANCELED")
KILLED = 9
"""The number of the trial that is killed outright."""

# As nni_cssnas.trial, but its score tells its parameters, and it fails as planned: by its number, which the queue of NNI
# follows, before it has asked for parameters; or by its parameters, after that.
TRIAL = """
import os, signal, sys, time
from pathlib import Path

number = int(os.environ["NNI_TRIAL_SEQ_ID"])
if number % 6 == 5:
    sys.exit("it fails before it asks")
time.sleep(number * 7 % 5 / 4)

import nni
from nni_cssnas.bridge import pairing
from nni_cssnas.results.carried import tell_end, with_record
from nni_cssnas.results.records import TrialRecord

def score_of(parameters):
    return float(sum(int(parameters[f"c{i}"][1:]) * 8**i for i in range(6)))

pairing.install()
parameters = nni.get_next_parameter()
folder = Path(os.environ["NNI_OUTPUT_DIR"])
record = TrialRecord.finished_before(folder, parameters, {})
if record is None:
    record = TrialRecord(
        experiment=nni.get_experiment_id(), trial=nni.get_trial_id(), sequence=number,
        parameter_id=nni.trial._params["parameter_id"], parameters=parameters, started=time.time(),
        components={"concurrency": float(pairing.trial_concurrency()), "params": 1.0},
    )
    record.write(folder)
    time.sleep(number * 3 % 7 / 7)
    if number == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    record.duration = time.time() - record.started
    if number % 6 == 2:
        record.status, record.error = "failed", f"ValueError: planned for {number}"
        record.write(folder)
        tell_end(record)
        sys.exit(1)
    record.status, record.score = "succeeded", score_of(parameters)
    record.write(folder)
nni.report_final_result(with_record({"default": record.score, "params": 1.0}, record))
"""


def score_of(parameters: dict[str, str]) -> float:
    return float(sum(int(parameters[f"c{i}"][1:]) * 8**i for i in range(6)))


def planned_to_fail(number: int) -> bool:
    return number % 6 in (2, 5)


@dataclass
class Cluster:
    """Two machines, and what an experiment needs to run on them."""

    workers: list[SshWorker]
    key: Path
    home: Path

    def settings(self, **more: Any) -> dict[str, Any]:
        return {
            "nniManagerIp": "127.0.0.5",  # not 127.0.0.1: requests to that need no token
            "trainingService": {
                "platform": "remote",
                "machineList": [worker.machine(self.key) for worker in self.workers],
            },
            "tuner": {
                "className": "nni_cssnas.tuners.tpe.Tpe",
                "codeDirectory": ".",
                "classArgs": {"seed": 0, "tpe_args": {"n_startup_jobs": 5}},
            },
            "searchSpaceFile": "search_space.json",
            "trialCodeDirectory": ".",
            "experimentWorkingDirectory": str(self.home / "nni-experiments"),
            **more,
        }


@pytest.fixture
def cluster(home: Path, tmp_path: Path) -> Iterator[Cluster]:
    import asyncssh

    key = tmp_path / "key"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(key)
    key.chmod(0o600)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    environment.pop("NNI_CSSNAS_CACHE", None)
    workers: list[SshWorker] = []
    try:
        for host in ("127.0.0.2", "127.0.0.3"):
            workers.append(SshWorker.start(host, tmp_path / host, key, environment))
        yield Cluster(workers, key, home)
    finally:
        for worker in workers:
            worker.lose()


def run_cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nni_cssnas.cli", *words], text=True, capture_output=True, check=False, timeout=300
    )


def wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.3)


def manager_of(experiment: launch.RunningExperiment) -> psutil.Process:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if experiment.id in words and any(word.endswith("main.js") for word in words):
            return process
    raise AssertionError("there is no manager")


@pytest.mark.timeout(900)
def test_nothing_is_swapped_or_lost(cluster: Cluster, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "trial.py").write_text(TRIAL.replace("KILLED", str(KILLED)))
    (code / "search_space.json").write_text(json.dumps(CHOICES))
    settings = cluster.settings(trialCommand="python trial.py", trialConcurrency=4, maxTrialNumber=TRIALS)
    (code / "experiment.yml").write_text(yaml.safe_dump(settings))
    experiment = launch.create(code / "experiment.yml", port=launch.free_port(18800), public=True)
    folder = cluster.home / "nni-experiments" / experiment.id
    ended = lambda: sum(trial["status"] in ENDED for trial in trials_of(experiment))  # noqa: E731
    try:
        wait(lambda: ended() >= 6, 300)
        manager = manager_of(experiment)
        manager.kill()
        interrupted = {name for name, record in records_of(folder).items() if record.status == "running"}
        manager.wait(10)
        experiment = launch.resume(experiment.id, port=experiment.port, public=True)
        wait(lambda: ended() >= 14, 300)
        # What a failed trial has printed is gone with its machine, if it was not fetched before.
        while True:
            now = trials_of(experiment)
            stored = {name for name, record in records_of(folder).items() if record.status != "running"}
            if stored >= {trial["trialJobId"] for trial in now if trial["status"] in ENDED}:
                break
        lost = {trial["trialJobId"] for trial in now if trial["status"] == "RUNNING"}
        lost_host = cluster.workers[1].host
        cluster.workers[1].lose()
        *_, last = experiment.watch(interval=1.0)
        assert last.status == "DONE", last
        wait(lambda: len(records_of(folder)) == TRIALS and "running" not in states(folder), 30)
        trials = trials_of(experiment)
        listed = {trial["trialJobId"]: trial for trial in trials}
        records = records_of(folder)

        # Every trial has a record, with the parameters that NNI shows for it, and a score that is theirs.
        assert sorted(record.sequence for record in records.values()) == list(range(TRIALS))
        for name, record in records.items():
            shown = json.loads(listed[name]["hyperParameters"][-1])
            assert record.parameters == shown["parameters"], f"trial {record.sequence} was swapped"
            assert record.location is not None
            assert record.location.split(":")[0] in ("127.0.0.2", "127.0.0.3")
            if record.finished:
                assert record.score == score_of(record.parameters)
                assert record.components["concurrency"] == 2.0  # 4 on two machines
            for metric in listed[name].get("finalMetricData", []):
                assert json.loads(json.loads(metric["data"]))["default"] == record.score

        # How each ended.
        taken_down = {name for name in lost if lost_host in str(listed[name].get("logPath"))}
        assert len(taken_down) <= 3
        for name, record in records.items():
            if name in taken_down:
                continue
            number = record.sequence
            if number == KILLED:
                assert (record.status, listed[name]["status"]) == ("failed", "USER_CANCELED")
                assert "it was killed, or its machine was lost" in str(record.error)
            elif planned_to_fail(number):
                assert (record.status, listed[name]["status"]) == ("failed", "FAILED")
                wanted = f"ValueError: planned for {number}" if number % 6 == 2 else "it fails before it asks"
                assert wanted in str(record.error)
            else:
                assert record.finished, record

        # The tuner learned the same.
        journal = Journal(folder / "checkpoint" / NAME)
        scores = {
            json.dumps(entry.parameters, sort_keys=True): entry.score for entry in journal.entries if entry.judged
        }
        for record in records.values():
            key = json.dumps(record.parameters, sort_keys=True)
            assert scores[key] == (record.score if record.finished else None), record
        assert len(scores) == TRIALS
    finally:
        experiment.stop()

    best = max((record for record in records.values() if record.finished), key=lambda record: record.score or 0.0)
    shown = run_cli("best", experiment.id, "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)[0]["trial"] == best.sequence
    report = tmp_path / "report.html"
    told = run_cli("report", experiment.id, "-o", str(report))
    assert told.returncode == 0, told.stderr
    html = report.read_text()
    assert all(name in html for name in records)
    assert "sftp://127.0.0.2" in html
    listing = json.loads(run_cli("list", "--json").stdout)
    finished = sum(record.finished for record in records.values())
    assert next(item for item in listing["experiments"] if item["id"] == experiment.id)["trials"] == finished


def trials_of(experiment: launch.RunningExperiment) -> list[dict[str, Any]]:
    try:
        return list(experiment.get("trial-jobs"))
    except ExperimentError:
        return []


def records_of(folder: Path) -> dict[str, TrialRecord]:
    return {record.trial: record for record in read_records(folder)}


def states(folder: Path) -> set[str]:
    return {record.status for record in records_of(folder).values()}
