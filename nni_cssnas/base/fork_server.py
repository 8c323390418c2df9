"""Start a program without its imports: a server has done them, and every run is a process forked from it (Linux only).

The first :func:`run` of a name starts the server, in a session of its own. It listens on an abstract Unix socket, which has
no file and vanishes with it. Whoever calls :func:`run` sends arguments, environment, folder and standard streams, and waits
for the end of the forked process. It passes SIGINT and SIGTERM on, and ends as that process ends. Neither outlives the other.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import NoReturn

from nni_cssnas.base.signals import raise_once

__all__ = ["Job", "end_as", "run", "serve"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STALE = 75
"""Exit code of a forked process that the imports do not suit; the server then ends."""

BEGUN, ENDED = b"begun", b"ended"
"""What is told of a forked process: its process id, and its exit code."""

START = 120.0
"""Seconds in which the server has to import what it must."""


@dataclass(frozen=True)
class Job:
    """What a forked process shall do, and where."""

    arguments: list[str]
    environ: dict[str, str]
    folder: str


# ---- who asks ----------------------------------------------------------------------------------------


def run(name: str, arguments: Sequence[str], command: Sequence[str]) -> int | None:
    """Run a program in a process forked from the server, with this process's environment, folder and standard streams.

    Parameters
    ----------
    name
        The server's: it stands for everything that the imports depend on.
    arguments
        Of the program.
    command
        What starts the server if there is none: it gets the number of the listening socket as one more argument, for
        :func:`serve`.

    Returns
    -------
    int or None
        The exit code, negative for a signal; None if no server took the job, so that nothing of it has been done.

    Raises
    ------
    KeyboardInterrupt
        If this process is told to end before the forked one has begun.
    """
    if sys.platform != "linux":
        return None  # libraries of macOS do not survive a fork
    job = Job(list(arguments), dict(os.environ), os.getcwd())
    for _ in range(2):  # the server may be ending just now
        try:
            with _connected(f"\0{name}", command) as connection:
                connection.settimeout(START)
                socket.send_fds(connection, [b"\0"], [0, 1, 2])
                connection.sendall(json.dumps(asdict(job)).encode() + b"\n")
                code = _Follower(connection).follow()
        except TimeoutError:
            return None
        except OSError:
            continue
        if code is not None:
            return code
    return None


def end_as(code: int) -> NoReturn:
    """End this process as another one ended: with its exit code, or by its signal."""
    if code < 0:
        if -code not in SIGNALS:
            print(f"nni_cssnas: ended by signal {-code} ({signal.strsignal(-code)})", file=sys.stderr, flush=True)
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


class _Follower:
    """Waits for the forked process; signals of this one are passed on to it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pid: int | None = None

    def follow(self) -> int | None:
        """Its exit code, or None if it did not begin."""
        before = [signal.signal(number, self._pass_on) for number in SIGNALS]
        try:
            messages = self.connection.makefile("rb")
            begun = messages.readline().split()
            if begun[:1] != [BEGUN]:
                return None
            self.pid = int(begun[1])
            self.connection.settimeout(None)
            ended = messages.readline().split()
            if ended:
                return int(ended[1])
            os.kill(self.pid, signal.SIGKILL)
            print("nni_cssnas: the process that starts the trials was killed, so this one ends", file=sys.stderr)
            return 1
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: object) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
            return
        raise_once(KeyboardInterrupt())


def _connected(address: str, command: Sequence[str]) -> socket.socket:
    """A connection to the server of this user, which is started if there is none. Raises OSError if there can be none."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        for _ in range(100):
            with suppress(ConnectionRefusedError):
                connection.connect(address)
                _refuse_others(connection)
                return connection
            with socket.socket(socket.AF_UNIX) as listener:
                # Only one process can bind it, so only one starts a server; it is listened to from then on.
                try:
                    listener.bind(address)
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    time.sleep(0.01)
                    continue
                listener.listen(128)
                _start([*command, str(listener.fileno())], listener)
                connection.connect(address)
                return connection
        raise ConnectionRefusedError(address)
    except BaseException:
        connection.close()
        raise


def _start(command: Sequence[str], listener: socket.socket) -> None:
    nowhere = subprocess.DEVNULL
    server = subprocess.Popen(
        command,
        stdin=nowhere,
        stdout=nowhere,
        stderr=nowhere,
        start_new_session=True,
        pass_fds=[listener.fileno()],
    )
    server.returncode = 0  # it outlives this process, of which subprocess would warn


def _refuse_others(connection: socket.socket) -> None:
    """Raise PermissionError if another user is at the other end."""
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user != os.getuid():
        raise PermissionError(f"the other end belongs to user {user}")


# ---- the server --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    process: BaseProcess
    connection: socket.socket


def serve(
    listener: socket.socket,
    work: Callable[[list[str]], int],
    *,
    suits: Callable[[Job], bool],
    needed: Callable[[Job | None], bool],
    idle: float,
) -> None:
    """Fork a process for every job, until none has come for some time. There must be no other threads.

    Parameters
    ----------
    listener
        The listening socket.
    work
        What a forked process does with the job's arguments; gives the exit code.
    suits
        Called in the forked process: whether what was imported suits the job. If not, the server takes no more.
    needed
        Asked every second between jobs, with the latest job: whether there may be another.
    idle
        Seconds without a job after which the server ends.
    """
    _Server(listener, work, suits).serve(needed, idle)


class _Server:
    def __init__(self, listener: socket.socket, work: Callable[[list[str]], int], suits: Callable[[Job], bool]) -> None:
        self.listener = listener
        self.work = work
        self.suits = suits
        self.runs: list[_Run] = []
        self.latest: Job | None = None

    def serve(self, needed: Callable[[Job | None], bool], idle: float) -> None:
        with self.listener:
            busy = time.monotonic()
            while self.runs or (self._open and time.monotonic() - busy < idle and needed(self.latest)):
                sentinels = [run.process.sentinel for run in self.runs]
                connections = [run.connection for run in self.runs]
                ready = wait([*sentinels, *connections, *([self.listener] if self._open else [])], timeout=1.0)
                for run in list(self.runs):
                    if run.connection in ready:  # who asked for it is gone
                        run.process.kill()
                        run.process.join(1.0)
                    self._end(run)
                if self.listener in ready:
                    self._begin()
                if self.runs:
                    busy = time.monotonic()

    @property
    def _open(self) -> bool:
        return self.listener.fileno() >= 0

    def _begin(self) -> None:
        connection, _ = self.listener.accept()
        streams: list[int] = []
        try:
            _refuse_others(connection)
            connection.settimeout(10.0)
            _, streams, _, _ = socket.recv_fds(connection, 1, 3)
            self.latest = job = Job(**json.loads(connection.makefile("rb").readline()))
            connection.settimeout(None)
            process = multiprocessing.get_context("fork").Process(target=self._child, args=(connection, job, streams))
            process.start()
            self.runs.append(_Run(process, connection))
        except (OSError, ValueError, TypeError):
            connection.close()  # which tells that nothing was begun
        finally:
            for stream in streams:
                os.close(stream)

    def _end(self, run: _Run) -> None:
        code = run.process.exitcode
        if code is None:
            return
        if code == STALE:
            self.listener.close()
        with suppress(OSError):
            run.connection.sendall(b"%s %d\n" % (ENDED, code))
        run.connection.close()
        run.process.close()
        self.runs.remove(run)

    def _child(self, connection: socket.socket, job: Job, streams: list[int]) -> NoReturn:
        # An end that stays open here would hide the server's death from the others.
        for inherited in (self.listener, *(run.connection for run in self.runs)):
            inherited.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(job.environ)
        os.chdir(job.folder)
        sys.argv[1:] = job.arguments
        if not self.suits(job):
            os._exit(STALE)
        try:
            connection.sendall(b"%s %d\n" % (BEGUN, os.getpid()))
        except OSError:
            os._exit(1)  # nobody waits for it
        connection.close()
        try:
            sys.exit(self.work(job.arguments))
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
            raise
        except Exception:
            sys.excepthook(*sys.exc_info())
            sys.exit(1)
