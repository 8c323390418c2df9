"""A trial gets its own parameters, whoever asks first.

NNI 3.0's local manager hands parameters out in one first-come queue: with two concurrent trials, or after
a trial that died before it asked, a trial receives the parameters that NNI shows for another one. What the
manager has *recorded* for a trial never moves, and its REST API tells it by the trial's id. So a local trial
reads its record there, and the queue is left alone. No order, lock or time-out is involved.

Elsewhere (``platform: remote``) a trial cannot reach that API and NNI's own queue is used.

Parameters are read as plain JSON. NNI's own channel unpickles and calls whatever they name, and anybody who can reach
the manager can send some.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import requests
from nni.runtime.trial_command_channel import set_default_trial_command_channel
from nni.runtime.trial_command_channel.v3 import TrialCommandChannelV3

from nni_cssnas.base.threads import wait_politely
from nni_cssnas.errors import ExperimentError

__all__ = ["OwnParametersChannel", "PlainChannel", "install", "share_cores", "trial_concurrency", "tuner_arguments"]


class OwnParametersChannel(TrialCommandChannelV3):  # type: ignore[misc]
    """NNI's channel of a local trial, but parameters come from the manager's record of this trial.

    Parameters
    ----------
    url
        NNI's ``NNI_TRIAL_COMMAND_CHANNEL``: ``http://host:port[/prefix]/env/<environment>/<trial>``.
    trial_id
        NNI's ``NNI_TRIAL_JOB_ID``.
    patience
        Seconds to wait for the record, which the manager writes just after it has started the trial.
    """

    def __init__(self, url: str, trial_id: str, patience: float = 60.0) -> None:
        super().__init__(url)
        self.trial_id = trial_id
        self.patience = patience
        self.api = url.rsplit("/env/", 1)[0] + "/api/v1/nni"

    def receive_parameter(self) -> Any:
        """The record ``{"parameter_id": ..., "parameters": ...}`` of this trial.

        Raises
        ------
        ExperimentError
            If the manager does not tell it in time.
        """
        deadline = time.monotonic() + self.patience
        problem = "it has no record of this trial"
        while time.monotonic() < deadline:
            try:
                answer = requests.get(f"{self.api}/trial-jobs/{self.trial_id}", timeout=10)
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
    """Let ``nni.get_next_parameter()`` of a local trial read the trial's own record; call it before that."""
    url = os.environ.get("NNI_TRIAL_COMMAND_CHANNEL", "")
    if not url.startswith("http://"):
        return
    local = os.environ.get("NNI_PLATFORM") == "local"
    channel = OwnParametersChannel(url, os.environ["NNI_TRIAL_JOB_ID"]) if local else PlainChannel(url)
    set_default_trial_command_channel(channel)


def trial_concurrency() -> int:
    """How many trials of this experiment run at a time on this machine; 1 where that cannot be asked."""
    url = os.environ.get("NNI_TRIAL_COMMAND_CHANNEL", "")
    if os.environ.get("NNI_PLATFORM") != "local" or "/env/" not in url:
        return 1
    try:
        profile = requests.get(url.rsplit("/env/", 1)[0] + "/api/v1/nni/experiment", timeout=10).json()
        return max(1, int(profile["params"]["trialConcurrency"]))
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return 1


def tuner_arguments() -> dict[str, Any]:
    """The ``classArgs`` of this experiment's tuner; nothing where they cannot be asked."""
    url = os.environ.get("NNI_TRIAL_COMMAND_CHANNEL", "")
    if os.environ.get("NNI_PLATFORM") != "local" or "/env/" not in url:
        return {}
    try:
        profile = requests.get(url.rsplit("/env/", 1)[0] + "/api/v1/nni/experiment", timeout=10).json()
        return dict(profile["params"]["tuner"]["classArgs"])
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return {}


def share_cores(threads: int = 0) -> int:
    """Let this process take its share of the cores, or ``threads`` of them; call it before torch is imported."""
    share = threads or max(1, (os.cpu_count() or 1) // trial_concurrency())
    wait_politely()
    # The libraries below torch read these once, at their start.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(share))
    return share
