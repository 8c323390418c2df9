"""NNI's remote platform: two machines by SSH, trials that fail and die, a lost machine, a killed manager."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncssh
import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from nni_cssnas.bridge import launch
from nni_cssnas.bridge.remote import Asked, Machine, Remote, ask_machines, carry_images
from nni_cssnas.cli import app
from nni_cssnas.config import ImagesConfig
from nni_cssnas.errors import ConfigError, ExperimentError, ImagesError
from nni_cssnas.images.sources import load_images
from nni_cssnas.results.records import TrialRecord, read_records
from nni_cssnas.tuners.journal import NAME, Journal
from tests.integration.conftest import write_search_space
from tests.integration.ssh_worker import SshWorker

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CHOICES = {f"c{i}": {"_type": "choice", "_value": [f"v{j}" for j in range(8)]} for i in range(6)}
# The long version in CI.
TRIALS = 24 if "CSSNAS_KILLS" in os.environ else 16
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

from nni_cssnas.bridge import pairing
from nni_cssnas.results.carried import tell_end, with_record
from nni_cssnas.results.records import TrialRecord
import nni  # after ours, which puts some of it off

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


def run_cli(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


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
        wait(lambda: ended() >= TRIALS // 4, 300)
        await_records(experiment, folder)
        manager = manager_of(experiment)
        manager.kill()
        interrupted = {name for name, record in records_of(folder).items() if record.status == "running"}
        manager.wait(10)
        experiment = launch.resume(experiment.id, port=experiment.port, public=True)
        wait(lambda: ended() >= TRIALS * 5 // 8, 300)
        now = await_records(experiment, folder)
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
        # NNI passes over the number of a trial that waited to be started when the manager was killed.
        numbers = {name: record.sequence for name, record in records.items()}
        assert numbers == {name: trial["sequenceId"] for name, trial in listed.items()}
        assert len(set(numbers.values())) == TRIALS
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
        entries = {json.dumps(entry.parameters, sort_keys=True): entry for entry in journal.entries}
        for record in records.values():
            entry = entries[json.dumps(record.parameters, sort_keys=True)]
            assert entry.score == (record.score if record.finished else None), record
            # NNI does not tell a tuner of the failure of a trial that it has run again.
            assert entry.judged or (record.trial in interrupted and not record.finished), record
        # Proposals that the killed manager had not started yet are all that is more.
        tried = {json.dumps(record.parameters, sort_keys=True) for record in records.values()}
        assert len(tried) == TRIALS
        assert not [key for key, entry in entries.items() if entry.judged and key not in tried]
    finally:
        experiment.stop()

    best = max((record for record in records.values() if record.finished), key=lambda record: record.score or 0.0)
    assert json.loads(run_cli("best", experiment.id, "--json"))[0]["trial"] == best.sequence
    report = tmp_path / "report.html"
    run_cli("report", experiment.id, "-o", str(report))
    html = report.read_text()
    assert all(name in html for name in records)
    assert "sftp://127.0.0.2" in html
    # NNI reads once in a process where its list of experiments is.
    command = [sys.executable, "-m", "nni_cssnas.cli", "list", "--json"]
    listing = json.loads(subprocess.run(command, text=True, capture_output=True, check=True).stdout)
    finished = sum(record.finished for record in records.values())
    assert next(item for item in listing["experiments"] if item["id"] == experiment.id)["trials"] == finished


def await_records(experiment: launch.RunningExperiment, folder: Path) -> list[dict[str, Any]]:
    """Wait until the records of all that has ended are here, and give the trials of that moment.

    What a failed trial has printed is gone with its machine or the manager, if it was not fetched before.
    """
    deadline = time.monotonic() + 60
    while True:
        now = trials_of(experiment)
        stored = {name for name, record in records_of(folder).items() if record.status != "running"}
        if stored >= {trial["trialJobId"] for trial in now if trial["status"] in ENDED}:
            return now
        assert time.monotonic() < deadline, "records do not come"


def trials_of(experiment: launch.RunningExperiment) -> list[dict[str, Any]]:
    try:
        return list(experiment.get("trial-jobs"))
    except ExperimentError:
        return []


def records_of(folder: Path) -> dict[str, TrialRecord]:
    return {record.trial: record for record in read_records(folder)}


def states(folder: Path) -> set[str]:
    return {record.status for record in records_of(folder).values()}


@pytest.fixture
def known_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh command that does not write into the real home of who runs the tests."""
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    real = shutil.which("ssh")
    assert real is not None
    script.write_text(f'#!/bin/sh\nexec {real} -F none -o UserKnownHostsFile={tmp_path / "known_hosts"} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")


def remote_of(cluster: Cluster) -> Remote:
    machines = [
        Machine(worker.host, worker.port, "me", cluster.key, str(worker.home / "venv" / "bin"))
        for worker in cluster.workers
    ]
    return Remote(tuple(machines), "127.0.0.5")


@pytest.mark.usefixtures("known_hosts")
@pytest.mark.timeout(300)
def test_machines_are_asked_and_images_are_carried_once(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(photos / f"{index}.png")
    config = ImagesConfig(source=str(photos), num_images=8)
    images = load_images(config)
    remote, port = remote_of(cluster), launch.free_port(18850)

    def carry(images: Any) -> list[str]:
        lines: list[str] = []
        asked = ask_machines(remote, port=port, source=str(photos), config=config)
        # All machines of this test have one disk, so the source is there; another machine would say that it is not.
        assert all(item.answer["source"] for item in asked)
        elsewhere = [Asked(item.machine, {**item.answer, "source": None}) for item in asked]
        carry_images(elsewhere, source=str(photos), config=config, images=images, tell=lines.append)
        return lines

    first = carry(images)
    assert [line.split("; ")[1] for line in first] == [
        f"8 images were carried to {worker.home}/.cache/nni_cssnas" for worker in cluster.workers
    ]
    assert all("8 images were carried there before" in line for line in carry(images))

    # A trial on such a machine finds them where the source is not.
    photos.rename(tmp_path / "moved")
    monkeypatch.setenv("NNI_CSSNAS_CACHE", str(cluster.workers[0].home / ".cache" / "nni_cssnas"))
    with pytest.raises(ImagesError, match="no such folder"):
        load_images(config)
    monkeypatch.setenv("NNI_PLATFORM", "remote")
    assert torch.equal(load_images(config), images)
    with pytest.raises(ImagesError, match="no such folder"):
        load_images(config.model_copy(update={"seed": 1}))
    (tmp_path / "moved").rename(photos)

    # Other images of that name take their place, on every machine.
    assert all("8 images were carried to" in line for line in carry(255 - images))
    folders = [worker.home / ".cache" / "nni_cssnas" for worker in cluster.workers]
    assert [len(list(folder.iterdir())) for folder in folders] == [1, 1]
    photos.rename(tmp_path / "moved")
    assert torch.equal(load_images(config), 255 - images)

    # What cannot be carried is told for each machine.
    for nothing, reason in ((None, "it is not here either"), (object(), "too large to be carried")):
        (tmp_path / "moved").rename(photos)
        with pytest.raises(ConfigError, match=reason) as caught:
            carry(nothing)
        assert len(str(caught.value).splitlines()) == 2
        photos.rename(tmp_path / "moved")


@pytest.mark.usefixtures("known_hosts")
@pytest.mark.timeout(300)
def test_every_machine_that_cannot_be_used_has_one_line(cluster: Cluster, tmp_path: Path) -> None:
    good = remote_of(cluster).machines[0]
    closed = socket.socket()
    closed.bind(("127.0.0.4", 0))
    old = cluster.workers[1].home / "old" / "torch-1.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    wrapper = cluster.workers[1].home / "old" / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={old.parent}:$PYTHONPATH exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    stranger = tmp_path / "stranger"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(stranger)
    stranger.chmod(0o600)
    wrong = {
        replace(
            good, host="127.0.0.4", port=closed.getsockname()[1]
        ): r"ssh cannot connect \(.*refused.*\); mend it until",
        replace(good, key=stranger): r"ssh cannot connect \(.*denied.*\); mend it until this works: ssh -p",
        replace(good, python=str(tmp_path)): r"pythonPath .* has no python; it must be the folder of one",
        replace(good, python=str(wrapper.parent)): r"torch is 1\.0 there, and .* on this machine; pip install 'torch==",
    }
    secret = replace(good, host="127.0.0.4", key=None)
    remote = Remote((*wrong, good, secret), "127.0.0.5")
    told: list[str] = []
    with pytest.raises(ConfigError) as caught:
        ask_machines(remote, port=launch.free_port(18860), tell=told.append)
    assert len(told) == 1
    assert told[0].startswith(f"{secret}: not looked at, for it wants a password")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(wrong)
    for line, (machine, pattern) in zip(lines, wrong.items(), strict=True):
        assert line.startswith(f"{machine.host}:{machine.port}: ")
        assert re.search(pattern, line), line
    # The way back: an address of nobody. TEST-NET-1 is never routed.
    with pytest.raises(ConfigError, match=r"does not reach this machine at 192\.0\.2\.1:\d+ \(.*\); open that port"):
        ask_machines(Remote((good,), "192.0.2.1"), port=launch.free_port(18870))


@pytest.mark.usefixtures("known_hosts")
@pytest.mark.timeout(600)
def test_run_on_other_machines(cluster: Cluster, tmp_path: Path) -> None:
    """Real trials, as a user starts them."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "proxy.yml").write_text(
        yaml.safe_dump(
            {
                "preset": "cpu",
                "score": "untrained",
                "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
                "images": {"source": "tiles", "num_images": 64},
                "views": {"input_size": 16},
                "untrained": {"batch_size": 8},
            }
        )
    )
    write_search_space(code / "proxy.yml")
    settings = cluster.settings(
        trialCommand="python -m nni_cssnas.trial proxy.yml", trialConcurrency=2, maxTrialNumber=4
    )
    (code / "experiment.yml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="add --public: the manager then listens on every interface"):
        CliRunner().invoke(app, ["run", str(code / "experiment.yml")], catch_exceptions=False)
    told = run_cli("run", str(code / "experiment.yml"), "--public", "--port", str(launch.free_port(18880)))
    assert all(f"{worker.host}:{worker.port}: Python" in told for worker in cluster.workers)
    assert "best of 4 finished trials" in told
    folder = next(path for path in (cluster.home / "nni-experiments").iterdir() if path.name in told)
    records = records_of(folder)
    assert {record.location.split(":")[0] for record in records.values() if record.location} == {
        "127.0.0.2",
        "127.0.0.3",
    }
    # The record is the one that the trial has written there.
    for record in records.values():
        path = next(path for worker in cluster.workers for path in worker.home.rglob(f"{record.trial}/record.json"))
        assert replace(TrialRecord.read(path), location=record.location) == record
    with pytest.raises(ConfigError, match="add --public"):
        CliRunner().invoke(app, ["resume", folder.name], catch_exceptions=False)


@pytest.mark.timeout(300)
def test_a_manager_that_dies_of_a_machine_says_so(cluster: Cluster, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "search_space.json").write_text(json.dumps(CHOICES))
    cluster.workers[1].lose()
    settings = cluster.settings(trialCommand="python trial.py", trialConcurrency=2, maxTrialNumber=4)
    (code / "experiment.yml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ExperimentError, match=r"its last error is: .*ECONNREFUSED"):  # noqa: PT012
        experiment = launch.create(code / "experiment.yml", port=launch.free_port(18890), public=True)
        for _ in experiment.watch():
            pass
