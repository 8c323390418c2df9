from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy.stats import rankdata

from nni_cssnas.errors import ConfigError
from nni_cssnas.scores.combine import WORST, ReferenceSet, log_ranks


def test_log_ranks_are_the_formula_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 8, 40).astype(float), rng.normal(size=40)
    expected = [math.log(rankdata(a)[i] / 40) + 0.5 * math.log(rankdata(b)[i] / 40) for i in range(40)]
    np.testing.assert_allclose(log_ranks({"a": a, "b": b}, {"b": 0.5}), expected, rtol=1e-12)


def test_log_ranks_by_counting() -> None:
    a = [3.0, 1.0, 2.0, 2.0]
    ranks = [sum(x < y for x in a) + (sum(x == y for x in a) + 1) / 2 for y in a]
    assert ranks == [4, 1, 2.5, 2.5]
    np.testing.assert_allclose(log_ranks({"a": a}), np.log(np.array(ranks) / 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, WORST])
def test_the_dead_are_last_in_everything(bad: float) -> None:
    scores = log_ranks({"a": [1.0, 2.0, bad, 4.0], "b": [5.0, 1.0, 9.0, 2.0]})
    assert np.isfinite(scores).all()
    assert scores.argmin() == 2
    assert scores[2] == pytest.approx(2 * math.log(1 / 4))
    reference = ReferenceSet({"a": (1.0, 2.0, 3.0), "b": (1.0, 2.0, 3.0)})
    dead = reference.score({"a": bad, "b": 99.0})
    assert dead == reference.worst
    assert math.isfinite(dead)
    assert dead < reference.score({"a": -1e8, "b": -1e8})


@pytest.mark.parametrize("components", [{}, {"a": []}, {"a": [1.0], "b": [1.0, 2.0]}])
def test_log_ranks_refuse(components: dict[str, list[float]]) -> None:
    with pytest.raises(ConfigError, match="equally many numbers"):
        log_ranks(components)


def test_at_a_reference_the_position_is_its_average_rank() -> None:
    values = (2.0, 5.0, 5.0, 7.0, -1.0)
    reference = ReferenceSet({"a": values})
    for value, rank in zip(values, rankdata(values), strict=True):
        assert reference.position("a", value) == pytest.approx(rank / 6)
    assert reference.position("a", 6.0) == pytest.approx((3.5 + 5) / 2 / 6)


def test_online_and_batch_order_alike() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=50), rng.normal(size=50)
    reference = ReferenceSet({"a": tuple(a), "b": tuple(b)})
    online = [reference.score({"a": x, "b": y}) for x, y in zip(a, b, strict=True)]
    # rank / 51 instead of rank / 50
    np.testing.assert_allclose(online, log_ranks({"a": a, "b": b}) + 2 * math.log(50 / 51), rtol=1e-9)


@pytest.mark.parametrize("values", [(1.0, 2.0, 2.0, 9.0), (3.0,), (4.0, 4.0), (1e9, 1e9 + 1), (0.0, 1e-300)])
def test_the_score_rises_strictly_with_each_component(values: tuple[float, ...]) -> None:
    reference = ReferenceSet({"a": values, "b": tuple(range(len(values)))})
    low, high = min(values), max(values)
    span = max(high - low, 1e-6 * abs(high), 1e-3)
    points = sorted({*values, *(low + span * x for x in np.linspace(-5, 5, 101))})
    positions = [reference.position("a", x) for x in points]
    assert all(x < y for x, y in itertools.pairwise(positions))
    assert 0.5 / (len(values) + 1) < positions[0]
    assert positions[-1] < 1


def test_dead_references_are_below_everyone() -> None:
    living = ReferenceSet({"a": (1.0, 2.0), "b": (1.0, 2.0)})
    mixed = ReferenceSet({"a": (1.0, 2.0, WORST), "b": (1.0, 2.0, 5.0)})
    assert mixed.position("b", 1.0) == pytest.approx(2 / 4)
    assert living.position("b", 1.0) == pytest.approx(1 / 3)
    assert mixed.worst < mixed.score({"a": -100.0, "b": -100.0})


def test_json_keeps_every_bit() -> None:
    values = tuple(np.random.default_rng(2).normal(size=20) * 1e-7)
    reference = ReferenceSet({"a": values, "b": tuple(map(float, range(20)))}, {"a": 0.5}, key="space, images, 0")
    again = ReferenceSet.from_json(reference.to_json(), key="space, images, 0")
    assert again == reference
    probe = {"a": 1e-8, "b": 3.3}
    assert again.score(probe) == reference.score(probe)
    assert again.to_json() == reference.to_json()


def test_order_of_components_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    columns = {name: tuple(rng.normal(size=9)) for name in "abcde"}
    first, second = ReferenceSet(columns), ReferenceSet(dict(reversed(columns.items())))
    probe = dict.fromkeys("abcde", 0.1)
    assert first.score(probe) == second.score(probe)


def test_from_scores() -> None:
    reference = ReferenceSet.from_scores([{"a": 1, "b": 2}, {"b": 3, "a": 0}], {"b": 2.0}, key="k")
    assert reference.values == {"a": (1.0, 0.0), "b": (2.0, 3.0)}
    assert len(reference) == 2
    single = ReferenceSet({"a": (1.0, 0.0)}).score({"a": 0.5}), ReferenceSet({"b": (2.0, 3.0)}).score({"b": 2.5})
    assert reference.score({"a": 0.5, "b": 2.5, "unknown": 0.0}) == pytest.approx(single[0] + 2 * single[1])


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="same references in every component"):
        ReferenceSet({"a": (1.0,), "b": (1.0, 2.0)})
    with pytest.raises(ConfigError, match="none of the 2 reference architectures is alive"):
        ReferenceSet({"a": (WORST, math.nan)})
    with pytest.raises(ConfigError, match="reference 1 has the components"):
        ReferenceSet.from_scores([{"a": 1.0}, {"b": 1.0}])
    with pytest.raises(ConfigError, match="weight of unknown component 'x'"):
        ReferenceSet({"a": (1.0,)}, {"x": 1.0})
    with pytest.raises(ConfigError, match="it must be 0 or more"):
        ReferenceSet({"a": (1.0,)}, {"a": -1.0})
    reference = ReferenceSet({"a": (1.0,)}, key="this")
    with pytest.raises(ConfigError, match="component 'a' of the reference set is missing"):
        reference.score({"b": 1.0})
    with pytest.raises(ConfigError, match="drawn for 'this', not for 'that'"):
        ReferenceSet.from_json(reference.to_json(), key="that")
    changed = json.loads(reference.to_json()) | {"weights": {"a": 0.25}}
    for text in ("", "[]", "{}", json.dumps({"values": {"a": "x"}, "weights": {}, "key": ""}), json.dumps(changed)):
        with pytest.raises(ConfigError, match="not a reference set"):
            ReferenceSet.from_json(text)
