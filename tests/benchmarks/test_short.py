"""The benchmarks that have no test file of their own, small: each does what it measures."""

from __future__ import annotations

import csv
import re
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import end_to_end
import labels
import proposal
import report
import toy
from tables import nasbench201

from nni_cssnas.spaces.backbone import Backbone


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


def test_end_to_end_within_half_of_the_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archs = [
        "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*some)
        for some in product(list(nasbench201.OPERATIONS)[:4], repeat=6)
    ]
    table = tmp_path / "table.csv"
    lines = [f"{arch},{50 + arch.count('conv')},{arch.count('conv')}\n" for arch in archs]
    table.write_text("arch,cifar10_test,params\n" + "".join(lines))
    images = tmp_path / "images.npz"
    np.savez(images, images=np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8))
    small = ["--size", "8", "--random", "3", "--guided", "1", "--workers", "1", "--seeds", "4", "--small"]
    assert (
        end_to_end.main(["--table", str(table), "--images", str(images), *small, "--out", str(tmp_path / "out")]) == 0
    )
    (row,) = csv.DictReader((tmp_path / "out" / "end_to_end.csv").open())
    counts = [arch.count("conv") for arch in archs]
    assert row["arch"].count("conv") <= np.median(counts)
    kept = [count for count in counts if count <= np.median(counts)]
    assert f"% of {len(kept)};" in capsys.readouterr().out.replace("\n", " ")


def test_end_to_end_without_a_table_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CSSNAS_DATA", raising=False)
    assert end_to_end.main([]) == 2
    assert capsys.readouterr().err.startswith("error: no table was given")


def test_toy_prints_every_tuner_on_every_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert toy.main(["--trials", "4", "--seeds", "1", "--out", str(tmp_path / "toy.csv")]) == 0
    assert len(list(csv.DictReader((tmp_path / "toy.csv").open()))) == len(toy.TUNERS) * len(toy.SPACES)
    printed = capsys.readouterr().out
    for name in toy.TUNERS:
        line = next(line for line in printed.splitlines() if line.startswith(f"│ {name} "))
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


def test_gradients_with_labels_and_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    operations = ("nor_conv_3x3", "nor_conv_1x1", "skip_connect")
    archs = [f"|{a}~0|+|{b}~0|{a}~1|+|{a}~0|{b}~1|{a}~2|" for a, b in product(operations, repeat=2)][:4]
    table = tmp_path / "table.csv"
    table.write_text("arch,cifar10_test\n" + "".join(f"{arch},{50 + i}\n" for i, arch in enumerate(archs)))
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "images.npz", images=rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8), labels=np.arange(16) % 3
    )
    command = ["--table", str(table), "--images", str(tmp_path / "images.npz"), "--sample", "4", "--size", "8"]
    out = tmp_path / "labels.csv"
    assert labels.main([*command, "--batch", "8", "--resamples", "5", "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert sorted(row["arch"] for row in rows) == sorted(archs)
    assert all(50 <= float(row["cifar10_test"]) < 54 and float(row["labels zico"]) for row in rows)
    printed = capsys.readouterr().out
    assert all(re.search(rf"{name}.*\[[+-]", printed) for name in labels.MEASURES)
    assert labels.main([*command, "--batch", "99"]) == 2
    assert "--batch is 99, but" in capsys.readouterr().err


def test_gradients_with_labels_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    backbone = Backbone(torch.nn.Sequential(network, torch.nn.Flatten()), 8)
    views, classes = torch.randn(2, 6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    found = labels.measured(backbone, list(views), classes, seed=1)
    head = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) / 5**0.5
    weight = next(iter(backbone.parameters()))
    total = 0.0
    for image, label in zip(views.flatten(0, 1), classes.repeat(2), strict=True):
        total = total - torch.log_softmax(head @ backbone(image[None])[0], 0)[label] / 12
    (gradient,) = torch.autograd.grad(total, weight)
    assert found["labels gradient_flow"] == pytest.approx(np.log1p(float(gradient.norm())), rel=1e-5)
    assert found["contrastive gradient_flow"] != found["labels gradient_flow"]
