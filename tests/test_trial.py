"""What ``nnictl`` starts for each trial, as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from nni_cssnas.errors import ExperimentError
from nni_cssnas.results.best import rank
from nni_cssnas.results.records import ERROR_NAME, RECORD_NAME, TrialRecord, read_records

PROXY = {
    "score": "contrastive",
    "threads": 1,
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "images": {"source": "tiles", "num_images": 96},
    "views": {"input_size": 16},
    "contrastive": {"epochs": 2000, "batch_size": 32},
}


# Python drops what is raised within __del__. The cleanup takes longer than the next reminder.
SWALLOWS = """
import time
from nni_cssnas import trial

class Closed:
    def __del__(self):
        print("closing", flush=True)
        time.sleep(1)

trial._catch_signals()
try:
    for _ in range(3):
        Closed()
        time.sleep(1)
    print("went on")
except KeyboardInterrupt:
    try:
        raise ValueError("in the cleanup")
    except ValueError:
        time.sleep(0.5)
    print("cleaned up", flush=True)
    trial._stop()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGALRM")
def test_a_signal_that_comes_in_a_finalizer_stops_a_trial_all_the_same() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SWALLOWS], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "closing\n"
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=30)
    assert output == "cleaned up\n"
    assert error.startswith("Exception ignored in: <function Closed.__del__")
    assert error.endswith("nni_cssnas: stopped before the end\n")
    assert process.returncode == -signal.SIGINT


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_trial_that_is_stopped_says_so_and_ends_by_the_signal(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "proxy.yml").write_text(yaml.safe_dump(PROXY))
    environment = {**os.environ, "NNI_OUTPUT_DIR": str(tmp_path / "trial")}
    command = [sys.executable, "-m", "nni_cssnas.trial", "proxy.yml"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        path = tmp_path / "trial" / RECORD_NAME
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not (path.exists() and TrialRecord.read(path).epoch_losses):
            time.sleep(0.1)
        process.send_signal(number)
        # NNI waits so long before it sends SIGKILL.
        _, error = process.communicate(timeout=5)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert error.splitlines()[-1:] == ["nni_cssnas: stopped before the end"]
    assert "Traceback" not in error
    record = TrialRecord.read(path)
    assert record.status == "stopped"
    assert 1 <= len(record.epoch_losses) < 2000
    assert not (tmp_path / "trial" / "error.txt").exists()


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NNI_OUTPUT_DIR": str(folder / "trial")}
    command = [sys.executable, "-m", "nni_cssnas.trial", "proxy.yml"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("untrained: {batch_size: 2}", "ConfigError: proxy.yml: untrained: batch_size is 2"),
        ("space: {name: 'no_such_module_x:Space'}", "SpaceError: space 'no_such_module_x:Space'"),
        (
            "space: {name: 'broken_x:Space'}",
            "SpaceError: space 'broken_x:Space': module 'broken_x' fails: ZeroDivisionError",
        ),
    ],
)
def test_every_trial_that_began_has_a_record(proxy: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "proxy.yml").write_text(proxy)
    (tmp_path / "broken_x.py").write_text("1 / 0\n")
    done = run(tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (record,) = read_records(tmp_path)
    assert record.status == "failed"
    assert message in (record.error or "")
    assert message in (tmp_path / "trial" / ERROR_NAME).read_text()
    with pytest.raises(ExperimentError, match=r"1 started, 1 failed\); 1 of 1 failed: "):
        rank([record])
