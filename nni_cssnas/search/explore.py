"""A search without trials: random architectures, then proposals that learn from them, all judged as trials are.

Life cycle: :func:`explore` gives what it screens, one after the other; :func:`choose` ranks it all, best first. Both
are what ``nni-cssnas screen`` does, and use every core.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nni import NoMoreTrialError

from nni_cssnas.config import ProxyConfig
from nni_cssnas.genotype import Choices
from nni_cssnas.images.pool import fingerprint
from nni_cssnas.judge.screening import LAG, Proposals, Screened, Screener, Spread
from nni_cssnas.results.screening_log import LOG_NAME, ScreeningLog
from nni_cssnas.search.evolve import Evolution, choices_key
from nni_cssnas.spaces.identity import own_sources, space_key
from nni_cssnas.tuners.tpe import Tpe

__all__ = ["FINALISTS", "SHARE", "by_score", "choose", "explore", "open_log"]

FINALISTS = 8
"""So many of the best by a score that trains are trained again."""

SHARE = 1 / 8
"""No more than this part of all."""

REJECTED, HOPELESS = 20, 10_000
"""Proposals in a row that may break a limit before one is mended, and before the search ends."""

GROUP = 8
"""With a cascade, so many random architectures are chosen at a time, from ``cascade`` times as many."""

PROPOSALS_PER_LAG = 25
"""Of many proposals, this part is made before the result of the first is known: so many workers have something to do. The number depends
on the search alone, so that the proposals are the same on any number of workers."""


def explore(
    screener: Screener,
    spread: Spread,
    num_random: int,
    num_guided: int = 0,
    *,
    seed: int = 0,
    seconds: float | None = None,
    allowed: Callable[[Mapping[str, Any]], bool] = lambda choices: True,
    mend: Callable[[dict[str, Any], np.random.Generator], dict[str, Any] | None] | None = None,
    values: Callable[[Screened], Sequence[float]] | None = None,
    origin: Choices | None = None,
    cascade: int = 1,
    size: Callable[[Mapping[str, Any]], float] = lambda choices: 0.0,
) -> Iterator[Screened]:
    """Screen random architectures, then so many that a search proposes which has learned from them.

    Parameters
    ----------
    screener, spread
        The judge, and what :meth:`~nni_cssnas.judge.screening.Screener.spread` gives.
    num_random, num_guided
        How many at most; fewer if the space is small.
    seed
        Of the draws.
    seconds
        Nothing is begun after about that long.
    allowed
        What is neither screened nor counted if it is false for it.
    mend
        Makes an allowed architecture of one that is not, or gives None.
    values
        The objectives of what was screened, larger is better: proposals are :class:`~nni_cssnas.search.evolve.Evolution`'s.
        By default the score alone counts, and they are TPE's.
    origin
        The search begins with this architecture, and takes mutations of it in place of random ones.
    cascade, size
        Of so many architectures, only the one with the largest ``size`` is screened: of random ones the largest of every
        :data:`GROUP` times as many, of TPE's proposals the largest of ``cascade``. ``num_random`` and ``num_guided`` count
        those that are looked at.
    """
    end = math.inf if seconds is None else time.monotonic() + seconds
    rng = np.random.default_rng([seed, 1])

    def fitting(choices: dict[str, Any]) -> dict[str, Any] | None:
        if allowed(choices):
            return choices
        return None if mend is None else mend(choices, rng)

    guide: _Tpe | _Evolved
    first = _drawn(screener, seed, allowed, fitting)
    if cascade > 1:
        first = _largest(first, num_random, cascade, size)
        num_random, num_guided = math.ceil(num_random / cascade), math.ceil(num_guided / cascade)
    if values is None and origin is None:
        guide = _Tpe(screener.search_space, seed, allowed, fitting, cascade, size)
    else:
        guide = evolved = _Evolved(Evolution(screener.space, seed, fitting), values or (lambda item: (item.score,)))
        first = first if origin is None else evolved.around(origin)
    for item in spread(Screener.screen, _until(end, first, num_random)):
        guide.learn(item)
        yield item
    if num_guided:
        guide.begin()
        proposals = Proposals(_until(end, guide.proposals(), num_guided), max(LAG, num_guided // PROPOSALS_PER_LAG))
        for item in spread(Screener.screen, proposals):
            guide.learn(item)
            yield item


def open_log(screener: Screener, folder: Path, *, force: bool = False) -> ScreeningLog:
    """The log of this search in ``folder``, with what an interrupted run has left in it.

    Raises
    ------
    ExperimentError
        If the log of another search lies there, or the folder cannot be written.
    """
    config = screener.config.model_dump(mode="json", exclude={"device", "threads", "images"})
    identity = {
        **config,
        "images": fingerprint(screener.proxy.images),
        "space": hashlib.sha256(space_key(screener.space).encode()).hexdigest(),
        "nni_cssnas": own_sources(),
        "torch": torch.__version__,
    }
    return ScreeningLog.open(folder / LOG_NAME, identity, force=force)


def choose(found: Sequence[Screened], config: ProxyConfig, spread: Spread) -> list[Screened]:
    """Everything that was screened, best first.

    The untrained score decides alone: looks at the best with other weights and views, and side measures among them, chose no
    better architectures on two tables of accuracies (docs, measured results).

    What a short training says depends more on its weights. So the best :data:`FINALISTS` by score, but at most a :data:`SHARE`
    of all, are trained again (:meth:`~nni_cssnas.judge.screening.Screener.finalist`), and come first, by their
    ``second_look``: the mean score over those trainings. All others follow by their score.
    """
    ranked = by_score(found)
    if config.score == "untrained":
        return ranked
    num_alive = sum(bool(item.components) for item in ranked)
    finalists = ranked[: min(FINALISTS, math.ceil(SHARE * num_alive))]
    looks = np.array([item["score"] for item in spread(Screener.finalist, [item.choices for item in finalists])])
    best = [replace(finalists[index], second_look=float(looks[index])) for index in np.argsort(-looks, kind="stable")]
    return [*best, *ranked[len(finalists) :]]


def by_score(found: Sequence[Screened]) -> list[Screened]:
    """Best score first, earlier ones first among equals; what cannot be run comes last."""
    return sorted(found, key=lambda item: (not item.components, -item.score))


def _until(end: float, choices: Iterator[dict[str, Any]], number: int) -> Iterator[dict[str, Any]]:
    """The first ``number``, none of which is asked for after the ``end``."""
    for _ in range(number):
        if time.monotonic() >= end:
            return
        item = next(choices, None)
        if item is None:
            return
        yield item


def _drawn(
    screener: Screener,
    seed: int,
    allowed: Callable[[Mapping[str, Any]], bool],
    fitting: Callable[[dict[str, Any]], dict[str, Any] | None],
) -> Iterator[dict[str, Any]]:
    """Random ones; where many in a row are not allowed, some are mended."""
    rejected = 0
    mended: set[str] = set()
    for choices in screener.random(10**9, seed):
        if mended and choices_key(choices) in mended:
            continue
        if allowed(choices):
            rejected = 0
            yield choices
            continue
        rejected += 1
        near = fitting(choices) if rejected > REJECTED else None
        if near is not None and choices_key(near) not in mended:
            rejected = REJECTED
            mended.add(choices_key(near))
            yield near
        elif rejected >= HOPELESS:
            return


def _largest(
    drawn: Iterator[dict[str, Any]], number: int, cascade: int, size: Callable[[Mapping[str, Any]], float]
) -> Iterator[dict[str, Any]]:
    """Of the first ``number``, the largest ones of every group, in their order."""
    first = itertools.islice(drawn, number)
    while group := list(itertools.islice(first, GROUP * cascade)):
        order = np.argsort([-size(choices) for choices in group], kind="stable")
        for index in sorted(order[: math.ceil(len(group) / cascade)]):
            yield group[index]


class _Tpe:
    """Proposals of TPE, for one objective."""

    def __init__(
        self,
        space: Mapping[str, Any],
        seed: int,
        allowed: Callable[[Mapping[str, Any]], bool],
        fitting: Callable[[dict[str, Any]], dict[str, Any] | None],
        cascade: int = 1,
        size: Callable[[Mapping[str, Any]], float] = lambda choices: 0.0,
    ) -> None:
        self.tuner = Tpe(seed=seed)
        self.cascade = cascade
        self.size = size
        self.tuner.update_search_space(space)
        self.allowed = allowed
        self.fitting = fitting
        self.numbers: dict[str, int] = {}
        self.start: list[dict[str, Any]] | None = []

    def begin(self) -> None:
        """Nothing was proposed yet."""
        self.tuner.import_data(self.start)
        self.start = None

    def learn(self, item: Screened) -> None:
        known = {"parameter": item.choices, "value": item.score}
        if self.start is not None:
            self.start.append(known)
            return
        number = self.numbers.pop(choices_key(item.choices), None)
        if number is None:  # it was mended
            self.tuner.import_data([known])
        else:
            self.tuner.receive_trial_result(number, item.choices, item.score)
            self.tuner.trial_end(number, True)

    def proposals(self) -> Iterator[dict[str, Any]]:
        rejected = number = 0
        while rejected < HOPELESS:
            try:
                if self.cascade > 1:
                    choices = self.tuner.propose_largest(number, self.cascade, self._size)
                else:
                    choices = self.tuner.generate_parameters(number)
            except NoMoreTrialError:
                return
            if self.allowed(choices):
                rejected = 0
                self.numbers[choices_key(choices)] = number
                yield choices
            else:
                rejected += 1
                self.tuner.trial_end(number, False)
                if rejected > REJECTED and (near := self.fitting(choices)) is not None:
                    rejected = REJECTED
                    yield near
            number += 1

    def _size(self, choices: Mapping[str, Any]) -> float:
        """What is not allowed is smallest, and is proposed where nothing else is."""
        return self.size(choices) if self.allowed(choices) else -math.inf


class _Evolved:
    """Proposals of an evolution, for several objectives or around a known architecture."""

    def __init__(self, evolution: Evolution, values: Callable[[Screened], Sequence[float]]) -> None:
        self.evolution = evolution
        self.values = values

    def begin(self) -> None:
        """Nothing is left to do."""

    def learn(self, item: Screened) -> None:
        self.evolution.learn(item.choices, self.values(item))

    def proposals(self) -> Iterator[dict[str, Any]]:
        while (choices := self.evolution.propose()) is not None:
            yield choices

    def around(self, origin: Choices) -> Iterator[dict[str, Any]]:
        yield dict(origin)
        yield from self.evolution.mutations(origin)
