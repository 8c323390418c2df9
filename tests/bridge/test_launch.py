"""Watching, starting and ending an experiment, before a small server in the place of NNI's manager."""

from __future__ import annotations

import collections
import inspect
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import typer
from rich.console import Console

from nni_cssnas.bridge import launch, nnictl
from nni_cssnas.bridge.experiment_file import check_experiment
from nni_cssnas.cli import watching
from nni_cssnas.errors import ConfigError, ExperimentError

LOG = """[2026-01-01 10:00:00] INFO (main) Start NNI manager
[2026-01-01 10:00:01] ERROR (LocalV3.local) Failed to collect GPU info, collector output:
[2026-01-01 10:00:02] ERROR (WsChannel.__default__) Channel closed. Ignored command {"type":"TE"}
[2026-01-01 10:00:03] INFO (ShutdownManager) Shutdown complete.
"""


class Manager:
    """A server that answers as NNI's manager; every ``accidents[n]`` happens to the n-th question."""

    def __init__(self, accidents: dict[int, str], trials: int = 3) -> None:
        self.accidents = accidents
        self.trials = trials
        self.questions = 0
        self.finished = 0
        manager = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                manager.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self.server.server_address[1]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.questions += 1
        accident = self.accidents.get(self.questions, "")
        if accident == "end":
            self.server.socket.close()
        if accident in ("hang up", "end"):
            handler.connection.close()
            return
        if accident == "late":
            time.sleep(1.5)
        body = "<html>" if accident == "nonsense" else json.dumps(self.contents(handler.path))
        handler.send_response(500 if accident == "error" else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body.encode())

    def contents(self, path: str) -> Any:
        if "check-status" in path:
            done = self.finished >= self.trials
            self.finished += not done
            return {"status": "DONE" if done else "RUNNING", "errors": []}
        if "trial-jobs" in path:
            return [{"status": "SUCCEEDED"}] * self.finished + [{"status": "RUNNING"}] * (self.trials - self.finished)
        if "metric-data" in path:
            return [{"data": json.dumps(json.dumps(float(number)))} for number in range(self.finished)]
        return {"params": {"maxTrialNumber": self.trials}}


@contextmanager
def manager(accidents: dict[int, str] | None = None) -> Iterator[Manager]:
    found = Manager(accidents or {})
    threading.Thread(target=found.server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()


@pytest.mark.parametrize("accident", ["hang up", "late", "error", "nonsense"])
def test_a_question_that_fails_is_asked_again(accident: str) -> None:
    with manager({5: accident, 6: accident}) as found:
        states = list(launch.RunningExperiment("abc", found.port).watch(interval=0.01))
    assert [state.status for state in states if not state.silent][-1] == "DONE"
    assert states[-1].succeeded == 3
    assert states[-1].best == 2.0


def test_a_manager_that_says_nothing_is_waited_for_but_not_for_ever() -> None:
    with manager(dict.fromkeys(range(7, 10_000), "nonsense")) as found:
        states: list[launch.Progress] = []
        watch = launch.RunningExperiment("abc", found.port).watch(interval=0.01, silence=2)
        with pytest.raises(ExperimentError, match="go on with: nni-cssnas resume abc"):
            collections.deque(map(states.append, watch), maxlen=0)
    assert [state.succeeded for state in states[:2]] == [1, 2]
    # What is known stays shown, with how old it is.
    assert [state.succeeded for state in states[2:]] == [2] * len(states[2:])
    assert 0 < states[-1].silent < 2


def test_the_last_error_of_a_manager_that_ended_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "nnimanager.log").write_text(LOG)
    monkeypatch.setattr(launch, "find_experiment", lambda name: tmp_path)
    with manager({4: "end"}) as found:
        begun = time.monotonic()
        with pytest.raises(ExperimentError) as caught:
            list(launch.RunningExperiment("abc", found.port).watch(interval=0.01))
    assert time.monotonic() - begun < 20
    message = str(caught.value)
    assert "ERROR (WsChannel.__default__) Channel closed" in message
    assert str(tmp_path / "log" / "nnimanager.log") in message
    assert "nni-cssnas resume abc" in message
    assert "\n" not in message


def test_a_full_disk_of_which_a_manager_ended_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "nnimanager.log").write_text("[2026-01-01] INFO all is well\n")  # it could not write more
    monkeypatch.setattr(launch, "find_experiment", lambda name: tmp_path)
    for free, said in (
        (4096, rf"the disk is full, make space first \({tmp_path}\); .* resume abc"),
        (2**30, "no error"),
    ):
        monkeypatch.setattr(launch.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        with manager({4: "end"}) as found, pytest.raises(ExperimentError, match=said):
            list(launch.RunningExperiment("abc", found.port).watch(interval=0.01))


@pytest.mark.parametrize(
    ("text", "last"),
    [
        (LOG, 'ERROR (WsChannel.__default__) Channel closed. Ignored command {"type":"TE"}'),
        (
            "Traceback (most recent call last):\n  File x\nOSError: [Errno 30] Read-only: '/h/.local'\n",
            "OSError: [Errno 30] Read-only: '/h/.local'",
        ),
        (
            "[2026-01-01 10:00:00] \x1b[31mERROR: Create experiment failed: no\x1b[0m\nnni.x.FooError: bar\nrest",
            "nni.x.FooError: bar",
        ),
        ("INFO: errors: none\n", None),
        ("", None),
    ],
)
def test_the_last_error(text: str, last: str | None) -> None:
    assert launch.last_error(text) == last


@pytest.mark.parametrize("port", [0, -1, 65536, 99999])
def test_a_port_that_cannot_be(port: int) -> None:
    with pytest.raises(ConfigError, match=f"port is {port}; it must be from 1 to 65535"):
        launch.create(Path(__file__), port=port)


def test_no_free_port_beyond_the_last() -> None:
    with pytest.raises(ExperimentError, match="no free port from 65536 to 65535"):
        launch.free_port(65536)


def test_the_nnictl_of_this_python_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever PATH has, or has not."""
    monkeypatch.setenv("PATH", str(tmp_path))
    done = subprocess.run([*launch._nnictl(), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3.0"


def test_a_manager_may_start_slowly() -> None:
    from nni.experiment import launcher

    from nni_cssnas.bridge.nnictl import be_patient

    be_patient()
    parameters = inspect.signature(launcher._check_rest_server).parameters
    assert parameters["retry"].default == 60
    assert parameters["url_prefix"].default is None


def fake_nnictl(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "python").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


def test_nnictls_reason_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nnictl(tmp_path, monkeypatch, "echo 'INFO: begins'; echo 'Traceback:\n  File x\nOSError: no room' >&2; exit 1")
    with pytest.raises(ExperimentError) as caught:
        launch.create(Path(__file__))
    assert str(caught.value) == "nnictl create failed: OSError: no room"


def test_an_experiment_that_does_not_listen_has_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nnictl(tmp_path, monkeypatch, "echo Experiment ID: abc_no_such")
    with pytest.raises(ExperimentError, match="nnictl create failed: Experiment ID: abc_no_such"):
        launch.create(Path(__file__))


def test_interrupted_while_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither nnictl nor a manager that it has begun is left."""
    # A manager's command line has its main.js and the id.
    script = (
        f"echo Creating experiment, Experiment ID: abc_begun; echo $$ > {tmp_path}/pid; "
        f"{sys.executable} -c 'import time; time.sleep(60)' main.js --experiment-id abc_begun & wait"
    )
    fake_nnictl(tmp_path, monkeypatch, script)

    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        while not launch._managers("abc_begun"):
            time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            launch.create(Path(__file__))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not launch._managers("abc_begun")
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


class Fake(launch.RunningExperiment):
    """Its progress is told by the test."""

    def max_trials(self) -> int | None:
        return 4

    def stop(self) -> None:
        print("MANAGER STOPPED", flush=True)


def states(number: int, **settings: Any) -> list[launch.Progress]:
    common = {"status": "RUNNING", "succeeded": 0, "failed": 0, "stopped": 0, "running": 2, "best": None}
    return [launch.Progress(**common | settings)] * number


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(watching, "console", Console(file=output, width=80))
    clock = iter(range(10**6))
    monkeypatch.setattr(watching.time, "monotonic", lambda: float(next(clock)))
    story = [
        *states(130),
        *states(1, succeeded=1, best=0.5),
        *states(1, succeeded=2, best=0.5),
        *states(12, succeeded=2, failed=1, best=0.5, silent=30.0),
        *states(1, status="DONE", succeeded=3, failed=1, running=0, best=1.25),
    ]
    experiment = Fake("abc", 1)
    monkeypatch.setattr(launch.RunningExperiment, "watch", lambda self: iter(story))
    assert watching._show_lines(experiment) == story[-1]
    lines = output.getvalue().splitlines()
    assert lines[:3] == [
        "0:00:01 0/4 trials, 2 running",
        "0:01:01 0/4 trials, 2 running",
        "0:02:01 0/4 trials, 2 running",
    ]
    assert lines[3] == "0:02:11 1/4 trials, 2 running, best score 0.5000"
    assert "3/4 trials, 2 running, 1 failed, best score 0.5000, the manager has not answered for 30 s" in lines[4]
    assert lines[-1].endswith("4/4 trials, 0 running, 1 failed, best score 1.2500")
    assert len(lines) == 6


SCRIPT = """
import sys, time
import typer
from nni_cssnas.bridge import launch, nnictl
from nni_cssnas.bridge.experiment_file import check_experiment
from nni_cssnas.cli import watching

class Fake(launch.RunningExperiment):
    def max_trials(self):
        return 4
    def watch(self):
        while True:
            yield launch.Progress("RUNNING", 0, 0, 0, 2, None)
            time.sleep(0.05)
    def stop(self):
        time.sleep(1)
        print("MANAGER STOPPED", flush=True)

typer.run(lambda: watching.follow(lambda: Fake("abc", 1), keep=False, top=3))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_manager(number: signal.Signals, code: int) -> None:
    # Where the tests run in a shell's background, SIGINT is ignored, which a child inherits and `follow` respects.
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert "portal" in process.stdout.readline()
        assert "0/4 trials, 2 running" in process.stdout.readline()
        process.send_signal(number)
        for _ in range(20):  # however soon, they do not leave the manager behind
            time.sleep(0.025)
            process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "go on with: nni-cssnas resume abc" in output
    assert "MANAGER STOPPED" in output
    assert "nni-cssnas view abc" in output


def test_nohup_is_respected() -> None:
    command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143


def test_the_manager_is_ended_where_it_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def watch(self: launch.RunningExperiment) -> Iterator[launch.Progress]:
        raise ExperimentError("gone")

    monkeypatch.setattr(launch.RunningExperiment, "watch", watch)
    with pytest.raises(ExperimentError, match="gone"):
        watching.follow(lambda: Fake("abc", 1), keep=False, top=3)
    assert "MANAGER STOPPED" in capsys.readouterr().out


def test_top_is_how_many_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(launch.RunningExperiment, "watch", lambda self: iter(states(1, status="ERROR", running=0)))
    monkeypatch.setattr("nni_cssnas.results.experiments.find_experiment", lambda name: tmp_path)
    monkeypatch.setattr(watching, "show_best", lambda folder, **settings: asked.append(settings["top"]))
    with pytest.raises(typer.Exit) as ended:
        watching.follow(lambda: Fake("abc", 1), keep=False, top=7)
    assert asked == [7]
    assert ended.value.exit_code == 1


def test_the_address_of_a_public_portal() -> None:
    assert launch.RunningExperiment("abc", 8080).public_portal is None
    address = launch.RunningExperiment("abc", 8080, token="secret").public_portal
    assert address is not None
    assert address.endswith(":8080/secret/")
    # On this machine no secret is needed, nor told.
    assert launch.RunningExperiment("abc", 8080, token="secret").portal == "http://127.0.0.1:8080"


def folder_of(home: Path, name: str) -> Path:
    folder = home / "nni-experiments" / name
    (folder / "db").mkdir(parents=True)
    (folder / "db" / "nni.sqlite").write_bytes(b"")
    return folder


@pytest.mark.parametrize("verb", ["resume", "view"])
def test_nnictl_is_told_the_folder(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its list of experiments may have lost it, or call it running.
    asked: list[list[str]] = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("nni_cssnas.results.experiments.known_experiments", dict)
    monkeypatch.setattr(launch, "_start", lambda arguments, *_: asked.append(list(arguments)))
    folder = folder_of(tmp_path, "lostlost")
    for name in ("lostlost", str(folder)):
        getattr(launch, verb)(name)
    assert asked == [[verb, "lostlost", "--experiment_dir", str(folder.parent)]] * 2
    (folder / "db" / "nni.sqlite").unlink()
    with pytest.raises(ExperimentError, match=r"lostlost is not the folder of an experiment"):
        getattr(launch, verb)("lostlost")


@pytest.mark.parametrize("seconds", [1, 60])
def test_a_manager_in_its_last_moments_is_waited_for(seconds: int, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "dying123")
    command = [sys.executable, "-c", f"import time; time.sleep({seconds})", "main.js", "--experiment-id", "dying123"]
    with subprocess.Popen(command) as manager:
        while not launch._managers("dying123"):
            time.sleep(0.01)
        if seconds == 1:
            assert launch._stopped(str(folder)) == folder
        else:
            with pytest.raises(ExperimentError, match="dying123 is running; stop it first"):
                launch._stopped(str(folder), patience=0.2)
        manager.kill()


def test_a_port_that_is_taken_meanwhile_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def start(arguments: object, port: int, public: bool) -> launch.RunningExperiment:
        tried.append(port)
        if len(tried) < 3:
            raise ExperimentError(f"nnictl create failed: RuntimeError: Port {port} is not idle")
        if len(tried) == 4:
            raise ExperimentError("nnictl create failed: another reason")
        return launch.RunningExperiment("abc", port)

    monkeypatch.setattr(launch, "_start", start)
    assert launch._start_anywhere(["create"], public=False).port == tried[2] > tried[1] > tried[0] >= 8080
    with pytest.raises(ExperimentError, match="another reason"):
        launch._start_anywhere(["create"], public=False)


BEGUN = "[2026-01-01 10:00:00] INFO (main) Start NNI manager\n"
ENDING = "[2026-01-01 10:00:05] INFO (ShutdownManager) Initiate shutdown: training service initialize failed\n"
CAUSE = (
    "[2026-01-01 10:00:04] ERROR (TrainingServiceCompat) failed: Error: connect ECONNREFUSED 192.0.2.1:22\n    at TCP\n"
)
AFTER = "[2026-01-01 10:00:06] ERROR (NNIRestHandler) Error: SQLITE_MISUSE: Database is closed\n"


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (BEGUN + CAUSE + ENDING + AFTER, "connect ECONNREFUSED"),
        (BEGUN + ENDING + CAUSE + AFTER, "connect ECONNREFUSED"),
        (BEGUN + CAUSE + ENDING + BEGUN + ENDING + AFTER, None),  # that of the life before is over
        (BEGUN + CAUSE.replace("ECONNREFUSED", "OTHER") + ENDING + BEGUN + CAUSE, "connect ECONNREFUSED"),
        (BEGUN + ENDING, None),
        ("", None),
    ],
)
def test_what_follows_from_a_managers_end_is_not_its_reason(log: str, cause: str | None) -> None:
    found = launch.manager_error(log)
    assert found is None if cause is None else cause in str(found)


@pytest.mark.parametrize("version", ["3.12.0", "3.20.1", "4.3.1"])
def test_a_filelock_that_nni_waits_for_is_refused(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nnictl.check_libraries()
    monkeypatch.setattr(nnictl.importlib.metadata, "version", lambda name: version)
    (tmp_path / "experiment.yml").write_text("trainingService: {platform: local}\n")
    message = rf"filelock {version} is installed, with which nnictl waits for ever; .*pip install 'filelock<3.12'"
    for refuse in (launch.create, check_experiment):
        with pytest.raises(ExperimentError, match=message):
            refuse(tmp_path / "experiment.yml")


def test_a_setuptools_without_pkg_resources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnictl.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExperimentError, match="pip install 'setuptools<82'"):
        nnictl.check_libraries()
