"""Programs forked from a server, with a small program in the place of a trial."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the server is for Linux")

# The server, if it is started with a number; else who asks for `work`. Every import of it leaves a line.
PROGRAM = """
import ctypes, json, os, signal, socket, sys, time
from nni_cssnas.base import fork_server

folder, name, size = os.environ["FOLDER"], os.environ["NAME"], os.environ.get("SIZE")

def tell(what):
    with open(os.path.join(folder, what), "a") as file:
        file.write(f"{os.getpid()}\\n")

def work(arguments):
    kind = arguments[0]
    if kind == "describe":
        print(json.dumps([arguments, os.getcwd(), os.environ.get("COLOUR"), sys.argv[1:], os.getpid(), os.getppid()]))
        print("to stderr", file=sys.stderr)
        return 3
    if kind == "text":
        sys.exit("no such file")
    if kind == "error":
        raise ZeroDivisionError("by zero")
    if kind == "crash":
        ctypes.string_at(0)
    def stop(number, frame):
        tell(f"got-{number}")
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    if kind == "polite":
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
    tell("working")
    time.sleep(60)

if len(sys.argv) > 2 and sys.argv[1] == "serve":
    tell("server")
    if "BROKEN" in os.environ:
        raise ImportError
    time.sleep(float(os.environ.get("IMPORTS", "0")))
    fork_server.serve(
        socket.socket(fileno=int(sys.argv[-1])),
        work,
        suits=lambda job: job.environ.get("SIZE") == size,
        needed=lambda job: not os.path.exists(os.path.join(folder, "end")),
        idle=float(os.environ.get("IDLE", "60")),
    )
else:
    try:
        code = fork_server.run(name, sys.argv[1:], [sys.executable, __file__, "serve"])
    except KeyboardInterrupt:
        print("interrupted before")
        code = -2
    if code is None:
        print("by itself")
        sys.exit(9)
    fork_server.end_as(code)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts who asks; at the end the server must go by itself."""
    (tmp_path / "program.py").write_text(PROGRAM)
    name = f"test-{uuid.uuid4()}"
    begun: list[subprocess.Popen[str]] = []

    def run(*arguments: str, cwd: Path = tmp_path, **variables: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "FOLDER": str(tmp_path), "NAME": name, **variables}
        command = [sys.executable, str(tmp_path / "program.py"), *arguments]
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True))
        return begun[-1]

    yield run
    (tmp_path / "end").touch()
    for process in begun:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()
    for pid in pids(tmp_path, "server") + pids(tmp_path, "working"):
        assert eventually(lambda pid=pid: not runs(pid)), f"process {pid} is left"


def pids(folder: Path, what: str) -> list[int]:
    path = folder / what
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(happened: Callable[[], Any], patience: float = 20.0) -> bool:
    deadline = time.monotonic() + patience
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=60)
    return process.returncode, out, error


def test_a_run_has_the_arguments_folder_environment_and_streams_of_who_asks(start: Start, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    strange = os.fsdecode(b"r\xff d")
    seen = []
    for colour, folder in (("green", tmp_path), (strange, tmp_path / "below")):
        code, out, error = finish(start("describe", strange, cwd=folder, COLOUR=colour))
        assert (code, error) == (3, "to stderr\n")
        arguments, where, given, argv, pid, parent = json.loads(out)
        assert (arguments, where, given) == (["describe", strange], str(folder), colour)
        assert argv == arguments
        seen.append((pid, parent))
    (server,) = pids(tmp_path, "server")
    assert [parent for _, parent in seen] == [server, server]
    assert len({server, *(pid for pid, _ in seen)}) == 3
    assert os.getsid(server) == server  # no Ctrl-C of a terminal reaches it


@pytest.mark.parametrize(
    ("kind", "code", "wanted"),
    [
        ("text", 1, "no such file\n"),
        ("error", 1, "ZeroDivisionError: by zero\n"),
        ("crash", -signal.SIGSEGV, f"nni_cssnas: ended by signal 11 ({signal.strsignal(11)})\n"),
    ],
)
def test_one_that_fails_fails_alone(kind: str, code: int, wanted: str, start: Start, tmp_path: Path) -> None:
    neighbour = start("sleep")
    assert eventually(lambda: pids(tmp_path, "working"))
    failed, _, error = finish(start(kind))
    assert failed == code
    assert error.endswith(wanted)
    assert neighbour.poll() is None
    assert finish(start("describe"))[0] == 3
    assert len(pids(tmp_path, "server")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on(number: signal.Signals, start: Start, tmp_path: Path) -> None:
    process = start("polite")
    assert eventually(lambda: pids(tmp_path, "working"))
    process.send_signal(number)
    assert finish(process) == (-signal.SIGINT, "", "")
    assert pids(tmp_path, f"got-{int(number)}") == pids(tmp_path, "working")


def test_an_interrupt_before_the_run_has_begun(start: Start, tmp_path: Path) -> None:
    process = start("polite", IMPORTS="2")
    assert eventually(lambda: pids(tmp_path, "server"))
    process.send_signal(signal.SIGINT)
    assert finish(process)[:2] == (-signal.SIGINT, "interrupted before\n")
    assert finish(start("describe", IMPORTS="2"))[0] == 3
    assert not pids(tmp_path, "working")
    assert len(pids(tmp_path, "server")) == 1


def test_kill_nine_of_who_asks_ends_the_run(start: Start, tmp_path: Path) -> None:
    process = start("sleep")
    assert eventually(lambda: pids(tmp_path, "working"))
    process.kill()
    (working,) = pids(tmp_path, "working")
    assert eventually(lambda: not runs(working), 3.0)
    assert finish(start("describe"))[0] == 3
    assert len(pids(tmp_path, "server")) == 1


def test_kill_nine_of_the_run(start: Start, tmp_path: Path) -> None:
    process = start("sleep")
    assert eventually(lambda: pids(tmp_path, "working"))
    os.kill(pids(tmp_path, "working")[0], signal.SIGKILL)
    assert finish(process) == (-signal.SIGKILL, "", f"nni_cssnas: ended by signal 9 ({signal.strsignal(9)})\n")


def test_kill_nine_of_the_server_ends_its_runs_and_the_next_run_starts_another(start: Start, tmp_path: Path) -> None:
    processes = [start("sleep"), start("sleep")]
    assert eventually(lambda: len(pids(tmp_path, "working")) == 2)
    os.kill(pids(tmp_path, "server")[0], signal.SIGKILL)
    for process in processes:
        code, out, error = finish(process)
        assert (code, out) == (1, "")
        assert error == "nni_cssnas: the process that starts the trials was killed, so this one ends\n"
    assert eventually(lambda: not any(runs(pid) for pid in pids(tmp_path, "working")))
    assert finish(start("describe"))[0] == 3
    assert len(pids(tmp_path, "server")) == 2


def test_many_first_ones_start_one_server(start: Start, tmp_path: Path) -> None:
    processes = [start("describe", IMPORTS="0.5") for _ in range(8)]
    assert [finish(process)[0] for process in processes] == [3] * 8
    assert len(pids(tmp_path, "server")) == 1


def test_a_server_ends_when_it_is_idle_or_not_needed(start: Start, tmp_path: Path) -> None:
    assert finish(start("describe", IDLE="0.5"))[0] == 3
    (first,) = pids(tmp_path, "server")
    assert eventually(lambda: not runs(first), 5.0)
    assert finish(start("describe"))[0] == 3
    _, second = pids(tmp_path, "server")
    (tmp_path / "end").touch()
    assert eventually(lambda: not runs(second), 5.0)


def test_imports_that_do_not_suit_are_replaced(start: Start, tmp_path: Path) -> None:
    old = start("sleep", SIZE="1")
    assert eventually(lambda: pids(tmp_path, "working"))
    assert finish(start("describe", SIZE="2"))[0] == 3
    assert finish(start("describe", SIZE="2"))[0] == 3
    first, second = pids(tmp_path, "server")
    assert old.poll() is None  # it ends in its own time
    assert runs(first)
    assert runs(second)


def test_without_a_server_nothing_is_done(start: Start, tmp_path: Path) -> None:
    code, out, _ = finish(start("describe", BROKEN="1"))
    assert (code, out) == (9, "by itself\n")


def test_what_is_no_job_harms_nobody(start: Start, tmp_path: Path) -> None:
    assert finish(start("describe"))[0] == 3
    name = next(line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "@test-" in line)
    for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\0[1, 2]\n", b'\0{"folder": "/"}\n'):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect("\0" + name[1:])
            connection.sendall(junk)
    assert finish(start("describe"))[0] == 3
    assert len(pids(tmp_path, "server")) == 1
