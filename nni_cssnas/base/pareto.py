"""Trade-offs: what no other dominates, in which order the rest follows, and how much a front covers.

``values``, and what it means that a row dominates another, are as in :mod:`nni_cssnas.base.selection`; here a row may hold
a NaN, which is on no front.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nni_cssnas.base.selection import marginal_volumes, non_dominated

__all__ = [
    "crowding",
    "hypervolume",
    "hypervolume_history",
    "non_dominated_ranks",
    "pareto_front",
    "reference_point",
]

Numbers = NDArray[np.float64]


def pareto_front(values: ArrayLike) -> NDArray[np.intp]:
    """The rows that no other row dominates, by the first column from high to low; of equal rows the first is kept.

    A row with a NaN is left out.
    """
    table = np.asarray(values, dtype=float)
    if table.size == 0:
        return np.zeros(0, dtype=np.intp)
    known = np.flatnonzero(~np.isnan(table).any(axis=1))
    return known[non_dominated(table[known])]


def non_dominated_ranks(values: ArrayLike) -> NDArray[np.intp]:
    """The front that each row is of: 0 for what nothing dominates, 1 for what only those dominate, and so on.

    Equal rows are of one front. A row with a NaN comes after all others. Source: the non-dominated sorting of NSGA-II
    (Deb et al., IEEE Transactions on Evolutionary Computation 6, 2002).
    """
    table = np.asarray(values, dtype=float)
    known = ~np.isnan(table).any(axis=1)
    as_good = (table[:, None] >= table[None]).all(axis=2)
    dominates = as_good & ~as_good.T
    ranks = np.full(len(table), len(table), dtype=np.intp)
    left = known.copy()
    rank = 0
    while left.any():
        front = left & ~dominates[left].any(axis=0)
        ranks[front] = rank
        left &= ~front
        rank += 1
    return ranks


def crowding(values: ArrayLike) -> Numbers:
    """How much room each row of one front has to itself: the sum over objectives of the distance between its neighbours.

    The ends have infinity. Source: the crowding distance of NSGA-II (Deb et al., 2002).
    """
    table = np.asarray(values, dtype=float)
    room = np.zeros(len(table))
    for column in table.T:
        order = np.argsort(column, kind="stable")
        room[order[[0, -1]]] = np.inf
        spread = column[order[-1]] - column[order[0]]
        if spread > 0:
            room[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return room


def reference_point(values: ArrayLike) -> Numbers:
    """Where :func:`hypervolume` may measure from: a tenth of the range below the worst finite value of each column."""
    table = np.asarray(values, dtype=float)
    table = table[np.isfinite(table).all(axis=1)]
    if not len(table):
        return np.zeros(table.shape[1])
    low, high = table.min(axis=0), table.max(axis=0)
    return np.asarray(low - 0.1 * np.where(high > low, high - low, 1.0))


def hypervolume(values: ArrayLike, reference: ArrayLike) -> float:
    """The volume that the rows dominate, above ``reference`` ``(K,)``; what is not above it in every column adds nothing."""
    front = np.asarray(values, dtype=float)[pareto_front(values)]
    return float(marginal_volumes(front, reference).sum()) if len(front) else 0.0


def hypervolume_history(values: ArrayLike, reference: ArrayLike) -> list[float]:
    """The :func:`hypervolume` of the first row, of the first two, and so on."""
    front = np.zeros((0, len(np.asarray(reference))))
    found: list[float] = []
    for row in np.asarray(values, dtype=float).reshape(-1, front.shape[1]):
        known = found[-1] if found else 0.0
        if np.isnan(row).any() or (front >= row).all(axis=1).any():
            found.append(known)
            continue
        front = np.vstack([front[~(row >= front).all(axis=1)], row])
        found.append(hypervolume(front, reference))
    return found
