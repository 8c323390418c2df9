"""Searches for a front, within limits, and around a known architecture."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn
from typer.testing import CliRunner

import nni_cssnas
from nni_cssnas.base.pareto import hypervolume
from nni_cssnas.cli import app
from nni_cssnas.comparison.searches import searches_of
from nni_cssnas.config import ProxyConfig, TargetConfig
from nni_cssnas.errors import ConfigError, ExperimentError, SpaceError
from nni_cssnas.genotype import Genotype
from nni_cssnas.judge.screening import Screened, Screener
from nni_cssnas.results.front import front_files
from nni_cssnas.results.screening_log import LOG_NAME
from nni_cssnas.scores.cost import multiply_adds, num_parameters
from nni_cssnas.search.evolve import Evolution, choices_key
from nni_cssnas.search.explore import explore
from nni_cssnas.spaces import CellNetwork, random_choices, search_space
from nni_cssnas.spaces.architecture import read_architecture
from nni_cssnas.spaces.encoding import changed_choices, crossed_choices

SETTINGS: dict[str, Any] = {
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "target": {"num_cells": 6, "channels": 8},
    "images": {"source": "tiles", "num_images": 64},
    "untrained": {"batch_size": 8},
    "threads": 1,
}
COMMAND = ("screen", "proxy.yml", "--num", "6", "--guided", "4", "--workers", "1", "-o", "found")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proxy.yml").write_text(json.dumps(SETTINGS))


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


class Digits(ModelSpace):  # type: ignore[misc]
    """Eight digits from 0 to 5."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(8):
            setattr(self, f"d{index}", LayerChoice([nn.Identity() for _ in range(6)], label=f"d{index}"))


class Judge:
    """The score is the sum of the digits but falls where they are not in order; the cost is their square."""

    def __init__(self) -> None:
        self.space = Digits()
        self.search_space = search_space(self.space)

    def random(self, num: int, seed: int) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return (random_choices(self.space, rng) for _ in range(num))

    def spread(self, method: Any, items: Any) -> Iterator[Screened]:
        assert method is Screener.screen
        for choices in items:
            yield Screened(choices, float(self.values(choices)[0]), {"cost": -self.values(choices)[1]})

    @staticmethod
    def values(choices: Any) -> tuple[float, float]:
        digits = [int(choices[f"d{index}"]) for index in range(8)]
        disorder = sum(abs(one - other) for one, other in itertools.pairwise(digits))
        return sum(digits) - 0.3 * disorder, -float(sum(digit**2 for digit in digits))


def two(item: Screened) -> tuple[float, float]:
    return item.score, -item.components["cost"]


# ---- the search -----------------------------------------------------------------------------------


def test_evolution_covers_more_than_random_draws() -> None:
    judge = Judge()
    gains = []
    for seed in range(5):
        searched = [two(item) for item in explore(judge, judge.spread, 50, 150, seed=seed, values=two)]  # type: ignore[arg-type]
        drawn = [two(item) for item in explore(judge, judge.spread, 200, seed=seed, values=two)]  # type: ignore[arg-type]
        assert len(searched) == len(drawn) == 200
        gains.append(hypervolume(searched, (0.0, -201.0)) / hypervolume(drawn, (0.0, -201.0)))
    assert min(gains) > 1
    assert np.mean(gains) > 1.03


def test_its_proposals_are_new_and_the_same_again() -> None:
    judge = Judge()
    found = [list(explore(judge, judge.spread, 30, 60, seed=3, values=two)) for _ in range(2)]  # type: ignore[arg-type]
    assert found[0] == found[1]
    guided = [choices_key(item.choices) for item in found[0][30:]]
    assert len(set(guided)) == 60
    assert not set(guided) & {choices_key(item.choices) for item in found[0][:30]}


def test_a_dead_one_has_no_children_and_a_full_space_ends() -> None:
    judge = Judge()
    evolution = Evolution(judge.space, 0)
    evolution.learn(random_choices(judge.space, np.random.default_rng(0)), (float("nan"), 1.0))
    assert not evolution.population
    assert evolution.propose() is not None
    few = Evolution(judge.space, 0, allowed=lambda choices: {f"d{index}": choices["d0"] for index in range(8)})
    proposed = [few.propose() for _ in range(7)]
    assert sum(item is not None for item in proposed) == 6
    assert proposed[-1] is None


def test_a_mutation_changes_so_many_choices_and_a_child_has_those_of_its_parents() -> None:
    space, rng = Digits(), np.random.default_rng(0)
    one, other = random_choices(space, rng), random_choices(space, rng)
    for number in (1, 3, 8, 20):
        changed = changed_choices(space, one, rng, number)
        assert sum(changed[name] != one[name] for name in one) == min(number, 8)
    seen = set()
    for _ in range(20):
        child = crossed_choices(space, one, other, rng)
        assert all(child[name] in (one[name], other[name]) for name in one)
        seen.add(choices_key(child))
    assert len(seen) > 10


def test_what_is_not_allowed_is_mended() -> None:
    judge = Judge()

    def mend(choices: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**choices, "d0": 0, "d1": 0, "d2": 0, "d3": 0, "d4": 0}

    def allowed(choices: Any) -> bool:  # one of 7,776
        return all(int(choices[f"d{index}"]) == 0 for index in range(5))

    for values in (None, two):
        found = list(
            explore(judge, judge.spread, 20, 20, allowed=allowed, mend=mend, values=values)  # type: ignore[arg-type]
        )
        assert all(allowed(item.choices) for item in found)
        assert len(found) == 40
        assert len({choices_key(item.choices) for item in found}) == 40


# ---- the command ----------------------------------------------------------------------------------


def costs_of(name: str) -> tuple[int, int]:
    network = CellNetwork(Genotype.parse(Path(name).read_text()), 6, 8)
    return num_parameters(network), multiply_adds(network, (3, 32, 32))


def test_the_front_is_written_shown_and_taken_by_name() -> None:
    said = run(*COMMAND, "--objective", "params", "--objective", "macs")
    rows = table("found/front.csv")
    assert "front of score against params, macs" in said
    scored = table("found/screen.csv")
    assert len(scored) == 10
    for number, row in enumerate(rows, start=1):
        assert row["name"] == f"front-{number}"
        assert row["name"] in said
        assert costs_of(f"found/{row['name']}.json") == (float(row["params"]), float(row["macs"]))
        found = read_architecture(f"found/{row['name']}")
        assert found == read_architecture(f"found/{row['name']}.json")
        assert found.target == TargetConfig(num_cells=6, channels=8)
    # Nothing that was scored is better in all three; its costs are counted once more.
    space = Screener(ProxyConfig(**SETTINGS)).space
    labels = search_space(space)
    everything = {}
    for row in scored:
        choices = {label: row[label] for label in labels}
        network = CellNetwork(space.genotype_of({label: row[label] for label in labels}), 6, 8)
        costs = (num_parameters(network), multiply_adds(network, (3, 32, 32)))
        everything[choices_key(choices)] = (float(row["score"]), *(-cost for cost in costs))
    on_front = {choices_key({label: row[label] for label in labels}) for row in rows}
    for key, values in everything.items():
        better = [
            other
            for other in everything.values()
            if other != values and all(a >= b for a, b in zip(other, values, strict=True))
        ]
        assert (key in on_front) == (not better)
    for name in ("front.svg", "front.png", "hypervolume.svg", "hypervolume.png"):
        assert Path("found", name).stat().st_size > 1000
    assert "front-1" in Path("found/front.svg").read_text()
    out = run("export", "found/front-1", "-o", "net.py")
    assert "parameters" in out


def test_more_of_the_same_search_goes_on_and_clears_what_left_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    run(*COMMAND, "--objective", "macs")
    rows = table("found/front.csv")
    before = {path.name: path.read_bytes() for path in front_files(Path("found")) if path.suffix != ".png"}
    calls = 0
    real = Screener.screen

    def screen(self: Screener, choices: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(self, choices)

    monkeypatch.setattr(Screener, "screen", screen)
    Path("found/front-99.json").write_text("of the user's")
    run(*COMMAND, "--objective", "macs")
    assert calls == 0
    after = {path.name: path.read_bytes() for path in front_files(Path("found")) if path.suffix != ".png"}
    assert after == before | {"front-99.json": b"of the user's"}
    run(*COMMAND, "--objective", "shortcuts")
    names = {row["name"] for row in table("found/front.csv")}
    assert {path.stem for path in Path("found").glob("front-*.json")} == names | {"front-99"}
    assert len(rows) > 0
    Path("found", LOG_NAME).unlink()
    with pytest.raises(ExperimentError, match=r"is there already"):
        run(*COMMAND)


def test_an_interrupted_search_ends_as_one_that_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    run(*COMMAND[:-1], "whole", "--objective", "macs")
    real = Screener.screen
    calls = 0

    def screen(self: Screener, choices: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return real(self, choices)

    with monkeypatch.context() as patch:
        patch.setattr(Screener, "screen", screen)
        run(*COMMAND, "--objective", "macs", code=130)
    run(*COMMAND, "--objective", "macs")
    for name in ("screen.csv", "front.csv", "front-1.json"):
        assert Path("found", name).read_bytes() == Path("whole", name).read_bytes()


def test_limits_are_kept_on_the_target() -> None:
    free = nni_cssnas.screen(config=SETTINGS, num=8, workers=1)
    limit = int(np.median([item.costs["params"] for item in free.found]))
    found = nni_cssnas.screen(config=SETTINGS, num=5, guided=3, workers=1, max_params=limit)
    assert len(found.found) == 8
    for item in found.found:
        assert item.genotype is not None
        assert num_parameters(CellNetwork(item.genotype, 6, 8)) == item.costs["params"] <= limit
        assert item.costs["params"] > item.measures["params"]  # of the narrow one


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-params", "10"], "max_params is 10, but the smallest network of nni_cssnas.spaces:CellSpace"),
        (["--objective", "mac"], "--objective is 'mac'; did you mean 'macs'?"),
        (["--objective", "score"], "--objective is 'score', which is maximised anyway"),
        (["--objective", "macs", "--objective", "macs"], "--objective names one thing twice: macs, macs"),
        (["--max-latency-ms", "0"], "max_latency_ms is 0.0: input should be greater than 0"),
    ],
)
def test_what_cannot_be_is_one_line_before_images_are_read(options: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*COMMAND, "--images", "nowhere", *options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("found").exists()


def test_latency_is_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(1, 1000))
    monkeypatch.setattr("nni_cssnas.judge.costs.latency", lambda *_, **__: float(next(times)))
    run(*COMMAND, "--objective", "latency_ms", "--max-latency-ms", "500")
    rows = [json.loads(line) for line in Path("found", LOG_NAME).read_text().splitlines()]
    kept = [row["measured"]["latency_ms"] for row in rows if "cost" in row]
    assert (
        len(kept) == len(set(kept)) == 10 + kept[0] - 1
    )  # the first ones were of the look whether any keeps the limit
    front = Path("found/front.csv").read_bytes()
    run(*COMMAND, "--objective", "latency_ms", "--max-latency-ms", "500")
    assert Path("found/front.csv").read_bytes() == front


# ---- around a known one ---------------------------------------------------------------------------


def test_from_a_known_one_nothing_worse_in_everything_is_kept() -> None:
    start = nni_cssnas.screen(config=SETTINGS, num=6, workers=1).found[2]
    assert start.genotype is not None
    Path("known.json").write_text(json.dumps(start.genotype.to_dict()))
    run(*COMMAND, "--from", "known.json", "--objective", "params")
    rows = [json.loads(line) for line in Path("found", LOG_NAME).read_text().splitlines()][1:]
    screened = [row for row in rows if "screen" in row]
    assert len(screened) == 10
    first = screened[0]
    assert first["screen"] == start.choices
    changes = [sum(row["screen"][name] != value for name, value in start.choices.items()) for row in screened[1:6]]
    assert changes[0] >= 1
    assert np.median(changes) <= 2
    space = Screener(ProxyConfig(**SETTINGS)).space

    def params(choices: Any) -> int:
        return num_parameters(CellNetwork(space.genotype_of(choices), 6, 8))

    kept = {choices_key({name: row[name] for name in start.choices}) for row in table("found/screen.csv")}
    for row in screened:
        worse = row["score"] < first["score"] and params(row["screen"]) > params(start.choices)
        assert (choices_key(row["screen"]) in kept) == (not worse)


def test_what_is_not_in_the_space_cannot_be_begun_with() -> None:
    with pytest.raises(SpaceError, match=r"the normal cell has 4 nodes .* this space has 5"):
        nni_cssnas.screen(config=SETTINGS | {"space": {"arguments": {"num_nodes": 5}}}, num=2, start="DARTS_V2")
    found = nni_cssnas.screen(config=SETTINGS, num=1, workers=1, start="DARTS_V2")
    space = Screener(ProxyConfig(**SETTINGS)).space
    assert [item.choices for item in found.found] == [space.sample_of(Genotype.parse("DARTS_V2"))]


# ---- spaces without cells -------------------------------------------------------------------------

TINY = """
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn


class Tiny(ModelSpace):
    def __init__(self):
        super().__init__()
        kernels = lambda label: LayerChoice([nn.Conv2d(6, 6, k, padding=k // 2) for k in (1, 3, 5, 7)], label=label)
        self.blocks = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), kernels("one"), nn.ReLU(), kernels("two"), nn.ReLU())
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.blocks(x).mean((2, 3)))
"""


def test_a_space_of_the_users_own_has_a_front_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_front_space.py").write_text(TINY)
    monkeypatch.setattr("sys.path", [*sys.path])
    settings = {"space": {"name": "tiny_front_space:Tiny"}, "images": SETTINGS["images"], "threads": 1}
    (tmp_path / "proxy.yml").write_text(json.dumps(settings))
    said = run(*COMMAND, "--objective", "params", "--max-params", "3000")
    assert "costs are those of the networks without classifier" in said

    def size(row: dict[str, str]) -> int:
        kernels = [(1, 3, 5, 7)[int(row[label])] for label in ("one", "two")]
        return 3 * 6 * 9 + 6 + sum(36 * kernel**2 + 6 for kernel in kernels)

    rows = table("found/front.csv")
    assert all(float(row["params"]) == size(row) <= 3000 for row in rows)
    assert len(rows) > 1
    last = rows[-1]["name"]
    assert json.loads(Path(f"found/{last}.json").read_text()) == {
        label: int(rows[-1][label]) for label in ("one", "two")
    }
    run("export", "--space", "tiny_front_space:Tiny", "--sample", f"found/{last}", "-o", "net.onnx", "-f", "onnx")
    around = (*COMMAND[:-1], "around", "--max-params", "3000")
    run(*around, "--from", f"found/{last}")
    assert float(table("around/screen.csv")[0]["score"]) >= float(rows[-1]["score"])
    with pytest.raises(ConfigError, match=r"max_params is 20, but the smallest network of tiny_front_space:Tiny"):
        run(*COMMAND[:-1], "none", "--max-params", "20")


def test_entries_of_a_front_are_of_one_search() -> None:
    for name in ("found/front-1.json", "found/front-2.json", "other/front-1.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}")
    assert searches_of(["found/front-1", "found/front-2", "other/front-1"], ()) == searches_of(
        ["found/front-1.json", "found/front-2.json", "other/front-1.json"], ()
    )
