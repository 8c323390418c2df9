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

from nni_cssnas.results.records import RECORD_NAME, TrialRecord

PROXY = {
    "score": "contrastive",
    "threads": 1,
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "images": {"source": "tiles", "num_images": 96},
    "views": {"input_size": 16},
    "contrastive": {"epochs": 2000, "batch_size": 32},
}


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
