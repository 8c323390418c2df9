"""Proposals for a front: what is good in several objectives at once is crossed and mutated.

NSGA-II (Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE Transactions on Evolutionary
Computation 6, 2002), one proposal at a time: parents are drawn by tournaments on the non-dominated rank and the crowding
distance, and of a population that is one too large the last by both leaves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nni_cssnas.base.pareto import crowding, non_dominated_ranks
from nni_cssnas.genotype import Choices
from nni_cssnas.spaces.encoding import changed_choices, crossed_choices, random_choices

__all__ = ["POPULATION", "Evolution", "choices_key"]

POPULATION = 48
"""So many of what was learned have children."""

CROSSED = 0.5
"""Part of the children that have two parents."""

REPEATS = 200
"""Children in a row that are known, or are not allowed, before the next is drawn at random."""


class Evolution:
    """Learns what was measured, and proposes what is new.

    Parameters
    ----------
    space
        An NNI ``ModelSpace``.
    seed
        Of all draws: the same values, learned at the same time, give the same proposals.
    allowed
        What makes an architecture one that may be proposed, or gives None.
    """

    def __init__(
        self,
        space: Any,
        seed: int,
        allowed: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda choices: choices,
    ) -> None:
        self.space = space
        self.rng = np.random.default_rng([seed, 2002])
        self.allowed = allowed
        self.seen: set[str] = set()
        self.population: list[tuple[dict[str, Any], tuple[float, ...]]] = []

    def learn(self, choices: Choices, values: Sequence[float]) -> None:
        """Take what was measured: a value for each objective, larger is better; what has a NaN or -infinity is the worst."""
        self.seen.add(choices_key(choices))
        if not np.isfinite(values).all():
            return
        self.population.append((dict(choices), tuple(values)))
        if len(self.population) > POPULATION:
            ranks, room = self._order()
            self.population.pop(int(np.lexsort((-room, ranks))[-1]))

    def propose(self) -> dict[str, Any] | None:
        """A new architecture; None where a long search finds none that is new and allowed."""
        ranks, room = self._order()
        for turn in range(2 * REPEATS):
            choices = self._child(ranks, room) if self.population and turn < REPEATS else self._random()
            if choices_key(choices) in self.seen:
                continue
            kept = self.allowed(choices)
            self.seen.add(choices_key(choices))
            if kept is None or (kept != choices and choices_key(kept) in self.seen):
                continue
            self.seen.add(choices_key(kept))
            return kept
        return None

    def mutations(self, origin: Choices) -> Iterator[dict[str, Any]]:
        """Different architectures around one, without end as long as there are new ones: half of them of one changed choice,
        a quarter of two, and so on; more where all near ones are known."""
        self.seen.add(choices_key(origin))
        repeats = 0
        while repeats < REPEATS:
            changes = int(self.rng.geometric(0.5)) + repeats // 20
            choices = self.allowed(changed_choices(self.space, origin, self.rng, changes))
            if choices is None or choices_key(choices) in self.seen:
                repeats += 1
                continue
            self.seen.add(choices_key(choices))
            repeats = 0
            yield choices

    def _child(self, ranks: Any, room: Any) -> dict[str, Any]:
        child = self._parent(ranks, room)
        if self.rng.random() < CROSSED:
            child = crossed_choices(self.space, child, self._parent(ranks, room), self.rng)
        return changed_choices(self.space, child, self.rng, int(self.rng.geometric(0.5)))

    def _parent(self, ranks: Any, room: Any) -> dict[str, Any]:
        """The better of two: of the earlier front, and of one front the less crowded."""
        one, other = self.rng.integers(len(self.population), size=2)
        better = (ranks[one], -room[one]) <= (ranks[other], -room[other])
        return self.population[one if better else other][0]

    def _random(self) -> dict[str, Any]:
        return random_choices(self.space, self.rng)

    def _order(self) -> tuple[Any, Any]:
        """Rank and crowding distance (within its front) of each of the population."""
        values = np.array([values for _, values in self.population], dtype=float)
        if not len(values):
            return np.zeros(0), np.zeros(0)
        ranks = non_dominated_ranks(values)
        room = np.zeros(len(values))
        for rank in set(ranks.tolist()):
            room[ranks == rank] = crowding(values[ranks == rank])
        return ranks, room


def choices_key(choices: Choices) -> str:
    """Names an architecture."""
    return json.dumps(dict(choices), sort_keys=True)
