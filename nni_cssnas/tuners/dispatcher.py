"""What the process in which NNI runs a tuner, an advisor or an assessor needs beyond NNI 3.0.

* It ends with its manager. NNI's goes on for up to a minute after its manager was killed, and connects to whatever
  manager comes next on that port: one that was resumed at once, whose own tuner it throws out.
* It makes no objects of what it receives. NNI unpickles and calls whatever a message names, and anybody who can
  reach the manager can send one.
* It ends as soon as it is told to. NNI's looks every three seconds, for which whoever stops an experiment waits.
* It stores what trials on other machines leave (:mod:`nni_cssnas.tuners.collector`).
"""

from __future__ import annotations

import base64
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from nni_cssnas.base.threads import wait_politely
from nni_cssnas.tuners.collector import Collector

__all__ = [
    "end_promptly",
    "end_with",
    "is_dispatcher",
    "manager_of",
    "plain_json",
    "prepare",
    "runs_elsewhere",
    "take_plain_json",
    "trial_code_directory",
]

_logger = logging.getLogger("nni.tuner.cssnas")


def is_dispatcher() -> bool:
    """Whether this process was started by a manager to run its tuner (``python -m nni --exp_params ...``)."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", None) == "nni.__main__" and "NNI_TUNER_COMMAND_CHANNEL" in os.environ


def prepare() -> None:
    """Mend this process, if it is a dispatcher; every module of :mod:`nni_cssnas.tuners` calls it on import."""
    if not is_dispatcher():
        return
    wait_politely()
    take_plain_json()
    end_promptly()
    if runs_elsewhere():
        manager_url = os.environ["NNI_TUNER_COMMAND_CHANNEL"].removeprefix("ws").removesuffix("/tuner")
        Collector(f"http{manager_url}/api/v1/nni", Path(os.environ["NNI_CHECKPOINT_DIRECTORY"]).parent).start()
    manager = manager_of(psutil.Process())
    if manager is None:
        _logger.warning("the manager of this tuner was not found; the tuner may outlive it")
    else:
        end_with(manager)


def trial_code_directory(arguments: Sequence[str] | None = None) -> Path | None:
    """The folder of the trials' code, as this process was told it on its command line; None if it is no dispatcher.

    A tuner that NNI knows by name has no ``codeDirectory``, and runs in the folder of the experiment's logs.
    """
    folder = _settings(arguments).get("trialCodeDirectory")
    return Path(folder) if isinstance(folder, str) else None


def runs_elsewhere(arguments: Sequence[str] | None = None) -> bool:
    """Whether the trials run on other machines, as this process was told; False if it is no dispatcher."""
    given = _settings(arguments).get("trainingService")
    services = given if isinstance(given, list) else [given]
    return any(isinstance(service, dict) and service.get("platform", "local") != "local" for service in services)


def _settings(arguments: Sequence[str] | None) -> dict[str, Any]:
    """The experiment's settings, as NNI gives them on the command line of a dispatcher; else nothing."""
    arguments = sys.argv if arguments is None else arguments
    try:
        found = json.loads(base64.b64decode(arguments[arguments.index("--exp_params") + 1]))
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def manager_of(process: psutil.Process) -> psutil.Process | None:
    """The manager that started a process, maybe through a shell."""
    for parent in process.parents():
        try:
            words = parent.cmdline()
        except psutil.Error:
            continue
        if "--experiment-id" in words and any(word.endswith("main.js") for word in words):
            return parent
    return None


def end_with(manager: psutil.Process, interval: float = 0.5) -> None:
    """End this process as soon as its manager is gone, even by ``kill -9``.

    Parameters
    ----------
    manager
        The process whose end is this one's.
    interval
        Seconds between two looks.
    """

    def wait() -> None:
        # Its number may be another process's by then: psutil compares the time of its start as well.
        with suppress(psutil.NoSuchProcess):  # it may end between the two questions
            while manager.is_running() and manager.status() != psutil.STATUS_ZOMBIE:
                time.sleep(interval)
        _logger.warning("the manager has ended; so does its tuner")
        logging.shutdown()
        os._exit(1)

    threading.Thread(target=wait, name="end-with-manager", daemon=True).start()


def end_promptly(interval: float = 0.2) -> None:
    """Let the dispatchers that this process makes from now on look every so many seconds whether they are to end."""
    from nni.runtime import msg_dispatcher_base

    class Queue(queue.Queue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            return super().get(block, timeout if timeout is None else min(timeout, interval))

    msg_dispatcher_base.Queue = Queue


def take_plain_json() -> None:
    """Let ``nni.load`` of this process give plain JSON: what names code, or holds a pickle, stays a mapping.

    NNI takes a message's word for what to import, call and unpickle.
    """
    from nni.common import serializer

    # All ways of nni.load lead here, also from modules that imported the function before.
    serializer.json_tricks.loads = plain_json
    serializer.json_tricks.load = lambda file, **settings: plain_json(file.read())


def plain_json(text: str, **settings: Any) -> Any:
    """JSON without NNI's extensions, but for the numbers of numpy that trials report.

    Parameters
    ----------
    text
        What NNI sent.
    settings
        Those of ``json_tricks.loads``; not used.
    """
    return json.loads(text, object_hook=_number)


def _number(value: dict[str, Any]) -> Any:
    number = value.get("__ndarray__")
    return number if isinstance(number, int | float) and value.get("shape") == [] else value
