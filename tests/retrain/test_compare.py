from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import sem
from typer.testing import CliRunner

from nni_cssnas.cli import app
from nni_cssnas.config import SpaceConfig
from nni_cssnas.errors import ConfigError, SpaceError
from nni_cssnas.retrain.compare import Run, contestants, summarise, verdict
from nni_cssnas.retrain.config import RetrainConfig
from nni_cssnas.spaces import make_space, random_parameters
from nni_cssnas.spaces.architecture import Architecture, read_architecture

CONFIG = RetrainConfig(channels=8, num_cells=5)


def test_all_have_the_same_size() -> None:
    found = {"ours": read_architecture("PC-DARTS"), "other": read_architecture("CNAS_ISIC_s4")}
    who = contestants(found, CONFIG, 10, num_random=5, seed=3)
    assert [one.group for one in who] == ["found"] * 2 + ["random"] * 5 + ["DARTS_V2"]
    assert who[0].channels == 8
    for one in who:
        network = one.architecture.build(10, num_cells=5, channels=one.channels)
        assert one.params == sum(weight.numel() for weight in network.parameters())
        assert abs(one.params - who[0].params) <= 0.15 * who[0].params
        # No other width comes nearer.
        for width in (one.channels - 1, one.channels + 1):
            other = one.architecture.build(10, num_cells=5, channels=width)
            size = sum(weight.numel() for weight in other.parameters())
            assert abs(size - who[0].params) >= abs(one.params - who[0].params)
    assert len({json.dumps(one.architecture.to_dict()) for one in who}) == len(who)
    assert who == contestants(found, CONFIG, 10, num_random=5, seed=3)
    assert who != contestants(found, CONFIG, 10, num_random=5, seed=4)


def test_another_space(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SpaceConfig(
        name="nni.nas.hub.pytorch:NasBench201", arguments={"stem_out_channels": 4, "num_modules_per_stack": 1}
    )
    first = Architecture(space=space, parameters=random_parameters(make_space(space), np.random.default_rng(0)))
    who = contestants({"first": first}, CONFIG, 10, num_random=2)
    assert [one.group for one in who] == ["found", "random", "random"]  # no published cells there
    assert all(abs(one.params - who[0].params) <= 0.15 * who[0].params for one in who)
    monkeypatch.setattr("nni_cssnas.retrain.compare.DRAWS", 3)
    with pytest.raises(SpaceError, match=r"none of 3 random architectures has \d+ parameters within 0%"):
        contestants({"first": first}, CONFIG, 10, num_random=10, tolerance=1e-9)


def test_the_summary_against_numpy_and_scipy() -> None:
    rng = np.random.default_rng(0)
    runs = [
        Run(f"{group}-{index}", group, seed, 1000, float(rng.random()), 1.0)
        for group, number in (("found", 2), ("random", 6), ("DARTS_V2", 1))
        for index in range(number)
        for seed in range(3)
    ]
    groups = summarise(list(rng.permutation(np.array(runs, dtype=object))))
    assert [group.name for group in groups] == ["found", "random", "DARTS_V2"]
    for group in groups:
        table = np.array([run.top1 for run in runs if run.group == group.name]).reshape(-1, 3)
        values = table.mean(1) if len(table) > 1 else table[0]
        assert group.mean == pytest.approx(table.mean())
        assert group.error == pytest.approx(sem(values))
        assert group.spread == pytest.approx(values.std(ddof=1))
    (single,) = summarise([runs[0]])
    assert math.isnan(single.error)


def test_the_verdict_says_no_more_than_it_knows() -> None:
    def say(found: list[float], random: list[float]) -> str:
        runs = [Run(f"f{i}", "found", 0, 1, value, 1.0) for i, value in enumerate(found)]
        runs += [Run(f"r{i}", "random", 0, 1, value, 1.0) for i, value in enumerate(random)]
        return verdict(summarise(runs))

    assert say([0.8, 0.82], [0.7, 0.72]).endswith("better by more than the standard error")
    assert say([0.7, 0.72], [0.8, 0.82]).endswith("worse by more than the standard error")
    assert say([0.7, 0.8], [0.72, 0.79]).endswith("no difference beyond the standard error")
    assert say([0.7], [0.8, 0.82]).endswith("train with more seeds to know whether this is more than chance")
    assert say([0.8, 0.82], [0.7, 0.72]).startswith("found - random: +10.00 points, standard error 1.41")


@pytest.mark.slow
def test_the_command_compares_and_goes_on(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shape = ["--cells", "3", "--channels", "4", "--size", "16", "--batch-size", "16", "--epochs", "1"]
    settings = ["--set", "auxiliary_weight=0", "--set", "validation=0.25", "--random", "2", "--seeds", "2"]
    command = ["compare", "PC-DARTS", "-d", "data.npz", "-o", "out", *shape, *settings, "--workers", "1"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))
    assert len(rows) == 4 * 2
    for row in rows:
        summary = json.loads((tmp_path / "out" / f"{row['name']}-seed{row['seed']}" / "summary.json").read_text())
        assert float(row["top1"]) == summary["final_top1"]
        assert summary["seed"] == int(row["seed"])
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [group["name"] for group in content["groups"]] == ["found", "random", "DARTS_V2"]
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "found - random:" in done.output
    # What is done is not done again; two workers find the same.
    (tmp_path / "out" / "found-1-seed0" / "summary.json").unlink()
    before = (tmp_path / "out" / "compare.csv").read_text()
    again = CliRunner().invoke(app, [*command[:-1], "2"], catch_exceptions=False)
    assert again.exit_code == 0, again.output
    after = (tmp_path / "out" / "compare.csv").read_text()
    assert [line.rsplit(",", 1)[0] for line in after.splitlines()] == [
        line.rsplit(",", 1)[0] for line in before.splitlines()
    ]
    with pytest.raises(ConfigError, match=r"holds another comparison \(recipe differ\)"):
        CliRunner().invoke(app, [*command, "--set", "lr=0.1"], catch_exceptions=False)
