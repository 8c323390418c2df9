"""NNI's TPE, repaired (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011)."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from nni import NoMoreTrialError, load
from nni.algorithms.hpo import random_tuner, tpe_tuner
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from nni.common.hpo_utils import OptimizeMode, deformat_parameters, format_parameters, format_search_space
from numpy.typing import NDArray

from nni_cssnas.config import ConstraintsConfig, ScreenConfig
from nni_cssnas.tuners.base import finite_score
from nni_cssnas.tuners.journal import Entry, Journal

__all__ = ["Tpe"]

ATTEMPTS = 500
"""Proposals in a row that may break the constraints."""

_logger = logging.getLogger("nni.tuner.cssnas")


class Tpe(TpeTuner):  # type: ignore[misc]
    """NNI's ``TpeTuner`` that keeps searching.

    Differences to NNI's own:

    * a suggestion that was seen before is changed in a few random choices; NNI's walks a grid instead,
      which after some trials is most of what it proposes;
    * a failed trial, and one whose score is not finite, counts as the worst seen; NNI's forgets the first
      and is poisoned by the second;
    * what was proposed and learned is kept in a journal (:mod:`nni_cssnas.tuners.journal`), so that
      ``nnictl resume`` continues with the right pairs, no repeated architecture and no second random start;
    * a proposal takes milliseconds however long the history is, where NNI's sorts it once for every choice;
    * results and ends of trials may come in any order, twice, or for an unknown id; NNI's raises and the experiment
      hangs;
    * scores are maximised by default.

    Parameters
    ----------
    optimize_mode
        ``maximize`` or ``minimize`` the trials' score.
    seed
        Of all random draws; the same seed and scores give the same proposals.
    tpe_args
        See :class:`nni.algorithms.hpo.tpe_tuner.TpeArguments`. The first ``n_startup_jobs`` (20) proposals are random.
    screen
        ``{candidates: k, proxy: proxy.yml}``: TPE proposes k different candidates, and the best by the untrained
        score becomes the trial (:class:`nni_cssnas.config.ScreenConfig`). Without it, plain TPE.
    constraints
        ``{max_params: ..., max_macs: ..., max_latency_ms: ..., proxy: proxy.yml}``
        (:class:`nni_cssnas.config.ConstraintsConfig`): what breaks one counts as the worst and never becomes a trial.
        ``{}`` checks only the constraints that the space itself declares.

    Raises
    ------
    CssnasError
        If ``screen`` or ``constraints`` is wrong.

    Examples
    --------
    In ``experiment.yml``::

        tuner:
          className: nni_cssnas.tuners.tpe.Tpe
          codeDirectory: .
          classArgs: {seed: 0, tpe_args: {n_startup_jobs: 8}}
    """

    rng: np.random.Generator

    def __init__(
        self,
        optimize_mode: str = "maximize",
        seed: int | None = None,
        tpe_args: dict[str, Any] | None = None,
        screen: dict[str, Any] | None = None,
        constraints: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(optimize_mode=optimize_mode, seed=seed, tpe_args=tpe_args)
        # NNI calls trial_end from another thread than the rest.
        self._lock = threading.RLock()
        self._seed = seed
        self._judged: set[int] = set()
        self._journal = Journal(None)
        self._begun = False
        self._known: dict[str, float | None] = {}  # architectures of earlier sessions, and NNI's, with their scores
        self._table = _Table()
        self._screen = ScreenConfig(**screen) if screen else None
        self._screener: Any = None
        self._constraints = None if constraints is None else ConstraintsConfig(**constraints)
        self._feasibility: Any = None

    def update_search_space(self, space: Any) -> None:
        """Take the choices of ``search_space.json``; the first time, what earlier sessions left in the journal."""
        with self._lock:
            self.space = format_search_space(space)
            self.dedup = _Mutation(self.space, self.rng)
            if not self._begun:
                self._begun = True
                self._journal = Journal.of_experiment()
                self._restore(self._journal.entries)

    def _restore(self, entries: list[Entry]) -> None:
        judged = 0
        for entry in entries:
            params = self._format(entry.parameters)
            if params is None:
                continue
            self.dedup.add(params)
            if entry.judged:
                judged += 1
                self._take_over(params, entry.score)
        if entries:
            if self._seed is not None:
                # The same seed, but not the random draws of the earlier sessions once more.
                rng = np.random.default_rng([self._seed, len(entries)])
                self.rng, self.dedup.rng = rng, rng
            _logger.info("took over %d finished trials and %d others from the journal", judged, len(entries) - judged)

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> Any:
        """Propose parameters that were never proposed before. Raises NoMoreTrialError if there are none left."""
        with self._lock:
            if self._screen is None or self._screen.candidates == 1:
                parameters = self._propose(parameter_id)
            else:
                parameters = self._screened(parameter_id, self._screen)
            self._journal.proposed(parameter_id, parameters)
            return parameters

    def _propose(self, parameter_id: int) -> dict[str, Any]:
        """One proposal of TPE that keeps the constraints. Raises NoMoreTrialError if none is found."""
        running = list(self._running_params.values()) if self.liar else []
        lie = self.liar.lie() if running else 0.0
        for _ in range(ATTEMPTS):
            params = self.dedup(self._table.suggest(self.args, self.rng, self.space, [(item, lie) for item in running]))
            parameters: dict[str, Any] = deformat_parameters(params, self.space)
            problem = self._problem(parameters)
            if problem is None:
                self._params[parameter_id] = self._running_params[parameter_id] = params
                return parameters
            _logger.info("rejected %s: %s", parameters, problem)
            self._remember(params, None)
        _logger.error("%d proposals in a row break the constraints, the last: %s; loosen them", ATTEMPTS, problem)
        raise NoMoreTrialError

    def _problem(self, parameters: Mapping[str, Any]) -> str | None:
        if self._constraints is None:
            return None
        if self._feasibility is None:
            from nni_cssnas.screening import Feasibility  # torch: only for who asks for it

            self._feasibility = Feasibility(self._constraints)
        return self._feasibility.problem(parameters)  # type: ignore[no-any-return]

    def _screened(self, parameter_id: int, screen: ScreenConfig) -> Any:
        """The best of several proposals; the others are forgotten and may be proposed again."""
        if self._screener is None:
            from nni_cssnas.screening import Screener  # torch: only for who screens

            self._screener = Screener.of(screen)
        proposals: list[tuple[float, int, Any, Any]] = []
        for _ in range(screen.candidates):
            try:
                parameters = self._propose(parameter_id)
            except NoMoreTrialError:
                if not proposals:
                    raise
                break
            params = self._params[parameter_id]
            self._running_params.pop(parameter_id, None)
            proposals.append((self._screener.screen(parameters).score, -len(proposals), parameters, params))
        best = max(proposals, key=lambda proposal: proposal[:2])
        for proposal in proposals:
            if proposal is not best:
                self.dedup.discard(proposal[3])
        self._params[parameter_id] = self._running_params[parameter_id] = best[3]
        return best[2]

    def receive_trial_result(self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any) -> None:
        """Learn from a trial's final metric."""
        with self._lock:
            params = self._params.get(parameter_id)
            if params is None:
                _logger.warning("ignored a result for parameters %s, which were never proposed", parameter_id)
                return
            if parameter_id in self._judged:
                _logger.warning("ignored a second result for parameters %s", parameter_id)
                return
            score = finite_score(value)
            if score is None:
                _logger.warning("the score of parameters %s is %r; it counts as the worst", parameter_id, value)
            self._learn(parameter_id, params, score)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Learn that a trial failed; one that succeeded tells its score by itself, perhaps later."""
        with self._lock:
            self._running_params.pop(parameter_id, None)
            params = self._params.get(parameter_id)
            if params is not None and not success and parameter_id not in self._judged:
                self._learn(parameter_id, params, None)

    def import_data(self, data: Any) -> None:
        """Learn from finished trials that NNI replays on ``nnictl resume``; what is known, or does not fit, is left out."""
        with self._lock:
            taken = 0
            for trial in load(data) if isinstance(data, str) else data:
                trial = load(trial) if isinstance(trial, str) else trial
                params = self._format(trial.get("parameter"))
                if params is None:
                    continue
                self.dedup.add(params)
                score = finite_score(trial.get("value"))
                # A trial that failed in an earlier session may have been run again.
                if self._take_over(params, score):
                    self._journal.imported(deformat_parameters(params, self.space), score)
                    taken += 1
            _logger.info("took over %d finished trials from NNI", taken)

    def _format(self, parameters: Any) -> dict[Any, Any] | None:
        try:
            return format_parameters(parameters, self.space)  # type: ignore[no-any-return]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            _logger.warning("left out a trial that does not fit the search space: %r", parameters)
            return None

    def _take_over(self, params: Mapping[Any, Any], score: float | None) -> bool:
        """Learn from a trial that was not proposed in this session; False if that is known already."""
        key = self.dedup.key(params)
        if key in self._known and (self._known[key] is not None or score is None):
            return False
        if key in self._known:
            self._table.forget(params)
        self._known[key] = score
        self._remember(params, score)
        return True

    def _learn(self, parameter_id: int, params: Mapping[Any, Any], score: float | None) -> None:
        self._judged.add(parameter_id)
        self._running_params.pop(parameter_id, None)
        self._journal.judged(parameter_id, score)
        self._remember(params, score)

    def _remember(self, params: Mapping[Any, Any], score: float | None) -> None:
        """Add to TPE's history; it only sorts by loss, so infinity is simply the worst."""
        if score is None:
            loss = math.inf
        else:
            loss = -score if self.optimize_mode is OptimizeMode.Maximize else score
            if self.liar:
                self.liar.update(loss)
        self._table.add(params, loss)


class _Table:
    """TPE's history: NNI's estimator on it, but sorted once for a proposal instead of once for every choice.

    A choice that was not active in a trial (nested spaces) has no value there.
    """

    def __init__(self) -> None:
        self.trials: list[tuple[Mapping[Any, Any], float]] = []
        self._columns: dict[Any, list[float]] = {}  # NaN where a choice was not active

    def __len__(self) -> int:
        return len(self.trials)

    def add(self, params: Mapping[Any, Any], loss: float) -> None:
        for key in params:
            if key not in self._columns:
                self._columns[key] = [math.nan] * len(self.trials)
        self.trials.append((params, loss))
        for key, column in self._columns.items():
            column.append(params.get(key, math.nan))

    def forget(self, params: Mapping[Any, Any]) -> None:
        """Take out what was learned of these parameters."""
        kept = [trial for trial in self.trials if dict(trial[0]) != dict(params)]
        self.trials, self._columns = [], {}
        for trial in kept:
            self.add(*trial)

    def suggest(
        self,
        args: Any,
        rng: np.random.Generator,
        space: Mapping[Any, Any],
        running: list[tuple[Mapping[Any, Any], float]],
    ) -> dict[Any, Any]:
        """NNI's ``suggest`` with the trials that run as if they had the given losses."""
        losses = np.array([loss for _, loss in self.trials] + [loss for _, loss in running])
        order = np.argsort(losses, kind="stable")
        params: dict[Any, Any] = {}
        for key, spec in space.items():
            if not spec.is_activated_in(params):
                continue
            column = self._columns.get(key, [math.nan] * len(self.trials))
            values = np.array([*column, *(item.get(key, math.nan) for item, _ in running)])[order]
            params[key] = _suggest_one(args, rng, spec, values[~np.isnan(values)])
        return params


def _suggest_one(args: Any, rng: np.random.Generator, spec: Any, values: NDArray[np.float64]) -> Any:
    """NNI's ``suggest_parameter`` for a history that is sorted already, best first."""
    if len(values) < args.n_startup_jobs:
        return random_tuner.suggest_parameter(rng, spec)
    num_good = min(math.ceil(args.gamma * math.sqrt(len(values))), args.linear_forgetting)
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


class _Mutation:
    """Makes a suggestion new by changing choices at random: one first, more if that finds nothing new.

    Has the form of NNI's ``Deduplicator``, in whose place it stands.
    """

    def __init__(self, space: Mapping[Any, Any], rng: np.random.Generator) -> None:
        self.space = space
        self.rng = rng
        self.seen: set[str] = set()
        finite = all(spec.categorical and not spec.is_nested() for spec in space.values())
        self.size = math.prod(spec.size for spec in space.values()) if finite else math.inf

    def add(self, params: Mapping[Any, Any]) -> bool:
        """Remember parameters; False if they were known."""
        key = self.key(params)
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def discard(self, params: Mapping[Any, Any]) -> None:
        """Forget parameters that no trial was made of."""
        self.seen.discard(self.key(params))

    def key(self, params: Mapping[Any, Any]) -> str:
        """Names the parameters."""
        return repr(sorted(deformat_parameters(dict(params), self.space).items()))

    def __call__(self, params: dict[Any, Any]) -> dict[Any, Any]:
        """The parameters, changed if they were known. Raises NoMoreTrialError when everything is known."""
        if self.add(params):
            return params
        mutable = [key for key in params if self.space[key].categorical and self.space[key].size > 1]
        if not mutable or len(self.seen) >= self.size:
            raise NoMoreTrialError
        for number in range(1, len(mutable) + 1):
            for _ in range(20 * len(mutable)):
                changed = dict(params)
                for position in self.rng.choice(len(mutable), size=number, replace=False):
                    key = mutable[position]
                    # any other value, each as likely
                    changed[key] = int(
                        (changed[key] + self.rng.integers(1, self.space[key].size)) % self.space[key].size
                    )
                if self.add(changed):
                    return changed
        return self._first_unseen(params, mutable)

    def _first_unseen(self, params: dict[Any, Any], mutable: list[Any]) -> dict[Any, Any]:
        """Nearly everything is known: count through the space."""
        for counter in np.ndindex(*(self.space[key].size for key in mutable)):
            changed = {**params, **dict(zip(mutable, map(int, counter), strict=True))}
            if self.add(changed):
                return changed
        raise NoMoreTrialError
