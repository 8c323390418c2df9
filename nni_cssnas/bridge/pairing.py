"""A trial gets its own parameters, whoever asks first.

NNI 3.0's local manager hands parameters out in one first-come queue: with two concurrent trials, or after
a trial that died before it asked, a trial receives the parameters that NNI shows for another one. What the
manager has *recorded* for a trial never moves, and its REST API tells it by the trial's id. So a trial reads its record
there. No order, lock or time-out is involved.

A trial on another machine (``platform: remote``) is told the address of that machine's keeper only, but the keeper has
the manager's in a file. Where the manager does not answer a trial, NNI's own queue is used.

Parameters are read as plain JSON. NNI's own channel unpickles and calls whatever they name, and anybody who can reach
the manager can send some.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any

import requests
from nni.runtime.trial_command_channel import set_default_trial_command_channel
from nni.runtime.trial_command_channel.v3 import TrialCommandChannelV3

from nni_cssnas.base.threads import wait_politely
from nni_cssnas.errors import ExperimentError

__all__ = ["OwnParametersChannel", "PlainChannel", "install", "share_cores", "trial_concurrency", "tuner_arguments"]

API = "/api/v1/nni"


class OwnParametersChannel(TrialCommandChannelV3):  # type: ignore[misc]
    """NNI's channel of a trial, but parameters come from the manager's record of this trial.

    Parameters
    ----------
    url
        NNI's ``NNI_TRIAL_COMMAND_CHANNEL``: ``http://host:port[/prefix]/env/<environment>/<trial>``.
    trial_id
        NNI's ``NNI_TRIAL_JOB_ID``.
    api
        Address of the manager's REST API; by default that of a local trial, whose channel is the manager's own.
    patience
        Seconds to wait for the record, which the manager writes just after it has started the trial.
    """

    def __init__(self, url: str, trial_id: str, api: str | None = None, patience: float = 60.0) -> None:
        super().__init__(url)
        self.trial_id = trial_id
        self.patience = patience
        self.shares_queue = api is not None
        self.api = api or url.rsplit("/env/", 1)[0] + API

    def receive_parameter(self) -> Any:
        """The record ``{"parameter_id": ..., "parameters": ...}`` of this trial.

        Raises
        ------
        ExperimentError
            If the manager does not tell it in time.
        """
        if self.shares_queue:
            # A trial that cannot reach the manager takes the head of the queue, so this one's must not stay there.
            self._channel.send({"type": "request_parameter"})
        deadline = time.monotonic() + self.patience
        problem = "it has no record of this trial"
        while time.monotonic() < deadline:
            try:
                answer = _get(f"{self.api}/trial-jobs/{self.trial_id}")
                recorded = answer.json().get("hyperParameters") if answer.ok else None
                if recorded:
                    return json.loads(recorded[-1])
            except (requests.RequestException, ValueError, AttributeError) as error:
                problem = str(error)
            time.sleep(0.1)
        raise ExperimentError(
            f"the NNI manager at {self.api} did not tell the parameters of trial {self.trial_id} "
            f"within {self.patience:g} s: {problem}; see nnimanager.log in the experiment's log folder"
        )


class PlainChannel(TrialCommandChannelV3):  # type: ignore[misc]
    """NNI's channel of a trial, but parameters are plain JSON."""

    def receive_parameter(self) -> Any:
        """The record ``{"parameter_id": ..., "parameters": ...}`` that is next in NNI's queue; None if it is closed."""
        self._channel.send({"type": "request_parameter"})
        answer = self._channel.receive()
        return None if answer is None else json.loads(answer["parameter"])


def install() -> None:
    """Let ``nni.get_next_parameter()`` of this trial read the trial's own record; call it before that.

    Warns
    -----
    UserWarning
        If this machine cannot ask the manager, so that NNI's queue is used.
    """
    url = os.environ.get("NNI_TRIAL_COMMAND_CHANNEL", "")
    if not url.startswith("http://"):
        return
    trial_id = os.environ.get("NNI_TRIAL_JOB_ID", "")
    channel: TrialCommandChannelV3 | None = None  # each that is made says so in the trial's log
    if os.environ.get("NNI_PLATFORM") == "local":
        channel = OwnParametersChannel(url, trial_id)
    elif os.environ.get("NNI_PLATFORM") == "remote":
        api = _manager_api()
        problem = "its keeper has left no address of it" if api is None else _silence(api)
        if problem is None:
            channel = OwnParametersChannel(url, trial_id, api)
        else:
            warnings.warn(
                f"this trial takes its parameters from NNI's queue, and NNI may show them for another trial: this machine "
                f"cannot ask the manager ({problem}); open nniManagerIp and the manager's port to this machine",
                stacklevel=2,
            )
    set_default_trial_command_channel(channel or PlainChannel(url))


def trial_concurrency() -> int:
    """How many trials of this experiment run at a time on this machine; 1 where that cannot be asked.

    NNI gives trials to machines in turn.
    """
    params = _experiment()
    try:
        machines = params["trainingService"].get("machineList") or [None]
        return max(1, math.ceil(int(params["trialConcurrency"]) / len(machines)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return 1


def tuner_arguments() -> dict[str, Any]:
    """The ``classArgs`` of this experiment's tuner; nothing where they cannot be asked."""
    try:
        return dict(_experiment()["tuner"]["classArgs"])
    except (ValueError, KeyError, TypeError):
        return {}


def share_cores(threads: int = 0) -> int:
    """Let this process take its share of the cores, or ``threads`` of them; call it before torch is imported."""
    share = threads or max(1, (os.cpu_count() or 1) // trial_concurrency())
    wait_politely()
    # The libraries below torch read these once, at their start.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(share))
    return share


def _manager_api() -> str | None:
    """Address of the manager's REST API, as far as this trial is told it."""
    platform, url = os.environ.get("NNI_PLATFORM"), os.environ.get("NNI_TRIAL_COMMAND_CHANNEL", "")
    if platform == "local" and "/env/" in url:
        return url.rsplit("/env/", 1)[0] + API
    if platform != "remote" or "NNI_OUTPUT_DIR" not in os.environ:
        return None
    environment = Path(os.environ["NNI_OUTPUT_DIR"]).parents[1]
    try:
        # A resumed experiment has a new keeper, and maybe a new address.
        newest = max(environment.glob("trial_keeper*/trial_keeper_config.json"), key=lambda path: path.stat().st_mtime)
        manager = json.loads(newest.read_text(encoding="utf-8"))["managerCommandChannel"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return "http" + str(manager).removeprefix("ws").rsplit("/platform/", 1)[0] + API


def _experiment() -> Any:
    """The settings of this trial's experiment, as NNI has them; an empty mapping where they cannot be asked."""
    api = _manager_api()
    if api is None:
        return {}
    try:
        return _get(f"{api}/experiment").json()["params"]
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return {}


def _silence(api: str) -> str | None:
    """Why the manager does not answer at once; None if it does."""
    try:
        answer = _get(f"{api}/check-status")
        return None if answer.ok else f"it answers {answer.status_code} {answer.reason}"
    except requests.RequestException as error:
        return str(error)


def _get(url: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # a proxy for the internet does not know the manager
        return session.get(url, timeout=10)
