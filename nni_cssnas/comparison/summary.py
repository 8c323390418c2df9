"""What the trainings of a comparison tell: a mean for each group, and whether a difference is more than chance.

Trainings, architectures and searches are levels. An architecture's accuracy is the mean of its trainings, a search's that of
its architectures. Two cells of one search are no two independent draws, so what is tested are the searches against the
random architectures, by Welch's t-test (B. L. Welch, Biometrika 34, 1947).
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

__all__ = ["FOUND", "RANDOM", "Comparison", "Group", "Run", "caveat", "in_order", "summarise", "verdict"]

FOUND, RANDOM = "found", "random"
FEWEST = 3
"""So many units on either side the test needs: with two, their variance is known so badly that where nothing differs it
finds a difference in up to 12 % of the cases, and not in 5 % (simulated)."""
LEVEL = 0.05
"""Below this p a difference is called more than chance."""


@dataclass(frozen=True)
class Run:
    """One training: ``top1`` is the accuracy of its last epoch on the validation images, ``search`` the search that found
    the architecture (empty for what no search of the user's found)."""

    name: str
    group: str
    search: str
    seed: int
    params: int
    top1: float
    seconds: float


@dataclass(frozen=True)
class Group:
    """Architectures of one kind.

    Attributes
    ----------
    unit
        What counts as one independent draw: ``search`` of those found, ``architecture`` of random ones, and ``training``
        of a published cell, of which there is only one.
    values
        The mean accuracy of each unit.
    mean
        Of the values.
    error, spread
        Standard error of the mean, and standard deviation of the values; None of a single value.
    params
        Mean number of parameters of the architectures.
    """

    name: str
    unit: str
    architectures: int
    values: tuple[float, ...]
    mean: float
    error: float | None
    spread: float | None
    params: float

    @property
    def units(self) -> str:
        """``2 searches``."""
        number = len(self.values)
        return f"{number} {self.unit if number == 1 else _PLURALS[self.unit]}"

    @property
    def members(self) -> str:
        """``4 in 2 searches``."""
        return {
            "search": f"{self.architectures} in {self.units}",
            "training": f"{self.architectures}, {self.units}",
        }.get(self.unit, str(self.architectures))


_PLURALS = {"search": "searches", "architecture": "architectures", "training": "trainings"}


@dataclass(frozen=True)
class Comparison:
    """What was found, less another group, in shares of the validation images.

    Attributes
    ----------
    p, low, high
        Of Welch's t-test, and the 95 % interval of the difference; None where there are too few units.
    sentence
        What this means.
    """

    other: str
    difference: float
    p: float | None
    low: float | None
    high: float | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def in_order(runs: Sequence[Run]) -> list[Run]:
    """Found, random, then each baseline."""
    return sorted(runs, key=lambda run: ({FOUND: 0, RANDOM: 1}.get(run.group, 2), run.name, run.seed))


def summarise(runs: Sequence[Run]) -> list[Group]:
    """The groups in the order in which they appear: found, random, and each baseline."""
    ordered = in_order(runs)
    return [
        _group(name, [run for run in ordered if run.group == name]) for name in dict.fromkeys(r.group for r in ordered)
    ]


def _group(name: str, runs: Sequence[Run]) -> Group:
    trainings = {(run.name, run.seed): [run.top1] for run in runs}
    architectures = _means(trainings, {key: key[0] for key in trainings})
    unit, values = "architecture", architectures
    if name == FOUND:
        searches = {run.name: run.search for run in runs}
        unit, values = "search", _means({key: [value] for key, value in architectures.items()}, searches)
    elif name != RANDOM:
        unit, values = "training", _means(trainings, {key: key for key in trainings})
    found = tuple(values.values())
    spread = statistics.stdev(found) if len(found) > 1 else None
    return Group(
        name,
        unit,
        len(architectures),
        found,
        statistics.fmean(found),
        None if spread is None else spread / len(found) ** 0.5,
        spread,
        statistics.fmean({run.name: run.params for run in runs}.values()),
    )


def _means(values: dict[Any, list[float]], belongs: Mapping[Any, Hashable]) -> dict[Any, float]:
    """The mean of the values that belong to one of the next level."""
    upper: dict[Any, list[float]] = {}
    for key, some in values.items():
        upper.setdefault(belongs[key], []).extend(some)
    return {key: statistics.fmean(some) for key, some in upper.items()}


SHORT = 50
"""Epochs below which a comparison is short: in the curves of arXiv:1905.13214 width still ranks cells of one size after 10, and no
more after 50."""


def caveat(epochs: int) -> str | None:
    """What a comparison of so many epochs does not tell; None if it is long enough."""
    if epochs >= SHORT:
        return None
    return (
        f"all were trained for {epochs} epoch{'s' * (epochs != 1)}: so short a training favours shallow and wide networks "
        "of one size, and a full one may order them otherwise"
    )


def verdict(groups: Sequence[Group]) -> list[Comparison]:
    """What was found against each other group."""
    found, *others = groups
    return [_compare(found, other) for other in others]


def _compare(found: Group, other: Group) -> Comparison:
    difference = found.mean - other.mean
    begin = f"found - {other.name}: {100 * difference:+.2f} points"
    few = [_too_few(group) for group in (found, other) if len(group.values) < FEWEST]
    if few:
        sentence = f"{begin}. Whether this is chance cannot be told: {' '.join(few)}"
        return Comparison(other.name, difference, None, None, None, sentence)
    if not found.spread and not other.spread:
        sentence = f"{begin}. Whether this is chance cannot be told: all accuracies of each side are equal. Validate with more images."
        return Comparison(other.name, difference, None, None, None, sentence)
    test = stats.ttest_ind(found.values, other.values, equal_var=False)
    low, high = (float(end) for end in test.confidence_interval(1 - LEVEL))
    p = float(test.pvalue)
    if p >= LEVEL:
        judged = "this may well be chance"
    else:
        judged = f"{'better' if difference > 0 else 'worse'} by more than chance"
    shown = f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
    sentence = (
        f"{begin} (95 % interval {100 * low:+.2f} to {100 * high:+.2f}, {shown}, Welch's t-test of {found.units} and "
        f"{other.units}): {judged}"
    )
    return Comparison(other.name, difference, p, low, high, sentence)


def _too_few(group: Group) -> str:
    """What is missing, and what would tell it."""
    number = len(group.values)
    count = f"only {number}" if number > 1 else "a single"
    if group.unit == "search":
        cells = "the cell comes" if group.architectures == 1 else f"the {group.architectures} cells found come"
        again = "another --seed, and give its cells too" if number > 1 else "2 other --seeds, and give their cells too"
        several = " (If they are of several searches, say so with --search.)" if group.architectures > number else ""
        return (
            f"{cells} from {count} {'search' if number == 1 else 'searches'}, which does not show how much one search "
            f"differs from the next. Search again with {again}.{several}"
        )
    if group.unit == "architecture":
        return (
            f"there {'is' if number == 1 else 'are'} {count} random architecture{'s' * (number > 1)}. Use --random 6."
        )
    return f"{group.name} was trained {'once' if number == 1 else 'twice'}. Use --seeds {FEWEST}."
