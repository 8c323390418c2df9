"""A search without trials: random architectures, then TPE that learns from them, all judged as trials are.

Life cycle: :func:`explore` gives what it screens, one after the other; :func:`choose` ranks it all, best first. Both
are what ``nni-cssnas screen`` does, and use every core.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from nni import NoMoreTrialError
from scipy.stats import rankdata

from nni_cssnas.config import ProxyConfig
from nni_cssnas.scores.combine import log_ranks
from nni_cssnas.screening import FINAL, Screened, Screener, Spread
from nni_cssnas.tuners.tpe import Tpe

__all__ = ["FINALISTS", "choose", "explore"]

FINALISTS = {"untrained": 64, "contrastive": 8, "combined": 8}
"""So many of the best are looked at again, by the kind of score."""


def explore(
    screener: Screener,
    spread: Spread,
    num_random: int,
    num_guided: int = 0,
    *,
    seed: int = 0,
    seconds: float | None = None,
    allowed: Callable[[Mapping[str, Any]], bool] = lambda parameters: True,
) -> Iterator[Screened]:
    """Screen random architectures, then so many that TPE proposes.

    Parameters
    ----------
    screener, spread
        The judge, and what :meth:`~nni_cssnas.screening.Screener.spread` gives.
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
    tuner.update_search_space(screener.choices)
    numbers: dict[str, int] = {}

    def drawn() -> Iterator[dict[str, Any]]:
        number = 0
        for parameters in screener.random(10**9 if num_random else 0, seed):
            if number == num_random or time.monotonic() >= end:
                return
            if allowed(parameters):
                number += 1
                yield parameters

    def proposed() -> Iterator[dict[str, Any]]:
        number = taken = 0
        while taken < num_guided and time.monotonic() < end:
            try:
                parameters = tuner.generate_parameters(number)
            except NoMoreTrialError:
                return
            if allowed(parameters):
                numbers[_key(parameters)] = number
                taken += 1
                yield parameters
            else:
                tuner.trial_end(number, False)
            number += 1

    start = []
    for item in spread(Screener.screen, drawn()):
        start.append({"parameter": item.parameters, "value": item.score})
        yield item
    if not num_guided:
        return
    tuner.import_data(start)
    for item in spread(Screener.screen, proposed()):
        number = numbers.pop(_key(item.parameters))
        tuner.receive_trial_result(number, item.parameters, item.score)
        tuner.trial_end(number, True)
        yield item


def choose(found: Sequence[Screened], config: ProxyConfig, spread: Spread) -> list[Screened]:
    """Everything that was screened, best first.

    The best :data:`FINALISTS` are measured again with other weights and views
    (:meth:`~nni_cssnas.screening.Screener.finalist`), and ranked among each other by that alone: the best of many is the best
    partly by chance.

    Untrained scores are ranks among references, better than most of which the best are: so all are ranked among each other by
    the log-ranks of their components (:func:`~nni_cssnas.scores.combine.log_ranks`), and the finalists by
    :data:`~nni_cssnas.screening.FINAL`.
    """
    alive = [item for item in found if item.components]
    if not alive:
        return list(found)
    if config.score == "untrained":
        weights, final = config.untrained.weights, FINAL
        scores = log_ranks({name: [item.components[name] for item in alive] for name in weights}, weights)
    else:
        final = {"score": 1.0}
        scores = np.array([item.score for item in alive])
    ranked = [alive[index] for index in np.argsort(-scores, kind="stable")]
    finalists = ranked[: FINALISTS[config.score]]
    measured = list(spread(Screener.finalist, [item.parameters for item in finalists]))
    # Plain ranks: their logarithm would ask who is the worst, and all of these are good.
    ranks = (weight * rankdata([item[name] for item in measured]) for name, weight in final.items())
    order = np.sum(list(ranks), axis=0)
    best = [finalists[index] for index in np.argsort(-order, kind="stable")]
    return [*best, *ranked[len(finalists) :], *(item for item in found if not item.components)]


def _key(parameters: Mapping[str, Any]) -> str:
    return repr(sorted(parameters.items()))
