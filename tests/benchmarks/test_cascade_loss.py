from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import cascade
from tables import nasbench201

from nni_cssnas.measures import DEFAULT_WEIGHTS


def test_the_loss_by_hand() -> None:
    rng = np.random.default_rng(0)
    score = rng.permutation(40.0 + np.arange(40))
    # Size and score agree: nothing is lost. Where they are opposed, all is lost: the best are found among the worst.
    for macs, found, ten in ((score, 10, 0.0), (-score, 0, 30.0)):
        (loss,) = cascade.lose(np.column_stack([score, macs, score]), 40, 4, 1, 0)
        assert (loss.found, loss.ten, loss.one) == (found, pytest.approx(ten), pytest.approx(ten))


def test_the_command_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    archs = sorted({nasbench201.random_arch(rng) for _ in range(60)})
    table, scores = tmp_path / "table.csv", tmp_path / "scores.csv"
    table.write_text("arch,cifar10_test\n" + "".join(f"{arch},{50 + arch.count('conv')}\n" for arch in archs))
    head = ",".join(["arch", *DEFAULT_WEIGHTS, "macs"])
    lines = [",".join([arch, *["1"] * len(DEFAULT_WEIGHTS), str(arch.count("conv"))]) for arch in archs]
    scores.write_text("\n".join([head, *lines]) + "\n")
    command = ["--table", str(table), "--scores", str(scores), "--draws", "3"]
    assert cascade.main([*command, "--cascades", "1", "3"]) == 0
    printed = capsys.readouterr().out
    assert "3 pools of" in printed
    assert re.search(r"│ +1 │ +10\.0 │ +\+0\.000 │ +\+0\.000 │", printed)  # without a cascade nothing is lost
    scores.write_text("arch\n")
    assert cascade.main(command) == 2
    assert "are needed" in capsys.readouterr().err
    scores.write_text(f"arch\n{archs[0]}\n")
    assert cascade.main(command) == 2
    assert "no scores.csv of rank_correlation.py" in capsys.readouterr().err


@pytest.mark.slow
def test_the_times(capsys: pytest.CaptureFixture[str]) -> None:
    assert cascade.main(["--time", "4", "--cascades", "4"]) == 0
    assert "times as long" in capsys.readouterr().out
