"""How a score orders architectures whose accuracy is known."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata

__all__ = ["Correlation", "at_equal_params", "bootstrap", "correlate", "rank_sum", "spearman"]


@dataclass(frozen=True)
class Correlation:
    """How a score orders architectures.

    Attributes
    ----------
    spearman, kendall
        Rank correlations with the accuracy.
    top
        Spearman above the threshold; NaN if fewer than 3 are.
    chosen
        Mean accuracy of the tenth of the architectures with the best scores.
    at_equal_params
        :func:`at_equal_params`; NaN where no parameters are given.
    regret
        The best accuracy minus that of the architecture with the best score.
    """

    spearman: float
    kendall: float
    top: float
    chosen: float
    at_equal_params: float
    regret: float


def correlate(
    scores: NDArray[np.float64],
    accuracies: NDArray[np.float64],
    threshold: float,
    params: NDArray[np.float64] | None = None,
) -> Correlation:
    """The six numbers. Of equally good scores, those that come first count as the best."""
    above = accuracies >= threshold
    order = np.argsort(-scores, kind="stable")
    best = order[: max(1, round(len(scores) / 10))]
    with warnings.catch_warnings():
        # A constant score has no correlation: nan.
        warnings.simplefilter("ignore")
        kendall = float(kendalltau(scores, accuracies)[0])
    return Correlation(
        spearman(scores, accuracies),
        kendall,
        spearman(scores[above], accuracies[above]) if above.sum() > 2 else math.nan,
        float(accuracies[best].mean()),
        math.nan if params is None else at_equal_params(scores, accuracies, params),
        float(accuracies.max() - accuracies[order[0]]),
    )


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """As scipy's ``spearmanr``, without its p-value and a fourth of its time; NaN if one is constant."""
    a, b = _centred(rankdata(first)), _centred(rankdata(second))
    norm = math.sqrt((a @ a) * (b @ b))
    return float(a @ b) / norm if norm else math.nan


def at_equal_params(scores: NDArray[np.float64], accuracies: NDArray[np.float64], params: NDArray[np.float64]) -> float:
    """Partial rank correlation: Spearman of what a line through the ranks of the parameters leaves of either's ranks.

    A score that orders as the parameters do has 0; a constant one has none, NaN.
    """
    known = _centred(rankdata(params))

    def left(values: NDArray[np.float64]) -> NDArray[np.float64]:
        ranks = _centred(rankdata(values))
        # Rounded, so that what is equal but for the last bit has one rank.
        result: NDArray[np.float64] = (ranks - known * (known @ ranks) / (known @ known or 1.0)).round(6)
        return result

    if np.ptp(scores) == 0 or np.ptp(accuracies) == 0:
        return math.nan
    of_scores, of_accuracies = left(scores), left(accuracies)
    if np.ptp(of_scores) == 0 or np.ptp(of_accuracies) == 0:
        return 0.0
    return spearman(of_scores, of_accuracies)


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values - values.mean()


def bootstrap(
    scores: NDArray[np.float64],
    accuracies: NDArray[np.float64],
    threshold: float,
    resamples: int,
    seed: int = 0,
    params: NDArray[np.float64] | None = None,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of each number of :class:`Correlation`, resampling architectures."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, len(scores), len(scores)) for _ in range(resamples)]
    results = [
        correlate(scores[index], accuracies[index], threshold, None if params is None else params[index])
        for index in drawn
    ]
    intervals = {}
    for name in (field.name for field in fields(Correlation)):
        values = np.array([getattr(result, name) for result in results])
        values = values[np.isfinite(values)]
        low, high = map(float, np.percentile(values, [2.5, 97.5])) if len(values) else (math.nan, math.nan)
        intervals[name] = (low, high)
    return intervals


def rank_sum(*values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of the ranks of several numbers, each to be maximised."""
    result: NDArray[np.float64] = np.sum([rankdata(value) for value in values], axis=0)
    return result
