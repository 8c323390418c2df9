from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import sem, t
from typer.testing import CliRunner

from nni_cssnas.cli import app
from nni_cssnas.comparison.contestants import Contestant, contestants
from nni_cssnas.comparison.run import check_folder, compare
from nni_cssnas.comparison.searches import searches_of
from nni_cssnas.comparison.summary import Run, caveat, summarise, verdict
from nni_cssnas.config import SpaceConfig
from nni_cssnas.errors import ConfigError, SpaceError
from nni_cssnas.images.labelled import LabelledImages
from nni_cssnas.spaces import make_space, random_choices
from nni_cssnas.spaces.architecture import Architecture, read_architecture
from nni_cssnas.training.config import RetrainConfig

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
    first = Architecture(space=space, choices=random_choices(make_space(space), np.random.default_rng(0)))
    who = contestants({"first": first}, CONFIG, 10, num_random=2)
    assert [one.group for one in who] == ["found", "random", "random"]  # no published cells there
    assert all(abs(one.params - who[0].params) <= 0.15 * who[0].params for one in who)
    monkeypatch.setattr("nni_cssnas.comparison.contestants.DRAWS", 3)
    with pytest.raises(SpaceError, match=r"none of 3 random architectures has \d+ parameters within 0%"):
        contestants({"first": first}, CONFIG, 10, num_random=10, tolerance=1e-9)


def make_runs(
    found: dict[str, list[list[float]]], random: list[list[float]], baseline: list[float] | None = None
) -> list[Run]:
    """``found``: search to the accuracies of its architectures, each a list over seeds."""
    runs, number = [], 0
    for search, cells in found.items():
        for values in cells:
            number += 1
            runs += [Run(f"found-{number}", "found", search, seed, 1000, v, 1.0) for seed, v in enumerate(values)]
    for number, values in enumerate(random, start=1):
        runs += [Run(f"random-{number}", "random", "", seed, 1000, v, 1.0) for seed, v in enumerate(values)]
    runs += [Run("DARTS_V2", "DARTS_V2", "", seed, 1000, v, 1.0) for seed, v in enumerate(baseline or [])]
    return runs


def test_the_summary_against_numpy_and_scipy() -> None:
    rng = np.random.default_rng(0)
    # (searches, cells, seeds); of the last search only one cell is compared.
    found, random, baseline = rng.random((3, 2, 3)), rng.random((6, 3)), rng.random(3)
    table = {f"s{i}": some.tolist() for i, some in enumerate(found)}
    table["s2"] = table["s2"][:1]
    runs = make_runs(table, random.tolist(), baseline.tolist())
    groups = summarise([runs[i] for i in rng.permutation(len(runs))])
    assert [(group.name, group.units, group.members) for group in groups] == [
        ("found", "3 searches", "5 in 3 searches"),
        ("random", "6 architectures", "6"),
        ("DARTS_V2", "3 trainings", "1, 3 trainings"),
    ]
    searches = np.array([found[0].mean(), found[1].mean(), found[2, 0].mean()])
    for group, values in zip(groups, (searches, random.mean(1), baseline), strict=True):
        assert group.values == pytest.approx(values)
        assert group.mean == pytest.approx(values.mean())
        assert group.error == pytest.approx(sem(values))
        assert group.spread == pytest.approx(values.std(ddof=1))
    for one, values in zip(verdict(groups), (random.mean(1), baseline), strict=True):
        difference, variances = searches.mean() - values.mean(), [v.var(ddof=1) / len(v) for v in (searches, values)]
        # Welch's formulas.
        df = sum(variances) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, (searches, values), strict=True))
        error = math.sqrt(sum(variances))
        assert one.p == pytest.approx(2 * t.sf(abs(difference) / error, df))
        assert one.low == pytest.approx(difference - t.ppf(0.975, df) * error)
        assert one.high == pytest.approx(difference + t.ppf(0.975, df) * error)


@pytest.mark.parametrize("between", [0.0, 1.0])
@pytest.mark.parametrize(("searches", "cells"), [(3, 2), (6, 1)])
def test_chance_is_called_more_than_chance_in_one_case_of_twenty(searches: int, cells: int, between: float) -> None:
    """Nothing differs in the mean; cells of one search are alike by ``between`` standard deviations of a cell."""
    rng = np.random.default_rng(searches)
    claimed = 0
    for _ in range(400):
        found = rng.normal(0, between, (searches, 1, 1)) + rng.normal(0, 1, (searches, cells, 1))
        found = found + rng.normal(0, 0.7, (searches, cells, 2))
        random = rng.normal(0, 1, (6, 1)) + rng.normal(0, 0.7, (6, 2))
        table = {str(i): some.tolist() for i, some in enumerate(found)}
        (one,) = verdict(summarise(make_runs(table, random.tolist())))
        claimed += "by more than chance" in one.sentence
    # 400 draws of 5 %: 20, give or take 4.4.
    assert 8 <= claimed <= 34


def test_the_verdict_says_no_more_than_it_knows() -> None:
    random = [[0.70], [0.72], [0.71], [0.69]]

    def say(found: dict[str, list[list[float]]], random: list[list[float]] = random, *baseline: float) -> str:
        return verdict(summarise(make_runs(found, random, list(baseline))))[-1].sentence

    three = {"a": [[0.80]], "b": [[0.82]], "c": [[0.81]]}
    assert say(three).startswith("found - random: +10.50 points (95 % interval +8.27 to +12.73, p < 0.001, ")
    assert say(three).endswith("Welch's t-test of 3 searches and 4 architectures): better by more than chance")
    worse = {name: [[1.41 - cells[0][0]]] for name, cells in three.items()}
    assert say(worse).endswith("worse by more than chance")
    assert say({"a": [[0.6]], "b": [[0.7]], "c": [[0.8]]}).endswith("this may well be chance")
    # Four cells of two searches are two draws, whatever lies between them.
    two = say({"a": [[0.80], [0.82]], "b": [[0.81], [0.83]]})
    assert two.startswith(
        "found - random: +11.00 points. Whether this is chance cannot be told: the 4 cells found come from only 2 "
    )
    assert "Search again with another --seed, and give its cells too. (If they are of several searches, say so" in two
    one = say({"a": [[0.80], [0.82]]})
    assert "the 2 cells found come from a single search, which" in one
    assert "Search again with 2 other --seeds, and give their cells too." in one
    assert say(three, random[:1]).endswith("there is a single random architecture. Use --random 6.")
    assert say(three, random, 0.7, 0.8).endswith("DARTS_V2 was trained twice. Use --seeds 3.")
    assert "all accuracies of each side are equal" in say({"a": [[0.5]], "b": [[0.5]], "c": [[0.5]]}, [[0.4]] * 3)
    for text in (two, one):
        assert "nan" not in text


@pytest.mark.parametrize(
    ("epochs", "said"), [(1, "1 epoch:"), (10, "10 epochs:"), (49, "49 epochs:"), (50, None), (600, None)]
)
def test_a_short_comparison_states_its_bias(epochs: int, said: str | None) -> None:
    found = caveat(epochs)
    assert (found is None) == (said is None)
    if found is not None:
        assert str(said) in found
        assert "favours shallow and wide networks" in found


def test_cells_of_one_folder_are_of_one_search(tmp_path: Path) -> None:
    for name in ("one", "two/best"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "genotype.json").write_text("{}")
    (tmp_path / "one" / "genotype-2.json").write_text("{}")
    first, second = str(tmp_path / "one"), str(tmp_path / "two")
    items = [f"{first}/genotype.json", f"{first}/genotype-2.json", first, second, f"{second}/best", "PC-DARTS", "{...}"]
    assert searches_of(items) == [first, first, first, second, second, "PC-DARTS", "typed"]
    given = ["mine=1,*-2.json", "other=PC-DARTS,7"]
    assert searches_of(items, given) == ["mine", "mine", first, second, second, "other", "other"]
    for wrong, message in (
        ("mine", r"--search is 'mine'; it must be NAME=ITEM,ITEM"),
        ("mine=8", "there is no item 8; they are numbered 1 to 7"),
        ("mine=x*", r"'x\*' is none of the 7 architectures given"),
    ):
        with pytest.raises(ConfigError, match=message):
            searches_of(items, [wrong])
    with pytest.raises(ConfigError, match=r"item 1 .* is of the search 'mine' already"):
        searches_of(items, ["mine=1", "yours=1"])


def test_another_comparison_is_told_by_its_keys(data: LabelledImages, tmp_path: Path) -> None:
    who = [
        Contestant(f"found-{n}", "found", read_architecture(name), 8, 1, "a")
        for n, name in enumerate(["DARTS_V1", "DARTS_V2"])
    ]
    check_folder(who, CONFIG, data, tmp_path)
    # Which search a cell is of may be said later.
    check_folder([dataclasses.replace(one, search="b") for one in who], CONFIG, data, tmp_path)

    def refused(others: list[Contestant], config: RetrainConfig = CONFIG) -> str:
        with pytest.raises(ConfigError) as caught:
            check_folder(others, config, data, tmp_path)
        return str(caught.value)

    other = RetrainConfig(channels=8, num_cells=5, lr=0.1, views={"cj_strength": 1})
    assert (
        "another comparison: lr is 0.025 there and 0.1 here; views.cj_strength is 0.5 there and 1.0 here; name"
        in refused(who, other)
    )
    assert "found-1 has 8 channels there and 9 here;" in refused([who[0], dataclasses.replace(who[1], channels=9)])
    assert "found-0 is another architecture;" in refused(
        [dataclasses.replace(who[0], architecture=who[1].architecture), who[1]]
    )
    assert "found-1 is only there;" in refused(who[:1])
    assert "in another order" in refused(who[::-1])


def test_workers_make_the_images_anew(data: LabelledImages, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers is 2, but load is missing"):
        next(compare([], CONFIG, data, tmp_path, workers=2))


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
    assert "nan" not in (done.output + json.dumps(content)).lower()
    assert {row["search"] for row in rows} == {"PC-DARTS", ""}
    assert content["contestants"][0]["search"] == "PC-DARTS"
    # What is done is not done again; two workers find the same.
    (tmp_path / "out" / "found-1-seed0" / "summary.json").unlink()
    before = (tmp_path / "out" / "compare.csv").read_text()
    again = CliRunner().invoke(app, [*command[:-1], "2"], catch_exceptions=False)
    assert again.exit_code == 0, again.output
    after = (tmp_path / "out" / "compare.csv").read_text()
    assert [line.rsplit(",", 1)[0] for line in after.splitlines()] == [
        line.rsplit(",", 1)[0] for line in before.splitlines()
    ]
    with pytest.raises(ConfigError, match=r"holds another comparison: lr is 0\.025 there and 0\.1 here; name"):
        CliRunner().invoke(app, [*command, "--set", "lr=0.1"], catch_exceptions=False)
