"""The search for the weights of the default score, on what is kept of it in docs/measured."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import weights
from correlation import spearman

from nni_cssnas.measures import DEFAULT_WEIGHTS

FILES = sorted((Path(__file__).parents[2] / "docs" / "measured").glob("weights-*.csv.gz"))
NAMES = (*DEFAULT_WEIGHTS, *weights.OTHERS)


def mean_rank(tables: list[weights.Measured], numbers: list[float]) -> float:
    """As the search weighs it, from scratch: darts_cifar10 twice, nasbench201 and transnas_micro 1.5, the three of NDS half."""
    times = {"darts_cifar10": 4, "nasbench201": 3, "transnas_micro": 3, "nds_darts": 1, "nds_enas": 1, "nds_pnas": 1}
    ranks = []
    for table in tables:
        score = np.zeros(len(table.accuracy))
        for name, number in zip(NAMES, numbers, strict=True):
            values = table.measures[name]
            score += number * (np.log(values) if name in ("effective_macs", "depth") else values)
        ranks += [spearman(score, table.accuracy)] * times.get(table.name.removesuffix("_dev"), 2)
    return sum(ranks) / len(ranks) - 0.002 * np.count_nonzero(numbers)


def test_no_single_weight_of_the_default_score_can_be_bettered() -> None:
    assert len(FILES) == 9
    tables = [weights.read(path) for path in FILES]
    default = [*DEFAULT_WEIGHTS.values(), 0.0, 0.0]
    reached = mean_rank(tables, default)
    for index in range(1, len(default)):
        for number in weights.GRID:
            other = [*default[:index], number, *default[index + 1 :]]
            assert mean_rank(tables, other) <= reached + 2e-6, (NAMES[index], number)


def test_it_finds_what_the_accuracy_is_made_of() -> None:
    rng = np.random.default_rng(0)
    tables = []
    for name in ("one", "other"):
        measures = {measure: rng.uniform(1, 2, 80) for measure in NAMES}
        accuracy = 0.5 * np.log(measures["effective_macs"]) + 2 * measures["shortcuts"]
        tables.append(weights.Measured(name, accuracy, rng.random(80), measures))
    found = dict(zip(NAMES, weights.choose(tables, NAMES, 2), strict=True))
    assert {name for name, number in found.items() if number} == {"effective_macs", "shortcuts"}
    assert found["shortcuts"] > found["effective_macs"]


def test_the_command_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    some = [str(path) for path in FILES if "nds" in path.name]
    assert weights.main([*some, "--starts", "1"]) == 0
    printed = capsys.readouterr().out
    assert "nds_enas_dev" in printed
    assert "with all: effective_macs 0.5" in printed
    assert weights.main([*some, "--alone"]) == 0
    assert "similarity_of_ends" in capsys.readouterr().out


def test_what_is_no_file_of_measures_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights.main([str(tmp_path / "no.csv"), str(FILES[0])]) == 2
    assert "no.csv cannot be read" in capsys.readouterr().err
    path = tmp_path / "some.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["arch", "accuracy", "params"], ["a", 1, 2]])
    assert weights.main([str(path), str(FILES[0])]) == 2
    assert "has no column" in capsys.readouterr().err
    assert weights.main([str(FILES[0])]) == 2
    assert "two are needed" in capsys.readouterr().err
