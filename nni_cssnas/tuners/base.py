"""What all tuners of this package share: pairing, history, constraints, screening, and NNI's habits.

Life cycle of a proposal: ``generate_parameters(id)`` -> the trial runs -> ``receive_trial_result(id, ...)``
and ``trial_end(id, success)``, in either order, from two threads; a trial that fails has only the
latter. NNI 3.0 may also send ids that the tuner never gave out. None of this may raise: an exception in
a tuner leaves the experiment RUNNING for ever.
"""

from __future__ import annotations

import abc
import logging
import math
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from nni import NoMoreTrialError, load
from nni.algorithms.hpo import random_tuner
from nni.algorithms.hpo.tpe_tuner import create_liar
from nni.common.hpo_utils import OptimizeMode, deformat_parameters, format_parameters, format_search_space
from nni.tuner import Tuner

from nni_cssnas.config import ConstraintsConfig, ScreenConfig
from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.tuners.journal import Entry, Journal

__all__ = ["Params", "SearchTuner", "finite_score"]

ATTEMPTS = 500
"""Proposals in a row that may break the constraints."""

Params = dict[Any, Any]
"""A proposal in NNI's internal form: key of a choice -> index of its value, or number."""

_logger = logging.getLogger("nni.tuner.cssnas")


class SearchTuner(Tuner, abc.ABC):  # type: ignore[misc]
    """Base of the tuners: a subclass says what to propose next and learns from losses.

    What it takes care of:

    * what was proposed and learned is kept in a journal (:mod:`nni_cssnas.tuners.journal`), so that
      ``nnictl resume`` continues with the right pairs, no repeated architecture and no second random start;
    * a failed trial, and one whose score is not finite, has an infinite loss;
    * running trials count as the best seen so far (constant liar), so that concurrent proposals differ;
    * proposals that break a constraint never become trials; of several, screening picks the best;
    * results and ends of trials may come in any order, twice, or for an unknown id.

    Parameters
    ----------
    optimize_mode
        ``maximize`` or ``minimize`` the trials' score.
    seed
        Of all random draws; the same seed and scores give the same proposals.
    screen
        ``{candidates: k, proxy: proxy.yml}`` (:class:`nni_cssnas.config.ScreenConfig`).
    constraints
        ``{max_params: ..., max_macs: ..., max_latency_ms: ..., proxy: proxy.yml}``
        (:class:`nni_cssnas.config.ConstraintsConfig`); ``{}`` checks only what the space itself declares.
    unique
        Whether a suggestion that was seen before is changed in a few random choices.
    liar
        What running trials count as: ``best``, ``mean``, ``worst``, or None for nothing.

    Raises
    ------
    ConfigError
        If an argument is wrong.
    """

    rng: np.random.Generator

    def __init__(
        self,
        optimize_mode: str = "maximize",
        seed: int | None = None,
        screen: dict[str, Any] | None = None,
        constraints: dict[str, Any] | None = None,
        *,
        unique: bool = True,
        liar: str | None = "best",
    ) -> None:
        modes = [mode.value for mode in OptimizeMode]
        if optimize_mode not in modes:
            raise ConfigError(f"optimize_mode is {optimize_mode!r}{nearest(optimize_mode, modes)}")
        if liar not in (None, "best", "mean", "worst"):
            raise ConfigError(f"constant_liar_type is {liar!r}{nearest(liar, ('best', 'mean', 'worst'))}")
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise ConfigError(f"seed is {seed!r}; it must be a whole number from 0")
        self.optimize_mode = OptimizeMode(optimize_mode)
        self.liar = create_liar(liar)
        self.unique = unique
        self.space: Mapping[Any, Any] = {}
        self._seed = seed
        self.rng = np.random.default_rng(seed)
        # NNI calls trial_end from another thread than the rest.
        self._lock = threading.RLock()
        self._params: dict[int, Params] = {}
        self._running_params: dict[int, Params] = {}
        self._judged: set[int] = set()
        self._journal = Journal(None)
        self._begun = False
        self._known: dict[str, float | None] = {}  # architectures of earlier sessions, and NNI's, with their scores
        self._screen = ScreenConfig(**screen) if screen else None
        self._screener: Any = None
        self._constraints = None if constraints is None else ConstraintsConfig(**constraints)
        self._feasibility: Any = None

    # ---- what a subclass gives --------------------------------------------------------------------

    def begin(self, space: Mapping[str, Any]) -> None:
        """The search space, as ``search_space.json`` has it, is known or has changed; :attr:`space` is NNI's form."""

    @abc.abstractmethod
    def suggest(self, running: list[tuple[Params, float]]) -> Params:
        """What to try next, given trials that run and the loss they count as."""

    @abc.abstractmethod
    def learn(self, params: Params, loss: float) -> None:
        """Remember a finished trial: smaller losses are better, infinity is a failure."""

    @abc.abstractmethod
    def forget(self, params: Params) -> None:
        """Take out what was learned of these parameters."""

    # ---- NNI's side -------------------------------------------------------------------------------

    def update_search_space(self, space: Any) -> None:
        """Take the choices of ``search_space.json``; the first time, what earlier sessions left in the journal."""
        with self._lock:
            self.space = format_search_space(space)
            self.dedup = Mutation(self.space, self.rng)
            self.begin(space)
            if not self._begun:
                self._begun = True
                self._journal = Journal.of_experiment()
                self.restore(self._journal.entries)

    def restore(self, entries: Iterable[Entry]) -> None:
        """Learn what another life of this tuner has proposed (:meth:`history`)."""
        judged = unjudged = 0
        with self._lock:
            for entry in list(entries):
                self._journal.keep(entry)
                params = self._format(entry.parameters)
                if params is None:
                    continue
                self.dedup.add(params)
                if entry.judged:
                    judged += 1
                    self._take_over(params, entry.score)
                else:
                    unjudged += 1
            if judged + unjudged:
                if self._seed is not None:
                    # The same seed, but not the random draws of the earlier sessions once more.
                    self.rng = self.dedup.rng = np.random.default_rng([self._seed, judged + unjudged])
                _logger.info("took over %d finished trials and %d others from the journal", judged, unjudged)

    def history(self) -> list[Entry]:
        """All that was proposed and learned, in this session and before."""
        with self._lock:
            return self._journal.entries

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> Any:
        """Propose parameters. Raises NoMoreTrialError if there are none left."""
        with self._lock:
            if self._screen is None or self._screen.candidates == 1:
                parameters = self._propose(parameter_id)
            else:
                parameters = self._screened(parameter_id, self._screen)
            self._journal.proposed(parameter_id, parameters)
            return parameters

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
            self._judge(parameter_id, params, score)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Learn that a trial failed; one that succeeded tells its score by itself, perhaps later."""
        with self._lock:
            self._running_params.pop(parameter_id, None)
            params = self._params.get(parameter_id)
            if params is not None and not success and parameter_id not in self._judged:
                self._judge(parameter_id, params, None)

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
            _logger.info("took over %d finished trials", taken)

    # ---- proposals --------------------------------------------------------------------------------

    def _propose(self, parameter_id: int) -> dict[str, Any]:
        """One proposal that keeps the constraints. Raises NoMoreTrialError if none is found."""
        lie = self.liar.lie() if self.liar and self._running_params else 0.0
        running = [(item, lie) for item in self._running_params.values()] if self.liar else []
        for _ in range(ATTEMPTS):
            params = self.suggest(running)
            params = self.dedup(params) if self.unique else params
            parameters: dict[str, Any] = deformat_parameters(params, self.space)
            problem = self._problem(parameters)
            if problem is None:
                self._params[parameter_id] = self._running_params[parameter_id] = params
                return parameters
            _logger.info("rejected %s: %s", parameters, problem)
            self.learn(params, math.inf)
        _logger.error("%d proposals in a row break the constraints, the last: %s; loosen them", ATTEMPTS, problem)
        raise NoMoreTrialError

    def _problem(self, parameters: Mapping[str, Any]) -> str | None:
        if self._constraints is None:
            return None
        if self._feasibility is None:
            from nni_cssnas.screening import Feasibility  # torch: only for who asks for it

            self._feasibility = Feasibility(self._constraints)
        return self._feasibility.problem(parameters)  # type: ignore[no-any-return]

    def _screened(self, parameter_id: int, screen: ScreenConfig) -> dict[str, Any]:
        """The best of several proposals; the others are forgotten and may be proposed again."""
        if self._screener is None:
            from nni_cssnas.screening import Screener  # torch: only for who screens

            self._screener = Screener.of(screen)
        proposals: list[tuple[float, int, dict[str, Any], Params]] = []
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

    # ---- history ----------------------------------------------------------------------------------

    def _format(self, parameters: Any) -> Params | None:
        try:
            return format_parameters(parameters, self.space)  # type: ignore[no-any-return]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            _logger.warning("left out a trial that does not fit the search space: %r", parameters)
            return None

    def _take_over(self, params: Params, score: float | None) -> bool:
        """Learn from a trial that was not proposed in this session; False if that is known already."""
        key = self.dedup.key(params)
        if key in self._known and (self._known[key] is not None or score is None):
            return False
        if key in self._known:
            self.forget(params)
        self._known[key] = score
        self.learn(params, self._loss(score))
        return True

    def _judge(self, parameter_id: int, params: Params, score: float | None) -> None:
        self._judged.add(parameter_id)
        self._running_params.pop(parameter_id, None)
        self._journal.judged(parameter_id, score)
        self.learn(params, self._loss(score))

    def _loss(self, score: float | None) -> float:
        if score is None:
            return math.inf
        loss = -score if self.optimize_mode is OptimizeMode.Maximize else score
        if self.liar:
            self.liar.update(loss)
        return loss


def finite_score(value: Any) -> float | None:
    """The finite number in a trial's final metric (a number, or a dict with ``default``), or None."""
    if isinstance(value, dict):
        value = value.get("default")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


class Mutation:
    """Makes a suggestion new by changing choices at random: one first, more if that finds nothing new."""

    def __init__(self, space: Mapping[Any, Any], rng: np.random.Generator) -> None:
        self.space = space
        self.rng = rng
        self.seen: set[str] = set()
        self.nested = any(spec.is_nested() for spec in space.values())
        finite = not self.nested and all(spec.categorical for spec in space.values())
        self.size = math.prod(spec.size for spec in space.values()) if finite else math.inf

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
                changed = self._complete(changed)
                if self.add(changed):
                    return changed
        return self._first_unseen(params, mutable)

    def _complete(self, params: Params) -> Params:
        """Where a choice opens others: those that are open now, drawn at random if they were not before."""
        if not self.nested:
            return params
        result: Params = {}
        for key, spec in self.space.items():
            if spec.is_activated_in(result):
                result[key] = params[key] if key in params else random_tuner.suggest_parameter(self.rng, spec)
        return result

    def _first_unseen(self, params: Params, mutable: list[Any]) -> Params:
        """Nearly everything is known: count through the space."""
        for counter in np.ndindex(*(self.space[key].size for key in mutable)):
            changed = self._complete({**params, **dict(zip(mutable, map(int, counter), strict=True))})
            if self.add(changed):
                return changed
        raise NoMoreTrialError
