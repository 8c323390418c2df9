from __future__ import annotations

import csv
import gzip
import importlib
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

BENCHMARKS = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    nasbench201: Any = importlib.import_module("tables.nasbench201")
    nasbench_macro: Any = importlib.import_module("tables.nasbench_macro")
    benchmark: Any = importlib.import_module("rank_correlation")

from nni_cssnas.errors import ConfigError, ExperimentError  # noqa: E402
from nni_cssnas.scores.cost import multiply_adds, num_parameters  # noqa: E402

DENSE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|avg_pool_3x3~2|"
DEAD = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"


def write(path: Path, rows: list[tuple[str, object]], header: str = "arch,cifar10_test") -> Path:
    path.write_text(header + "\n" + "".join(f"{arch},{accuracy}\n" for arch, accuracy in rows))
    return path


# ---- the two spaces -----------------------------------------------------------------------------------


def test_nasbench201_sample() -> None:
    assert nasbench201.to_sample(DENSE) == {
        "cell/0_1": "conv_3x3",
        "cell/0_2": "conv_3x3",
        "cell/1_2": "conv_3x3",
        "cell/0_3": "skip_connect",
        "cell/1_3": "conv_3x3",
        "cell/2_3": "avg_pool_3x3",
    }


@pytest.mark.parametrize(
    "arch",
    [
        "",
        "|none~0|",
        DENSE[:-1],
        DENSE.replace("~1", "~2", 1),
        DENSE.replace("skip_connect", "skip"),
        DENSE + "+|none~0|",
    ],
)
def test_nasbench201_refuses(arch: str) -> None:
    with pytest.raises(ValueError, match=r"is not of the form|unknown operation"):
        nasbench201.to_sample(arch)


@pytest.mark.parametrize("arch", ["", "0120120", "012012013", "0120120x"])
def test_macro_refuses(arch: str) -> None:
    with pytest.raises(ValueError, match="not eight digits"):
        nasbench_macro.to_sample(arch)


def test_random_architectures_are_architectures_of_the_space() -> None:
    for module in (nasbench201, nasbench_macro):
        archs = [module.random_arch(np.random.default_rng(0)) for _ in range(2)]
        assert archs[0] == archs[1]
        rng = np.random.default_rng(0)
        drawn = {module.random_arch(rng) for _ in range(50)}
        assert len(drawn) > 45
        for arch in drawn:
            module.to_sample(arch)


def conv_costs(c_in: int, c_out: int, k: int, edge: int, groups: int = 1) -> tuple[int, int]:
    """Parameters of a convolution and its batch norm, and multiply-adds where the output has this edge."""
    weights = c_out * (c_in // groups) * k * k
    return weights + 2 * c_out, weights * edge * edge


def macro_costs(arch: str, channels: int = 32) -> tuple[int, int]:
    """Parameters and multiply-adds of NAS-Bench-Macro, counted from its description."""
    parts = [conv_costs(3, channels, 3, 32)]
    edge, c_in, position = 32, channels, 0
    for depth in (2, 3, 3):
        for layer in range(depth):
            before, edge, c_out = edge, edge // 2 if layer == 0 else edge, 2 * c_in if layer == 0 else c_in
            k, expansion = {"0": (1, 0), "1": (3, 3), "2": (5, 6)}[arch[position]]
            hidden = expansion * c_in
            if expansion:
                parts += [conv_costs(c_in, hidden, 1, before), conv_costs(hidden, hidden, k, edge, groups=hidden)]
                parts += [conv_costs(hidden, c_out, 1, edge)]
            elif layer == 0:
                parts.append(conv_costs(c_in, c_out, 1, edge))
            c_in, position = c_out, position + 1
    parts += [conv_costs(c_in, 1280, 1, edge), (1280 * 10 + 10, 1280 * 10)]
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def nasbench201_params(arch: str) -> int:
    """Parameters of NAS-Bench-201's network of 16 channels and 3 times 5 cells, counted from its description."""
    kernels = [3 if "3x3" in edge else 1 for edge in arch.replace("+", "").split("|") if "conv" in edge]
    total = 27 * 16 + 2 * 16
    for channels in (16, 32, 64):
        total += 5 * sum(conv_costs(channels, channels, k, 1)[0] for k in kernels)
    for channels in (16, 32):  # residual blocks between the stages; their shortcut has no batch norm
        total += conv_costs(channels, 2 * channels, 3, 1)[0] + conv_costs(2 * channels, 2 * channels, 3, 1)[0]
        total += 2 * channels * channels
    return total + 2 * 64 + 64 * 10 + 10


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables in ``$CSSNAS_DATA``; without it, small ones whose costs are counted above."""
    if os.environ.get("CSSNAS_DATA"):
        return
    monkeypatch.setenv("CSSNAS_DATA", str(tmp_path))
    macro = [f"{arch},90,{','.join(map(str, macro_costs(arch)))}" for arch in ARCHS]
    dense = [f"{arch},90,{nasbench201_params(arch)}" for arch in (DENSE, DEAD)]
    for name, lines in (
        ("macro", ["arch,cifar10_test,params,macs", *macro]),
        ("201", ["arch,cifar10_test,params", *dense]),
    ):
        with gzip.open(tmp_path / f"nasbench{'_' * (name == 'macro')}{name}.csv.gz", "wt") as file:
            file.write("\n".join(lines))


@pytest.mark.usefixtures("tables")
def test_costs_are_those_of_the_tables() -> None:
    with gzip.open(benchmark.default_table("nasbench_macro"), "rt") as file:
        rows = list(csv.DictReader(file))
    for row in rows[:: max(1, len(rows) // 4)]:
        model = nasbench_macro.build(row["arch"], channels=32)
        costs = int(row["params"]), int(row["macs"])
        assert (num_parameters(model), multiply_adds(model, (3, 32, 32))) == costs == macro_costs(row["arch"])
    with gzip.open(benchmark.default_table("nasbench201"), "rt") as file:
        rows = list(csv.DictReader(file))
    for row in rows[:: max(1, len(rows) // 2)]:
        found = num_parameters(nasbench201.build(row["arch"], num_modules_per_stack=5))
        assert found == int(row["params"]) == nasbench201_params(row["arch"])


# ---- tables and draws ---------------------------------------------------------------------------------


def test_read_table_plain_and_compressed(tmp_path: Path) -> None:
    plain = write(tmp_path / "table.csv", [(DENSE, 93.5), (DEAD, 10.0)])
    entries = benchmark.read_table(plain, nasbench201.to_sample)
    assert [(entry.arch, entry.accuracy) for entry in entries] == [(DENSE, 93.5), (DEAD, 10.0)]
    packed = tmp_path / "table.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert benchmark.read_table(packed, nasbench201.to_sample) == entries


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("11111111", 50)], "arch,accuracy", "no column 'cifar10_test'; its columns are arch, accuracy"),
        ([("11111111", 50)], "name,cifar10_test", "no column 'arch'"),
        ([("11111111", 50), ("11111113", 50)], None, "line 3: '11111113' is not eight digits"),
        ([("11111111", 50), ("00000000", 1), ("11111111", 50)], None, "line 4: '11111111' was already named in line 2"),
        ([("11111111", 101)], None, "cifar10_test is '101'; it must be a percentage from 0 to 100"),
        ([("11111111", -1)], None, "percentage"),
        ([("11111111", "nan")], None, "percentage"),
        ([("11111111", "good")], None, "percentage"),
        ([], None, "names no architecture"),
    ],
)
def test_bad_tables(tmp_path: Path, rows: list[tuple[str, object]], header: str | None, message: str) -> None:
    path = write(tmp_path / "table.csv", rows, header or "arch,cifar10_test")
    with pytest.raises(ConfigError, match=message):
        benchmark.read_table(path, nasbench_macro.to_sample)


def test_unreadable_tables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the table"):
        benchmark.read_table(tmp_path / "missing.csv", nasbench_macro.to_sample)
    (tmp_path / "broken.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(ConfigError, match="cannot read the table"):
        benchmark.read_table(tmp_path / "broken.csv.gz", nasbench_macro.to_sample)


def test_draws_are_disjoint_from_what_is_excluded() -> None:
    entries = [benchmark.Entry(str(index), 50.0) for index in range(100)]
    chosen = benchmark.draw(entries, 60, seed=1)
    assert benchmark.draw(entries, 60, seed=1) == chosen
    unseen = benchmark.draw(entries, 40, seed=2, exclude=[(1, 60)])
    assert {entry.arch for entry in chosen} | {entry.arch for entry in unseen} == {str(index) for index in range(100)}
    with pytest.raises(ConfigError, match=r"sample is 41; it must be from 3 to 40, .* less 60 excluded ones"):
        benchmark.draw(entries, 41, seed=2, exclude=[(1, 60)])
    with pytest.raises(ConfigError, match=r"sample is 101; it must be from 3 to 100, the architectures of the table$"):
        benchmark.draw(entries, 101, seed=0)


# ---- statistics ---------------------------------------------------------------------------------------


def test_correlations_by_counting() -> None:
    rng = np.random.default_rng(0)
    accuracies = rng.uniform(80, 95, 30)
    scores = accuracies + rng.normal(size=30)
    found = benchmark.correlate(scores, accuracies, 90)
    concordant = sum(
        math.copysign(1, (scores[i] - scores[j]) * (accuracies[i] - accuracies[j])) for i in range(30) for j in range(i)
    )
    assert found.kendall == pytest.approx(concordant / (30 * 29 / 2))

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < value).sum() for value in values])

    assert found.spearman == pytest.approx(np.corrcoef(ranks(scores), ranks(accuracies))[0, 1])
    tied = np.round(scores)
    assert benchmark.correlate(tied, accuracies, 90).spearman == pytest.approx(spearmanr(tied, accuracies)[0])
    above = accuracies >= 90
    assert found.top == pytest.approx(np.corrcoef(ranks(scores[above]), ranks(accuracies[above]))[0, 1])
    assert found.chosen == pytest.approx(np.mean([a for _, a in sorted(zip(scores, accuracies, strict=True))[-3:]]))
    assert math.isnan(benchmark.correlate(scores, accuracies, 99).top)
    assert math.isnan(benchmark.correlate(np.ones(30), accuracies, 90).spearman)


def test_at_equal_params_by_regression_of_ranks() -> None:
    rng = np.random.default_rng(0)
    params = rng.integers(1, 12, 40).astype(float)  # some are equal
    accuracies = 80 + params + rng.normal(size=40)
    scores = np.exp(params / 3) + 3 * accuracies + 6 * rng.normal(size=40)
    known, of_scores, of_accuracies = map(rankdata, (params, scores, accuracies))
    left = [values - np.polyval(np.polyfit(known, values, 1), known) for values in (of_scores, of_accuracies)]
    found = benchmark.correlate(scores, accuracies, 90, params).at_equal_params
    assert found == pytest.approx(spearmanr(*left)[0])
    # The textbook's formula from three rank correlations has Pearson in place of Spearman at the end.
    xy, xz, yz = (spearmanr(a, b)[0] for a, b in ((scores, accuracies), (scores, params), (accuracies, params)))
    assert found == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)), abs=0.1)


def test_at_equal_params_where_nothing_is_left() -> None:
    params, accuracies = np.arange(9.0), np.array([3.0, 1, 4, 1, 5, 9, 2, 6, 5])
    assert benchmark.correlate(params**2, accuracies, 90, params).at_equal_params == 0
    assert math.isnan(benchmark.correlate(np.ones(9), accuracies, 90, params).at_equal_params)
    assert math.isnan(benchmark.correlate(params, accuracies, 90).at_equal_params)
    # Equal parameters take nothing away.
    scores = np.array([2.0, 7, 1, 8, 2, 8, 1, 8, 3])
    equal = benchmark.correlate(scores, accuracies, 90, np.ones(9))
    assert equal.at_equal_params == pytest.approx(equal.spearman)


def test_regret_is_what_the_first_choice_loses() -> None:
    accuracies = np.array([90.0, 95.0, 93.0, 94.0])
    assert benchmark.correlate(np.array([1.0, 2, 3, 4]), accuracies, 0).regret == pytest.approx(1.0)
    assert benchmark.correlate(accuracies, accuracies, 0).regret == 0
    assert benchmark.correlate(np.array([4.0, 4, 0, 0]), accuracies, 0).regret == pytest.approx(
        5.0
    )  # the first of equals


def test_rank_sum_by_hand() -> None:
    found = benchmark.rank_sum(np.array([10.0, 30, 20, 20]), np.array([1.0, 1, 1, 7]))
    assert found.tolist() == [1 + 2, 4 + 2, 2.5 + 2, 2.5 + 4]


def test_bootstrap_intervals_hold_the_value_and_are_reproducible() -> None:
    rng = np.random.default_rng(0)
    accuracies = rng.uniform(80, 95, 60)
    scores = accuracies + 2 * rng.normal(size=60)
    intervals = benchmark.bootstrap(scores, accuracies, 90, 100)
    assert intervals == benchmark.bootstrap(scores, accuracies, 90, 100)
    params = np.round(accuracies)
    known = benchmark.bootstrap(scores, accuracies, 90, 100, params=params)
    assert {name: known[name] for name in ("spearman", "regret")} == {
        name: intervals[name] for name in ("spearman", "regret")
    }
    low, high = known["at_equal_params"]
    assert low < benchmark.correlate(scores, accuracies, 90, params).at_equal_params < high
    low, high = intervals["spearman"]
    assert low < benchmark.correlate(scores, accuracies, 90).spearman < high < 1


# ---- the command --------------------------------------------------------------------------------------

ARCHS = ["00000000", "22222222", "11111111", "01201201", "21021021"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=array)
    return tmp_path / "images.npz"


def command(tmp_path: Path, images: Path, *more: str) -> list[str]:
    table = tmp_path / "table.csv"
    if not table.exists():
        write(table, [(arch, 85 + 2 * index) for index, arch in enumerate(ARCHS)])
    arguments = {
        "--benchmark": "nasbench_macro",
        "--table": str(table),
        "--images": str(images),
        "--sample": "4",
        "--batch": "8",
        "--resamples": "10",
        "--out": str(tmp_path / "out"),
    }
    return [part for pair in arguments.items() for part in pair] + list(more)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NNI_CSSNAS_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_run_its_files_and_its_resumption(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert benchmark.main(command(tmp_path, images)) == 0
    printed = capsys.readouterr().out
    heads = ("Spearman", "Kendall", "at equal params", "top 10 % chosen", "regret")
    for name in ("untrained", *benchmark.COMPONENTS, "params", "macs", *heads):
        assert name in printed
    assert "params+path" not in printed  # no cells
    out = tmp_path / "out"
    assert (out / "scatter.png").read_bytes().startswith(b"\x89PNG")
    whole = (out / "scores.csv").read_text()
    rows = list(csv.DictReader((out / "scores.csv").open()))
    assert len(rows) >= 4
    summary = {row["score"]: row for row in csv.DictReader((out / "summary.csv").open())}
    assert -1 <= float(summary["untrained"]["spearman"]) <= 1
    assert float(summary["params"]["at_equal_params"]) == 0
    drawn = {arch: 85 + 2 * index for index, arch in enumerate(ARCHS)}
    entries = benchmark.draw(benchmark.read_table(tmp_path / "table.csv", nasbench_macro.to_sample), 4, 0)
    by_macs = max(entries, key=lambda entry: macro_costs(entry.arch)[1])
    best = max(entry.accuracy for entry in entries)
    assert float(summary["macs"]["regret"]) == best - drawn[by_macs.arch]

    # Killed in the middle of the last row: only that one is scored again, to the same bits.
    (out / "scores.csv").write_text(whole[: len(whole) - 40])
    scored = []
    monkeypatch.setattr(
        benchmark.Scorer,
        "components",
        lambda self, arch, f=benchmark.Scorer.components: scored.append(arch) or f(self, arch),
    )
    assert benchmark.main(command(tmp_path, images)) == 0
    assert scored == [rows[-1]["arch"]]
    again = list(csv.DictReader((out / "scores.csv").open()))
    strip = [{key: value for key, value in row.items() if key != "seconds"} for row in again]
    assert strip == [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    capsys.readouterr()

    # Other settings must not be mixed in.
    assert benchmark.main(command(tmp_path, images, "--batch", "6")) == 2
    assert "holds scores of other settings: batch was 8 and is 6; give another --out" in capsys.readouterr().err


def test_only_what_is_asked_for_is_measured(tmp_path: Path, images: Path) -> None:
    assert benchmark.main(command(tmp_path, images, "--scores", "jacov", "macs")) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert set(rows[0]) == {"arch", "jacov", "params", "macs", "seconds"}
    assert len(rows) == 4
    assert benchmark.components_of(["untrained"]) == tuple(
        n for n in benchmark.COMPONENTS if n in benchmark.DEFAULT_WEIGHTS
    )


def test_contrastive_criteria_are_those_of_the_training(tmp_path: Path, images: Path) -> None:
    training = ["--contrastive", "epochs=3", "batch_size=4", "held_out=0.3", "--train-images", "8"]
    assert benchmark.main(command(tmp_path, images, "--scores", "drop", "loss", "alignment", *training)) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert len(rows) == 4  # no reference architectures are trained
    for row in rows:
        losses = [float(loss) for loss in row["losses"].split(";")]
        assert len(losses) == 3
        assert float(row["loss"]) == pytest.approx(-losses[-1], abs=1e-5)
        assert float(row["drop"]) == pytest.approx(losses[0] - losses[-1], abs=2e-5)
    assert len({row["alignment"] for row in rows}) > 1


def test_other_scores_are_not_thrown_away(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(command(tmp_path, images, "--scores", "macs")) == 0
    before = (tmp_path / "out" / "scores.csv").read_bytes()
    assert benchmark.main(command(tmp_path, images, "--scores", "jacov")) == 2
    assert "holds other scores: arch, params, macs, seconds; give another --out" in capsys.readouterr().err
    assert (tmp_path / "out" / "scores.csv").read_bytes() == before


def test_a_measure_of_ones_own(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_measure_of_a_test.py").write_text(
        "def layers(look):\n    return len(list(look.model.modules()))\n"
    )
    own = "own_measure_of_a_test:layers"
    assert benchmark.main(command(tmp_path, images, "--scores", own, "jacov")) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert set(rows[0]) == {"arch", own, "jacov", "params", "macs", "seconds"}
    for row in rows:
        assert float(row[own]) == len(list(nasbench_macro.build(row["arch"]).modules()))
    assert own in capsys.readouterr().out
    summary = list(csv.DictReader((tmp_path / "out" / "summary.csv").open()))
    assert [row["score"] for row in summary] == [own, "jacov"]
    assert benchmark.main(command(tmp_path, images, "--scores", "own_measure_of_a_test:layer")) == 2
    assert "measure 'own_measure_of_a_test:layer' cannot be imported" in capsys.readouterr().err


def test_the_default_score_is_that_of_the_package(tmp_path: Path, images: Path) -> None:
    assert benchmark.main(command(tmp_path, images, "--scores", "untrained")) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert len(rows) == 4
    truth = {arch: 85 + 2 * index for index, arch in enumerate(ARCHS)}
    counts = ("effective_macs", "depth")
    score = [
        sum(
            weight * (np.log(float(row[name])) if name in counts else float(row[name]))
            for name, weight in benchmark.DEFAULT_WEIGHTS.items()
        )
        for row in rows
    ]
    (summary,) = csv.DictReader((tmp_path / "out" / "summary.csv").open())
    expected = spearmanr(score, [truth[row["arch"]] for row in rows])[0]
    assert float(summary["spearman"]) == pytest.approx(expected, abs=1e-4)


def genotype(rng: np.random.Generator) -> str:
    return str(importlib.import_module("tables.darts").random_arch(rng))


def test_depth_is_that_of_the_network(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_depth_of_a_test.py").write_text("def cells(look):\n    return look.model.num_cells\n")
    monkeypatch.syspath_prepend(tmp_path)
    rng = np.random.default_rng(0)
    table = tmp_path / "cells.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arch", "cifar10_test"])
        writer.writerows([genotype(rng), 96 + index / 10] for index in range(3))
    base = ["--table", str(table), "--images", str(images), "--batch", "8", "--resamples", "0"]
    for depth in (4, 6):
        more = ["--depth", str(depth), "--width", "4", "--out", str(tmp_path / f"{depth}")]
        assert benchmark.main([*base, *more, "--scores", "own_depth_of_a_test:cells", "params+path", "params"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "darts: 3 architectures" in printed
    assert "noise ceiling 0.87" in printed
    rows = {depth: list(csv.DictReader((tmp_path / f"{depth}" / "scores.csv").open())) for depth in (4, 6)}
    for depth, some in rows.items():
        assert [float(row["own_depth_of_a_test:cells"]) for row in some] == [depth] * 3
    # The costs are those of the network that was trained, whatever is scored.
    assert [row["params"] for row in rows[4]] == [row["params"] for row in rows[6]]
    capsys.readouterr()
    again = ["--depth", "6", "--width", "4", "--out", str(tmp_path / "4"), "--scores", "own_depth_of_a_test:cells"]
    assert benchmark.main([*base, *again]) == 2
    assert "num_cells was 4 and is 6" in capsys.readouterr().err


def folder_of_tables(folder: Path) -> Path:
    """Four tables under names that say nothing, of spaces whose tables this project has not seen, and two other files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    nds: Any = importlib.import_module("tables.nds")
    macro: Any = importlib.import_module("tables.transnas_macro")
    write(folder / "a.csv", [(arch, 85 + 2 * index) for index, arch in enumerate(ARCHS)])
    with (folder / "b.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["space", "arch", "width", "num_cells", "imagenet_top1"])
        like = nds.dump_json({"space": "NASNet", "width": 32, "num_cells": 6} | _nasnet(rng))
        for index in range(4):
            data = json.loads(nds.random_arch(rng, like))
            cells = {name: value for name, value in data.items() if name.startswith(("normal", "reduce"))}
            writer.writerow(["NASNet", json.dumps(cells), 32, 6, 60 + index])
    with gzip.open(folder / "c.csv.gz", "wt", newline="") as file:
        rows = [f"{macro.random_arch(rng)},{40 + index},{-0.7 + index / 10}" for index in range(6)]
        file.write("\n".join(["arch,class_scene,room_layout", *dict.fromkeys(rows)]) + "\n")
    with (folder / "d.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arch", "svhn_test"])
        writer.writerows([genotype(rng), 95 + index] for index in range(3))
    (folder / "notes.csv").write_text("name,remark\nx,y\n")
    (folder / "broken.csv.gz").write_bytes(b"not gzip")
    (folder / "README.md").write_text("no table")
    return folder


def _nasnet(rng: np.random.Generator) -> dict[str, Any]:
    nds: Any = importlib.import_module("tables.nds")
    return dict(nds.random_cells(rng, 5, nds.SPACES["NASNet"].operations, "loose_end"))


def test_every_table_of_a_folder(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of_tables(tmp_path / "tables")
    arguments = ["--all", str(folder), "--images", str(images), "--batch", "8", "--sample", "3"]
    arguments += ["--scores", "jacov", "params", "params+path", "--resamples", "10", "--depth", "3", "--width", "4"]
    arguments += ["--out", str(tmp_path / "out")]
    assert benchmark.main(arguments) == 2  # broken.csv.gz
    error = capsys.readouterr().err
    assert "passed over: the first row of" in error
    assert "cannot read the table" in error
    assert len(error.strip().splitlines()) == 2
    lines = (tmp_path / "out" / "summary.md").read_text().splitlines()
    heads = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert heads == ["table", "accuracy", "architectures", "noise ceiling", "jacov", "params", "params+path"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert [row[:3] for row in rows] == [
        ["a", "cifar10_test", "3"],
        ["b", "imagenet_top1", "3"],
        ["c", "class_scene", "3"],
        ["c", "room_layout", "3"],
        ["d", "svhn_test", "3"],
    ]
    for row in rows:
        assert bool(row[6]) == (row[0] in ("b", "d"))  # the others have no cells
        value, _, partial = row[4].partition("; ")
        summary = list(csv.DictReader((tmp_path / "out" / row[0] / "summary.csv").open()))
        (found,) = [item for item in summary if (item["score"], item["truth"]) == ("jacov", row[1])]
        assert float(value.split(" ")[0]) == pytest.approx(float(found["spearman"]), abs=6e-4)
        assert float(partial) == pytest.approx(float(found["at_equal_params"]), abs=6e-4)
    assert (tmp_path / "out" / "c" / "scatter-room_layout.png").exists()
    # Once more: nothing is scored again.
    monkeypatch.setattr(benchmark.Scorer, "row", lambda self, arch: pytest.fail(arch))
    (folder / "broken.csv.gz").unlink()
    assert benchmark.main(arguments) == 0
    assert (tmp_path / "out" / "summary.md").read_text().splitlines() == lines


def test_all_takes_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--all", str(tmp_path), "--table", "x.csv"]) == 2
    assert "--all takes every table of its folder" in capsys.readouterr().err
    assert benchmark.main(["--all", str(tmp_path / "nowhere")]) == 2
    assert "which is no folder" in capsys.readouterr().err
    assert benchmark.main(["--all", str(tmp_path)]) == 2
    assert "holds no table that can be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scores", "drop", "--contrastive", "epoch=3"], "unknown key 'epoch'"),
        (["--scores", "drop", "--train-images", "8"], "held_out 0.1112 of 8 images leaves 1 held out"),
        (["--sample", "9"], "sample is 9; it must be from 3 to 5"),
        (["--scores", "jacof"], "unknown score 'jacof'; did you mean 'jacov'"),
        (["--table", "missing.csv"], "cannot read the table missing.csv"),
        (["--images", "nowhere"], "nowhere"),
        (["--batch", "99"], "99"),
        (["--benchmark", "nasbench201"], "is a table of nasbench_macro, and --benchmark is nasbench201"),
        (["--truth", "cifar100_test"], "no column 'cifar100_test'; its columns are arch, cifar10_test"),
        (["--scores", "no_such_module:x"], "measure 'no_such_module:x' cannot be imported: No module named"),
        (["--scores", "params+path"], "score 'params+path' is for cells, and nasbench_macro has none"),
        (["--depth", "8"], "--depth is for darts; nasbench_macro has one size"),
        (["--depth", "2"], "--depth is 2; a network has at least 3 cells"),
        (["--width", "7"], "--width is 7; it must be even"),
        (["--size", "4"], "cannot be scored: images of 4 pixels are smaller than the total stride of the network"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert benchmark.main(command(tmp_path, images, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_settings_of_another_run_raise(tmp_path: Path) -> None:
    benchmark.Rows(tmp_path, ["arch", "a"], {"x": 1})
    with pytest.raises(ExperimentError, match="x was 1 and is 2"):
        benchmark.Rows(tmp_path, ["arch", "a"], {"x": 2})


@pytest.mark.slow
def test_from_the_command_line_without_noise(tmp_path: Path, images: Path) -> None:
    script = str(BENCHMARKS / "rank_correlation.py")
    done = subprocess.run(
        [sys.executable, script, *command(tmp_path, images, "--scores", "macs", "--resamples", "0")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "Warning" not in done.stderr
    assert "nasbench_macro: 4 architectures" in done.stdout
