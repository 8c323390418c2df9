from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_cssnas.search.front import pareto_front

NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])


@given(st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[NUMBERS] * width), min_size=1, max_size=12)))
def test_the_front_is_what_the_definition_says(rows: list[tuple[float, ...]]) -> None:
    front = pareto_front(rows)
    for index, row in enumerate(rows):
        dominated = any(all(a >= b for a, b in zip(other, row, strict=True)) and other != row for other in rows)
        earlier = row in rows[:index]
        assert (index in front) == (not dominated and not earlier)
    assert [rows[index][0] for index in front] == sorted((rows[index][0] for index in front), reverse=True)


def test_rows_with_nan_are_left_out() -> None:
    assert list(pareto_front([(1, np.nan), (0, 3), (np.nan, 9)])) == [1]
    assert list(pareto_front([])) == []


@pytest.mark.parametrize("values", [[(1.0,), (3.0,), (2.0,)]])
def test_of_one_column_the_front_is_the_best(values: list[tuple[float]]) -> None:
    assert list(pareto_front(values)) == [1]
