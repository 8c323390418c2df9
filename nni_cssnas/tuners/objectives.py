"""What a search makes large or small at once: ``objectives: {score: maximize, params: minimize}``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nni.common.hpo_utils import OptimizeMode

from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.results.carried import without_record

__all__ = ["SCORE", "Objectives", "finite_number", "finite_score", "reported"]

SCORE = "default"
"""NNI's name of the score in a trial's final metric; ``score`` in ``objectives`` is the same."""

MODES = tuple(mode.value for mode in OptimizeMode)


@dataclass(frozen=True)
class Objectives:
    """Names in a trial's final metric, each with what is wanted of it: ``maximize`` or ``minimize``."""

    modes: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, objectives: Any, optimize_mode: str) -> Objectives:
        """From the ``classArgs`` of those names; ``objectives`` None is the score alone.

        Raises
        ------
        ConfigError
            If a name or a direction is wrong, or both arguments give a direction.
        """
        if optimize_mode not in MODES:
            raise ConfigError(f"optimize_mode is {optimize_mode!r}{nearest(optimize_mode, MODES)}")
        if objectives is None:
            return cls(((SCORE, optimize_mode),))
        if not isinstance(objectives, Mapping) or not objectives:
            raise ConfigError(
                f"objectives is {objectives!r}; it must be a mapping, as {{score: maximize, params: minimize}}"
            )
        if optimize_mode != OptimizeMode.Maximize.value:  # the default
            raise ConfigError(f"optimize_mode is {optimize_mode!r}, but objectives gives every direction; leave it out")
        modes = {}
        for name, mode in objectives.items():
            if not isinstance(name, str) or not name:
                raise ConfigError(f"objectives names {name!r}; a name must be a text, as in the trials' final metric")
            if mode not in MODES:
                raise ConfigError(f"objectives: {name} is {mode!r}{nearest(mode, MODES)}")
            key = SCORE if name == "score" else name
            if key in modes:
                raise ConfigError(f"objectives names the score twice, as score and as {SCORE}; leave one out")
            modes[key] = mode
        return cls(tuple(modes.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """In a final metric."""
        return tuple(name for name, _ in self.modes)

    def missing(self, value: Any) -> list[str]:
        """Objectives that a final metric does not have; a number is the score."""
        return [name for name in self.names if name not in reported(value)]

    def unusable(self, value: Any) -> list[str]:
        """Objectives that are missing in a final metric or no finite number, as a user calls them."""
        bad = [name for name in self.names if finite_number(reported(value).get(name)) is None]
        return ["score" if name == SCORE else name for name in bad]

    def read(self, value: Any) -> tuple[float, ...] | None:
        """The objectives in a final metric, in order; None if one is missing or no finite number."""
        numbers = [finite_number(reported(value).get(name)) for name in self.names]
        found = tuple(number for number in numbers if number is not None)
        return found if len(found) == len(numbers) else None

    def losses(self, scores: tuple[float, ...] | None) -> tuple[float, ...]:
        """Smaller is better; infinity in all of a trial that failed."""
        if scores is None:
            return (math.inf,) * len(self.modes)
        return tuple(
            -score if mode == OptimizeMode.Maximize.value else score
            for (_, mode), score in zip(self.modes, scores, strict=True)
        )


def reported(value: Any) -> Mapping[str, Any]:
    """A final metric by names, without a record that came with it; a number alone is the score."""
    return without_record(value) if isinstance(value, Mapping) else {SCORE: value}


def finite_score(value: Any) -> float | None:
    """The finite number in a trial's final metric (a number, or a dict with ``default``), or None."""
    return finite_number(value.get(SCORE) if isinstance(value, dict) else value)


def finite_number(value: Any) -> float | None:
    """What is given as a float; None if it is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
