"""NNI's TPE, repaired (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from nni.algorithms.hpo import random_tuner, tpe_tuner
from nni.algorithms.hpo.tpe_tuner import TpeArguments
from numpy.typing import NDArray

from nni_cssnas.base.selection import best_rows
from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.tuners.base import Loss, SearchTuner, check_number
from nni_cssnas.tuners.space import Params, is_constant

__all__ = ["Tpe"]


class Tpe(SearchTuner):
    """NNI's ``TpeTuner`` that keeps searching.

    Differences to NNI's own, besides those that all tuners of this package have
    (:class:`~nni_cssnas.tuners.base.SearchTuner`):

    * a suggestion that was seen before is changed in a few random choices; NNI's walks a grid instead,
      which after some trials is most of what it proposes;
    * a failed trial, and one whose score is not finite, counts as the worst seen; NNI's forgets the first
      and is poisoned by the second;
    * a proposal takes milliseconds however long the history is, where NNI's sorts it once for every choice;
    * scores are maximised by default.

    With several objectives it is the multi-objective TPE (Ozaki et al., arXiv:2009.13090): non-dominated sorting and
    hypervolume decide which trials are good (:func:`~nni_cssnas.base.selection.best_rows`), and all of them weigh alike,
    as in Optuna 5; the paper and Optuna 4 weigh them by their contributions to the hypervolume.

    Parameters
    ----------
    optimize_mode, seed, screen, constraints, objectives
        As in :class:`~nni_cssnas.tuners.base.SearchTuner`.
    tpe_args
        See :class:`nni.algorithms.hpo.tpe_tuner.TpeArguments`. The first ``n_startup_jobs`` (20) proposals are random.

    Raises
    ------
    ConfigError
        If an argument is wrong.

    Examples
    --------
    In ``experiment.yml``::

        tuner:
          className: nni_cssnas.tuners.tpe.Tpe
          codeDirectory: .
          classArgs: {seed: 0, tpe_args: {n_startup_jobs: 8}}

    Or, for the front between score and size::

          classArgs: {objectives: {score: maximize, params: minimize}}
    """

    def __init__(
        self,
        optimize_mode: str = "maximize",
        seed: int | None = None,
        tpe_args: dict[str, Any] | None = None,
        screen: dict[str, Any] | None = None,
        constraints: dict[str, Any] | None = None,
        objectives: dict[str, str] | None = None,
    ) -> None:
        if tpe_args is not None and not isinstance(tpe_args, Mapping):
            raise ConfigError(f"tpe_args is {tpe_args!r}; it must be a mapping")
        for name, value in (tpe_args or {}).items():
            if name not in TpeArguments._fields:
                raise ConfigError(f"unknown key {name!r} in tpe_args{nearest(name, TpeArguments._fields)}")
            if name != "constant_liar_type":
                check_number(name, value, whole=isinstance(TpeArguments._field_defaults[name], int))
        self.args = TpeArguments(**(tpe_args or {}))
        super().__init__(
            optimize_mode, seed, screen, constraints, liar=self.args.constant_liar_type, objectives=objectives
        )
        self._table = _Table()

    def begin(self, space: Mapping[str, Any]) -> None:
        """Start with an empty history."""
        self._table = _Table()

    def suggest(self, running: list[tuple[Params, Loss]]) -> Params:
        """NNI's estimate of where good trials are dense and bad ones are not."""
        return self._table.suggest(self.args, self.rng, self.space, running)

    def learn(self, params: Params, loss: Loss) -> None:
        """Remember a finished trial; TPE only sorts by loss, so infinity is simply the worst."""
        self._table.add(params, loss)

    def forget(self, params: Params) -> None:
        """Take out what was learned of these parameters."""
        self._table.forget(params)


class _Table:
    """TPE's history: NNI's estimator on it, but sorted once for a proposal instead of once for every choice.

    A choice that was not active in a trial (nested spaces) has no value there.
    """

    def __init__(self) -> None:
        self.trials: list[tuple[Params, Loss]] = []
        self._columns: dict[Any, list[float]] = {}  # NaN where a choice was not active

    def __len__(self) -> int:
        return len(self.trials)

    def add(self, params: Params, loss: Loss) -> None:
        for key in params:
            if key not in self._columns:
                self._columns[key] = [math.nan] * len(self.trials)
        self.trials.append((params, loss))
        for key, column in self._columns.items():
            column.append(params.get(key, math.nan))

    def forget(self, params: Params) -> None:
        """Take out what was learned of these parameters."""
        kept = [trial for trial in self.trials if trial[0] != params]
        self.trials, self._columns = [], {}
        for trial in kept:
            self.add(*trial)

    def suggest(
        self,
        args: Any,
        rng: np.random.Generator,
        space: Mapping[Any, Any],
        running: list[tuple[Params, Loss]],
    ) -> dict[Any, Any]:
        """NNI's ``suggest`` with the trials that run as if they had the given losses."""
        losses = np.array([loss for _, loss in self.trials] + [loss for _, loss in running])
        orders: dict[bytes, NDArray[np.intp]] = {}
        params: dict[Any, Any] = {}
        for key, spec in space.items():
            if not spec.is_activated_in(params):
                continue
            column = self._columns.get(key, [math.nan] * len(self.trials))
            values = np.array([*column, *(item.get(key, math.nan) for item, _ in running)])
            active = ~np.isnan(values)
            name = active.tobytes()
            if name not in orders:
                orders[name] = _best_first(losses[active], _num_good(args, int(active.sum())))
            params[key] = _suggest_one(args, rng, spec, values[active][orders[name]])
        return params


def _best_first(losses: NDArray[np.float64], num_good: int) -> NDArray[np.intp]:
    """The order of losses ``(N,)`` or, of K objectives, ``(N, K)``; of several, only which ones are first."""
    if losses.ndim == 1:
        return np.argsort(losses, kind="stable")
    good = best_rows(-losses, num_good)
    return np.concatenate([good, np.setdiff1d(np.arange(len(losses)), good)])


def _num_good(args: Any, number: int) -> int:
    return min(math.ceil(args.gamma * math.sqrt(number)), int(args.linear_forgetting))


def _suggest_one(args: Any, rng: np.random.Generator, spec: Any, values: NDArray[np.float64]) -> Any:
    """NNI's ``suggest_parameter`` for a history that is sorted already, best first."""
    if len(values) < args.n_startup_jobs or is_constant(spec):
        return random_tuner.suggest_parameter(rng, spec)
    num_good = _num_good(args, len(values))
    good, bad = values[:num_good], values[num_good:]
    if spec.categorical:

        def shares(part: NDArray[np.float64]) -> NDArray[np.float64]:
            weights = tpe_tuner.linear_forgetting_weights(args, len(part))
            counts = np.bincount(part.astype(np.int64), weights, spec.size) + args.prior_weight
            return np.asarray(counts / sum(counts))

        p_good, p_bad = shares(good), shares(bad)
        samples = rng.choice(spec.size, args.n_ei_candidates, p=p_good)
        return samples[np.argmax(np.log(p_good[samples]) - np.log(p_bad[samples]))]
    if spec.normal_distributed:
        mu, sigma, clip = spec.mu, spec.sigma, None
    else:
        mu, sigma, clip = (spec.low + spec.high) * 0.5, spec.high - spec.low, (spec.low, spec.high)
    mixture = tpe_tuner.adaptive_parzen_normal(args, good, mu, sigma)
    samples = tpe_tuner.gmm1(args, rng, *mixture, clip)
    likely_good = tpe_tuner.gmm1_lpdf(args, samples, *mixture, clip)
    likely_bad = tpe_tuner.gmm1_lpdf(args, samples, *tpe_tuner.adaptive_parzen_normal(args, bad, mu, sigma), clip)
    return samples[np.argmax(likely_good - likely_bad)]
