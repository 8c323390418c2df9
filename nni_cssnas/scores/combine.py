"""One score from several measures: their weighted sum, each in its own scale.

AZ-NAS (arXiv:2403.19232) adds the logarithms of ranks. A rank says who is ahead and not by how much: among cells whose
multiply-adds differ by a fifth it counts that fifth as much as the factor of fifty between the networks of NAS-Bench-201.
Here a count enters as its logarithm and a statistic as it is, so that what hardly differs hardly counts, and the score of
an architecture depends on no other: two experiments with the same images and settings can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nni_cssnas.errors import ConfigError
from nni_cssnas.measures import find_measure

__all__ = ["DEAD", "WORST", "combine", "is_dead"]

WORST = -1e9
"""A measure of an architecture that cannot learn: finite, as NNI and its portal need, and below every other."""

DEAD = -100.0
"""The score of such an architecture. Those of living ones are mostly from 5 to 20, and never as low."""


def is_dead(values: Sequence[float]) -> bool:
    """Whether a measure is NaN, infinite, or :data:`WORST`: then the architecture as a whole is worst."""
    return any(not math.isfinite(value) or value <= WORST for value in values)


def combine(measured: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The sum over ``weights`` of weight times measure, or of its natural logarithm where its ``scale`` is ``log``.

    Parameters
    ----------
    measured
        By name; what has no weight does not count.
    weights
        By name, of :data:`~nni_cssnas.measures.MEASURES` or ``module:function``.

    Returns
    -------
    float
        Larger is better; :data:`DEAD` if one of them is dead, or is to be counted by its logarithm and not positive.

    Raises
    ------
    ConfigError
        If a measure is missing or unknown.
    """
    for name in weights:
        if name not in measured:
            raise ConfigError(f"measure {name!r} has a weight, but only {sorted(measured)} were measured")
    logs = {name for name in weights if find_measure(name).scale == "log"}
    if is_dead([measured[name] for name in weights]) or any(measured[name] <= 0 for name in logs):
        return DEAD
    # fsum: the order of the measures does not matter, to the last bit.
    total = math.fsum(
        weight * (math.log(measured[name]) if name in logs else measured[name]) for name, weight in weights.items()
    )
    return max(total, DEAD + 1)
