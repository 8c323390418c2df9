"""The record of another machine's trial: what is sent is what arrives, and nothing else is taken for one."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict

import pytest
from nni.utils import extract_scalar_reward

from nni_cssnas.errors import ExperimentError
from nni_cssnas.results.carried import KEY, LINE, found_in_metric, found_in_output, tell_end, with_record
from nni_cssnas.results.records import TrialRecord
from nni_cssnas.tuners.objectives import Objectives, finite_score, reported

RECORD = TrialRecord(
    experiment="exp",
    trial="Tr1",
    sequence=1,
    parameter_id=1,
    parameters={"c0": 'a "quoted" text, ü'},
    status="succeeded",
    score=0.5,
    epoch_losses=[0.1] * 1000,
    config={"space": {"name": "x"}},
)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNI_PLATFORM", "remote")


@pytest.mark.usefixtures("elsewhere")
def test_a_final_metric_carries_the_record_and_stays_valid_for_every_tuner() -> None:
    metric = with_record({"default": 0.5, "params": 8.0}, RECORD)
    metric = json.loads(json.dumps(metric))
    assert found_in_metric(metric, "Tr1") == RECORD
    # What NNI's tuners, and ours, read of it.
    assert extract_scalar_reward(metric) == 0.5
    assert finite_score(metric) == 0.5
    assert reported(metric) == {"default": 0.5, "params": 8.0}
    assert Objectives.of({"score": "maximize", "params": "minimize"}, "maximize").read(metric) == (0.5, 8.0)


@pytest.mark.usefixtures("elsewhere")
def test_a_failed_trial_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    print("no newline at the end", end="")
    tell_end(RECORD)
    output = capsys.readouterr().out
    assert found_in_output(f"{LINE}of before\n{output}and more\n", "Tr1") == RECORD
    assert sum(line.startswith(LINE) for line in output.splitlines()) == 1


@pytest.mark.parametrize("platform", ["local", None])
def test_a_local_trial_sends_nothing(
    platform: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NNI_PLATFORM", raising=False)
    if platform is not None:
        monkeypatch.setenv("NNI_PLATFORM", platform)
    assert with_record({"default": 0.5}, RECORD) == {"default": 0.5}
    tell_end(RECORD)
    assert capsys.readouterr().out == ""


def packed(content: str) -> str:
    return base64.b64encode(zlib.compress(content.encode())).decode()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("%%%", "cannot read the record that trial Tr1 sent"),
        (base64.b64encode(b"no zlib").decode(), "cannot read the record that trial Tr1 sent"),
        (packed("{"), "cannot read the record that trial Tr1 sent"),
        (packed(json.dumps({**asdict(RECORD), "score": "high"})), "score is 'high'"),
        (packed(json.dumps({**asdict(RECORD), "trial": "Tr2"})), "it is that of trial Tr2"),
        (packed(" " * 2**27), "cannot read the record that trial Tr1 sent"),  # 128 KB that become 128 MB
    ],
)
def test_what_is_no_record_of_that_trial_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ExperimentError, match=problem):
        found_in_metric({"default": 1.0, KEY: text}, "Tr1")
    with pytest.raises(ExperimentError, match=problem):
        found_in_output(f"{LINE}{text}\n", "Tr1")


@pytest.mark.parametrize("metric", [0.5, {"default": 0.5}, {"default": 0.5, KEY: 3.0}, None, [1]])
def test_other_metrics_carry_none(metric: object) -> None:
    assert found_in_metric(metric, "Tr1") is None
    assert found_in_output("score: 3\n", "Tr1") is None
