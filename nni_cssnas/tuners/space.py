"""The search space as a tuner needs it: checked, every choice with its number of values, and a way to something new.

NNI's internal form names a choice by its path, ``("block", 0, "kernel")``, and a value by its index, or by a number
before it is rounded; the logarithm of it where the choice is logarithmic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from nni import NoMoreTrialError
from nni.algorithms.hpo import random_tuner
from nni.common.hpo_utils import ParameterSpec, deformat_parameters, format_search_space

from nni_cssnas.errors import ConfigError, nearest

__all__ = ["Mutation", "Params", "check_choices", "format_space", "is_constant", "is_nested", "num_values"]

Params = dict[Any, Any]
"""A proposal in NNI's internal form: key of a choice -> index of its value, or number."""

RANGES = {
    **dict.fromkeys(("randint", "uniform", "loguniform", "normal", "lognormal"), 2),
    **dict.fromkeys(("quniform", "qloguniform", "qnormal", "qlognormal"), 3),
}
"""Types of choices among numbers, and how many numbers declare one."""

WIDEST = 1e9
"""How many times wider than declared a distribution may become to find a value that is new."""

LARGEST, LARGEST_LOG = 1e300, 700.0
"""Beyond them, a width, or an exponential, is no float."""

MOST_STEPS = 2**53
"""Beyond it, a float does not tell neighbouring whole numbers apart."""


class _Spec(ParameterSpec):  # type: ignore[misc]
    def is_activated_in(self, partial_parameters: Mapping[Any, Any]) -> bool:
        """Whether the choice is open; NNI's raises where the choice that opens it is itself not open."""
        return not self.is_nested() or partial_parameters.get(self.key[:-2]) == self.key[-2]


def format_space(space: Mapping[str, Any]) -> dict[Any, Any]:
    """NNI's internal form of a ``search_space.json``: the choices by their keys, those that open others first.

    Raises
    ------
    ConfigError
        As :func:`check_choices`.
    """
    check_choices(space)
    return {key: _Spec(*spec) for key, spec in format_search_space(space).items()}


def is_nested(values: list[Any]) -> bool:
    """Whether the values of a choice open other choices, which all or none do."""
    return all(isinstance(value, dict) and "_name" in value for value in values)


def check_choices(space: Any, parent: tuple[Any, ...] = ()) -> None:
    """Refuse what no tuner can search.

    Raises
    ------
    ConfigError
        If a choice has no value, an unknown type, or a range that ends before it begins.
    """
    if not isinstance(space, Mapping):
        raise ConfigError(f"search_space.json is a {type(space).__name__}, not a mapping of choices")
    for name, choice in space.items():
        if name == "_name":
            continue
        what = f"choice {'/'.join(map(str, (*parent, name)))} of search_space.json"
        if not isinstance(choice, Mapping) or not {"_type", "_value"} <= choice.keys():
            raise ConfigError(f"{what} is {choice!r}; it must be a mapping with _type and _value")
        kind, values = choice["_type"], choice["_value"]
        if not isinstance(kind, str) or (kind != "choice" and kind not in RANGES):
            raise ConfigError(f"{what} has _type {kind!r}{nearest(kind, ('choice', *RANGES))}")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{what} has _value {values!r}; it must be a list with something in it")
        if kind != "choice":
            _check_range(what, kind, values)
        elif is_nested(values):
            for index, value in enumerate(values):
                check_choices(value, (*parent, name, index))


def _check_range(what: str, kind: str, values: list[Any]) -> None:
    numbers = [value for value in values if isinstance(value, (int, float)) and abs(value) <= LARGEST]
    if len(numbers) != len(values) or len(values) != RANGES[kind]:
        raise ConfigError(
            f"{what}, a {kind}, has _value {values!r:.200}; it must be {RANGES[kind]} finite numbers, of at most {LARGEST:g}"
        )
    first, second = values[:2]
    problem = None
    if kind == "randint":
        if math.ceil(second) <= math.ceil(first):
            problem = "the second number must be larger than the first, which is the smallest value"
        elif second - first > MOST_STEPS:
            problem = f"it must not have more than {MOST_STEPS} values"
    elif "normal" in kind:
        if second < 0:
            problem = "the second number, the standard deviation, must not be negative"
        elif "log" in kind and abs(first) + 10 * second > LARGEST_LOG:
            problem = f"both are of the logarithm, and 10 deviations from the mean it must not exceed {LARGEST_LOG:g}"
    elif second < first:
        problem = "the second number must not be smaller than the first"
    elif "log" in kind and first <= 0:
        problem = "the first number must be more than 0, since its logarithm is taken"
    if problem is None and kind.startswith("q") and values[2] <= 0:
        problem = "the third number, the step, must be more than 0"
    elif problem is None and kind.startswith("q") and "normal" not in kind and second - first > MOST_STEPS * values[2]:
        problem = "the third number, the step, is too small for so wide a range"
    if problem:
        raise ConfigError(f"{what}, a {kind}, has _value {values!r}; {problem}")


def is_constant(spec: Any) -> bool:
    """Whether a choice among numbers is none: a range or a distribution without any width."""
    if spec.categorical:
        return False
    return bool(spec.sigma == 0 if spec.normal_distributed else spec.low == spec.high)


def num_values(spec: Any) -> float:
    """How many values a choice has; infinity if it is not bounded, or not rounded."""
    if spec.categorical:
        return int(spec.size)
    if is_constant(spec):
        return 1
    if spec.normal_distributed or spec.q is None:
        return math.inf
    first, last = _steps(spec)
    return last - first + 1


def _steps(spec: Any) -> tuple[int, int]:
    """The first and the last multiple of ``q`` to which a number of the range is rounded."""
    low, high = spec.clip
    # From both sides, so that a multiple is left out that only the bound itself would be rounded to.
    return math.floor(low / spec.q + 0.5), math.ceil(high / spec.q - 0.5)


def _value(spec: Any, index: int) -> int | float:
    """The value of that index, of a choice with finitely many, in NNI's internal form."""
    if spec.categorical:
        return index
    if is_constant(spec):
        return float(spec.mu if spec.normal_distributed else spec.low)
    low, high = spec.clip
    step = _steps(spec)[0] + index
    # The middle of all that is rounded to it, which no error of rounding leaves.
    middle = (max(low, (step - 0.5) * spec.q) + min(high, (step + 0.5) * spec.q)) / 2
    return math.log(middle) if spec.log_distributed else middle


def _index(spec: Any, value: float) -> int:
    if spec.categorical:
        return int(value)
    first, last = _steps(spec)
    return min(max(round((math.exp(value) if spec.log_distributed else value) / spec.q), first), last) - first


class Mutation:
    """Makes a suggestion new by changing choices at random: one first, more if that finds nothing new."""

    def __init__(self, space: Mapping[Any, Any], rng: np.random.Generator) -> None:
        self.space = space
        self.rng = rng
        self.seen: set[str] = set()
        self.nested = any(spec.is_nested() for spec in space.values())
        self.values = {key: num_values(spec) for key, spec in space.items()}
        self.finite = all(map(math.isfinite, self.values.values()))
        self.size = math.inf if self.nested else math.prod(self.values.values())

    def add(self, params: Params) -> bool:
        """Remember parameters; False if they were known."""
        key = self.key(params)
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def discard(self, params: Params) -> None:
        """Forget parameters that no trial was made of."""
        self.seen.discard(self.key(params))

    def key(self, params: Params) -> str:
        """Names the parameters."""
        return repr(sorted(deformat_parameters(params, self.space).items()))

    def __call__(self, params: Params) -> Params:
        """The parameters, changed if they were known. Raises NoMoreTrialError when everything is known."""
        if self.add(params):
            return params
        width = 1.0
        while len(self.seen) < self.size:
            changed = self._changed(params, width)
            if changed is not None:
                return changed
            if self.finite or width > WIDEST:
                break
            width *= 2  # what is left of a distribution that is rounded lies farther out
        return self._first_unseen()

    def _changed(self, params: Params, width: float) -> Params | None:
        """The parameters with as few other values as make them new; None if many draws found none."""
        mutable = [key for key in params if self.values[key] > 1]
        for number in range(1, len(mutable) + 1):
            for _ in range(20 * len(mutable)):
                changed = dict(params)
                for position in self.rng.choice(len(mutable), size=number, replace=False):
                    key = mutable[position]
                    changed[key] = self._another(key, changed[key], width)
                changed = self._complete(changed)
                if self.add(changed):
                    return changed
        return None

    def _another(self, key: Any, value: Any, width: float) -> int | float:
        """Any other value of a choice, each as likely; of infinitely many, one drawn anew."""
        spec, number = self.space[key], self.values[key]
        if math.isfinite(number):
            return _value(spec, int((_index(spec, value) + self.rng.integers(1, int(number))) % int(number)))
        if not spec.normal_distributed:
            return float(random_tuner.suggest_parameter(self.rng, spec))
        drawn = float(self.rng.normal(spec.mu, spec.sigma * width))
        return min(max(drawn, -LARGEST_LOG), LARGEST_LOG) if spec.log_distributed else drawn

    def _complete(self, params: Params) -> Params:
        """Where a choice opens others: those that are open now, drawn at random if they were not before."""
        if not self.nested:
            return params
        result: Params = {}
        for key, spec in self.space.items():
            if spec.is_activated_in(result):
                result[key] = params[key] if key in params else random_tuner.suggest_parameter(self.rng, spec)
        return result

    def _first_unseen(self) -> Params:
        """Nearly everything is known: count through the space. Raises NoMoreTrialError when everything is."""
        if self.finite:
            for params in self._all(list(self.space.items()), {}):
                if self.add(params):
                    return params
        raise NoMoreTrialError

    def _all(self, rest: list[tuple[Any, Any]], params: Params) -> Iterator[Params]:
        if not rest:
            yield dict(params)
            return
        (key, spec), rest = rest[0], rest[1:]
        if not spec.is_activated_in(params):
            yield from self._all(rest, params)
            return
        for index in range(int(self.values[key])):
            yield from self._all(rest, {**params, key: _value(spec, index)})
