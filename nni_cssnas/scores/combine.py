"""One score from several: the sum of log-ranks of AZ-NAS (arXiv:2403.19232, section 3.4).

Ranks need others to compare with. :func:`log_ranks` ranks the members of a batch among each other;
:class:`ReferenceSet` ranks one architecture among references that were drawn once, so that an
architecture has the same score whenever it is asked.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from nni_cssnas.errors import ConfigError, nearest

__all__ = ["WORST", "ReferenceSet", "is_dead", "log_ranks"]

WORST = -1e9
"""A component of an architecture that cannot learn: finite, as NNI and its portal need, and below every other."""


def is_dead(values: Sequence[float]) -> bool:
    """Whether a component is NaN, infinite, or :data:`WORST`: then the architecture as a whole is worst."""
    return any(not math.isfinite(value) or value <= WORST for value in values)


def log_ranks(components: Mapping[str, ArrayLike], weights: Mapping[str, float] | None = None) -> NDArray[np.float64]:
    """Scores of m architectures: the weighted sum over components of log(rank / m), larger is better.

    The worst has rank 1 and the best m; equal ones share the average of their ranks. An architecture
    with a dead component (:func:`is_dead`) is last in all.

    Parameters
    ----------
    components
        Name to m values, larger is better.
    weights
        How much a component counts; 1 where it is not named.

    Returns
    -------
    ndarray of shape (m,)
        At most 0, which only the best in every component has.

    Raises
    ------
    ConfigError
        If there is no component, or they differ in length.
    """
    arrays = {name: np.array(values, dtype=np.float64, copy=True) for name, values in components.items()}
    shapes = {values.shape for values in arrays.values()}
    if len(shapes) != 1 or any(len(shape) != 1 or shape[0] == 0 for shape in shapes):
        lengths = {name: values.shape for name, values in arrays.items()}
        raise ConfigError(f"components must be equally many numbers, one for each architecture; got {lengths}")
    table = np.stack(list(arrays.values()))
    dead = (~np.isfinite(table) | (table <= WORST)).any(axis=0)
    table[:, dead] = WORST
    ranks = rankdata(table, axis=1)
    factors = np.array([(weights or {}).get(name, 1.0) for name in arrays])
    result: NDArray[np.float64] = factors @ np.log(ranks / table.shape[1])
    return result


@dataclass(frozen=True)
class ReferenceSet:
    """Components of reference architectures, drawn once for a space, its images and a seed.

    Life cycle: the first trial scores some tens of architectures drawn from the space, keeps the set
    as JSON beside the experiment, and every trial asks :meth:`score` of the same file.

    Attributes
    ----------
    values
        Name of the component to its values, one for each reference; larger is better. The components
        of a dead reference are :data:`WORST`.
    weights
        How much the log-rank of a component counts; 1 where it is not named.
    key
        What the set was drawn for; :meth:`from_json` refuses a file with another.

    Raises
    ------
    ConfigError
        If there is no component, they differ in length, or no reference is alive.
    """

    values: Mapping[str, tuple[float, ...]]
    weights: Mapping[str, float] = field(default_factory=dict)
    key: str = ""

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in self.values:
                raise ConfigError(f"weight of unknown component {name!r}{nearest(name, self.values)}")
            if not 0 <= weight < math.inf:
                raise ConfigError(f"weight of {name!r} is {weight}; it must be 0 or more")
        lengths = {name: len(values) for name, values in self.values.items()}
        if not lengths or len(set(lengths.values())) != 1:
            raise ConfigError(f"a reference set needs the same references in every component; got {lengths}")
        if not any(self._alive):
            raise ConfigError(
                f"none of the {len(self)} reference architectures is alive (each has a component that is not finite); "
                "draw others, or check the images"
            )

    @classmethod
    def from_scores(
        cls, scores: Sequence[Mapping[str, float]], weights: Mapping[str, float] | None = None, key: str = ""
    ) -> ReferenceSet:
        """From what was measured, one mapping for each reference.

        Raises
        ------
        ConfigError
            If the mappings have different components, or as for the class.
        """
        names = list(scores[0]) if scores else []
        for index, item in enumerate(scores):
            if set(item) != set(names):
                raise ConfigError(f"reference {index} has the components {sorted(item)}, the first {sorted(names)}")
        return cls({name: tuple(float(item[name]) for item in scores) for name in names}, dict(weights or {}), key)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    @cached_property
    def _alive(self) -> tuple[bool, ...]:
        rows = zip(*self.values.values(), strict=True)
        return tuple(not is_dead(row) for row in rows)

    @cached_property
    def _ladders(self) -> dict[str, tuple[list[float], list[float]]]:
        """For each component the distinct values of living references, and their average ranks."""
        ladders = {}
        num_dead = len(self) - sum(self._alive)
        for name, values in self.values.items():
            living = np.array([value for value, alive in zip(values, self._alive, strict=True) if alive])
            steps, first = np.unique(living, return_index=True)
            ladders[name] = (steps.tolist(), (num_dead + rankdata(living)[first]).tolist())
        return ladders

    def position(self, name: str, value: float) -> float:
        """Where ``value`` stands among the references: over 0.5 / (m + 1) and under 1, strictly rising with ``value``.

        At a reference it is that one's average rank / (m + 1), between two it is interpolated, beyond
        the ends it approaches the bounds.
        """
        steps, ranks = self._ladders[name]
        scale = max(steps[-1] - steps[0], 1e-12 * max(abs(steps[0]), abs(steps[-1]), 1.0))
        if value <= steps[0]:
            rank = 0.5 + (ranks[0] - 0.5) / (1 + (steps[0] - value) / scale)
        elif value >= steps[-1]:
            beyond = (value - steps[-1]) / scale
            rank = ranks[-1] + (len(self) + 1 - ranks[-1]) * beyond / (1 + beyond)
        else:
            index = bisect_left(steps, value)
            share = (value - steps[index - 1]) / (steps[index] - steps[index - 1])
            rank = ranks[index - 1] + share * (ranks[index] - ranks[index - 1])
        return rank / (len(self) + 1)

    @property
    def worst(self) -> float:
        """The score of a dead architecture: below that of every living one, and finite."""
        return math.fsum(self._weight(name) for name in self.values) * math.log(0.5 / (len(self) + 1))

    def _weight(self, name: str) -> float:
        return self.weights.get(name, 1.0)

    def score(self, components: Mapping[str, float]) -> float:
        """Weighted sum over the components of the logarithm of the :meth:`position`; at most 0, larger is better.

        A dead architecture gets :attr:`worst`. Components that the references lack are ignored.

        Raises
        ------
        ConfigError
            If a component of the references is missing.
        """
        missing = sorted(set(self.values) - set(components))
        if missing:
            raise ConfigError(f"component {missing[0]!r} of the reference set is missing in {sorted(components)}")
        if is_dead([components[name] for name in self.values]):
            return self.worst
        # fsum: the order of the components does not matter, to the last bit.
        return math.fsum(self._weight(name) * math.log(self.position(name, components[name])) for name in self.values)

    def to_json(self) -> str:
        """JSON that :meth:`from_json` reads back to the last bit."""
        content = {
            "key": self.key,
            "weights": dict(self.weights),
            "values": {name: list(column) for name, column in self.values.items()},
        }
        return json.dumps({"checksum": _checksum(content), **content}, indent=1)

    @classmethod
    def from_json(cls, text: str, key: str | None = None) -> ReferenceSet:
        """The inverse of :meth:`to_json`.

        Raises
        ------
        ConfigError
            If the text is not a reference set, a digit of it has changed, or ``key`` is given and it was drawn for another.
        """
        try:
            data: Any = json.loads(text)
            if data.pop("checksum") != _checksum(data):
                raise ValueError("wrong checksum")
            values = {str(name): tuple(map(float, column)) for name, column in data["values"].items()}
            weights = {str(name): float(weight) for name, weight in data["weights"].items()}
            found = str(data["key"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConfigError(f"not a reference set: {error}; delete the file and it will be drawn again") from None
        if key is not None and found != key:
            raise ConfigError(
                f"the reference set was drawn for {found!r}, not for {key!r}; delete the file and it will be drawn again"
            )
        return cls(values, weights, found)


def _checksum(content: Mapping[str, Any]) -> str:
    """Of the contents of a reference set's file; a changed digit would change every score without a word."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
