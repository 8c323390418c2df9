from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from nni_cssnas.errors import ConfigError
from nni_cssnas.genotype import Genotype

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import equal_size

CONTESTANTS = [
    ("found-1", "DARTS_V1", 4),
    ("random-1", "DARTS_V2", 6),
    ("random-2", "PC-DARTS", 5),
    ("random-3", "CNAS_ISIC_s4", 3),
]
ACCURACIES = {"found-1": (0.5, 0.52), "random-1": (0.6,), "random-2": (0.4, 0.3)}  # random-3 was not trained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    who = [[name, width, {"genotype": Genotype.parse(cell).to_dict()}] for name, cell, width in CONTESTANTS]
    (tmp_path / "comparison.json").write_text(json.dumps({"contestants": who, "recipe": {"num_cells": 3}}))
    for name, values in ACCURACIES.items():
        for seed, value in enumerate(values):
            run = tmp_path / f"{name}-seed{seed}"
            run.mkdir()
            (run / "summary.json").write_text(json.dumps({"final_top1": value}))
    (tmp_path / "proxy.yml").write_text(
        json.dumps(
            {
                "images": {"num_images": 48},
                "views": {"input_size": 8},
                "untrained": {"batch_size": 8},
                "contrastive": {"epochs": 2, "batch_size": 16, "held_out": 0.25, "criterion": "held_out"},
                "threads": 1,
            }
        )
    )
    return tmp_path


def test_what_was_trained_is_read_with_the_mean_of_its_seeds(folder: Path) -> None:
    found = equal_size.trained([folder])
    assert [(one[1], one[2], one[3]) for one in found] == [(4, 3, 51.0), (6, 3, 60.0), (5, 3, pytest.approx(35.0))]
    assert [one[0] for one in found] == [Genotype.parse(cell) for _, cell, _ in CONTESTANTS[:3]]
    assert equal_size.trained([folder, folder]) == found
    (folder / "found-1-seed0" / "summary.json").unlink()
    (folder / "found-1-seed1" / "summary.json").unlink()
    with pytest.raises(ConfigError, match="2 architectures have been trained there; 3 or more"):
        equal_size.trained([folder])
    with pytest.raises(ConfigError, match="is no folder of `nni-cssnas compare`"):
        equal_size.trained([folder / "elsewhere"])


def test_the_table_says_scipys_correlation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder), "--proxy", str(folder / "proxy.yml"), "--images", "tiles", "--resamples", "20"]
    assert equal_size.main(arguments) == 0
    printed = capsys.readouterr().out
    lines = {
        line.split("│")[1].strip(): line.split("│")[2].strip() for line in printed.splitlines() if line.startswith("│")
    }
    assert lines["width"] == f"{spearmanr([4, 6, 5], [51, 60, 35])[0]:.2f}"
    assert {"held_out", "loss", "drop", "zico", "jacov", "macs"} <= set(lines)
    assert "params" not in lines
