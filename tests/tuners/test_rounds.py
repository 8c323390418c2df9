"""An exception in an advisor: NNI's leaves the experiment RUNNING for ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import nni
import pytest
from nni.runtime.tuner_command_channel import CommandType

from nni_cssnas.tuners.bohb import Bohb
from nni_cssnas.tuners.curvefitting import AssessResult, Curvefitting
from nni_cssnas.tuners.hyperband import Hyperband

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NNI calls what ConfigSpace 1 is about to drop

BROKEN = {"x": {"_type": "chioce", "_value": [1]}}


def choices(*values: str) -> dict[str, Any]:
    return {f"c{index}": {"_type": "choice", "_value": list(values)} for index in range(3)}


class Line:
    """The commands that an advisor sends, after it was given some as NNI's worker does."""

    def __init__(self, advisor: Any) -> None:
        self.advisor = advisor
        self.sent: list[tuple[CommandType, Any]] = []
        advisor.send = lambda command, data: self.sent.append((command, json.loads(data) if data else None))

    def ask(self, command: CommandType, data: Any) -> list[tuple[CommandType, Any]]:
        self.sent = []
        self.advisor.process_command(command, data)
        return self.sent


@pytest.fixture(params=[Hyperband, Bohb])
def line(request: pytest.FixtureRequest, manager: Any) -> Line:
    return Line(request.param(seed=0))


def test_a_search_space_that_cannot_be_used_ends_the_search(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    assert line.ask(CommandType.Initialize, BROKEN) == [(CommandType.Initialized, None)]
    assert "did you mean 'choice'" in caplog.text
    assert {command for command, _ in line.ask(CommandType.RequestTrialJobs, 2)} == {CommandType.NoMoreTrialJobs}


def test_a_wrong_search_space_in_the_middle_leaves_the_former(line: Line) -> None:
    line.ask(CommandType.Initialize, choices("a", "b"))
    line.ask(CommandType.UpdateSearchSpace, BROKEN)
    for _ in range(3):
        [(command, job)] = line.ask(CommandType.RequestTrialJobs, 1)
        assert command is CommandType.NewTrialJob
        assert set(job["parameters"]) - {"TRIAL_BUDGET"} == {"c0", "c1", "c2"}


def test_another_search_space_in_the_middle(line: Line) -> None:
    line.ask(CommandType.Initialize, choices("a", "b"))
    [(_, old)] = line.ask(CommandType.RequestTrialJobs, 1)
    line.ask(CommandType.UpdateSearchSpace, choices("x", "y", "z"))
    message = {"parameter_id": old["parameter_id"], "trial_job_id": "t", "type": "FINAL", "sequence": 0, "value": "1.0"}
    line.ask(CommandType.ReportMetricData, message)  # of a trial with the former values
    line.ask(CommandType.TrialEnd, {"trial_job_id": "t", "event": "SUCCEEDED", "hyper_params": nni.dump(old)})
    seen = set()
    for number in range(40):
        for _, job in line.ask(CommandType.RequestTrialJobs, 1):
            seen |= {value for name, value in job["parameters"].items() if name != "TRIAL_BUDGET"}
            metric = {"parameter_id": job["parameter_id"], "trial_job_id": str(number), "sequence": 0}
            line.ask(CommandType.ReportMetricData, metric | {"type": "FINAL", "value": "1.0"})
            end = {"trial_job_id": str(number), "event": "SUCCEEDED", "hyper_params": nni.dump(job)}
            line.ask(CommandType.TrialEnd, end)
    assert {"x", "y", "z"} <= seen


def test_nonsense_is_survived(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    line.ask(CommandType.Initialize, choices("a", "b"))
    line.ask(CommandType.ReportMetricData, {})
    line.ask(CommandType.TrialEnd, {"hyper_params": "{"})
    assert caplog.text.count("and the search goes on") == 2
    assert line.ask(CommandType.RequestTrialJobs, 1)[0][0] is CommandType.NewTrialJob


def test_a_trial_that_cannot_be_judged_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assessor = Curvefitting(epoch_num=8, start_step=2)
    assessor.assess_trial("first", [1.0, 2.0])
    assessor.trial_end("first", True)

    def fail(*_: object) -> None:
        raise ArithmeticError("no curve")

    target: Callable[..., Any] = fail
    monkeypatch.setattr("nni_cssnas.tuners.curvefitting._Curves.predict", target)
    assert assessor.assess_trial("second", [0.1, 0.2, 0.3]) is AssessResult.Good
    assert "trial second cannot be judged, and goes on: no curve" in caplog.text
