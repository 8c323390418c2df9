"""NNI's assessors see the criterion after every epoch, and the budget of Hyperband and BOHB is the number of epochs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_cssnas.bridge import launch
from nni_cssnas.results.records import read_records

from .conftest import PROXY, write_search_space

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def run(home: Path, folder: Path, proxy: dict[str, Any], settings: dict[str, Any], port: int) -> tuple[Any, Any, Path]:
    (folder / "proxy.yml").write_text(yaml.safe_dump(proxy))
    experiment = {
        "searchSpaceFile": "search_space.json",
        "trialCommand": "python -m nni_cssnas.trial proxy.yml",
        "trialCodeDirectory": ".",
        "experimentWorkingDirectory": str(home / "nni-experiments"),
        "trialConcurrency": 2,
        "trainingService": {"platform": "local"},
    }
    (folder / "experiment.yml").write_text(yaml.safe_dump(experiment | settings))
    write_search_space(folder / "proxy.yml")
    started = launch.create(folder / "experiment.yml", port=launch.free_port(port))
    try:
        *_, last = started.watch(interval=1.0)
        trials = sorted(started.get("trial-jobs"), key=lambda trial: trial["sequenceId"])
        metrics = started.get("metric-data")
    finally:
        started.stop()
    assert last.status == "DONE", last
    return trials, metrics, home / "nni-experiments" / started.id


FEW = {"images": {"source": "tiles", "num_images": 40}}
"""One batch, so that an epoch is short."""

# Trials from the fourth on learn nothing. In a folder of their own, since one process forks what has the same words.
HOPELESS = """
import os, sys
from nni_cssnas.trial import command
if int(os.environ["NNI_TRIAL_SEQ_ID"]) > 2:
    os.chdir("hopeless")
sys.exit(command(["proxy.yml"]))
"""


def write_hopeless(folder: Path, proxy: dict[str, Any]) -> None:
    (folder / "trial.py").write_text(HOPELESS)
    (folder / "hopeless").mkdir()
    (folder / "hopeless" / "proxy.yml").write_text(yaml.safe_dump(proxy))


def test_medianstop_ends_what_is_worse(home: Path, tmp_path: Path) -> None:
    """A trial's intermediate results are its criterion, so those that are stopped are those whose drop is small."""
    training = {"criterion": "drop", "epochs": 15, "batch_size": 32}
    proxy = PROXY | FEW | {"contrastive": training}
    # Without an assessor that would take minutes.
    hopeless = training | {"lr": 1e-12, "epochs": 500}
    write_hopeless(tmp_path, PROXY | FEW | {"contrastive": hopeless})
    settings = {
        "trialCommand": "python trial.py",
        "maxTrialNumber": 5,
        "tuner": {"name": "Random", "classArgs": {"seed": 1}},
        "assessor": {"name": "Medianstop", "classArgs": {"optimize_mode": "maximize", "start_step": 3}},
    }
    trials, metrics, folder = run(home, tmp_path, proxy, settings, 18380)
    states = [trial["status"] for trial in trials]
    # NNI 3.0 calls every process that it stopped cancelled by the user.
    stopped = {"EARLY_STOPPED", "USER_CANCELED"}
    assert states[:3] == ["SUCCEEDED"] * 3
    assert set(states[3:]) <= stopped
    records = {record.trial: record for record in read_records(folder)}
    for trial in trials:
        told = [
            json.loads(json.loads(metric["data"]))
            for metric in metrics
            if metric["trialJobId"] == trial["trialJobId"] and metric["type"] == "PERIODICAL"
        ]
        record = records[trial["trialJobId"]]
        losses = record.epoch_losses[: len(told)]
        assert [item["loss"] for item in told] == pytest.approx(losses)
        assert [item["default"] for item in told] == pytest.approx([losses[0] - loss for loss in losses])
        if trial["status"] in stopped:
            assert record.status == "stopped"
            assert 3 <= len(record.epoch_losses) < 500
            assert not record.finished
        else:
            assert len(told) == 15
            assert record.score == pytest.approx(told[-1]["default"])


def test_curvefitting_ends_what_will_not_reach_the_best(home: Path, tmp_path: Path) -> None:
    training = {"criterion": "drop", "epochs": 30, "batch_size": 32}
    write_hopeless(tmp_path, PROXY | FEW | {"contrastive": training | {"lr": 5e-3}})
    settings = {
        "trialCommand": "python trial.py",
        "maxTrialNumber": 4,
        "tuner": {"name": "Random", "classArgs": {"seed": 1}},
        "assessor": {
            "className": "nni_cssnas.tuners.curvefitting.Curvefitting",
            "codeDirectory": ".",
            "classArgs": {"epoch_num": 30, "start_step": 10, "threshold": 0.6},
        },
    }
    trials, _, folder = run(home, tmp_path, PROXY | FEW | {"contrastive": training}, settings, 18430)
    records = {record.trial: record for record in read_records(folder)}
    found = [records[trial["trialJobId"]] for trial in trials]
    assert [record.status for record in found] == ["succeeded"] * 3 + ["stopped"]
    assert 10 <= len(found[3].epoch_losses) < 30
    dispatcher = (folder / "log" / "dispatcher.log").read_text()
    assert "is expected to reach" in dispatcher
    assert "Traceback" not in dispatcher


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hyperband.Hyperband", {"R": 6, "eta": 3, "exec_mode": "serial", "seed": 0}),
        ("bohb.Bohb", {"min_budget": 2, "max_budget": 6, "eta": 3, "seed": 0}),
    ],
)
def test_the_budget_is_the_number_of_epochs(name: str, arguments: dict[str, Any], home: Path, tmp_path: Path) -> None:
    proxy = PROXY | {"contrastive": {"criterion": "drop", "batch_size": 32}}
    advisor = {"className": f"nni_cssnas.tuners.{name}", "codeDirectory": ".", "classArgs": arguments}
    trials, _, folder = run(home, tmp_path, proxy, {"maxTrialNumber": 4, "advisor": advisor}, 18480)
    records = {record.trial: record for record in read_records(folder)}
    budgets = []
    for trial in trials:
        parameters = json.loads(trial["hyperParameters"][0])["parameters"]
        budgets.append(parameters.pop("TRIAL_BUDGET"))
        record = records[trial["trialJobId"]]
        assert record.parameters == parameters
        assert record.finished
        assert len(record.epoch_losses) == budgets[-1]
    assert budgets == [2, 2, 2, 6]
    best = max(trials[:3], key=lambda trial: records[trial["trialJobId"]].score)
    assert records[trials[3]["trialJobId"]].parameters == records[best["trialJobId"]].parameters
    # The same architecture has the same weights, whatever its budget.
    assert records[trials[3]["trialJobId"]].seed == records[best["trialJobId"]].seed
