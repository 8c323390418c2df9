from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from nni.runtime import msg_dispatcher_base
from nni.runtime.tuner_command_channel import CommandType

from nni_cssnas.tuners.dispatcher import end_promptly, end_with, plain_json

# As NNI's manager does it: main.js, a shell, the tuner. The third tells its number and that it is ready.
MANAGER = """
import subprocess, sys, time
subprocess.Popen(["sh", "-c", sys.argv[3] + " -c '" + sys.argv[4] + "'; true"])
time.sleep(600)
"""
TUNER = """
import os, time, psutil
from nni_cssnas.tuners import dispatcher
manager = dispatcher.manager_of(psutil.Process())
dispatcher.end_with(manager, 0.1)
print(os.getpid(), manager.pid, flush=True)
time.sleep(600)
"""


def test_a_tuner_ends_with_its_manager() -> None:
    """Not with the shell between them, which outlives the manager."""
    arguments = ["main.js", "--experiment-id", sys.executable, TUNER]
    with subprocess.Popen([sys.executable, "-c", MANAGER, *arguments], stdout=subprocess.PIPE, text=True) as manager:
        assert manager.stdout is not None
        tuner, found = map(int, manager.stdout.readline().split())
        assert found == manager.pid
        process = psutil.Process(tuner)
        assert process.ppid() != manager.pid
        manager.kill()
    _, alive = psutil.wait_procs([process], timeout=60)
    for left in alive:
        if left.status() != psutil.STATUS_ZOMBIE:
            left.kill()
            pytest.fail("the tuner outlives its manager")


def test_a_manager_that_ends_between_two_questions_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(logging, "shutdown", lambda: None)

    class Manager:
        def is_running(self) -> bool:
            return True

        def status(self) -> str:
            raise psutil.NoSuchProcess(1)

    end_with(Manager())  # type: ignore[arg-type]
    assert ended.wait(60)


def test_a_tuner_ends_as_soon_as_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msg_dispatcher_base, "Queue", msg_dispatcher_base.Queue)
    seconds = []
    for _ in range(2):
        dispatcher = msg_dispatcher_base.MsgDispatcherBase("ws://_unittest_placeholder_")
        done: list[Any] = []
        monkeypatch.setattr(dispatcher, "process_command", lambda *command: done.append(command))  # noqa: B023
        commands = iter([(CommandType.Ping, ""), (CommandType.Terminate, "")])
        monkeypatch.setattr(dispatcher, "_channel", SimpleNamespace(_receive=lambda: next(commands), disconnect=list))  # noqa: B023
        begun = time.monotonic()
        dispatcher.run()
        seconds.append(time.monotonic() - begun)
        assert done == [(CommandType.Ping, "")]
        end_promptly()
    assert seconds[1] < 1 < seconds[0]


def test_plain_json_keeps_what_names_code() -> None:
    pickled = base64.b64encode(pickle.dumps(print)).decode()
    for value in (
        {"__nni_obj__": pickled},
        {"__nni_type__": f"bytes:{pickled}"},
        {"__symbol__": "path:os.system", "__args__": ["false"]},
        {"__instance_type__": "path:os.system"},
        {"__enum__": {"__enum_instance_type__": ["antigravity", "x"], "name": "y"}},
        {"__ndarray__": "/etc/passwd", "dtype": "load", "shape": []},
        {"deep": [{"__nni_obj__": pickled}]},
    ):
        assert plain_json(json.dumps(value)) == value


def test_plain_json_reads_what_trials_report() -> None:
    import nni
    import numpy as np

    for number in (0.5, np.float64(0.5), np.float32(0.5), np.int64(3)):
        for value in (number, {"default": number}):
            assert plain_json(nni.dump(value)) == value
    assert plain_json("null") is None


def test_only_a_dispatcher_is_changed() -> None:
    """A program that imports a tuner keeps NNI's loader; the process of ``python -m nni`` does not."""
    code = textwrap.dedent("""
        import nni, sys, types
        if sys.argv[1] == "dispatcher":
            sys.modules["__main__"].__spec__ = types.SimpleNamespace(name="nni.__main__")
        import nni_cssnas.tuners.tpe
        print(nni.load('{"__symbol__": "path:math.sqrt", "__args__": [4]}') == 2.0)
    """)
    told = {}
    for kind in ("program", "dispatcher"):
        environment = os.environ | {"NNI_TUNER_COMMAND_CHANNEL": "ws://localhost:1/tuner"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, kind],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        told[kind] = done.stdout.split()[-1]
    assert told == {"program": "True", "dispatcher": "False"}


def test_every_module_of_tuners_prepares() -> None:
    """NNI may start with any of them: the package itself does it."""
    import nni_cssnas.tuners

    assert "dispatcher.prepare()" in Path(nni_cssnas.tuners.__file__).read_text()
