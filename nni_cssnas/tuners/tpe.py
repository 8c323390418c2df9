"""The tree-structured Parzen estimator (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from nni.algorithms.hpo import random_tuner, tpe_tuner
from numpy.typing import NDArray

from nni_cssnas.base.selection import best_rows
from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.tuners.base import Loss, SearchTuner, check_number
from nni_cssnas.tuners.mixture import Mixture
from nni_cssnas.tuners.space import Params, is_constant

__all__ = ["Tpe", "TpeArguments"]

FEW = 250
"""Shares of good trials are of at most so many, so that the good ones stay good in a long search (Optuna: a tenth, at most 25)."""


@dataclass(frozen=True)
class TpeArguments:
    """What the estimator can be told; the names are those of NNI's TPE.

    Attributes
    ----------
    constant_liar_type
        What running trials count as: ``best``, ``mean``, ``worst`` (in each objective), or None for nothing.
    n_startup_jobs
        So many proposals at the start are random; failed trials count too.
    n_ei_candidates
        Among so many the most promising one is proposed. Fewer look around more.
    prior_weight
        How many trials each value of a choice counts as before it was tried; with several objectives, what the search space
        weighs in the kernel around each trial.
    gamma
        Share of the trials that is good. Of several, the promise of a candidate is the mean.
    """

    constant_liar_type: str | None = "best"
    n_startup_jobs: int = 10
    n_ei_candidates: int = 12
    prior_weight: float = 0.3
    gamma: float | Sequence[float] = (0.05, 0.1, 0.2, 0.4)

    def __post_init__(self) -> None:
        check_number("n_startup_jobs", self.n_startup_jobs, whole=True)
        check_number("n_ei_candidates", self.n_ei_candidates, whole=True)
        check_number("prior_weight", self.prior_weight)
        if not self.shares:
            raise ConfigError("gamma is empty; it must be a number between 0 and 1, or a list of such")
        for share in self.shares:
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
                raise ConfigError(f"gamma is {self.gamma!r}; it must be a number between 0 and 1, or a list of such")

    @property
    def shares(self) -> tuple[Any, ...]:
        """``gamma`` as several."""
        return tuple(self.gamma) if isinstance(self.gamma, (list, tuple)) else (self.gamma,)


SEVERAL = {"n_ei_candidates": 8, "prior_weight": 1.0, "gamma": 0.2}
"""Defaults where there are several objectives."""


class Tpe(SearchTuner):
    """A tree-structured Parzen estimator that keeps searching.

    It proposes what is dense among good trials and not among bad ones, each choice by itself. Differences to NNI's
    ``TpeTuner``, besides those that all tuners of this package have (:class:`~nni_cssnas.tuners.base.SearchTuner`):

    * candidates that were seen before are passed over; if all were, one is changed in a few random choices. NNI's walks
      a grid instead, which after some trials is most of what it proposes;
    * whole candidates are compared, as Optuna does, and not the values of each choice by themselves;
    * several shares of the trials are called good in turn, and the mean over them decides: one share alone either knows
      only few good trials or takes mediocre ones for as good as the best;
    * a value counts a third of a trial before it was tried (NNI's: one), the random start is half as long (as Optuna's), and no
      trial is forgotten;
    * a failed trial, and one whose score is not finite, counts as the worst seen; NNI's forgets the first
      and is poisoned by the second;
    * a proposal takes milliseconds however long the history is, where NNI's sorts it once for every choice;
    * scores are maximised by default.

    With several objectives it is the multi-objective TPE (Ozaki et al., arXiv:2009.13090): non-dominated sorting and
    hypervolume decide which trials are good (:func:`~nni_cssnas.base.selection.best_rows`), and all of them weigh alike,
    as in Optuna 5; the paper and Optuna 4 weigh them by their contributions to the hypervolume. The good trials lie in
    different places then, so a candidate is a neighbour of one of them, and not a mix of all
    (:class:`~nni_cssnas.tuners.mixture.Mixture`, Optuna's multivariate TPE).

    Parameters
    ----------
    optimize_mode, seed, screen, constraints, objectives
        As in :class:`~nni_cssnas.tuners.base.SearchTuner`.
    tpe_args
        See :class:`TpeArguments`. The first ``n_startup_jobs`` (10) proposals are random.

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
        known = [item.name for item in fields(TpeArguments)]
        for name in tpe_args or {}:
            if name not in known:
                raise ConfigError(f"unknown key {name!r} in tpe_args{nearest(name, known)}")
        several = isinstance(objectives, Mapping) and len(objectives) > 1
        self.args = TpeArguments(**{**(SEVERAL if several else {}), **(tpe_args or {})})
        super().__init__(
            optimize_mode, seed, screen, constraints, liar=self.args.constant_liar_type, objectives=objectives
        )
        self._table = _Table()

    def begin(self, space: Mapping[str, Any]) -> None:
        """Start with an empty history."""
        self._table = _Table()

    def suggest(self, running: list[tuple[Params, Loss]]) -> Params:
        """The most promising candidate that was not seen before; the most promising one of all if all were."""
        candidates = self._table.suggest(self.args, self.rng, self.space, running)
        for params in candidates:
            if self.dedup.key(params) not in self.dedup.seen:
                return params
        return candidates[0]

    def learn(self, params: Params, loss: Loss) -> None:
        """Remember a finished trial; TPE only sorts by loss, so infinity is simply the worst."""
        self._table.add(params, loss)

    def forget(self, params: Params) -> None:
        """Take out what was learned of these parameters."""
        self._table.forget(params)


class _Table:
    """TPE's history, column by column; a choice that was not active in a trial (nested spaces) has no value there."""

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
        args: TpeArguments,
        rng: np.random.Generator,
        space: Mapping[Any, Any],
        running: list[tuple[Params, Loss]],
    ) -> list[Params]:
        """Candidates, most promising first; trials that run count as if they had the given losses."""
        losses = np.array([loss for _, loss in self.trials] + [loss for _, loss in running], dtype=float)
        num_finite = int(np.isfinite(losses if losses.ndim == 1 else losses.sum(axis=1)).sum())
        if len(losses) < args.n_startup_jobs or not num_finite:
            return [_random(rng, space)]
        numbers = [math.ceil(share * min(num_finite, FEW)) for share in args.shares]
        order = _best_first(losses, max(numbers))
        columns = {}
        for key in space:
            column = self._columns.get(key, [math.nan] * len(self.trials))
            columns[key] = np.array([*column, *(item.get(key, math.nan) for item, _ in running)])[order]
        propose = _propose_one_by_one if losses.ndim == 1 else _propose_together
        candidates, promise = propose(args, rng, space, columns, numbers)
        return [candidates[index] for index in np.argsort(-promise, kind="stable")]


def _propose_together(
    args: TpeArguments,
    rng: np.random.Generator,
    space: Mapping[Any, Any],
    columns: Mapping[Any, NDArray[np.float64]],
    numbers: Sequence[int],
) -> tuple[list[Params], NDArray[np.float64]]:
    """Candidates near good trials, and their promise; ``columns`` are sorted, and the first ``numbers`` of them are good."""
    candidates: list[Params] = []
    splits = []
    for turn, number in enumerate(numbers):
        good, bad = (
            Mixture(space, {key: column[part] for key, column in columns.items()}, args.prior_weight)
            for part in (slice(number), slice(number, None))
        )
        splits.append((good, bad))
        candidates += good.draw(rng, len(range(turn, args.n_ei_candidates, len(numbers))))
    promise = [good.log_density(candidates) - bad.log_density(candidates) for good, bad in splits]
    return candidates, np.asarray(np.mean(promise, axis=0))


def _propose_one_by_one(
    args: TpeArguments,
    rng: np.random.Generator,
    space: Mapping[Any, Any],
    columns: Mapping[Any, NDArray[np.float64]],
    numbers: Sequence[int],
) -> tuple[list[Params], NDArray[np.float64]]:
    """As :func:`_propose_together`, but from the density of each choice by itself."""
    drawn, promise = {}, {}
    for key, spec in space.items():
        splits = [_Split(columns[key][:number], columns[key][number:]) for number in numbers]
        drawn[key], promise[key] = _Choice(args, spec).propose(rng, splits)
    candidates = []
    totals = np.zeros(args.n_ei_candidates)
    for index in range(args.n_ei_candidates):
        params: Params = {}
        for key, spec in space.items():
            if spec.is_activated_in(params):
                params[key] = drawn[key][index]
                totals[index] += promise[key][index]
        candidates.append(params)
    return candidates, totals


def _random(rng: np.random.Generator, space: Mapping[Any, Any]) -> Params:
    params: Params = {}
    for key, spec in space.items():
        if spec.is_activated_in(params):
            params[key] = random_tuner.suggest_parameter(rng, spec)
    return params


def _best_first(losses: NDArray[np.float64], num_good: int) -> NDArray[np.intp]:
    """The order of losses ``(N,)`` or, of K objectives, ``(N, K)``; of several, only which ones are first."""
    if losses.ndim == 1:
        return np.argsort(losses, kind="stable")
    good = best_rows(-losses, num_good)
    return np.concatenate([good, np.setdiff1d(np.arange(len(losses)), good)])


class _Split:
    """Values of one choice in good and in bad trials; those in which it was not active have none."""

    def __init__(self, good: NDArray[np.float64], bad: NDArray[np.float64]) -> None:
        self.good, self.bad = good[~np.isnan(good)], bad[~np.isnan(bad)]


class _Choice:
    """Where good trials are dense in one choice, and bad ones are not."""

    def __init__(self, args: TpeArguments, spec: Any) -> None:
        self.args, self.spec = args, spec
        # NNI's estimator for numbers, without its forgetting, which is by rank and not by age.
        self._nnis = tpe_tuner.TpeArguments(prior_weight=args.prior_weight, linear_forgetting=10**9)

    def propose(self, rng: np.random.Generator, splits: list[_Split]) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Values drawn where good ones are dense, by each split in turn, and their promise: the mean over all splits."""
        turns = np.arange(self.args.n_ei_candidates) % len(splits)
        if is_constant(self.spec):
            values = np.array([random_tuner.suggest_parameter(rng, self.spec) for _ in turns])
            return values, np.zeros(len(turns))
        if self.spec.categorical:
            good = np.array([self._shares(split.good) for split in splits])
            bad = np.array([self._shares(split.bad) for split in splits])
            values = np.array([rng.choice(self.spec.size, p=good[turn]) for turn in turns])
            return values, np.log(good / bad).mean(axis=0)[values]
        mixtures = [self._mixture(split.good) for split in splits]
        values = np.empty(len(turns))
        for turn in np.unique(turns):
            args = self._nnis._replace(n_ei_candidates=int((turns == turn).sum()))
            values[turns == turn] = tpe_tuner.gmm1(args, rng, *mixtures[turn], self._clip)
        promise = [
            tpe_tuner.gmm1_lpdf(self._nnis, values, *mixture, self._clip)
            - tpe_tuner.gmm1_lpdf(self._nnis, values, *self._mixture(split.bad), self._clip)
            for mixture, split in zip(mixtures, splits, strict=True)
        ]
        return values, np.mean(promise, axis=0)

    def _shares(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        counts = np.bincount(values.astype(np.int64), minlength=self.spec.size) + self.args.prior_weight
        return np.asarray(counts / counts.sum())

    def _mixture(self, values: NDArray[np.float64]) -> Any:
        spec = self.spec
        if spec.normal_distributed:
            return tpe_tuner.adaptive_parzen_normal(self._nnis, values, spec.mu, spec.sigma)
        return tpe_tuner.adaptive_parzen_normal(self._nnis, values, (spec.low + spec.high) * 0.5, spec.high - spec.low)

    @property
    def _clip(self) -> tuple[float, float] | None:
        return None if self.spec.normal_distributed else (self.spec.low, self.spec.high)
