"""What a search looks for besides the score: what shall be small."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError, SpaceError, nearest
from nni_cssnas.judge.costs import TARGET_COSTS, Costs
from nni_cssnas.judge.screening import Screened
from nni_cssnas.scores.combine import DEAD

__all__ = ["Deferred", "Objectives", "check_objectives"]


def check_objectives(names: Sequence[str], config: ProxyConfig) -> tuple[str, ...]:
    """The names, if each is a cost of the network that will be trained, or a measure of the score.

    Raises
    ------
    ConfigError
        With the nearest name.
    """
    measures = () if config.score == "contrastive" else tuple(config.untrained.weights)
    for name in names:
        if name == "score":
            raise ConfigError("--objective is 'score', which is maximised anyway; name what shall be small, as macs")
        if name not in (*TARGET_COSTS, *measures):
            raise ConfigError(f"--objective is {name!r}{nearest(name, (*TARGET_COSTS, *measures))}")
    if len(set(names)) < len(names):
        raise ConfigError(f"--objective names one thing twice: {', '.join(names)}")
    return tuple(names)


class Deferred(Mapping[str, float]):
    """Costs that are counted when they are first asked for: of 100,000 architectures that takes minutes."""

    def __init__(self, count: Callable[[], Mapping[str, float]]) -> None:
        self._count = count

    @cached_property
    def _found(self) -> Mapping[str, float]:
        return self._count()

    def __getitem__(self, name: str) -> float:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type, tuple[dict[str, float]]]:
        return dict, (dict(self),)


class Objectives:
    """The score, and what shall be small, of what was screened.

    Parameters
    ----------
    names
        See :func:`check_objectives`.
    costs
        Counts those of :data:`~nni_cssnas.judge.costs.TARGET_COSTS`.
    """

    def __init__(self, names: tuple[str, ...], costs: Costs) -> None:
        self.names = names
        self._costs = costs

    def costs(self, item: Screened) -> dict[str, float]:
        """Parameters, multiply-adds and each of the names; nothing of what cannot be run, or has a dead score."""
        if not item.components or not math.isfinite(item.score) or item.score <= DEAD:
            return {}
        try:
            return self._costs.beside(self.names, item.choices, item.genotype, item.components)
        except SpaceError:  # the narrow network runs, and the one of the target does not fit its images
            return {}

    def values(self, item: Screened) -> tuple[float, ...]:
        """The score, then minus each objective: larger is better. NaN where there is none."""
        costs = self.costs(item)
        if not costs:
            return (math.nan,) * (1 + len(self.names))
        return (item.score, *(-costs.get(name, math.nan) for name in self.names))
