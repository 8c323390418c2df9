from __future__ import annotations

from typing import Any

import nni
import pytest
from nni.runtime.tuner_command_channel import CommandType

from nni_cssnas.errors import ConfigError
from nni_cssnas.tuners import rounds
from nni_cssnas.tuners.hyperband import Hyperband

CHOICES = {f"c{i}": {"_type": "choice", "_value": list(range(5))} for i in range(4)}


def total(parameters: dict[str, Any]) -> float:
    return float(sum(parameters[f"c{i}"] for i in range(4)))


def test_the_best_go_on_with_more_epochs(manager: Any) -> None:
    played = manager(Hyperband(R=18, eta=3, exec_mode="serial", seed=0), CHOICES)
    played.run(13, lambda parameters: {"default": total(parameters), "loss": 1.0})
    budgets = [parameters["TRIAL_BUDGET"] for parameters, _ in played.done]
    assert budgets == [2] * 9 + [6] * 3 + [18]
    rounds = [[total(item) for item, _ in part] for part in (played.done[:9], played.done[9:12], played.done[12:])]
    assert sorted(rounds[1]) == sorted(rounds[0])[-3:]
    assert rounds[2] == [max(rounds[1])]


@pytest.mark.parametrize("bad", [None, float("nan"), {"loss": 1.0}])
def test_accidents_are_the_worst_of_their_round(bad: Any, manager: Any) -> None:
    played = manager(Hyperband(R=18, eta=3, exec_mode="serial", seed=0), CHOICES)
    calls = iter(range(100))
    # All but two of the first round fail: the next round still has three.
    played.run(13, lambda parameters: total(parameters) if next(calls) in (4, 7, 9, 10, 11, 12) else bad)
    assert [parameters["TRIAL_BUDGET"] for parameters, _ in played.done] == [2] * 9 + [6] * 3 + [18]
    chosen = [total(parameters) for parameters, _ in played.done[9:12]]
    assert {total(played.done[4][0]), total(played.done[7][0])} <= set(chosen)


def test_the_seed_and_trials_of_another_session(manager: Any) -> None:
    first, again, other = (manager(Hyperband(seed=seed), CHOICES) for seed in (1, 1, 2))
    for played in (first, again, other):
        played.run(9, total)
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


def test_after_a_resume_no_candidate_has_the_id_of_an_old_one(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = manager(Hyperband(R=18, exec_mode="serial", seed=0), CHOICES)
    old = [before.next_job() for _ in range(3)]
    monkeypatch.setattr(rounds, "dispatcher_env_vars", rounds.dispatcher_env_vars._replace(NNI_MODE="resume"))
    after = manager(Hyperband(R=18, exec_mode="serial", seed=0), CHOICES)
    after.advisor.handle_import_data([])
    after.advisor.handle_add_customized_trial(old)  # NNI runs them again
    new = [after.next_job() for _ in range(9)]
    assert not {job["parameter_id"] for job in new} & {job["parameter_id"] for job in old}
    for job in old:
        after.end(job, 100.0)
    assert not after.waiting  # none of this session's round has ended
    for job in new:
        after.end(job, total(job["parameters"]))
    assert {after.next_job()["parameters"]["TRIAL_BUDGET"] for _ in range(3)} == {6}


def test_messages_are_handled_in_their_order(manager: Any) -> None:
    advisor = Hyperband()
    for command, data in ((CommandType.ReportMetricData, {"type": "FINAL"}), (CommandType.TrialEnd, {})):
        advisor.enqueue_command(command, data)
    assert advisor.assessor_command_queue.empty()
    assert [advisor.default_command_queue.get()[0] for _ in range(2)] == [
        CommandType.ReportMetricData,
        CommandType.TrialEnd,
    ]
