"""Trials forked from the experiment's server, before a small server in the place of NNI's manager."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from nni_cssnas.bridge import forked
from nni_cssnas.config import ProxyConfig
from nni_cssnas.results.records import RECORD_NAME, TrialRecord
from nni_cssnas.spaces import make_space, random_choices

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="trials are forked on Linux")

PROXY = {
    "score": "untrained",
    "space": {"name": "own_space:Space", "arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "images": {"source": "tiles", "num_images": 96},
    "views": {"input_size": 16},
    "untrained": {"batch_size": 8},
}
SPACE = """
import numpy, os, sys, threading
from nni_cssnas.spaces import CellSpace

print("random numbers:", numpy.random.random(), "threads:", os.environ["OMP_NUM_THREADS"], "environment:", os.environ["COLOUR"])

class Space(CellSpace):
    pass
"""
TRAINED = {"score": "contrastive", "contrastive": {"epochs": 2000, "batch_size": 32}}


class Manager:
    """A manager's answers, the metrics that it is told, and trials as NNI starts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.concurrency = 1
        self.metrics: dict[str, list[Any]] = {}
        self.environ = {**os.environ, "COLOUR": "green", "NNI_CSSNAS_CACHE": str(folder / "cache")}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NNI_CSSNAS_ISOLATED"):
            self.environ.pop(name, None)
        space = make_space(ProxyConfig(**{**PROXY, "space": {"arguments": PROXY["space"]["arguments"]}}).scored_space)
        self.choices = random_choices(space, np.random.default_rng(0))
        manager = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.endswith("/experiment"):
                    self.answer({"params": {"trialConcurrency": manager.concurrency}})
                else:
                    record = {"parameter_id": 7, "parameters": manager.choices}
                    self.answer({"hyperParameters": [json.dumps(record)]})

            def do_PUT(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                manager.metrics.setdefault(self.path.rsplit("/", 1)[1], []).append(json.loads(body["metric"]))
                self.answer({})

            def answer(self, body: Any) -> None:
                text = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def start(
        self, trial: str, *options: str, proxy: dict[str, Any] | None = None, module: str = "nni_cssnas.trial"
    ) -> subprocess.Popen[str]:
        (self.folder / "proxy.yml").write_text(yaml.safe_dump(PROXY | (proxy or {})))
        (self.folder / "own_space.py").write_text(SPACE)
        out = self.folder / trial
        environ = {
            **self.environ,
            "NNI_PLATFORM": "local",
            "NNI_EXP_ID": "experiment",
            "NNI_TRIAL_JOB_ID": trial,
            "NNI_TRIAL_SEQ_ID": trial.removeprefix("t"),
            "NNI_OUTPUT_DIR": str(out),
            "NNI_SYS_DIR": str(out),
            "NNI_TRIAL_COMMAND_CHANNEL": f"http://127.0.0.1:{self.server.server_address[1]}/env/local-env/{trial}",
        }
        command = [sys.executable, "-W", "ignore", "-m", module, *options, "proxy.yml"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environ, stdout=pipe, stderr=pipe, text=True)

    def run(self, trial: str, *options: str, **settings: Any) -> TrialRecord:
        process = self.start(trial, *options, **settings)
        assert (*process.communicate(timeout=240), process.returncode) == ("", "", 0)
        return self.record(trial)

    def record(self, trial: str) -> TrialRecord:
        return TrialRecord.read(self.folder / trial / RECORD_NAME)

    def log(self, trial: str) -> str:
        return (self.folder / trial / "trial.log").read_text()

    def servers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                serves = "--serve" in process.cmdline() and process.cwd() == str(self.folder)
                if serves and os.getsid(process.pid) == process.pid:
                    found.append(process)
            except (psutil.Error, ProcessLookupError):
                continue
        return found

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    started = Manager(tmp_path_factory.mktemp("experiment"))
    yield started
    servers = started.servers()
    started.end()
    _, left = psutil.wait_procs(servers, timeout=10)  # a second, as its manager is gone
    for server in left:
        server.kill()
    assert not left


@pytest.mark.slow
def test_a_forked_trial_is_an_isolated_one_but_for_its_start(manager: Manager) -> None:
    alone = manager.run("t0", "--isolated")
    assert not manager.servers()
    first, second = manager.run("t1"), manager.run("t2")
    assert len(manager.servers()) == 1
    for number, record in enumerate((alone, first, second)):
        assert (record.experiment, record.trial, record.sequence) == ("experiment", f"t{number}", number)
        assert record.parameter_id == 7
        assert record.parameters == manager.choices
        # Bit for bit, but for what the clock says.
        assert (record.score, record.components) == (alone.score, alone.components)
        assert (record.environment, record.config, record.seed) == (alone.environment, alone.config, alone.seed)
        (metric,) = manager.metrics[f"t{number}"]
        assert (metric["trial_job_id"], metric["parameter_id"], metric["type"]) == (f"t{number}", 7, "FINAL")
    logs = [manager.log(f"t{number}") for number in range(3)]
    for number, log in enumerate(logs):
        assert log.count(f"Connect to trial command channel http://127.0.0.1:{manager.server.server_address[1]}/") == 1
        assert f"/env/local-env/t{number}" in log
        assert f"PRINT score: {alone.score:.6g}" in log
        assert f"threads: {os.cpu_count()} environment: green" in log
    numbers = {line.split()[5] for log in logs for line in log.splitlines() if "random numbers" in line}
    assert len(numbers) == 3


@pytest.mark.slow
def test_a_forked_trial_sees_what_has_changed_in_the_users_code(manager: Manager) -> None:
    manager.run("t3")
    wrong = manager.start("t4", proxy={"space": {"name": "own_space:Missing"}})
    _, error = wrong.communicate(timeout=240)
    assert wrong.returncode == 1
    assert error.startswith("nni_cssnas: SpaceError: ")
    assert "Missing" in error
    assert "Traceback" not in error
    assert manager.record("t4").status == "failed"


@pytest.mark.slow
def test_trials_of_a_nas_experiment_are_forked_too(manager: Manager) -> None:
    before = {server.pid for server in manager.servers()}
    process = manager.start("t10", module="nni_cssnas.bridge.nas_trial")
    _, error = process.communicate(timeout=240)
    assert process.returncode == 1
    assert error.startswith("nni_cssnas: ExperimentError: the parameters ")  # they name no architecture
    (server,) = {server.pid for server in manager.servers()} - before
    assert "nni_cssnas.bridge.nas_trial" in psutil.Process(server).cmdline()
    psutil.Process(server).kill()


@pytest.mark.slow
def test_another_number_of_threads_needs_other_imports(manager: Manager) -> None:
    manager.run("t5")
    (before,) = manager.servers()
    manager.run("t6", proxy={"threads": (os.cpu_count() or 1) + 1})
    (after,) = manager.servers()
    assert after.pid != before.pid
    assert f"threads: {(os.cpu_count() or 1) + 1} " in manager.log("t6")


@pytest.mark.slow
@pytest.mark.parametrize("imported", [False, True])
def test_a_stopped_one_is_recorded_as_stopped(imported: bool, manager: Manager) -> None:
    for server in manager.servers():
        server.kill()
        server.wait()
    trial = "t8" if imported else "t7"
    if imported:
        manager.run("t9")
    process = manager.start(trial, proxy=TRAINED if imported else None)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not (
        manager.servers() if not imported else (manager.folder / trial / RECORD_NAME).exists()
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert error.splitlines() == ["nni_cssnas: stopped before the end"]
    assert manager.record(trial).status == "stopped"


@pytest.mark.slow
def test_what_is_imported_before_the_fork_survives_it() -> None:
    """CUDA does not, once it was asked for its devices, and neither do threads."""
    code = """
import importlib, os, sys
from unittest import mock
os.environ["OMP_NUM_THREADS"] = "1"
import torch
from nni_cssnas.bridge.forked import MODULES, TRAINING_MODULES

asked = mock.Mock(side_effect=AssertionError("asked for GPUs"))
names = [name for name in ("_cuda_getDeviceCount", "_cuda_init") if hasattr(torch._C, name)]
with mock.patch.multiple(torch._C, **dict.fromkeys(names, asked)), mock.patch("torch.cuda.is_available", asked):
    for name in MODULES + TRAINING_MODULES:
        importlib.import_module(name)
print(asked.call_count, len(os.listdir("/proc/self/task")), "pytorch_lightning" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 1 False\n"


@pytest.mark.parametrize(("name", "value"), [("NNI_PLATFORM", None), ("NNI_CSSNAS_ISOLATED", "1")])
def test_where_nothing_is_forked(name: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNI_PLATFORM", "local")
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(forked.fork_server, "run", lambda *_: pytest.fail("forked"))
    assert forked.run("nni_cssnas.trial", []) is None


def test_a_server_is_for_one_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "a")
    name = forked._name(["python"])
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "b")
    assert forked._name(["python"]) == name
    assert len(f"\0{name}") <= 107  # what an address of a socket holds
    for variable in ("NNI_EXP_ID", "OMP_NUM_THREADS", "ANYTHING"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "other")
            assert forked._name(["python"]) != name
    assert forked._name(["python3"]) != name


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_whether_the_manager_is_there(host: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        url = f"http://{host}:{server.server_address[1]}/env/local-env/a"
        job = forked.Job([], {"NNI_TRIAL_COMMAND_CHANNEL": url}, ".")
        assert forked._manager_answers(job)
    assert not forked._manager_answers(job)
    assert forked._manager_answers(forked.Job([], {}, "."))
