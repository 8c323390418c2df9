"""The benchmarks that have no test file of their own, small: each does what it measures."""

from __future__ import annotations

import csv
import re
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import end_to_end
import proposal
import report
import toy
from tables import nasbench201


@pytest.mark.slow
def test_end_to_end_finds_an_architecture_of_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Every architecture without a pooling edge, so that some draws are refused; more convolutions are better.
    operations = [name for name in nasbench201.OPERATIONS if "pool" not in name]
    archs = ["|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*some) for some in product(operations, repeat=6)]
    truth = {arch: 10.0 + 10 * arch.count("conv") for arch in archs}
    table = tmp_path / "table.csv"
    table.write_text("arch,cifar10_test\n" + "".join(f"{arch},{accuracy}\n" for arch, accuracy in truth.items()))
    images = tmp_path / "images.npz"
    np.savez(images, images=np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8))
    small = ["--size", "8", "--random", "6", "--guided", "3", "--workers", "1", "--seeds", "4"]
    command = ["--table", str(table), "--images", str(images), *small, "--out", str(tmp_path / "out")]
    assert end_to_end.main(command) == 0
    (row,) = csv.DictReader((tmp_path / "out" / "end_to_end.csv").open())
    assert row["scored"] == "9"
    assert float(row["accuracy"]) == truth[row["arch"]]
    assert int(row["rank"]) == 1 + sum(accuracy > truth[row["arch"]] for accuracy in truth.values())
    assert f"1 searches: true accuracy {truth[row['arch']]:.2f}" in capsys.readouterr().out.replace("\n", " ")
    # A seed that is there is not searched again.
    before = (tmp_path / "out" / "end_to_end.csv").read_bytes()
    assert end_to_end.main(command) == 0
    assert (tmp_path / "out" / "end_to_end.csv").read_bytes() == before


def test_end_to_end_without_a_table_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CSSNAS_DATA", raising=False)
    assert end_to_end.main([]) == 2
    assert capsys.readouterr().err.startswith("error: no table was given")


def test_toy_prints_every_tuner_on_every_space(capsys: pytest.CaptureFixture[str]) -> None:
    assert toy.main(["--trials", "4", "--seeds", "1"]) == 0
    printed = capsys.readouterr().out
    for name in toy.TUNERS:
        (line,) = [line for line in printed.splitlines() if line.startswith(f"│ {name} ")]
        assert len(re.findall(r"-?\d+\.\d\d", line)) >= len(toy.SPACES)


def test_toy_scores_what_was_proposed() -> None:
    best, repeated = toy.search(toy.TUNERS["random"](0), 2, 3, 9, seed=0)  # each architecture once
    worth = np.random.default_rng([0, 2, 3]).normal(size=(2, 3))
    assert best == pytest.approx(worth.max(1).sum())
    assert repeated == 0


def test_a_proposal_is_timed_for_each_tuner(capsys: pytest.CaptureFixture[str]) -> None:
    assert proposal.main(["--trials", "30"]) == 0
    printed = capsys.readouterr().out
    for name in ("Tpe", "Tpe, three objectives", "Hyperopt", "hyperopt.tpe.suggest"):
        assert re.search(rf"^{re.escape(name)}: \d+ ms a proposal, -?\d+ MB", printed, re.MULTILINE)


def test_what_is_timed_proposes() -> None:
    asked: list[int] = []

    def propose(number: int) -> dict[str, int]:
        asked.append(number)
        return {"a": number}

    assert proposal.measure(propose) >= 0
    assert asked == list(range(20))
    with pytest.raises(RuntimeError, match="proposed nothing"):
        proposal.measure(lambda number: None)


def test_the_report_holds_every_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.write_records(tmp_path, 50)
    from nni_cssnas.results.records import read_records

    records = read_records(tmp_path)
    assert len(records) == 50
    assert sum(record.status == "failed" for record in records) == 1
    assert report.main(["--trials", "50"]) == 0
    assert re.search(r"^50 trials: \d+\.\d s, 0\.\d\d MB$", capsys.readouterr().out, re.MULTILINE)
