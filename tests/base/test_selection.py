from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_cssnas.base.selection import best_rows, marginal_volumes, non_dominated, widest_subset

NUMBERS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0])
Row = tuple[float, ...]


def rows_of(least: int, most: int, longest: int = 12) -> st.SearchStrategy[list[Row]]:
    return st.integers(least, most).flatmap(
        lambda width: st.lists(st.tuples(*[NUMBERS] * width), min_size=1, max_size=longest)
    )


def dominates(one: Row, other: Row) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def volume(rows: list[Row], reference: float = 0.0) -> float:
    """Counted in cells of side 0.5, of which every value is a corner."""
    if not rows:
        return 0.0
    middles = np.arange(reference, 2.0, 0.5) + 0.25
    inside = sum(
        any(all(point < value for point, value in zip(middle, row, strict=True)) for row in rows)
        for middle in itertools.product(middles, repeat=len(rows[0]))
    )
    return float(inside * 0.5 ** len(rows[0]))


@given(rows_of(1, 5))
def test_what_nothing_dominates_is_what_the_definition_says(rows: list[Row]) -> None:
    found = non_dominated(rows).tolist()
    for index, row in enumerate(rows):
        dominated = any(dominates(other, row) for other in rows)
        assert (index in found) == (not dominated and row not in rows[:index])
    assert [rows[index][0] for index in found] == sorted((rows[index][0] for index in found), reverse=True)


def test_many_rows_of_three_columns_are_compared_as_of_four() -> None:
    rows = np.random.default_rng(0).integers(0, 40, (600, 3)).astype(float)
    four = np.concatenate([rows, np.zeros((600, 1))], axis=1)
    assert non_dominated(rows).tolist() == non_dominated(four).tolist()
    assert non_dominated(np.zeros((0, 2))).tolist() == []


@settings(deadline=None)
@given(rows_of(1, 4, longest=8))
def test_marginal_volumes_are_differences_of_counted_ones(rows: list[Row]) -> None:
    found = marginal_volumes(rows, np.zeros(len(rows[0])))
    for index in range(len(rows)):
        assert found[index] == pytest.approx(volume(rows[: index + 1]) - volume(rows[:index]))


def test_what_is_not_above_the_reference_adds_nothing() -> None:
    assert marginal_volumes([(3.0, 0.5), (2.0, 3.0)], [1.0, 1.0]).tolist() == [0.0, 2.0]


@settings(deadline=None)
@given(rows_of(2, 3, longest=7), st.integers(1, 4))
def test_the_widest_subset_takes_what_adds_the_most(rows: list[Row], number: int) -> None:
    chosen = widest_subset(rows, np.zeros(len(rows[0])), number).tolist()
    assert len(set(chosen)) == len(chosen) == min(number, len(rows))
    for index in range(len(chosen)):
        before = [rows[other] for other in chosen[:index]]
        gains = [volume([*before, row]) for place, row in enumerate(rows) if place not in chosen[:index]]
        assert volume([*before, rows[chosen[index]]]) == pytest.approx(max(gains))
    best = max(volume(list(some)) for some in itertools.combinations(rows, len(chosen)))
    assert volume([rows[index] for index in chosen]) >= (1 - 1 / math.e) * best - 1e-9


@given(rows_of(2, 3), st.integers(0, 14))
def test_whole_ranks_come_before_the_next(rows: list[Row], number: int) -> None:
    chosen = best_rows(rows, number).tolist()
    assert len(set(chosen)) == len(chosen) == min(number, len(rows))
    others = [index for index in range(len(rows)) if index not in chosen]
    ranks = peel(rows)
    assert max((ranks[index] for index in chosen), default=-1) <= min((ranks[index] for index in others), default=99)


def peel(rows: list[Row]) -> list[int]:
    ranks = [-1] * len(rows)
    rank = 0
    while -1 in ranks:
        left = [index for index, known in enumerate(ranks) if known == -1]
        for index in left:
            if not any(dominates(rows[other], rows[index]) for other in left):
                ranks[index] = rank
        rank += 1
    return ranks


def test_of_a_rank_that_does_not_fit_those_far_apart_are_taken() -> None:
    # On a line, far from equally spaced; the first column is in other units.
    rows = [(1e6 * x, 1.0 - x) for x in (0.0, 0.02, 0.04, 0.5, 0.96, 0.98, 1.0)]
    assert sorted(best_rows([*rows, (0.0, 0.0)], 3)) == [2, 3, 4]


def test_what_is_not_finite_comes_last() -> None:
    rows = [(math.nan, 9.0), (1.0, 1.0), (-math.inf, -math.inf), (0.0, 0.0), (math.inf, 1.0)]
    assert best_rows(rows, 4).tolist() == [1, 3, 0, 2]
    assert best_rows(rows[:1], 1).tolist() == [0]


@pytest.mark.parametrize("width", [2, 3])
def test_of_thousands_that_are_all_on_the_front(width: int) -> None:
    """Ties in a column, and equal rows, are no trouble either."""
    rng = np.random.default_rng(0)
    points = np.abs(rng.normal(size=(2000, width)))
    points = np.round(points / np.linalg.norm(points, axis=1, keepdims=True), 3)
    points[1000:1002] = points[0]  # equal rows are taken together, and add no volume
    chosen = best_rows(points, 25)
    assert len(set(chosen.tolist())) == 25
    reference = np.full(width, -0.1)
    spread = marginal_volumes(points[chosen], reference).sum()
    drawn = [marginal_volumes(points[rng.choice(2000, 25, replace=False)], reference).sum() for _ in range(20)]
    assert spread > max(drawn)
