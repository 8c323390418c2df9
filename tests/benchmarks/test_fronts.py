"""Fronts by score, on tables whose truth is known."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import fronts
from tables import darts

from nni_cssnas.measures import DEFAULT_WEIGHTS


def make(folder: Path, number: int, noise: float) -> list[str]:
    """A table in which the accuracy is the score plus noise, and a third of the cost."""
    rng = np.random.default_rng(0)
    archs = [darts.random_arch(rng) for _ in range(number)]
    worth = rng.random(number)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arch", "cifar10_test"])
        writer.writerows([arch, 90 + value + noise * rng.normal()] for arch, value in zip(archs, worth, strict=True))
    with (folder / "scores.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["arch", *DEFAULT_WEIGHTS, "params"])
        table.writeheader()
        for arch, value in zip(archs, worth, strict=True):
            measured = dict.fromkeys(DEFAULT_WEIGHTS, 1.0) | {"decorrelation": 4 * value}
            table.writerow({"arch": arch, **measured, "params": 1e6 * (0.3 * value + rng.random())})
    return [
        "--table",
        str(folder / "table.csv"),
        "--scores",
        str(folder / "scores.csv"),
        "--pool",
        "12",
        "--draws",
        "5",
    ]


def test_a_score_that_is_the_truth_has_the_true_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = make(tmp_path, 24, 0.0)
    assert fronts.main(command) == 0
    printed = capsys.readouterr().out
    assert "5 pools of 12 out of 24" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("│ score")]
    assert "100.0" in line
    (line,) = [line for line in printed.splitlines() if line.startswith("│ as many")]
    assert float(line.split("│")[2]) < 100


def test_a_pool_by_hand() -> None:
    score, truth, cost = np.array([3.0, 1.0, 2.0]), np.array([2.0, 3.0, 1.0]), np.array([2.0, 3.0, 1.0])
    found = fronts.judge(score, truth, cost, np.array([0.0, -4.0]), np.random.default_rng(0))
    # True: all three, 2 * 2 + 1 * 1 + 1 * 1 = 6. By score: the first and the last, 2 * 2 + 1 * 1.
    assert found.size == 2
    assert found.by_score == pytest.approx(5 / 6)
    # Every pair covers 5.
    assert found.random_members == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--pool", "30"], "--pool is 30; the table has 24 scored architectures"),
        (["--scores", "nowhere.csv"], "--scores is 'nowhere.csv'"),
        (["--cost", "macs"], "has no column 'macs'; measure it with rank_correlation.py"),
    ],
)
def test_what_cannot_be_is_one_line(
    change: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fronts.main([*make(tmp_path, 24, 0.0), *change]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_nothing_in_common_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = make(tmp_path, 8, 0.0)
    other = json.loads(darts.random_arch(np.random.default_rng(99)))
    (tmp_path / "table.csv").write_text("arch,cifar10_test\n" + '"' + json.dumps(other).replace('"', '""') + '",94\n')
    assert fronts.main(command) == 2
    assert "0 architectures are both in" in capsys.readouterr().err
