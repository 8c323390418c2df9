"""The whole way through the real nnictl, manager and portal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from nni_cssnas.genotype import Genotype

from .conftest import DIVERGED, KILLED_AT_WORK, KILLED_EARLY, TRIALS, Finished

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def parameters(trial: dict[str, Any]) -> Any:
    return json.loads(trial["hyperParameters"][0])["parameters"]


def score(trial: dict[str, Any]) -> float:
    data = json.loads(trial["finalMetricData"][0]["data"])
    return float((json.loads(data) if isinstance(data, str) else data)["default"])


def drops(losses: list[float]) -> list[float]:
    """What a trial reports after each epoch: its criterion so far."""
    return [losses[0] - loss for loss in losses]


def test_ends_as_done_in_spite_of_accidents(finished: Finished) -> None:
    assert finished.last.status == "DONE"
    assert not finished.last.errors
    states = {trial["sequenceId"]: trial["status"] for trial in finished.trials}
    assert states.pop(DIVERGED) == "FAILED"
    # NNI calls a process that died by a signal cancelled.
    assert {states.pop(KILLED_EARLY), states.pop(KILLED_AT_WORK)} == {"USER_CANCELED"}
    assert set(states.values()) == {"SUCCEEDED"}
    assert finished.last.succeeded == TRIALS - 3
    dispatcher = (finished.folder / "log" / "dispatcher.log").read_text()
    assert "ERROR" not in dispatcher
    assert "Traceback" not in dispatcher


def test_every_trial_has_the_parameters_that_nni_shows(finished: Finished) -> None:
    healthy = [trial for trial in finished.trials if trial["status"] == "SUCCEEDED"]
    same = [parameters(trial) == finished.records[trial["trialJobId"]].parameters for trial in healthy]
    assert same == [True] * (TRIALS - 3)
    for trial in healthy:
        record = finished.records[trial["trialJobId"]]
        assert record.sequence == trial["sequenceId"]
        assert record.score == pytest.approx(score(trial))
        losses = finished.experiment.get(f"metric-data/{trial['trialJobId']}")
        told = [json.loads(json.loads(item["data"])) for item in losses if item["type"] == "PERIODICAL"]
        assert [item["loss"] for item in told] == pytest.approx(record.epoch_losses)
        assert [item["default"] for item in told] == pytest.approx(drops(record.epoch_losses))


def test_export_has_the_right_pairs(finished: Finished, tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    nnictl = Path(sys.executable).with_name("nnictl")
    subprocess.run(
        [nnictl, "experiment", "export", finished.experiment.id, "-f", path, "-t", "json"],
        check=True,
        capture_output=True,
    )
    exported = json.loads(path.read_text())
    assert len(exported) == TRIALS - 3
    records = {json.dumps(record.parameters, sort_keys=True): record for record in finished.records.values()}
    for item in exported:
        values = item["parameter"] if isinstance(item["parameter"], dict) else json.loads(item["parameter"])
        value = json.loads(item["value"]) if isinstance(item["value"], str) else item["value"]
        record = records[json.dumps(values, sort_keys=True)]
        assert record.score == pytest.approx(value["default"] if isinstance(value, dict) else value)


def test_the_killed_and_the_diverged_are_told_apart(finished: Finished) -> None:
    by_number = {record.sequence: record for record in finished.records.values()}
    assert KILLED_EARLY not in by_number  # it never got as far as a record
    assert by_number[KILLED_AT_WORK].status == "running"
    diverged = by_number[DIVERGED]
    assert diverged.status == "failed"
    for wanted in ("step 1", "lr ", "lower lr"):
        assert wanted in (diverged.error or "").replace("step 2", "step 1")
    folder = next(finished.folder.glob(f"environments/*/trials/{diverged.trial}"))
    assert "lower lr" in (folder / "trial.stderr").read_text()
    assert "architecture:" in (folder / "error.txt").read_text()


def test_trials_are_quiet(finished: Finished) -> None:
    by_id = {trial["trialJobId"]: trial["status"] for trial in finished.trials}
    for path in finished.folder.glob("environments/*/trials/*/trial.stderr"):
        if by_id[path.parent.name] == "SUCCEEDED":
            assert path.read_text() == ""


def test_records_say_how_to_do_it_again(finished: Finished) -> None:
    for record in finished.records.values():
        if record.finished:
            assert Genotype.from_dict(record.genotype)
            assert {
                "loss",
                "drop",
                "held_out",
                "params",
                "macs",
                "seconds",
                "images_per_second",
            } <= record.components.keys()
            assert record.environment["versions"]["torch"]
            assert record.duration is not None
            assert record.duration > 0


def test_best_lists_writes_and_draws(finished: Finished, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nni_cssnas.cli", "best", finished.experiment.id, "-k", "3", "-o", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})
    winner = max(
        (record for record in finished.records.values() if record.finished), key=lambda record: record.score or 0
    )
    assert f"best architecture: trial {winner.sequence}, score {winner.score:.4f}" in done.stdout
    assert Genotype.from_json((tmp_path / "genotype.json").read_text()).to_dict() == winner.genotype
    assert (tmp_path / "genotype.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "genotype.svg").read_text()


def test_the_portal_listens_on_this_machine_only(finished: Finished) -> None:
    listening = [
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == finished.experiment.port
    ]
    assert listening == ["127.0.0.1"]


def test_the_portal_shows_loss_curves_and_hyper_parameters(finished: Finished, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "the portal is checked in Chromium: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1500, "height": 1300})
        page.goto(f"{finished.experiment.portal}/detail")
        page.click("[role=tab]:has-text('Intermediate result')")
        page.wait_for_selector("[_echarts_instance_] canvas")
        page.wait_for_timeout(1500)
        curves = page.evaluate(
            """() => {
                const element = document.querySelector('[_echarts_instance_]');
                let fiber = element[Object.keys(element).find(key => key.startsWith('__reactFiber'))];
                while (fiber && !(fiber.stateNode && fiber.stateNode.getEchartsInstance)) fiber = fiber.return;
                return fiber.stateNode.getEchartsInstance().getOption().series.map(curve => [curve.name, curve.data]);
            }"""
        )
        page.click("[role=tab]:has-text('Hyper-parameter')")
        page.wait_for_selector(".parcoords svg text")
        axes = page.evaluate(
            "() => [...document.querySelectorAll('.parcoords svg text')].map(text => text.textContent)"
        )
        page.screenshot(path=tmp_path / "portal.png")
        browser.close()
    records = {trial: record for trial, record in finished.records.items() if record.finished}
    shown = {name: data for name, data in curves if name in records}
    assert shown.keys() == records.keys()
    for trial, data in shown.items():
        assert data == pytest.approx(drops(records[trial].epoch_losses))
    assert {"normal_2_first", "reduce_5_inputs", "sep_conv_3x3", "params", "macs"} <= set(axes)
