from __future__ import annotations

import json
from typing import Any

import nni
import pytest
from nni.runtime import msg_dispatcher_base

from nni_cssnas.errors import ConfigError
from nni_cssnas.tuners.hyperband import Hyperband

CHOICES = {f"c{i}": {"_type": "choice", "_value": list(range(5))} for i in range(4)}


@pytest.fixture(autouse=True)
def _no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    # The address with which NNI's own tests keep an advisor from looking for its manager.
    variables = msg_dispatcher_base.dispatcher_env_vars._replace(NNI_TUNER_COMMAND_CHANNEL="ws://_unittest_hyperband_")
    monkeypatch.setattr(msg_dispatcher_base, "dispatcher_env_vars", variables)


class Manager:
    """NNI's side: runs one trial after the other."""

    def __init__(self, **arguments: Any) -> None:
        self.advisor = Hyperband(**arguments)
        self.waiting: list[dict[str, Any]] = []
        self.advisor.send = lambda command, data: self.waiting.append(json.loads(data)) if data else None
        self.advisor.handle_initialize(CHOICES)
        self.done: list[tuple[dict[str, Any], Any]] = []

    def run(self, number: int, score: Any) -> None:
        for index in range(number):
            self.advisor.handle_request_trial_jobs(1)
            job = self.waiting.pop(0)
            value = score(job["parameters"])
            self.done.append((dict(job["parameters"]), value))
            metric = {"parameter_id": job["parameter_id"], "trial_job_id": str(index), "sequence": 0}
            if value is not None:
                self.advisor.handle_report_metric_data(metric | {"type": "PERIODICAL", "value": nni.dump(0.0)})
                self.advisor.handle_report_metric_data(metric | {"type": "FINAL", "value": nni.dump(value)})
            event = "FAILED" if value is None else "SUCCEEDED"
            self.advisor.handle_trial_end({"trial_job_id": str(index), "event": event, "hyper_params": nni.dump(job)})


def total(parameters: dict[str, Any]) -> float:
    return float(sum(parameters[f"c{i}"] for i in range(4)))


def test_the_best_go_on_with_more_epochs() -> None:
    manager = Manager(R=18, eta=3, exec_mode="serial", seed=0)
    manager.run(13, lambda parameters: {"default": total(parameters), "loss": 1.0})
    budgets = [parameters["TRIAL_BUDGET"] for parameters, _ in manager.done]
    assert budgets == [2] * 9 + [6] * 3 + [18]
    rounds = [[total(item) for item, _ in part] for part in (manager.done[:9], manager.done[9:12], manager.done[12:])]
    assert sorted(rounds[1]) == sorted(rounds[0])[-3:]
    assert rounds[2] == [max(rounds[1])]


@pytest.mark.parametrize("bad", [None, float("nan"), {"loss": 1.0}])
def test_accidents_are_the_worst_of_their_round(bad: Any) -> None:
    manager = Manager(R=18, eta=3, exec_mode="serial", seed=0)
    calls = iter(range(100))
    # All but two of the first round fail: the next round still has three.
    manager.run(13, lambda parameters: total(parameters) if next(calls) in (4, 7, 9, 10, 11, 12) else bad)
    assert [parameters["TRIAL_BUDGET"] for parameters, _ in manager.done] == [2] * 9 + [6] * 3 + [18]
    chosen = [total(parameters) for parameters, _ in manager.done[9:12]]
    assert {total(manager.done[4][0]), total(manager.done[7][0])} <= set(chosen)


def test_the_seed_and_trials_of_another_session() -> None:
    first, again, other = Manager(seed=1), Manager(seed=1), Manager(seed=2)
    for manager in (first, again, other):
        manager.run(9, total)
    assert first.done == again.done
    assert first.done != other.done
    first.advisor.handle_report_metric_data(
        {"parameter_id": "x_0_1", "trial_job_id": "z", "type": "FINAL", "sequence": 0, "value": "1.0"}
    )
    first.advisor.handle_trial_end(
        {"trial_job_id": "z", "event": "SUCCEEDED", "hyper_params": nni.dump({"parameter_id": "x_0_1"})}
    )
    first.run(3, total)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"R": 0}, "R is 0; it must be a whole number from 1"),
        ({"eta": 1}, "eta is 1"),
        ({"exec_mode": "x"}, "exec_mode is 'x'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Hyperband(**arguments)
