"""A search without trials: random architectures, then TPE that learns from them, all judged as trials are.

Life cycle: :func:`explore` gives what it screens, one after the other; :func:`choose` ranks it all, best first. Both
are what ``nni-cssnas screen`` does, and use every core.
"""

from __future__ import annotations

import hashlib
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
from nni_cssnas.spaces.identity import own_sources, space_key
from nni_cssnas.tuners.tpe import Tpe

__all__ = ["FINALISTS", "SHARE", "by_score", "choose", "explore", "open_log"]

FINALISTS = 8
"""So many of the best by a score that trains are trained again."""

SHARE = 1 / 8
"""No more than this part of all."""

PROPOSALS_PER_LAG = 25
"""TPE proposes without the results of this part of its proposals, if there are many: so many workers have something to do.
The number depends on the search alone, so that its proposals are the same on any number of workers."""


def explore(
    screener: Screener,
    spread: Spread,
    num_random: int,
    num_guided: int = 0,
    *,
    seed: int = 0,
    seconds: float | None = None,
    allowed: Callable[[Mapping[str, Any]], bool] = lambda choices: True,
) -> Iterator[Screened]:
    """Screen random architectures, then so many that TPE proposes.

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
    """
    end = math.inf if seconds is None else time.monotonic() + seconds
    tuner = Tpe(seed=seed)
    tuner.update_search_space(screener.search_space)
    numbers: dict[str, int] = {}

    def drawn() -> Iterator[dict[str, Any]]:
        number = 0
        for choices in screener.random(10**9 if num_random else 0, seed):
            if number == num_random or time.monotonic() >= end:
                return
            if allowed(choices):
                number += 1
                yield choices

    def proposed() -> Iterator[dict[str, Any]]:
        number = taken = 0
        while taken < num_guided and time.monotonic() < end:
            try:
                choices = tuner.generate_parameters(number)
            except NoMoreTrialError:
                return
            if allowed(choices):
                numbers[_key(choices)] = number
                taken += 1
                yield choices
            else:
                tuner.trial_end(number, False)
            number += 1

    start = []
    for item in spread(Screener.screen, drawn()):
        start.append({"parameter": item.choices, "value": item.score})
        yield item
    if not num_guided:
        return
    tuner.import_data(start)
    for item in spread(Screener.screen, Proposals(proposed(), max(LAG, num_guided // PROPOSALS_PER_LAG))):
        number = numbers.pop(_key(item.choices))
        tuner.receive_trial_result(number, item.choices, item.score)
        tuner.trial_end(number, True)
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


def _key(choices: Choices) -> str:
    return repr(sorted(choices.items()))
