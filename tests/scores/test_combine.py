"""One score from several measures."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from nni_cssnas.errors import ConfigError
from nni_cssnas.measures import DEFAULT_WEIGHTS, MEASURES
from nni_cssnas.scores.combine import DEAD, WORST, combine, is_dead

MEASURED = {
    "effective_macs": 4e6,
    "depth": 50.0,
    "resolution_expressivity": 8.0,
    "decorrelation": 3.5,
    "shortcuts": -0.6,
    "deep_continuity": 0.05,
}


def test_it_is_the_weighted_sum_by_hand() -> None:
    expected = 0.5 * math.log(4e6) + 0.5 * math.log(50) + 0.25 * 8.0 + 0.25 * 3.5 + 1.25 * -0.6 + 1.5 * 0.05
    assert combine(MEASURED, DEFAULT_WEIGHTS) == pytest.approx(expected, rel=1e-12)
    assert combine(MEASURED | {"jacov": math.nan, "params": 3.0}, DEFAULT_WEIGHTS) == pytest.approx(expected)


def test_the_order_of_the_measures_does_not_matter_to_the_last_bit() -> None:
    found = {
        combine(dict(order), {name: DEFAULT_WEIGHTS[name] for name, _ in order})
        for order in itertools.islice(itertools.permutations(MEASURED.items()), 200)
    }
    assert len(found) == 1


def test_a_unit_of_a_count_does_not_matter_to_the_order() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"effective_macs": float(m), "jacov": float(j)}
        for m, j in zip(rng.uniform(1e3, 1e6, 20), rng.normal(size=20), strict=True)
    ]
    weights = {"effective_macs": 1.0, "jacov": 2.0}
    before = [combine(row, weights) for row in rows]
    after = [combine(row | {"effective_macs": 1000 * row["effective_macs"]}, weights) for row in rows]
    assert spearmanr(before, after)[0] == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, WORST])
@pytest.mark.parametrize("name", list(MEASURED))
def test_the_dead_are_below_everyone(name: str, bad: float) -> None:
    assert is_dead([1.0, bad])
    assert combine(MEASURED | {name: bad}, DEFAULT_WEIGHTS) == DEAD
    # whatever a living one's measures are
    worst = dict.fromkeys(MEASURED, -1e8) | {"effective_macs": 1e-300, "depth": 1e-300}
    assert DEAD < combine(worst, DEFAULT_WEIGHTS) < combine(MEASURED, DEFAULT_WEIGHTS)


def test_a_count_of_nothing_is_dead() -> None:
    assert combine(MEASURED | {"depth": 0.0}, DEFAULT_WEIGHTS) == DEAD


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"measure 'swap' has a weight, but only \['effective_macs'\] were measured"):
        combine({"effective_macs": 1.0}, {"effective_macs": 1.0, "swap": 1.0})
    with pytest.raises(ConfigError, match="unknown component 'swapp'; did you mean 'swap'"):
        combine({"swapp": 1.0}, {"swapp": 1.0})


def test_counts_have_the_scale_of_counts() -> None:
    assert {name for name, item in MEASURES.items() if item.scale == "log"} == {
        "macs",
        "effective_macs",
        "depth",
        "swap",
    }
