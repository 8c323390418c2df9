from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import nni
import pytest
from nni.runtime import msg_dispatcher_base


@pytest.fixture
def mixed() -> dict[str, Any]:
    """A search space with every kind of choice that NNI has, a nested one among them."""
    return {
        "lr": {"_type": "loguniform", "_value": [1e-4, 1.0]},
        "width": {"_type": "quniform", "_value": [8, 64, 8]},
        "x": {"_type": "normal", "_value": [0, 1]},
        "n": {"_type": "randint", "_value": [2, 9]},
        "block": {
            "_type": "choice",
            "_value": [{"_name": "a", "k": {"_type": "choice", "_value": [3, 5, 7]}}, {"_name": "b"}],
        },
    }


class Manager:
    """NNI's side of an advisor: runs one trial after the other."""

    def __init__(self, advisor: Any, choices: dict[str, Any]) -> None:
        self.advisor = advisor
        self.waiting: list[dict[str, Any]] = []
        self.done: list[tuple[dict[str, Any], Any]] = []
        advisor.send = lambda command, data: self.waiting.append(json.loads(data)) if data else None
        advisor.handle_initialize(choices)

    def next_job(self) -> dict[str, Any]:
        self.advisor.handle_request_trial_jobs(1)
        return self.waiting.pop(0)

    def end(self, job: dict[str, Any], value: Any, trial: str = "t") -> None:
        """A trial's messages; None: it failed without a word."""
        metric = {"parameter_id": job["parameter_id"], "trial_job_id": trial, "sequence": 0}
        if value is not None:
            self.advisor.handle_report_metric_data(metric | {"type": "PERIODICAL", "value": nni.dump(0.0)})
            self.advisor.handle_report_metric_data(metric | {"type": "FINAL", "value": nni.dump(value)})
        event = "FAILED" if value is None else "SUCCEEDED"
        self.advisor.handle_trial_end({"trial_job_id": trial, "event": event, "hyper_params": nni.dump(job)})

    def run(self, number: int, score: Callable[[dict[str, Any]], Any]) -> None:
        for index in range(number):
            job = self.next_job()
            value = score(job["parameters"])
            self.done.append((dict(job["parameters"]), value))
            self.end(job, value, str(index))


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> type[Manager]:
    """Advisors made after this look for no manager."""
    # The address with which NNI's own tests keep an advisor from looking for its manager.
    variables = msg_dispatcher_base.dispatcher_env_vars._replace(NNI_TUNER_COMMAND_CHANNEL="ws://_unittest_advisor_")
    monkeypatch.setattr(msg_dispatcher_base, "dispatcher_env_vars", variables)
    return Manager
