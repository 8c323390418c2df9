"""The report, from records that a program made, looked at in a real Chromium."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import nni_cssnas
from nni_cssnas.cli import app
from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError, CssnasError, ExperimentError
from nni_cssnas.genotype import Genotype
from nni_cssnas.results.pictures import (
    good_trials,
    loss_curves,
    operation_use,
    search_curve,
)
from nni_cssnas.results.records import TrialRecord
from nni_cssnas.results.report import write_pictures, write_report
from nni_cssnas.scores.cost import multiply_adds, num_parameters
from nni_cssnas.spaces import CellNetwork, CellSpace, decode, random_choices


def make_records(number: int, *, cells: bool = True, trained: bool = True) -> Iterator[TrialRecord]:
    """Records as trials write them: every seventh failed, the last one runs."""
    space = CellSpace(num_nodes=4, num_cells=3, channels=2)
    rng = np.random.default_rng(0)
    config = ProxyConfig(score="contrastive" if trained else "untrained").model_dump(mode="json")
    for index in range(number):
        parameters = random_choices(space, rng)
        genotype = space.genotype_of(decode(space, parameters)).to_dict() if cells else None
        state = "failed" if index % 7 == 3 else "running" if index == number - 1 else "succeeded"
        state = "stopped" if index == 5 else state
        drop = float(rng.random())
        losses = list(5 - drop * np.linspace(0, 1, 8)) if trained else []
        yield TrialRecord(
            experiment="abc<1>",
            trial=f"T{index}",
            sequence=index,
            parameter_id=index,
            parameters=parameters,
            genotype=genotype,
            seed=index,
            status=state,
            score=drop if state == "succeeded" else None,
            components={"drop": drop, "macs": float(rng.integers(10**6, 10**7)), "params": 5e4, "seconds": 3.0}
            if state == "succeeded"
            else {},
            epoch_losses=losses,
            error="contrastive loss is nan; lower lr <script>alert(1)</script>\nmore" if state == "failed" else None,
            config=config,
            environment={"device": "cpu", "versions": {"torch": "2.0"}},
            started=1_700_000_000.0 + 10 * index,
            duration=9.0,
        )


def write_experiment(folder: Path, records: Iterator[TrialRecord]) -> Path:
    for record in records:
        trial = folder / "environments" / "local-env" / "trials" / record.trial
        record.write(trial)
        (trial / "trial.log").write_text("log")
        if record.error:
            (trial / "error.txt").write_text(record.error)
    return folder


def write_profile(folder: Path, **profile: Any) -> None:
    """NNI's database, as far as it is read."""
    (folder / "db").mkdir(parents=True)
    database = sqlite3.connect(folder / "db" / "nni.sqlite")
    database.execute("CREATE TABLE ExperimentProfile (params TEXT, id TEXT, revision INTEGER)")
    for revision, number in enumerate((3, 40)):
        row = (json.dumps({"maxTrialNumber": number, **profile}), "abc", revision)
        database.execute("INSERT INTO ExperimentProfile VALUES (?, ?, ?)", row)
    database.commit()
    database.close()


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    tuner = {"className": "nni_cssnas.tuners.tpe.Tpe", "classArgs": {"tpe_args": {"n_startup_jobs": 6}}}
    write_profile(tmp_path / "abc", experimentName="my <b>search</b>", tuner=tuner)
    return write_experiment(tmp_path / "abc", make_records(30))


def look(path: Path, width: int) -> dict[str, Any]:
    """What a browser makes of a page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "the report is checked in Chromium: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    messages: list[str] = []
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        requests: list[str] = []
        page.goto(path.as_uri())
        for details in page.query_selector_all("details"):
            details.evaluate("element => element.open = true")
        found = page.evaluate(
            """() => ({
                width: document.documentElement.scrollWidth,
                title: document.title,
                heading: document.querySelector('h1').textContent,
                text: document.body.innerText,
                sections: [...document.querySelectorAll('section')].map(item => item.id),
                images: [...document.images].map(item => [item.naturalWidth, item.clientWidth, item.alt]),
                links: [...document.links].map(item => item.href),
                scripts: document.scripts.length,
                rows: document.querySelectorAll('#top tbody tr').length,
            })"""
        )
        browser.close()
    return {**found, "messages": messages, "requests": [url for url in requests if not url.startswith("data:")]}


@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_whole(experiment: Path, tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    nni_cssnas.report(experiment, path)
    page = look(path, width)
    assert page["messages"] == []
    assert page["requests"] == [path.as_uri()]  # nothing from a network
    assert page["width"] <= width  # no sideways scrolling
    assert page["heading"] == "my <b>search</b>"
    assert page["sections"] == ["best", "search", "trade-offs", "top", "errors", "reproduce", "trials"]
    assert len(page["images"]) == 3 + 5
    assert all(natural > 0 and shown > 100 and text for natural, shown, text in page["images"])
    assert page["rows"] == 20
    assert page["scripts"] == 0
    files = [Path(link.removeprefix("file://")) for link in page["links"]]
    assert files
    assert all(file.is_file() for file in files)
    for text in ("24 of 40", "running or killed", "stopped", "<script>alert(1)</script>", "n_startup_jobs: 6", "torch"):
        assert text in page["text"], text


@pytest.mark.parametrize("kind", ["untrained", "another space", "one", "all failed", "all running"])
def test_every_state_of_an_experiment(kind: str, tmp_path: Path) -> None:
    records = list(make_records(12, cells=kind != "another space", trained=kind != "untrained"))
    if kind == "one":
        records = records[:1]
    if kind.startswith("all"):
        records = [record for record in records if record.status == ("failed" if kind == "all failed" else "running")]
    folder = write_experiment(tmp_path / "x", iter(records))
    write_report(folder, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert ("No trial has finished yet" in html) == kind.startswith("all")
    assert ('id="errors"' in html) == any(record.status == "failed" for record in records)
    assert ("alert(1)" in html) == ('id="errors"' in html)
    assert "<script" not in html
    assert ('id="losses"' in html) == (kind in ("another space", "one"))
    assert ("--space nni_cssnas.spaces:CellSpace --sample" in html) == (kind == "another space")


def test_nothing_of_another_is_overwritten(experiment: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(experiment, path)
    write_report(experiment, path)  # the same experiment, further on
    other = write_experiment(tmp_path / "other", make_records(3))
    for record in other.rglob("record.json"):
        record.write_text(record.read_text().replace("abc<1>", "other"))
    with pytest.raises(ExperimentError, match=r"is the report of experiment abc"):
        write_report(other, path)
    path.write_text("mine")
    with pytest.raises(ExperimentError, match=r"is there already and is no report"):
        write_report(experiment, path)
    assert path.read_text() == "mine"
    write_report(experiment, path, force=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExperimentError, match=r"holds no trial's record yet"):
        write_report(tmp_path / "empty", tmp_path / "b.html")


def test_the_command(experiment: Path, tmp_path: Path) -> None:
    output = ["-o", str(tmp_path / "r.html"), "--pictures", str(tmp_path / "pictures"), "-k", "5"]
    done = CliRunner().invoke(app, ["report", str(experiment), *output], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("search", "front", "hypervolume", "choices", "losses") for kind in ("svg", "png")
    }
    assert (tmp_path / "r.html").read_text().count('<td class="left"><a href="file:') == 5 + 30


def test_500_trials_stay_small(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "x", make_records(500))
    write_report(folder, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 5e6
    assert len(write_pictures(folder, tmp_path / "pictures")) == 6


# ---- the front ------------------------------------------------------------------------------------


def test_the_front_of_an_experiment(experiment: Path, tmp_path: Path) -> None:
    found = nni_cssnas.best(experiment, objectives=["macs", "params"])
    finished = [record for record in make_records(30) if record.finished]
    values = {}
    for record in finished:
        network = CellNetwork(Genotype.from_dict(record.genotype), 20, 36)
        macs, params = multiply_adds(network, (3, 32, 32)), num_parameters(network)
        values[record.sequence] = (record.score or 0.0, -macs, -params)
    expected = {
        trial
        for trial, mine in values.items()
        if not any(other != mine and all(a >= b for a, b in zip(other, mine, strict=True)) for other in values.values())
    }
    assert {item.trial for item in found.front} == expected
    assert [item.name for item in found.front] == [f"front-{number}" for number in range(1, len(expected) + 1)]
    for item in found.front:
        assert (item.score, -item.costs["macs"], -item.costs["params"]) == values[item.trial or 0]
    covered = found.hypervolume
    assert len(covered) == len(finished)
    assert covered == sorted(covered)
    folder = tmp_path / "best"
    command = ["best", str(experiment), "--front", "--objective", "macs", "-o", str(folder)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "front of score against macs" in done.output
    rows = list(csv.DictReader((folder / "front.csv").open()))
    for row in rows:
        assert row["name"] in done.output
        genotype = Genotype.parse((folder / f"{row['name']}.json").read_text())
        assert multiply_adds(CellNetwork(genotype, 20, 36), (3, 32, 32)) == float(row["macs"])
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    with pytest.raises(ExperimentError, match=r"is of another front; name another folder, or use --force"):
        CliRunner().invoke(app, [*command[:4], "params", *command[5:]], catch_exceptions=False)
    shown = json.loads(CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False).stdout)
    assert [item["name"] for item in shown] == [row["name"] for row in rows]


def test_an_entry_of_the_front_is_named_by_the_experiments_id(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["best", str(experiment), "--front"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    monkeypatch.setattr("nni_cssnas.results.experiments.find_experiment", lambda name: experiment)
    nni_cssnas.export("a1b2c3d4/front-1", tmp_path / "net.py", cells=3, channels=4)
    assert nni_cssnas.best(experiment).front[0].genotype == Genotype.parse(
        (experiment / "best/front-1.json").read_text()
    )
    with pytest.raises(CssnasError, match=r"no front-99"):
        nni_cssnas.export("a1b2c3d4/front-99", tmp_path / "other.py")


def test_an_objective_that_no_trial_reports_is_one_line(experiment: Path) -> None:
    for verb in (nni_cssnas.best, nni_cssnas.report):
        with pytest.raises(ConfigError, match=r"^no trial has reported the objective 'latency_ms'; .*known: "):
            verb(experiment, objectives=["latency_ms"])
    with pytest.raises(ConfigError, match=r"--objective is 'macs', which only --front uses"):
        CliRunner().invoke(app, ["best", str(experiment), "--objective", "macs"], catch_exceptions=False)


def test_the_objectives_of_the_tuner_are_those_of_the_front(tmp_path: Path) -> None:
    objectives = {"score": "maximize", "macs": "minimize"}
    write_profile(
        tmp_path / "abc", tuner={"className": "nni_cssnas.tuners.tpe.Tpe", "classArgs": {"objectives": objectives}}
    )
    write_experiment(tmp_path / "abc", make_records(9))
    assert nni_cssnas.best(tmp_path / "abc").objectives == ("macs",)


# ---- pictures -------------------------------------------------------------------------------------


def test_the_curve_is_the_best_so_far() -> None:
    records = list(make_records(30))
    figure = search_curve(records, 6)
    assert figure is not None
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "best so far")
    finished = [record for record in records if record.finished]
    best = [max(record.score or 0 for record in finished[: index + 1]) for index in range(len(finished))]
    assert list(line.get_ydata()) == pytest.approx(best)
    assert "random start" in [text.get_text() for text in figure.axes[0].texts]
    (span,) = figure.axes[0].patches
    assert span.get_x() + span.get_width() == pytest.approx(5.5)


def test_shares_of_operations_against_a_count() -> None:
    records = list(make_records(30))
    figure = operation_use(records)
    assert figure is not None
    finished = [record for record in records if record.finished]
    good = good_trials(finished)
    assert len(good) == 3
    assert min(record.score or 0 for record in good) >= sorted(record.score or 0 for record in finished)[-3]
    names = [label.get_text().replace(" ", "_") for label in figure.axes[0].get_yticklabels()]
    for axes, cell in zip(figure.axes, ("normal", "reduce"), strict=True):
        used = [operation for record in good for node in record.genotype[cell] for operation, _ in node]
        shares = [100 * used.count(name) / len(used) for name in names]
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(shares)


def test_best_and_worst_losses() -> None:
    records = list(make_records(30))
    figure = loss_curves(records)
    assert figure is not None
    ranked = sorted((record for record in records if record.finished), key=lambda record: -(record.score or 0))
    curves = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert curves[5:] == [record.epoch_losses for record in ranked[:5]]
    assert sorted(curves[:5]) == sorted(record.epoch_losses for record in ranked[-5:])


def test_nothing_to_show_is_no_picture() -> None:
    failed = [record for record in make_records(12) if record.status == "failed"]
    assert [draw(failed) for draw in (search_curve, operation_use, loss_curves)] == [None] * 3


def test_no_address_leads_outside(experiment: Path, tmp_path: Path) -> None:
    write_report(experiment, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|file:)", html)
    assert "@import" not in html
