"""The registry of measures, and measures of a user's own."""

from __future__ import annotations

import math
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nni_cssnas import measures
from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError
from nni_cssnas.judge.screening import Screener
from nni_cssnas.measures import MEASURES, find_measure, register
from nni_cssnas.scores.combine import DEAD
from nni_cssnas.scores.look import Look
from nni_cssnas.scores.untrained import untrained_scores

OWN = """
def spread(look):
    return look.views[0].features.std()

def active(look):
    return look.views[0].codes.float().mean()
active.needs = ["codes"]

def text(look):
    return "high"

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_measures.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_measures", raising=False)
    return "my_measures"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_every_measure_of_ours_says_where_it_is_from_and_can_be_found() -> None:
    for item in MEASURES.values():
        assert item.source
        assert callable(measures._imported(str(item.function)))


def test_a_measure_of_ones_own_by_module_and_function(own: str) -> None:
    views = torch.rand(8, 3, 8, 8)
    names = [f"{own}:spread", f"{own}:active"]
    found = untrained_scores(network(), views, stages=["2"], components=names)
    with torch.no_grad():
        features = network().train()(views)
        bends = nn.Sequential(*list(network())[:2])(views) > 0
    assert found[names[0]] == pytest.approx(float(features.std()), rel=1e-5)
    assert found[names[1]] == pytest.approx(float(bends.float().mean()), rel=1e-5)


def test_a_registered_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MEASURES", dict(MEASURES))
    register("largest", lambda look: float(look.views[0].features.max()), source="a test")
    assert find_measure("largest").source == "a test"
    with pytest.raises(ConfigError, match="'largest', which is taken"):
        register("largest", lambda look: 0.0)
    with pytest.raises(ConfigError, match="which is no name"):
        register("my largest", lambda look: 0.0)
    with pytest.raises(ConfigError, match="needs 'code'; did you mean 'codes'"):
        register("other", lambda look: 0.0, needs=["code"])


def test_a_measure_of_an_installed_package(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = metadata.EntryPoint("flatness", f"{own}:spread", "nni_cssnas.measures")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry] if group == "nni_cssnas.measures" else [])
    measures._installed.cache_clear()
    try:
        found = find_measure("flatness")
        assert (found.name, found.source) == ("flatness", f"{own}:spread of the user's")
        assert ProxyConfig(untrained={"weights": {"flatness": 1.0}}).untrained.weights == {"flatness": 1.0}
        scores = untrained_scores(
            network(), torch.rand(8, 3, 8, 8), stages=["2"], components=["flatness", f"{own}:spread"]
        )
        assert scores["flatness"] == scores[f"{own}:spread"]
        with pytest.raises(ConfigError, match="unknown component 'flatnes'; did you mean 'flatness'"):
            find_measure("flatnes")
    finally:
        measures._installed.cache_clear()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jacof", "unknown component 'jacof'; did you mean 'jacov'"),
        ("my measures:spread", "unknown component"),
        ("nowhere_at_all:spread", "cannot be imported: No module named 'nowhere_at_all'; its module must lie beside"),
        ("my_measures:spreat", "cannot be imported: module 'my_measures' has no attribute 'spreat'"),
        ("my_measures:number", "is int, and must be a function of a Look"),
    ],
)
def test_what_is_no_measure(name: str, message: str, own: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        find_measure(name)
    assert len(str(caught.value).splitlines()) == 1


def test_what_gives_no_number(own: str) -> None:
    with pytest.raises(ConfigError, match=r"measure 'my_measures:text' gives str; it must give a number"):
        untrained_scores(network(), torch.rand(8, 3, 8, 8), stages=["2"], components=[f"{own}:text"])


def test_a_search_by_a_measure_of_ones_own(own: str) -> None:
    settings: dict[str, Any] = {
        "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
        "images": {"source": "tiles", "num_images": 64},
        "untrained": {"batch_size": 8, "weights": {f"{own}:spread": 1.0}},
        "threads": 1,
    }
    screener = Screener(ProxyConfig(**settings))
    results = [screener.screen(choices) for choices in screener.random(4, 0)]
    by_measure = sorted(results, key=lambda item: item.components[f"{own}:spread"])
    assert [item.score for item in by_measure] == sorted(item.score for item in results)


def test_a_measure_that_fails_on_one_network_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def moody(look: Look) -> float:
        calls.append(1)
        if len(calls) in (3, 4):
            return 1 / 0
        return math.nan if len(calls) in (5, 6) else float(len(calls))

    monkeypatch.setattr(measures, "MEASURES", dict(MEASURES))
    register("moody", moody)
    settings: dict[str, Any] = {
        "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
        "images": {"source": "tiles", "num_images": 64},
        "untrained": {"batch_size": 8, "weights": {"moody": 1.0}},
        "threads": 1,
    }
    screener = Screener(ProxyConfig(**settings))
    choices = list(screener.random(4, 0))
    scores = [screener.screen(choices[0]).score]
    with pytest.warns(
        UserWarning, match=r"measure 'moody' fails: ZeroDivisionError: division by zero; \{.*counts as the worst"
    ):
        scores.append(screener.screen(choices[1]).score)
    calls.append(1)  # of two views the first failed, and the second was not asked
    with pytest.warns(UserWarning, match=r"measure 'moody' gives nan; \{.*normal_2_first.*counts as the worst"):
        scores.append(screener.screen(choices[2]).score)
    calls += [1] * 4
    scores.append(screener.screen(choices[3]).score)
    assert scores[1] == scores[2] == DEAD
    assert min(scores[0], scores[3]) > DEAD
