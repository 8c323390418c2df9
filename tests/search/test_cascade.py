"""A cascade: multiply-adds of all, and scores only of those that have the most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nni_cssnas
from nni_cssnas.errors import ConfigError
from nni_cssnas.genotype import Genotype
from nni_cssnas.judge.screening import Screened, Screener
from nni_cssnas.search.explore import explore
from nni_cssnas.spaces import CellSpace, decode, random_choices, search_space
from nni_cssnas.tuners.tpe import Tpe

SETTINGS: dict[str, Any] = {
    "images": {"source": "tiles", "num_images": 16},
    "views": {"input_size": 8},
    "untrained": {"batch_size": 4},
    "target": {"num_cells": 3, "channels": 4},
    "threads": 1,
}


class Judge:
    """Everything is worth what it is called, and was screened in this order."""

    def __init__(self) -> None:
        self.space = CellSpace(num_nodes=4)
        self.search_space = search_space(self.space)
        self.drawn: list[dict[str, Any]] = []

    def random(self, num: int, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        for _ in range(num):
            self.drawn.append(random_choices(self.space, rng))
            yield self.drawn[-1]

    def spread(self, method: Any, items: Any) -> Any:
        assert method is Screener.screen
        for choices in items:
            yield Screened(choices, size(choices), {"params": 1.0})


def size(choices: Any) -> float:
    """How many convolutions there are."""
    return float(sum("conv" in str(value) for value in choices.values()))


def test_the_largest_of_each_group_are_screened() -> None:
    judge = Judge()
    found = [item.choices for item in explore(judge, judge.spread, 70, cascade=4, size=size)]  # type: ignore[arg-type]
    assert len(judge.drawn) == 70
    expected = []
    for start, number in ((0, 8), (32, 8), (64, 2)):  # groups of 32, of which 8 are kept, and what is left
        group = judge.drawn[start : start + 32]
        least = sorted((size(choices) for choices in group), reverse=True)[:number]
        expected += least
        assert all(choices in group for choices in found[len(expected) - number : len(expected)])
    assert sorted(map(size, found)) == sorted(expected)


def test_proposals_are_the_largest_of_several_too() -> None:
    judge = Judge()
    scored = list(explore(judge, judge.spread, 40, 40, cascade=4, size=size))  # type: ignore[arg-type]
    assert len(scored) == 20
    plain = list(explore(judge, judge.spread, 10, 10))  # type: ignore[arg-type]
    assert np.mean([item.score for item in scored[10:]]) > np.mean([item.score for item in plain[10:]])
    again = list(explore(Judge(), judge.spread, 40, 40, cascade=4, size=size))  # type: ignore[arg-type]
    assert [item.choices for item in again] == [item.choices for item in scored]


def test_what_is_not_allowed_is_not_proposed() -> None:
    judge = Judge()

    def allowed(choices: Any) -> bool:
        return size(choices) <= 6

    found = list(explore(judge, judge.spread, 40, 24, cascade=4, size=size, allowed=allowed))  # type: ignore[arg-type]
    assert len(found) == 16
    assert all(allowed(item.choices) for item in found)


def test_a_search_with_a_cascade_scores_a_quarter(tmp_path: Path) -> None:
    config = SETTINGS | {"space": {"arguments": {"num_nodes": 4}}}
    whole = nni_cssnas.screen(config=config, num=8, workers=1)
    part = nni_cssnas.screen(config=config, num=8, cascade=4, workers=1, output=tmp_path / "out")
    macs = sorted((item.costs["macs"] for item in whole.found), reverse=True)
    assert sorted((item.costs["macs"] for item in part.found), reverse=True) == macs[:2]
    scores = {tuple(item.choices.items()): item.score for item in whole.found}
    assert all(scores[tuple(item.choices.items())] == item.score for item in part.found)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cascade": 0}, "--cascade is 0; it must be from 1 to --num, 8"),
        ({"cascade": 9}, "--cascade is 9; it must be from 1 to --num, 8"),
        ({"cascade": 2, "objectives": ["macs"]}, "--objective macs asks for a trade-off"),
        ({"cascade": 2, "start": "DARTS_V2"}, "leave out --from"),
    ],
)
def test_a_cascade_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        nni_cssnas.screen(config=SETTINGS, num=8, **values)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tuner_screens_the_largest_of_its_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("proxy.yml").write_text("space: {arguments: {num_nodes: 4}}\nimages: {source: random}\n")
    space = CellSpace(num_nodes=4)
    tuner = Tpe(seed=0, screen={"candidates": 8, "cascade": 4})
    tuner.update_search_space(search_space(space))
    seen: list[dict[str, Any]] = []

    class Screening:
        def screen(self, choices: dict[str, Any]) -> Screened:
            seen.append(dict(choices))
            return Screened(choices, size(choices), {})

    tuner._screener = Screening()
    proposed: list[dict[str, Any]] = []
    propose = tuner._propose
    tuner._propose = lambda number: proposed.append(propose(number)) or proposed[-1]  # type: ignore[method-assign,func-returns-value]
    taken = tuner.generate_parameters(0)
    assert len(proposed) == 8
    largest = sorted(proposed, key=lambda choices: -macs(space.genotype_of(decode(space, choices))))[:2]
    assert sorted(map(str, seen)) == sorted(map(str, largest))
    assert taken == max(seen, key=size)


def macs(genotype: Genotype) -> int:
    """Of DARTS's network for CIFAR-10, counted on the network itself."""
    from nni_cssnas.scores.cost import multiply_adds
    from nni_cssnas.spaces.network import CellNetwork

    return multiply_adds(CellNetwork(genotype, 20, 36), (3, 32, 32))
