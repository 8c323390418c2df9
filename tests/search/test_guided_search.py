from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nni_cssnas.base.device import derive_seed
from nni_cssnas.bridge.evaluator import ProxyEvaluator
from nni_cssnas.cli import app
from nni_cssnas.config import ProxyConfig
from nni_cssnas.genotype import Genotype
from nni_cssnas.judge.proxy import Candidate, Proxy, candidate_seed
from nni_cssnas.judge.screening import FINAL_DRAWS, LAG, Screened, Screener
from nni_cssnas.search.explore import choose, explore
from nni_cssnas.spaces import CellNetwork, decode

SETTINGS: dict[str, Any] = {
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "images": {"source": "tiles", "num_images": 64},
    "untrained": {"batch_size": 8},
    "threads": 1,
}


def key(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)


class Judge:
    """A space of 5 ** 6 whose score is known: how many choices are right."""

    search_space = {f"c{index}": {"_type": "choice", "_value": list("abcde")} for index in range(6)}  # noqa: RUF012

    def __init__(self) -> None:
        self.running = self.most = 0

    def random(self, num: int, seed: int) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return ({name: "abcde"[rng.integers(5)] for name in self.search_space} for _ in range(num))

    def spread(self, method: Any, items: Any) -> Iterator[Any]:
        assert method is Screener.screen
        for parameters in items:
            yield Screened(parameters, float(sum(value == "c" for value in parameters.values())), {"x": 1.0})


def test_guided_proposals_are_better_and_new() -> None:
    judge = Judge()
    found = list(explore(judge, judge.spread, 40, 40, seed=1))  # type: ignore[arg-type]
    scores = [item.score for item in found]
    assert len(found) == 80
    assert np.mean(scores[60:]) > np.mean(scores[:40]) + 1
    guided = [key(item.choices) for item in found[40:]]
    assert len(set(guided)) == 40
    assert not set(guided) & {key(item.choices) for item in found[:40]}


def test_what_is_not_allowed_is_neither_screened_nor_counted() -> None:
    judge = Judge()
    found = list(explore(judge, judge.spread, 20, 20, allowed=lambda item: item["c0"] != "c"))  # type: ignore[arg-type]
    assert len(found) == 40
    assert all(item.choices["c0"] != "c" for item in found)


def test_a_short_time_ends_it() -> None:
    judge = Judge()
    assert list(explore(judge, judge.spread, 5, 5, seconds=0)) == []  # type: ignore[arg-type]


@pytest.mark.slow
def test_workers_change_nothing() -> None:
    screener = Screener(ProxyConfig(**SETTINGS))
    found = []
    for workers in (1, 2):
        with screener.spread(workers) as spread:
            explored = list(explore(screener, spread, 3, LAG + 2, seed=2))
            found.append((explored, choose(explored, screener.config, spread)))
    assert found[0] == found[1]
    with screener.spread(2) as spread:
        few = spread(Screener.screen, screener.random(20, seed=2))
        assert next(few) == found[0][0][0]


@pytest.mark.parametrize("score", ["untrained", "contrastive", "combined"])
@pytest.mark.parametrize("number", [12, 32, 100, 600])
def test_what_the_score_says_is_what_is_chosen(number: int, score: str) -> None:
    rng = np.random.default_rng(0)
    found = [
        Screened({"number": index}, float(value), {"x": 1.0}) for index, value in enumerate(rng.permutation(number))
    ]
    dead = Screened({"number": -1}, -9.0, {})
    again = {index: {"score": float(rng.random())} for index in range(number)}

    def spread(method: Any, items: Any) -> Iterator[Any]:
        assert score != "untrained", "it is looked at once"
        assert method is Screener.finalist
        return (again[item["number"]] for item in items)

    config = ProxyConfig(score=score)
    ranked = choose([dead, *found], config, spread)
    by_first = sorted(found, key=lambda item: -item.score)
    finalists = [] if score == "untrained" else by_first[: min(8, -(-number // 8))]
    best = sorted(finalists, key=lambda item: -again[item.choices["number"]]["score"])
    assert [item.choices for item in ranked] == [item.choices for item in (*best, *by_first[len(finalists) :], dead)]
    # What the table shows falls with the rank: first the second look, then the score.
    looks = [item.second_look for item in ranked]
    assert looks == [again[item.choices["number"]]["score"] for item in best] + [None] * (number + 1 - len(best))
    assert choose([dead], config, spread) == [dead]


TRAINED: dict[str, Any] = {
    **SETTINGS,
    "score": "contrastive",
    "contrastive": {"epochs": 2, "batch_size": 16, "held_out": 0},
    "views": {"input_size": 8},
}


def test_by_the_contrastive_score_the_mean_of_other_seeds_ranks_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nni_cssnas.search.explore.FINALISTS", 2)
    monkeypatch.setattr("nni_cssnas.search.explore.SHARE", 0.5)
    screener = Screener(ProxyConfig(**TRAINED))
    with screener.spread() as spread:
        found = list(explore(screener, spread, 4, seed=1))
        ranked = choose(found, screener.config, spread)
    trial = ProxyEvaluator(ProxyConfig(**TRAINED))
    for item in found:
        build = partial(screener.space.freeze, decode(screener.space, item.choices))
        assert item.score == trial.run(build, item.choices).score
    by_score = sorted(found, key=lambda item: -item.score)
    assert ranked[2:] == by_score[2:]
    means = {}
    for item in by_score[:2]:
        draws = []
        for number in range(FINAL_DRAWS):
            config = ProxyConfig(**TRAINED, seed=derive_seed(0, f"finalists {number}"))
            build = partial(screener.space.freeze, decode(screener.space, item.choices))
            draws.append(Proxy(config).judge(Candidate(build, candidate_seed(config, item.choices))).score)
        means[key(item.choices)] = np.mean(draws)
    assert means[key(ranked[0].choices)] > means[key(ranked[1].choices)]


def test_a_training_that_diverges_is_the_worst_and_no_exception() -> None:
    broken = {**TRAINED, "contrastive": {**TRAINED["contrastive"], "lr": 1e30, "temperature": 0.01}}
    screener = Screener(ProxyConfig(**broken))
    (parameters,) = screener.random(1, seed=0)
    item = screener.screen(parameters)
    assert (item.score, item.components) == (-np.inf, {})
    assert screener.finalist(parameters) == {"score": -np.inf}


def test_the_command_searches_at_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proxy.yml").write_text(json.dumps(TRAINED | {"score": "untrained"}))
    command = [
        "screen",
        "proxy.yml",
        "--score",
        "contrastive",
        "--params",
        "4000",
        "--num",
        "3",
        "--workers",
        "1",
        "--top",
        "2",
    ]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "screened" / "screen.csv").open()))
    genotype = Genotype.parse((tmp_path / "screened" / "genotype.json").read_text())
    assert all(abs(float(row["params"]) - 4000) < 1000 and "loss" in row for row in rows)
    assert len({row["channels"] for row in rows}) > 1
    second = Genotype.parse((tmp_path / "screened" / "genotype-2.json").read_text())
    for row, cell in zip(rows, (genotype, second), strict=False):
        network = CellNetwork(cell, 3, int(float(row["channels"])))
        assert sum(weight.numel() for weight in network.parameters()) == float(row["params"])
    assert (tmp_path / "screened" / "genotype-2.png").exists()
    assert not (tmp_path / "screened" / "genotype-3.json").exists()


@pytest.mark.parametrize("score", ["untrained", "contrastive"])
def test_the_table_and_what_is_printed_agree(score: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = TRAINED | {"score": score}
    (tmp_path / "proxy.yml").write_text(json.dumps(settings))
    monkeypatch.setattr("nni_cssnas.search.explore.SHARE", 0.5)
    screened = ["screen", "proxy.yml", "--num", "2", "--guided", "2", "--workers", "1", "-o", "found"]
    done = CliRunner().invoke(app, screened, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "best of 4 architectures" in said
    rows = list(csv.DictReader((tmp_path / "found" / "screen.csv").open()))
    screener = Screener(ProxyConfig(**settings))
    with screener.spread() as spread:
        ranked = choose(list(explore(screener, spread, 2, 2)), screener.config, spread)
    assert [float(row["score"]) for row in rows] == [item.score for item in ranked]
    assert [row["second_look"] for row in rows] == [
        "" if item.second_look is None else str(item.second_look) for item in ranked
    ]
    looked = [item for item in ranked if item.second_look is not None]
    printed = re.search(r"score (\S+) \((by score alone|place (\d) by score, and first of the 2 best)", said)
    assert printed is not None
    assert float(printed[1]) == pytest.approx(ranked[0].score, abs=1e-4)
    if score == "untrained":
        assert not looked
        assert printed[2] == "by score alone"
        assert ranked[0].score == max(item.score for item in ranked)
    else:
        assert len(looked) == 2
        assert int(printed[3]) == 1 + sum(item.score > ranked[0].score for item in ranked)
