from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import search
from tables import nasbench201

from nni_cssnas.measures import DEFAULT_WEIGHTS


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Half of a made-up table: convolutions are good and cost parameters, pooling is a little good and costs nothing."""
    rng = np.random.default_rng(0)
    archs = sorted({nasbench201.random_arch(rng) for _ in range(4000)})
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arch", "cifar10_test", "params"])
        counted = [(arch, arch.count("conv_3x3"), arch.count("pool_3x3")) for arch in archs]
        writer.writerows([arch, 50 + 5 * conv + pool, 1 + conv] for arch, conv, pool in counted)
    return path


def test_strings_are_the_tables() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        parameters = search.draw(rng)
        sample = nasbench201.to_sample(search.arch_of(parameters))
        assert {edge: nasbench201.OPERATIONS[name] for edge, name in parameters.items()} == {
            label.split("/")[1]: value for label, value in sample.items()
        }


@pytest.mark.parametrize("name", search.SEARCHES)
def test_every_search_ends_after_its_evaluations(name: str, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--table", str(table), "--tuners", name, "--seeds", "2", "--evaluations", "30", "--out", str(out)]
    assert search.main(arguments) == 0
    mean, low, high = json.loads((out / "search.json").read_text())[f"{name}-30"]
    assert 60 <= low <= mean <= high <= 80
    assert (out / "search.png").stat().st_size > 5000
    rows = list(csv.DictReader((out / "search.csv").open()))
    assert [(row["tuner"], row["seed"]) for row in rows] == [(name, "0"), (name, "1")]
    assert sum(float(row["30"]) for row in rows) / 2 == pytest.approx(mean, abs=1e-3)


def test_a_prior_that_knows_the_truth_finds_it_at_once(table: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(table.open()))
    scored = tmp_path / "scores.csv"
    with scored.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arch", *DEFAULT_WEIGHTS])
        # Of the first two the logarithm counts: the score is a quarter of the accuracy.
        writer.writerows(
            [row["arch"], 1, 1, float(row["cifar10_test"]), *[0] * (len(DEFAULT_WEIGHTS) - 3)] for row in rows[::2]
        )
    out = tmp_path / "out"
    arguments = ["--table", str(table), "--prior", str(scored), "--tuners", "screened", "random", "--seeds", "2"]
    assert search.main([*arguments, "--evaluations", "25", "--out", str(out)]) == 0
    found = json.loads((out / "search.json").read_text())
    assert found["screened-25"][0] > found["random-25"][0]
    with pytest.raises(SystemExit):
        search.main(["--table", str(table), "--score", str(scored), "--prior", str(scored)])


def test_the_oracle_judges_what_was_chosen_without_labels() -> None:
    oracle = search.Oracle({"a": 1.0, "b": 3.0, "c": 2.0}, {"a": 90.0, "b": 80.0, "c": 95.0})
    assert [oracle.ask(arch) for arch in "acbxc"] == [1.0, 2.0, 3.0, None, 2.0]
    assert oracle.curve == [90.0, 95.0, 80.0, 80.0]


def test_a_file_without_scores_is_refused(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main(["--table", str(table), "--score", str(table)]) == 2
    assert "is no scores.csv" in capsys.readouterr().err


@pytest.mark.parametrize("name", search.FRONT_SEARCHES)
def test_every_search_for_the_front_tells_its_share(name: str, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--front", "--tuners", name, "--seeds", "2", "--evaluations", "30", "--out", str(out)]
    assert search.main(["--table", str(table), *arguments]) == 0
    mean, low, high = json.loads((out / "search.json").read_text())[f"{name}-30"]
    assert 0 < low <= mean <= high <= 100


def test_the_share_of_the_front_by_hand() -> None:
    oracle = search.FrontOracle({"a": 90.0, "b": 80.0, "c": 70.0}, {"a": 20.0, "b": 10.0, "c": 30.0})
    # The front is a and b; the reference is (79, 21), so a has 11 x 1, b 1 x 11, and both together 21.
    assert oracle.ask("c") == {"default": 70.0, "params": 30.0}
    assert oracle.ask("x") is None
    assert [oracle.ask(arch) is not None for arch in "ab"] == [True, True]
    assert oracle.curve == pytest.approx([0.0, 100 * 11 / 21, 100.0])


def test_without_optuna_it_says_so_in_one_line(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert search.main(["--table", str(table), "--tuners", "optuna", "--seeds", "1"]) == 2
    assert "error: optuna cannot be imported" in capsys.readouterr().err
