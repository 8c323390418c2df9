"""Trials of the real nnictl that are forked from the experiment's server: whose they are, what kills them, what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from nni_cssnas.bridge import launch
from nni_cssnas.results.records import read_records

from .conftest import PROXY
from .test_nnictl import parameters, score

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="trials are forked on Linux"),
]

TRIALS, KILLS_SERVER, CRASHES = 9, 3, 6
SPACE = f"""
import ctypes, os, signal
from nni_cssnas.spaces import CellSpace

print("server:", os.getppid())

class Space(CellSpace):
    def __init__(self, **settings):
        super().__init__(**settings)
        if os.environ["NNI_TRIAL_SEQ_ID"] == "{KILLS_SERVER}":
            os.kill(os.getppid(), signal.SIGKILL)
        if os.environ["NNI_TRIAL_SEQ_ID"] == "{CRASHES}":
            ctypes.string_at(0)
"""


def test_forked_trials(home: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SPACE)
    space = {"name": "own:Space", **PROXY["space"]}
    proxy = PROXY | {"score": "untrained", "space": space, "untrained": {"batch_size": 8}}
    (tmp_path / "proxy.yml").write_text(yaml.safe_dump(proxy))
    (tmp_path / "experiment.yml").write_text(
        yaml.safe_dump(
            {
                "searchSpaceFile": "search_space.json",
                "trialCommand": "python -m nni_cssnas.trial proxy.yml",
                "trialCodeDirectory": ".",
                "experimentWorkingDirectory": str(home / "nni-experiments"),
                "trialConcurrency": 1,
                "maxTrialNumber": TRIALS,
                "tuner": {"className": "nni_cssnas.tuners.tpe.Tpe", "codeDirectory": ".", "classArgs": {"seed": 0}},
                "trainingService": {"platform": "local"},
            }
        )
    )
    # The space looks for a trial's number.
    environ = os.environ | {"NNI_TRIAL_SEQ_ID": "-1"}
    command = [sys.executable, "-m", "nni_cssnas.cli", "space", "proxy.yml"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNI_TRIAL_SEQ_ID", "-1")
        experiment = launch.create(tmp_path / "experiment.yml", port=launch.free_port(18880))
    try:
        *_, last = experiment.watch(interval=1.0)
        trials = sorted(experiment.get("trial-jobs"), key=lambda trial: trial["sequenceId"])
    finally:
        experiment.stop()
    folder = home / "nni-experiments" / experiment.id
    assert last.status == "DONE"
    states = [trial["status"] for trial in trials]
    assert states.pop(CRASHES) == "USER_CANCELED"  # as NNI calls what died by a signal
    assert states.pop(KILLS_SERVER) == "FAILED"
    assert states == ["SUCCEEDED"] * (TRIALS - 2)

    records = {record.trial: record for record in read_records(folder)}
    servers = []
    for trial in trials:
        out = folder / "environments" / "local-env" / "trials" / trial["trialJobId"]
        servers.append(int(re.findall(r"server: (\d+)", (out / "trial.log").read_text())[-1]))
        error = (out / "trial.stderr").read_text()
        if trial["status"] == "SUCCEEDED":
            record = records[trial["trialJobId"]]
            assert (record.sequence, record.experiment) == (trial["sequenceId"], experiment.id)
            assert record.parameters == parameters(trial)
            assert record.score == score(trial)
            assert error == ""
        elif trial["sequenceId"] == CRASHES:
            assert error == f"nni_cssnas: ended by signal 11 ({signal.strsignal(11)})\n"
        else:
            assert error == "nni_cssnas: the process that starts the trials was killed, so this one ends\n"
    # One until it is killed, and one more: a crash harms the trial only.
    assert servers == [servers[0]] * (KILLS_SERVER + 1) + [servers[-1]] * (TRIALS - KILLS_SERVER - 1)
    assert servers[0] != servers[-1]
    deadline = time.monotonic() + 10
    while psutil.pid_exists(servers[-1]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(servers[-1])
