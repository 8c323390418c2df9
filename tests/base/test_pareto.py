from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_cssnas.base.pareto import (
    crowding,
    hypervolume,
    hypervolume_history,
    non_dominated_ranks,
    pareto_front,
    reference_point,
)

NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])
ROWS = st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[NUMBERS] * width), min_size=1, max_size=12))


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


@given(ROWS)
def test_the_front_is_what_the_definition_says(rows: list[tuple[float, ...]]) -> None:
    front = pareto_front(rows)
    for index, row in enumerate(rows):
        dominated = any(dominates(other, row) for other in rows)
        earlier = row in rows[:index]
        assert (index in front) == (not dominated and not earlier)
    assert [rows[index][0] for index in front] == sorted((rows[index][0] for index in front), reverse=True)


def test_rows_with_nan_are_left_out() -> None:
    assert list(pareto_front([(1, np.nan), (0, 3), (np.nan, 9)])) == [1]
    assert list(pareto_front([])) == []
    assert list(non_dominated_ranks([(1, np.nan), (0, 3), (-1, 2)])) == [3, 0, 1]


@pytest.mark.parametrize("values", [[(1.0,), (3.0,), (2.0,)]])
def test_of_one_column_the_front_is_the_best(values: list[tuple[float]]) -> None:
    assert list(pareto_front(values)) == [1]


@given(ROWS)
def test_ranks_peel_one_front_after_the_other(rows: list[tuple[float, ...]]) -> None:
    ranks = non_dominated_ranks(rows)
    left = list(range(len(rows)))
    rank = 0
    while left:
        front = [index for index in left if not any(dominates(rows[other], rows[index]) for other in left)]
        assert sorted(front) == [index for index in left if ranks[index] == rank]
        left = [index for index in left if index not in front]
        rank += 1


def test_crowding_by_hand() -> None:
    # Range 4 in both columns; the neighbours of the second row are 3 and 3 apart, those of the third 3 and 3.
    found = crowding([(0.0, 4.0), (1.0, 3.0), (3.0, 1.0), (4.0, 0.0)])
    assert list(found) == [np.inf, 1.5, 1.5, np.inf]
    assert list(crowding([(1.0, 1.0)])) == [np.inf]
    assert np.isinf(crowding([(1.0, 1.0), (1.0, 1.0)])).all()


@settings(deadline=None)
@given(ROWS)
def test_the_hypervolume_is_that_of_a_grid(rows: list[tuple[float, ...]]) -> None:
    """Every value is a multiple of a half, so cells of that side are dominated whole or not at all."""
    reference = [-1.0] * len(rows[0])
    steps = np.arange(-1.0, 2.0, 0.5) + 0.25  # their middles
    inside = sum(
        any(all(point < value for point, value in zip(middle, row, strict=True)) for row in rows)
        for middle in itertools.product(steps, repeat=len(reference))
    )
    assert hypervolume(rows, reference) == pytest.approx(inside * 0.5 ** len(reference))


@given(ROWS)
def test_the_history_is_the_hypervolume_of_each_beginning(rows: list[tuple[float, ...]]) -> None:
    reference = [-1.5] * len(rows[0])
    expected = [hypervolume(rows[: number + 1], reference) for number in range(len(rows))]
    assert hypervolume_history(rows, reference) == pytest.approx(expected)
    assert hypervolume_history([], [0.0]) == []


def test_the_hypervolume_of_nothing_is_zero() -> None:
    assert hypervolume([], [0.0, 0.0]) == 0
    assert hypervolume([(1.0, -1.0)], [0.0, 0.0]) == 0
    assert hypervolume([(1.0, np.nan)], [0.0, 0.0]) == 0


def test_the_reference_lies_a_tenth_below_the_worst() -> None:
    assert list(reference_point([(0.0, 5.0), (10.0, 5.0), (-np.inf, 0.0)])) == [-1.0, pytest.approx(4.9)]
