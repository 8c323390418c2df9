"""Which of many rows are the best ones, where each row has several values that do not add up.

Everywhere ``values`` is ``(N, K)``: larger is better in every column; negate what shall be small. A row dominates another
if it is as good in every column and better in one. Rows are ranked by non-dominated sorting (rank 0 is dominated by none,
rank 1 only by rank 0, and so on; Deb et al., NSGA-II, 2002), and where a rank does not fit as a whole, those of it are
taken that together dominate the largest volume.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["best_rows", "marginal_volumes", "non_dominated", "widest_subset"]

MANY = 150
"""Rows of one rank that are compared by volume; of more, about so many are."""

Numbers = NDArray[np.float64]
Indices = NDArray[np.intp]


def non_dominated(values: ArrayLike) -> Indices:
    """The rows that no other row dominates, by the first column from high to low; of equal rows the first.

    With up to three columns in ``O(N log N)`` (Kung et al., J. ACM 22, 1975), with more in ``O(N * front)``.

    Parameters
    ----------
    values
        ``(N, K)``, without NaN.
    """
    table = np.asarray(values, dtype=float)
    if table.size == 0:
        return np.zeros(0, dtype=np.intp)
    # Rows that come earlier are as good in the first column, so only they can dominate a later one.
    order = np.lexsort(tuple(-column for column in table.T[::-1]))
    found = _sweep(table[order]) if table.shape[1] <= 3 else _compare(table[order])
    return np.asarray(order[found], dtype=np.intp)


def _sweep(table: Numbers) -> list[int]:
    """Rows of a sorted table whose last two columns no earlier row reaches both."""
    columns = [*table.T, *np.zeros((3, len(table)))]
    # Of the rows so far: the second column from low to high, and the third, which falls as that grows.
    seconds: list[float] = []
    thirds: list[float] = []
    found = []
    for index, (second, third) in enumerate(zip(columns[1].tolist(), columns[2].tolist(), strict=True)):
        place = bisect_left(seconds, second)
        if place < len(seconds) and thirds[place] >= third:
            continue
        found.append(index)
        start = place
        while start > 0 and thirds[start - 1] <= third:
            start -= 1
        end = place + (place < len(seconds) and seconds[place] == second)
        seconds[start:end] = [second]
        thirds[start:end] = [third]
    return found


def _compare(table: Numbers) -> list[int]:
    """Rows of a sorted table that no earlier one reaches in every column."""
    found: list[int] = []
    kept = np.empty_like(table)
    for index, row in enumerate(table):
        if not (kept[: len(found)] >= row).all(axis=1).any():
            kept[len(found)] = row
            found.append(index)
    return found


def marginal_volumes(values: ArrayLike, reference: ArrayLike) -> Numbers:
    """What each row adds to the volume that the rows before it dominate; all together, it is the hypervolume.

    Parameters
    ----------
    values
        ``(N, K)``.
    reference
        ``(K,)``: the corner that volumes are measured from; what is not above it in every column adds nothing.
    """
    table = np.maximum(np.asarray(values, dtype=float) - np.asarray(reference, dtype=float), 0.0)
    free = _Boxes.below(table)
    volumes = np.zeros(len(table))
    for index, row in enumerate(table):
        inside, free = free.split(row)
        volumes[index] = inside.volumes().sum()
    return volumes


def widest_subset(values: ArrayLike, reference: ArrayLike, number: int) -> Indices:
    """Rows that together dominate much volume: one after the other, that which adds the most.

    Reaches at least 1 - 1/e of the largest volume of as many rows (Guerreiro et al., Greedy Hypervolume Subset Selection in
    Low Dimensions, Evolutionary Computation 24, 2016). What a row adds is exact for any number of columns: the volume that
    is not dominated yet is kept as boxes that do not overlap.

    Parameters
    ----------
    values
        ``(N, K)``.
    reference
        ``(K,)``, as :func:`marginal_volumes` has it.
    number
        How many; all if there are fewer.

    Returns
    -------
    indices
        In the order in which they were taken.
    """
    table = np.maximum(np.asarray(values, dtype=float) - np.asarray(reference, dtype=float), 0.0)
    free = _Boxes.below(table)
    gains = table.prod(axis=1)
    chosen: list[int] = []
    while len(chosen) < min(number, len(table)):
        index = int(np.argmax(gains))
        chosen.append(index)
        taken, free = free.split(table[index])
        gains -= taken.overlaps(table)
        gains[index] = -np.inf
    return np.array(chosen, dtype=np.intp)


def best_rows(values: ArrayLike, number: int) -> Indices:
    """The ``number`` best rows: whole ranks as far as they fit, and of the next rank those that dominate the most volume.

    So trials are called good in the multi-objective TPE (Ozaki et al., arXiv:2009.13090, and the journal version,
    doi:10.1613/jair.1.13188), and in Optuna, from which the reference point is: for each column a tenth of its range in
    the rank below its worst value there. Columns are measured by their range in the rank, so that units do not matter.

    Parameters
    ----------
    values
        ``(N, K)``. Rows with a value that is not finite come last, in their order.
    number
        How many; all if there are fewer.

    Returns
    -------
    indices
        By rank.
    """
    table = np.asarray(values, dtype=float)
    finite = np.isfinite(table).all(axis=1)
    rows, same = np.unique(table[finite], axis=0, return_inverse=True)
    of_row: list[list[int]] = [[] for _ in rows]
    for index, row in zip(np.flatnonzero(finite).tolist(), same.ravel().tolist(), strict=True):
        of_row[row].append(index)
    left = np.arange(len(rows))
    chosen: list[int] = []
    while len(chosen) < number and len(left):
        front = non_dominated(rows[left])
        members = left[front]
        if sum(len(of_row[member]) for member in members) > number - len(chosen):
            members = members[_widest(rows[members], number - len(chosen))]
        for member in members:
            chosen.extend(of_row[member])
        left = np.delete(left, front)
    chosen.extend(np.flatnonzero(~finite).tolist())
    return np.array(chosen[:number], dtype=np.intp)


def _widest(front: Numbers, number: int) -> Indices:
    low, high = front.min(axis=0), front.max(axis=0)
    unit = np.where(high > low, high - low, 1.0)
    # Of a huge front, every second row or fewer: neighbours are much alike, and a proposal must not take long.
    step = max(1, len(front) // max(MANY, number))
    some = np.arange(0, len(front), step)
    return some[widest_subset((front[some] - low) / unit, np.full(front.shape[1], -0.1), number)]


class _Boxes:
    """Boxes in a space of K objectives that do not overlap: their lower and upper corners, ``(B, K)`` each."""

    def __init__(self, low: Numbers, high: Numbers) -> None:
        some = (low < high).all(axis=1)
        self.low, self.high = low[some], high[some]

    @classmethod
    def below(cls, table: Numbers) -> _Boxes:
        """All that any row of a table above 0 may dominate, as one box."""
        high = table.max(axis=0, initial=0.0)[None]
        return cls(np.zeros_like(high), high)

    def volumes(self) -> Numbers:
        return np.asarray((self.high - self.low).prod(axis=1))

    def split(self, row: Numbers) -> tuple[_Boxes, _Boxes]:
        """What a row dominates of the boxes, and the rest."""
        inside = _Boxes(self.low, np.minimum(self.high, row))
        lows, highs = [], []
        high = self.high
        for column in range(len(row)):
            # Above the row in this column, and not above it in those before.
            low = self.low.copy()
            low[:, column] = np.maximum(low[:, column], row[column])
            lows.append(low)
            highs.append(high)
            high = high.copy()
            high[:, column] = np.minimum(high[:, column], row[column])
        return inside, _Boxes(np.concatenate(lows), np.concatenate(highs))

    def overlaps(self, table: Numbers) -> Numbers:
        """``(N,)``: the volume of all boxes that each row dominates."""
        sides = np.clip(np.minimum(self.high[None], table[:, None]) - self.low[None], 0.0, None)
        return np.asarray(sides.prod(axis=2).sum(axis=1))
