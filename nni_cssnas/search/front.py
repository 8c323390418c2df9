"""Which of many architectures are the best trade-offs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["pareto_front"]


def pareto_front(values: ArrayLike) -> NDArray[np.intp]:
    """The rows that no other row dominates, by the first column from high to low.

    A row dominates another if it is as good in every column and better in one (Pareto optimality). Of equal rows the
    first is kept.

    Parameters
    ----------
    values
        ``(N, K)``, larger is better in every column; negate what shall be small. A row with a NaN is left out.

    Returns
    -------
    indices
        Of the rows of the front.
    """
    table = np.asarray(values, dtype=float)
    if table.size == 0:
        return np.zeros(0, dtype=np.intp)
    order = np.lexsort(tuple(-table[:, column] for column in reversed(range(table.shape[1]))))
    front: list[int] = []
    for index in order:
        row = table[index]
        # Those before it are at least as good in the first column, so only they can dominate it.
        if not np.isnan(row).any() and not any((table[other] >= row).all() for other in front):
            front.append(int(index))
    return np.array(front, dtype=np.intp)
