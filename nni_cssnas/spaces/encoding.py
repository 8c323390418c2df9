"""Any model space as the flat choices that ``search_space.json`` and NNI's tuners carry, and back without loss.

A choice among numbers or strings stays as it is. Other values are written as JSON, or as ``index: repr`` where JSON
cannot hold them. A choice of several (``InputChoice``, the inputs of a ``Cell``) becomes one choice among all its
combinations, each written as a JSON list; if there are too many of those, a yes or no for each candidate.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from nni_cssnas.base.files import one_line
from nni_cssnas.errors import InvalidSampleError, SpaceError, nearest
from nni_cssnas.genotype import Choices, Sample
from nni_cssnas.spaces.primitives import Categorical, CategoricalMultiple, Constraint, ModelSpace, Numerical

__all__ = [
    "changed_choices",
    "check_constraints",
    "crossed_choices",
    "decode",
    "encode",
    "has_constraints",
    "random_choices",
    "search_space",
]

MAX_COMBINATIONS = 128
"""A choice of several with more combinations is searched candidate by candidate."""

TRIES = 100
"""Draws until something differs, or keeps the constraints."""

REMEDY = "write search_space.json anew with: nni-cssnas space proxy.yml"


@dataclass(frozen=True)
class _Choice:
    """One label of the space: how each of its values is written."""

    label: str
    written: tuple[Any, ...]
    values: tuple[Any, ...]

    def specs(self) -> dict[str, dict[str, Any]]:
        return {self.label: {"_type": "choice", "_value": list(self.written)}} if len(self.written) > 1 else {}

    def encode(self, value: Any) -> dict[str, Any]:
        if value not in self.values:
            raise SpaceError(f"choice {self.label} is {value!r}{nearest(value, map(str, self.values))}")
        return {self.label: self.written[self.values.index(value)]} if len(self.written) > 1 else {}

    def decode(self, choices: Choices) -> Any:
        if len(self.written) == 1:
            return self.values[0]
        found = _take(choices, self.label)
        if found not in self.written:
            raise SpaceError(f"choice {self.label} is {found!r}{nearest(found, map(str, self.written))}; {REMEDY}")
        return self.values[self.written.index(found)]

    def random(self, rng: np.random.Generator) -> dict[str, Any]:
        return {self.label: self.written[rng.integers(len(self.written))]} if len(self.written) > 1 else {}


@dataclass(frozen=True)
class _Subset:
    """A choice of several among many candidates: 1 or 0 for each, as ``label/index``."""

    label: str
    values: tuple[Any, ...]
    number: int | None

    def specs(self) -> dict[str, dict[str, Any]]:
        return {f"{self.label}/{index}": {"_type": "choice", "_value": [0, 1]} for index in range(len(self.values))}

    def encode(self, value: Sequence[Any]) -> dict[str, Any]:
        return {f"{self.label}/{index}": int(item in value) for index, item in enumerate(self.values)}

    def decode(self, choices: Choices) -> list[Any]:
        bits = [_take(choices, f"{self.label}/{index}") for index in range(len(self.values))]
        chosen = [value for value, bit in zip(self.values, bits, strict=True) if bit]
        if self.number is not None and len(chosen) != self.number:
            raise InvalidSampleError(f"choice {self.label} takes {len(chosen)} candidates; it must take {self.number}")
        return chosen

    def random(self, rng: np.random.Generator) -> dict[str, Any]:
        if self.number is None:
            bits = rng.integers(2, size=len(self.values))
        else:
            bits = np.zeros(len(self.values), dtype=np.int64)
            bits[rng.choice(len(self.values), self.number, replace=False)] = 1
        return {f"{self.label}/{index}": int(bit) for index, bit in enumerate(bits)}


@dataclass(frozen=True)
class _Number:
    """A number from a range or a distribution, as NNI's search spaces have them."""

    label: str
    mutable: Any

    def specs(self) -> dict[str, dict[str, Any]]:
        m = self.mutable
        if m.mu is not None and m.sigma is not None:
            kind, arguments = "lognormal" if m.log_distributed else "normal", [m.mu, m.sigma]
        elif math.isfinite(m.low) and math.isfinite(m.high):
            kind, arguments = "loguniform" if m.log_distributed else "uniform", [m.low, m.high]
        else:
            raise SpaceError(
                f"choice {self.label} has a distribution of its own; only uniform and normal can be searched"
            )
        if m.quantize is not None:
            kind, arguments = f"q{kind}", [*arguments, m.quantize]
        return {self.label: {"_type": kind, "_value": arguments}}

    def encode(self, value: Any) -> dict[str, Any]:
        return {self.label: value}

    def decode(self, choices: Choices) -> Any:
        # A tuner's normal distribution knows no bounds.
        return self.mutable.qclip(_take(choices, self.label))

    def random(self, rng: np.random.Generator) -> dict[str, Any]:
        state = np.random.RandomState(int(rng.integers(2**32)))
        return {self.label: float(self.mutable.random(random_state=state))}


def search_space(space: ModelSpace) -> dict[str, dict[str, Any]]:
    """The contents of ``search_space.json``: ``{label: {"_type": "choice", "_value": [...]}}``.

    Raises
    ------
    SpaceError
        If the space has no choice, or one that NNI's search spaces cannot hold.
    """
    result: dict[str, dict[str, Any]] = {}
    for choice in _flat(space).choices:
        result |= choice.specs()
    if not result:
        raise SpaceError(
            f"space {type(space).__name__} has no choice, so there is nothing to search; "
            "declare one with nni.choice, LayerChoice or InputChoice"
        )
    # NNI's labels are a subclass of str that YAML refuses; a round trip makes everything plain.
    return json.loads(json.dumps(result))  # type: ignore[no-any-return]


def encode(space: ModelSpace, sample: Sample) -> dict[str, Any]:
    """A tuner's choices from a sample of the space (``space.random()``): the inverse of :func:`decode`.

    A sample may lack choices that its architecture does not have, as those of blocks beyond its depth, and have others, as
    NNI's own searched architectures do: what ``space.freeze`` takes is taken. Such choices get NNI's default.

    Raises
    ------
    SpaceError
        If the sample lacks a choice that its architecture needs, or has a value that is not the space's.
    """
    parts = _flat(space).choices
    missing = [choice.label for choice in parts if choice.label not in sample]
    if missing:
        _check_not_needed(space, sample, missing[0])
    leaves = {str(label): leaf for label, leaf in space.simplify().items()} if missing else {}
    choices: dict[str, Any] = {}
    for choice in parts:
        label = choice.label
        choices |= choice.encode(sample[label] if label in sample else leaves[label].default())
    return json.loads(json.dumps(choices))  # type: ignore[no-any-return]


def _check_not_needed(space: ModelSpace, sample: Sample, label: str) -> None:
    """Raise SpaceError if the architecture of a sample cannot be built without the choices that it lacks."""
    try:
        space.freeze(dict(sample))
    except Exception as error:  # NNI's own, or whatever a network's constructor makes of a choice that is not there
        raise SpaceError(f"the sample has no choice {label!r}{nearest(label, map(str, sample))}") from error


def decode(space: ModelSpace, choices: Choices) -> dict[str, Any]:
    """A sample for ``space.freeze`` from a tuner's choices.

    Raises
    ------
    InvalidSampleError
        If a constraint of the space forbids it.
    SpaceError
        If a choice is missing or unknown, or a value is not among its candidates; usually the space in
        ``proxy.yml`` was changed and ``search_space.json`` was not.
    """
    parts = _flat(space).choices
    known = {label for choice in parts for label in choice.specs()}
    for label in choices:
        if label not in known:
            raise SpaceError(f"the space has no choice {label!r}{nearest(label, known)}; {REMEDY}")
    sample = {choice.label: choice.decode(choices) for choice in parts}
    check_constraints(space, sample)
    return sample


def has_constraints(space: ModelSpace) -> bool:
    """Whether some combinations of choices are no architectures."""
    flat = _flat(space)
    return bool(flat.constraints) or any(isinstance(item, _Subset) and item.number is not None for item in flat.choices)


def check_constraints(space: ModelSpace, sample: Sample) -> None:
    """Raise InvalidSampleError, with NNI's reason, if a constraint of the space forbids the sample."""
    for label, constraint in _flat(space).constraints.items():
        problem = constraint.check_contains(dict(sample))
        if problem is not None:
            reason = one_line(problem)
            raise InvalidSampleError(f"constraint {label} of space {type(space).__name__} is not met: {reason}")


def random_choices(space: ModelSpace, rng: np.random.Generator) -> dict[str, Any]:
    """One random value for every choice, all equally likely, in the form of a tuner's choices.

    Raises
    ------
    SpaceError
        If 10,000 draws in a row break a constraint of the space.
    """
    flat = _flat(space)
    constrained = has_constraints(space)
    for _ in range(10_000):
        choices = flat.random(rng)
        if constrained:
            try:
                decode(space, choices)
            except InvalidSampleError:
                continue
        return choices
    raise SpaceError(f"10,000 random architectures of space {type(space).__name__} broke its constraints; loosen them")


def changed_choices(space: ModelSpace, choices: Choices, rng: np.random.Generator, number: int = 1) -> dict[str, Any]:
    """The choices of an architecture, ``number`` of them drawn anew (all, if it has no more).

    Each is drawn until it differs, and all together until they keep the constraints of the space; what does not succeed in
    :data:`TRIES` draws is left as it was.
    """
    parts = [part for part in _flat(space).choices if part.specs()]
    for _ in range(TRIES):
        changed = dict(choices)
        for index in rng.choice(len(parts), min(number, len(parts)), replace=False):
            changed |= _another(parts[index], choices, rng)
        if _is_allowed(space, changed):
            return changed
    return dict(choices)


def crossed_choices(space: ModelSpace, one: Choices, other: Choices, rng: np.random.Generator) -> dict[str, Any]:
    """Each choice from one of two architectures, by a coin; ``one`` where :data:`TRIES` of those break a constraint."""
    parts = [part for part in _flat(space).choices if part.specs()]
    for _ in range(TRIES):
        crossed: dict[str, Any] = {}
        for part in parts:
            parent = one if rng.random() < 0.5 else other
            crossed |= {label: parent[label] for label in part.specs()}
        if _is_allowed(space, crossed):
            return crossed
    return dict(one)


def _another(part: _Choice | _Subset | _Number, choices: Choices, rng: np.random.Generator) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    for _ in range(TRIES):
        drawn = part.random(rng)
        if any(choices[label] != value for label, value in drawn.items()):
            break
    return drawn


def _is_allowed(space: ModelSpace, choices: Choices) -> bool:
    if not has_constraints(space):
        return True
    try:
        decode(space, choices)
    except InvalidSampleError:
        return False
    return True


@dataclass(frozen=True)
class _Flat:
    choices: tuple[_Choice | _Subset | _Number, ...]
    constraints: dict[str, Any]

    def random(self, rng: np.random.Generator) -> dict[str, Any]:
        """A value for every choice."""
        if self._plain is not None:
            # All at once, five times as fast; it draws the same numbers as one after the other.
            drawn = rng.integers(self._plain[1]).tolist()
            return {part.label: part.written[index] for part, index in zip(self._plain[0], drawn, strict=True)}
        found: dict[str, Any] = {}
        for choice in self.choices:
            found |= choice.random(rng)
        return found

    @cached_property
    def _plain(self) -> tuple[list[_Choice], np.ndarray[Any, Any]] | None:
        """The choices and their numbers of values, if no other kind is among them."""
        parts = [part for part in self.choices if isinstance(part, _Choice)]
        several = [part for part in parts if len(part.written) > 1]
        if len(parts) < len(self.choices) or not several:
            return None
        return several, np.array([len(part.written) for part in several])


# Asking a large space takes longer than scoring one of its architectures.
_FLAT: WeakKeyDictionary[Any, _Flat] = WeakKeyDictionary()


def _flat(space: ModelSpace) -> _Flat:
    if space not in _FLAT:
        leaves = {str(label): leaf for label, leaf in space.simplify().items()}
        _FLAT[space] = _Flat(
            tuple(_choice(label, leaf) for label, leaf in leaves.items() if not isinstance(leaf, Constraint)),
            {label: leaf for label, leaf in leaves.items() if isinstance(leaf, Constraint)},
        )
    return _FLAT[space]


def _choice(label: str, leaf: Any) -> _Choice | _Subset | _Number:
    if isinstance(leaf, CategoricalMultiple):
        values = tuple(leaf.values)
        numbers = range(len(values) + 1) if leaf.n_chosen is None else [leaf.n_chosen]
        if sum(math.comb(len(values), number) for number in numbers) > MAX_COMBINATIONS:
            return _Subset(label, values, leaf.n_chosen)
        subsets = [list(some) for number in numbers for some in itertools.combinations(values, number)]
        return _Choice(label, tuple(_written(subsets)), tuple(subsets))
    if isinstance(leaf, Categorical):
        return _Choice(label, tuple(_written(leaf.values)), tuple(leaf.values))
    if isinstance(leaf, Numerical):
        return _Number(label, leaf)
    raise SpaceError(f"choice {label} is a {type(leaf).__name__}, which cannot be searched")


def _written(values: Sequence[Any]) -> list[Any]:
    """Each value as a number or a string, all different."""
    if all(isinstance(value, (str, int, float)) for value in values) and len(set(values)) == len(values):
        return list(values)
    try:
        texts = [json.dumps(value) for value in values]
    except (TypeError, ValueError):
        texts = [f"{index}: {value!r}" for index, value in enumerate(values)]
    return texts if len(set(texts)) == len(texts) else [f"{index}: {text}" for index, text in enumerate(texts)]


def _take(choices: Choices, label: str) -> Any:
    if label not in choices:
        raise SpaceError(f"choice {label!r} has no value in the choices; {REMEDY}")
    return choices[label]
