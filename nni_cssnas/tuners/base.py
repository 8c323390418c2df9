"""What all tuners of this package share: pairing, history, constraints, screening, and NNI's habits.

Life cycle of a proposal: ``generate_parameters(id)`` -> the trial runs -> ``receive_trial_result(id, ...)``
and ``trial_end(id, success)``, in either order, from two threads; a trial that fails has only the
latter. NNI 3.0 may also send ids that the tuner never gave out. The search space may change while trials run
(``nnictl update searchspace``). None of this may raise: an exception in a tuner leaves the experiment RUNNING for
ever. What is wrong with the arguments raises in the constructor, which NNI reports, and what takes longer than NNI
waits for a tuner (10 s) is only tried with the first proposal.
"""

from __future__ import annotations

import abc
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from nni import NoMoreTrialError, load
from nni.algorithms.hpo import random_tuner
from nni.algorithms.hpo.tpe_tuner import create_liar
from nni.common.hpo_utils import deformat_parameters, format_parameters
from nni.tuner import Tuner

from nni_cssnas.base.paths import make_importable
from nni_cssnas.base.selection import non_dominated
from nni_cssnas.config import ConstraintsConfig, ProxyConfig, ScreenConfig
from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.results.carried import without_record
from nni_cssnas.results.records import read_records
from nni_cssnas.tuners.dispatcher import trial_code_directory
from nni_cssnas.tuners.failures import ENOUGH, Failures
from nni_cssnas.tuners.journal import Entry, Journal
from nni_cssnas.tuners.objectives import SCORE, Objectives, finite_score, reported
from nni_cssnas.tuners.space import Mutation, Params, format_space

__all__ = ["Loss", "Params", "SearchTuner", "check_number", "finite_score"]

Loss = Any
"""Smaller is better, infinity is a failure: of one objective a float, of several a tuple of floats."""

Scores = tuple[float, ...]
"""A trial's objectives, as it reports them."""

ATTEMPTS, REJECTED = 500, 50
"""Proposals in a row that may break the constraints, and after how many of them one is mended."""

_logger = logging.getLogger("nni.tuner.cssnas")


class SearchTuner(Tuner, abc.ABC):  # type: ignore[misc]
    """Base of the tuners: a subclass says what to propose next and learns from losses.

    What it takes care of:

    * what was proposed and learned is kept in a journal (:mod:`nni_cssnas.tuners.journal`), so that
      ``nnictl resume`` continues with the right pairs, no repeated architecture and no second random start;
    * a failed trial, and one of whose scores is not finite, has an infinite loss;
    * running trials count as the best seen so far (constant liar), so that concurrent proposals differ;
    * proposals that break a constraint never become trials; of several, screening picks the best;
    * when the search space changes, what was learned is kept where its values are in the new one too;
    * when nothing but failures has come, all for one reason, the search ends
      (:class:`~nni_cssnas.tuners.failures.Failures`);
    * what goes wrong in the search itself is logged, and a random proposal takes its place;
    * results and ends of trials may come in any order, twice, or for an unknown id.

    Parameters
    ----------
    optimize_mode
        ``maximize`` or ``minimize`` the trials' score, where that is the only objective.
    seed
        Of all random draws; the same seed and scores give the same proposals.
    screen
        ``{candidates: k, proxy: proxy.yml, ray: auto}`` (:class:`nni_cssnas.config.ScreenConfig`).
    constraints
        ``{max_params: ..., max_macs: ..., max_latency_ms: ..., proxy: proxy.yml}``
        (:class:`nni_cssnas.config.ConstraintsConfig`); ``{}`` checks only what the space itself declares.
    unique
        Whether a suggestion that was seen before is changed in a few random choices.
    liar
        What running trials count as: ``best``, ``mean``, ``worst`` (in each objective), or None for nothing.
    objectives
        ``{score: maximize, params: minimize}``: what is wanted of which number in the trials' final metric; None is the
        score alone. Only tuners that can search for trade-offs take it.

    Raises
    ------
    ConfigError
        If an argument is wrong, or the ``proxy.yml`` of ``screen`` or ``constraints`` is missing or wrong.
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
        objectives: Any = None,
    ) -> None:
        self.objectives = Objectives.of(objectives, optimize_mode)
        if liar not in (None, "best", "mean", "worst"):
            raise ConfigError(f"constant_liar_type is {liar!r}{nearest(liar, ('best', 'mean', 'worst'))}")
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise ConfigError(f"seed is {seed!r}; it must be a whole number from 0")
        for name, section in (("screen", screen), ("constraints", constraints)):
            if section is not None and not isinstance(section, Mapping):
                raise ConfigError(f"{name} is {section!r}; it must be a mapping, as {{proxy: proxy.yml}}")
        self._liar = liar
        self._liars = self._make_liars()
        self.unique = unique
        self.space: Mapping[Any, Any] = {}
        self._seed = seed
        self.rng = np.random.default_rng(seed)
        # NNI calls trial_end from another thread than the rest.
        self._lock = threading.RLock()
        self._params: dict[int, Params] = {}
        self._running_params: dict[int, Params] = {}
        self._judged: set[int] = set()
        self._outdated: dict[int, dict[str, Any]] = {}  # proposals that the search space has no place for any more
        self._journal = Journal(None)
        self._failures = Failures()
        self._reported: set[str] = set()  # objectives that at least one trial has reported
        self._num_incomplete = 0
        self._last_metric: Any = None
        self._begun = False
        self._known: dict[str, Scores | None] = {}  # architectures of earlier sessions, and NNI's, with their scores
        self._screen = ScreenConfig(**screen) if screen else None
        self._constraints = None if constraints is None else ConstraintsConfig(**constraints)
        if self._screen is not None and self._screen.ray is not None and find_spec("ray") is None:
            raise ConfigError(
                f"screen: ray is {self._screen.ray!r}, but Ray is not installed; on every node: pip install 'nni-cssnas[ray]'"
            )
        self._screen_proxy = _load_proxy(self._screen, "screen") if self._screens else None
        self._constraints_proxy = _load_proxy(self._constraints, "constraints")
        self._screener: Any = None
        self._standing: Any = None  # the same on a cluster of Ray
        self._feasibility: Any = None
        self._costs: Any = None  # of what was screened

    # ---- what a subclass gives --------------------------------------------------------------------

    def begin(self, space: Mapping[str, Any]) -> None:
        """Start with nothing learned: ``space``, as ``search_space.json`` has it, is known or has changed.

        :attr:`space` is NNI's form of it. What was learned before is told once more by :meth:`learn`, where it fits.
        """

    @abc.abstractmethod
    def suggest(self, running: list[tuple[Params, Loss]]) -> Params:
        """What to try next, given trials that run and the loss they count as."""

    @abc.abstractmethod
    def learn(self, params: Params, loss: Loss) -> None:
        """Remember a finished trial: smaller losses are better, infinity is a failure."""

    @abc.abstractmethod
    def forget(self, params: Params) -> None:
        """Take out what was learned of these parameters."""

    # ---- NNI's side -------------------------------------------------------------------------------

    def update_search_space(self, space: Any) -> None:
        """Take the choices of ``search_space.json``; the first time, what earlier sessions left in the journal.

        Raises
        ------
        ConfigError
            If the first search space cannot be used. A wrong one while the search runs is logged, and the former stays.
        """
        with self._lock:
            if not self._begun:
                self._take_space(space)
                self._begun = True
                restored = self._journal.entries
                self._journal = Journal.of_experiment()
                self.restore([*self._journal.entries, *restored])
                with self._going_on("what finished while there was no tuner"):
                    self._take_finished()
                return
            try:
                self._change_space(space)
            except ConfigError as error:
                _logger.error("the new search space cannot be used, so the former stays: %s", error)
            except Exception:
                _logger.exception("the new search space cannot be used, so the former stays")

    def _take_space(self, space: Any) -> None:
        before = self.space
        self.space = format_space(space)
        try:
            self.begin(space)
        except Exception:
            self.space = before
            raise
        self.dedup = Mutation(self.space, self.rng)

    def _change_space(self, space: Any) -> None:
        """Take a new search space in the middle of the search, and what is known by value."""
        unjudged = {number: params for number, params in self._params.items() if number not in self._judged}
        given = {
            number: self._outdated.get(number) or deformat_parameters(params, self.space)
            for number, params in unjudged.items()
        }
        self._take_space(space)
        self._liars = self._make_liars()
        self._known = {}
        left_out = sum(not self._remember(entry) for entry in self._journal.entries)
        self._outdated = {}
        running, self._running_params = self._running_params, {}
        for number, parameters in given.items():
            params = self._format(parameters)
            if params is None:
                self._outdated[number] = parameters
                continue
            self._params[number] = params
            if number in running:
                self._running_params[number] = params
        _logger.info("the search space has changed: %d earlier proposals are not in the new one", left_out)

    def restore(self, entries: Iterable[Entry]) -> None:
        """Learn what another life of this tuner has proposed (:meth:`history`); before the space is known, keep it."""
        with self._lock:
            items = list(entries)
            for entry in items:
                self._journal.keep(entry)
            if not self._begun:
                return
            known = [entry for entry in items if self._remember(entry)]
            judged = sum(entry.judged for entry in known)
            if known:
                if self._seed is not None:
                    # The same seed, but not the random draws of the earlier sessions once more.
                    self.rng = self.dedup.rng = np.random.default_rng([self._seed, len(known)])
                _logger.info("took over %d finished trials and %d others", judged, len(known) - judged)

    def _take_finished(self) -> None:
        """Learn of trials that ended after the manager had: only their own records tell of their scores."""
        path, unjudged = self._journal.path, self._journal.unjudged
        if path is None or path.parent.name != "checkpoint" or not unjudged:
            return
        records = read_records(path.parents[1])
        missed = [record for record in records if record.finished and record.parameters in unjudged]
        if missed:
            self.import_data(
                [
                    {"parameter": record.parameters, "value": {**record.components, SCORE: record.score}}
                    for record in missed
                ]
            )

    def _remember(self, entry: Entry) -> bool:
        """Know a proposal of the journal, and learn its score; False if the search space has no place for it."""
        params = self._format(entry.parameters)
        if params is None:
            return False
        self.dedup.add(params)
        if not entry.judged:
            return True
        metric = entry.score if entry.objectives is None else entry.objectives
        if entry.score is None or not self.objectives.missing(metric):
            self._take_over(params, None if entry.score is None else self.objectives.read(metric))
        else:
            _logger.warning("%s is left out: of its objectives, only %s are known", entry.parameters, _names(metric))
        return True

    def history(self) -> list[Entry]:
        """All that was proposed and learned, in this session and before."""
        with self._lock:
            return self._journal.entries

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> Any:
        """Propose parameters. Raises NoMoreTrialError if there are none left, or every trial fails for one reason."""
        with self._lock:
            if self._failures.hopeless() or self._unreported():
                raise NoMoreTrialError
            try:
                parameters = self._screened(parameter_id) if self._screens else self._propose(parameter_id)
                self._journal.proposed(parameter_id, parameters)
            except NoMoreTrialError:
                raise
            except Exception as error:
                _logger.exception("nothing can be proposed, so the search ends: %s", error)
                raise NoMoreTrialError from None
            return parameters

    def receive_trial_result(self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any) -> None:
        """Learn from a trial's final metric."""
        with self._going_on("a result"):
            params = self._params.get(parameter_id)
            if params is None:
                _logger.warning("ignored a result for parameters %s, which were never proposed", parameter_id)
                return
            if parameter_id in self._judged:
                _logger.warning("ignored a second result for parameters %s", parameter_id)
                return
            scores = self.objectives.read(value)
            if scores is None:
                unusable = " and ".join(self.objectives.unusable(value))
                told = without_record(value)
                _logger.warning("the %s of parameters %s is %r; it counts as the worst", unusable, parameter_id, told)
            self._note_reported(value)
            self._judge(parameter_id, params, scores)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Learn that a trial failed; one that succeeded tells its score by itself, perhaps later."""
        with self._going_on("the end of a trial"):
            self._running_params.pop(parameter_id, None)
            params = self._params.get(parameter_id)
            if params is not None and not success and parameter_id not in self._judged:
                self._failures.add()
                self._judge(parameter_id, params, None)

    def import_data(self, data: Any) -> None:
        """Learn from finished trials that NNI replays on ``nnictl resume``; what is known, or does not fit, is left out."""
        with self._going_on("imported data"):
            taken = 0
            for trial in load(data) if isinstance(data, str) else data:
                trial = load(trial) if isinstance(trial, str) else trial
                params = self._format(trial.get("parameter"))
                if params is None:
                    continue
                self.dedup.add(params)
                value = trial.get("value")
                if value is not None and self._searches_trade_offs and self.objectives.missing(value):
                    _logger.warning("left out a trial that reports only %s: %r", _names(value), trial.get("parameter"))
                    continue
                scores = self.objectives.read(value)
                # A trial that failed in an earlier session may have been run again.
                if self._take_over(params, scores):
                    self._journal.imported(deformat_parameters(params, self.space), *self._told(scores))
                    taken += 1
            _logger.info("took over %d finished trials", taken)

    @contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Hold the lock, and log an exception, which would leave the experiment without a tuner."""
        with self._lock:
            try:
                yield
            except Exception:
                _logger.exception("%s could not be taken, and the search goes on", what)

    # ---- proposals --------------------------------------------------------------------------------

    def _propose(self, parameter_id: int) -> dict[str, Any]:
        """One proposal that keeps the constraints. Raises NoMoreTrialError if none is found."""
        lie = self._as_loss(tuple(liar.lie() for liar in self._liars)) if self._liars else 0.0
        running = [(item, lie) for item in self._running_params.values()] if self._liars else []
        for attempt in range(1, ATTEMPTS + 1):
            params = self._suggest(running)
            params = self.dedup(params) if self.unique else params
            parameters: dict[str, Any] = deformat_parameters(params, self.space)
            problem = self._problem(parameters)
            if problem is None:
                self._params[parameter_id] = self._running_params[parameter_id] = params
                return parameters
            _logger.info("rejected %s: %s", parameters, problem)
            self._learn(params, self._loss(None))
            if attempt % REJECTED == 0 and (mended := self._mended(parameters)) is not None:
                self._params[parameter_id] = self._running_params[parameter_id] = mended
                return deformat_parameters(mended, self.space)  # type: ignore[no-any-return]
        _logger.error("%d proposals in a row break the constraints, the last: %s; loosen them", ATTEMPTS, problem)
        raise NoMoreTrialError

    def _mended(self, parameters: Mapping[str, Any]) -> Params | None:
        """A new architecture near one that breaks the constraints, which keeps them; None if none is found."""
        try:
            near = self._feasibility.mended(parameters, self.rng)
        except Exception:
            _logger.exception("nothing near %s could be looked for", parameters)
            return None
        params = None if near is None else self._format(near)
        return params if params is not None and self.dedup.add(params) else None

    def _suggest(self, running: list[tuple[Params, float]]) -> Params:
        try:
            return self.suggest(running)
        except NoMoreTrialError:
            raise
        except Exception:
            _logger.exception("no suggestion could be made; a random one takes its place")
            params: Params = {}
            for key, spec in self.space.items():
                if spec.is_activated_in(params):
                    params[key] = random_tuner.suggest_parameter(self.rng, spec)
            return params

    def _problem(self, parameters: Mapping[str, Any]) -> str | None:
        """Which constraint is broken; None if there is none. Raises NoMoreTrialError if they cannot be checked."""
        if self._constraints is None:
            return None
        try:
            if self._feasibility is None:
                from nni_cssnas.judge.feasibility import Feasibility  # torch: only for who asks for it

                assert self._constraints_proxy is not None
                self._feasibility = Feasibility(self._constraints, self._constraints_proxy)
            return self._feasibility.problem(parameters)  # type: ignore[no-any-return]
        except Exception as error:
            if self._feasibility is None:
                _logger.exception("constraints cannot be checked, so the search ends: %s", error)
                raise NoMoreTrialError from None
            _logger.exception("the constraints of %s cannot be checked", parameters)
            return f"its constraints cannot be checked: {error}"

    @property
    def _screens(self) -> bool:
        return self._screen is not None and self._screen.candidates > 1

    def _screened(self, parameter_id: int) -> dict[str, Any]:
        """The best of several proposals by the untrained score, which the largest of them are given."""
        assert self._screen is not None
        proposed = self._several(parameter_id, self._screen.candidates)
        kept = proposed
        if self._screen.cascade > 1:
            kept = self._largest(proposed, math.ceil(len(proposed) / self._screen.cascade), self._macs)
        screened = self._screened_on_ray([parameters for parameters, _ in kept])
        proposals = [
            (self._untrained_scores(parameters, screened.get(index)), -index, parameters, params)
            for index, (parameters, params) in enumerate(kept)
        ]
        best = self._best_screened(proposals)
        return self._take(parameter_id, best[3], proposed)

    def propose_largest(
        self, parameter_id: int, candidates: int, value: Callable[[Mapping[str, Any]], float]
    ) -> dict[str, Any]:
        """In the place of :meth:`generate_parameters`: of so many proposals, that with the largest ``value``.

        Raises NoMoreTrialError if there are none left.
        """
        with self._lock:
            proposed = self._several(parameter_id, candidates)
            ((_, params),) = self._largest(proposed, 1, value)
            return self._take(parameter_id, params, proposed)

    def _several(self, parameter_id: int, candidates: int) -> list[tuple[dict[str, Any], Params]]:
        """So many proposals, or fewer if there are no more; none of them is running yet."""
        proposed: list[tuple[dict[str, Any], Params]] = []
        while len(proposed) < candidates:
            try:
                parameters = self._propose(parameter_id)
            except NoMoreTrialError:
                if not proposed:
                    raise
                break
            self._running_params.pop(parameter_id, None)
            proposed.append((parameters, self._params[parameter_id]))
        return proposed

    @staticmethod
    def _largest(
        proposed: list[tuple[dict[str, Any], Params]], number: int, value: Callable[[Mapping[str, Any]], float]
    ) -> list[tuple[dict[str, Any], Params]]:
        """The ``number`` of them with the largest values, in their order."""
        values = np.array([value(parameters) for parameters, _ in proposed])
        return [proposed[index] for index in sorted(np.argsort(-values, kind="stable")[:number])]

    def _take(self, parameter_id: int, params: Params, proposed: list[tuple[dict[str, Any], Params]]) -> dict[str, Any]:
        """Let one proposal run; the others are forgotten and may be proposed again."""
        taken = next(parameters for parameters, other in proposed if other is params)
        for _, other in proposed:
            if other is not params:
                self.dedup.discard(other)
        self._params[parameter_id] = self._running_params[parameter_id] = params
        return taken

    def _macs(self, parameters: Mapping[str, Any]) -> float:
        """Multiply-adds of the network that will be trained; none of what cannot be built, which is then not screened."""
        try:
            return float(self._target_costs().of(parameters, ["macs"])["macs"])
        except Exception as error:
            _logger.warning("the multiply-adds of %s cannot be counted: %s", parameters, error)
            return -math.inf

    def _best_screened(
        self, proposals: list[tuple[Scores, int, dict[str, Any], Params]]
    ) -> tuple[Scores, int, dict[str, Any], Params]:
        """The best of one objective; of several, any of those that no other is better than in all."""
        if len(proposals[0][0]) == 1:
            return max(proposals, key=lambda proposal: proposal[:2])
        front = non_dominated([scores for scores, *_ in proposals])
        return proposals[int(self.rng.choice(front))]

    def _screened_on_ray(self, proposals: list[dict[str, Any]]) -> dict[int, Any]:
        """What the cluster says of each, by its place; nothing where no cluster is asked for, or it fails."""
        if self._screen is None or self._screen.ray is None:
            return {}
        try:
            if self._standing is None:
                from nni_cssnas.judge.on_ray import Standing  # torch: only for who screens

                assert self._screen_proxy is not None
                config = self._screen_proxy.model_copy(update={"score": "untrained"})
                address, workers, gpus = self._screen.ray, self._screen.workers, self._screen.gpus_per_worker
                self._standing = Standing(config, address, workers, gpus)
            return dict(enumerate(self._standing.screen(proposals)))
        except Exception as error:
            _logger.exception("nothing can be screened on Ray, so this process screens from now on: %s", error)
            self._screen = self._screen.model_copy(update={"ray": None})
            if self._standing is not None:
                self._standing.end()
            return {}

    def _untrained_scores(self, parameters: Mapping[str, Any], screened: Any = None) -> Scores:
        """What screening compares, larger is better: the untrained score, and other objectives that it measures.

        It is the worst if it fails, so that the search goes on.
        """
        if not self._screens:
            return (-math.inf,) * len(self.objectives.names)
        try:
            if screened is None and self._screener is None:
                from nni_cssnas.judge.screening import Screener  # torch: only for who screens

                assert self._screen_proxy is not None
                self._screener = Screener(self._screen_proxy.model_copy(update={"score": "untrained"}))
            screened = screened or self._screener.screen(parameters)
            if not self._searches_trade_offs:
                return (float(screened.score),)
            known = {**self._beside(screened), SCORE: screened.score}
            # What screening does not measure is the same for all, so it decides nothing.
            scores = tuple(float(known.get(name, 0.0)) for name in self.objectives.names)
            return tuple(-loss for loss in self.objectives.losses(scores))
        except Exception as error:
            if self._screener is None:
                _logger.exception("nothing can be screened, so the search goes on without: %s", error)
                self._screen = None
            else:
                _logger.exception("%s cannot be screened", parameters)
            return (-math.inf,) * len(self.objectives.names)

    def _beside(self, screened: Any) -> dict[str, float]:
        """The objectives beside the score of what was screened, as a trial would report them."""
        found: dict[str, float] = self._target_costs().beside(
            self.objectives.names, screened.choices, screened.genotype, screened.components
        )
        return found

    def _target_costs(self) -> Any:
        """What counts the network that will be trained."""
        from nni_cssnas.judge.costs import Costs  # torch: only for who screens
        from nni_cssnas.spaces.factory import make_space

        if self._costs is None:
            if self._feasibility is not None:
                self._costs = self._feasibility.costs
            else:
                assert self._screen_proxy is not None
                self._costs = Costs(self._screen_proxy, make_space(self._screen_proxy.scored_space))
        return self._costs

    # ---- history ----------------------------------------------------------------------------------

    def _format(self, parameters: Any) -> Params | None:
        try:
            return format_parameters(parameters, self.space)  # type: ignore[no-any-return]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            _logger.warning("left out a trial that does not fit the search space: %r", parameters)
            return None

    def _learn(self, params: Params, loss: float) -> None:
        try:
            self.learn(params, loss)
        except Exception:
            _logger.exception("nothing was learned from %s", params)

    def _take_over(self, params: Params, scores: Scores | None) -> bool:
        """Learn from a trial that was not proposed in this session; False if that is known already."""
        key = self.dedup.key(params)
        if key in self._known and (self._known[key] is not None or scores is None):
            return False
        if key in self._known:
            self.forget(params)
        self._known[key] = scores
        if scores is not None:
            self._reported.update(self.objectives.names)
        self._learn(params, self._loss(scores))
        return True

    def _judge(self, parameter_id: int, params: Params, scores: Scores | None) -> None:
        self._judged.add(parameter_id)
        self._running_params.pop(parameter_id, None)
        self._journal.judged(parameter_id, *self._told(scores))
        if scores is not None:
            self._failures.end()
        if self._outdated.pop(parameter_id, None) is None:
            self._learn(params, self._loss(scores))

    @property
    def _searches_trade_offs(self) -> bool:
        """Whether anything but the score is wanted."""
        return self.objectives.names != (SCORE,)

    def _make_liars(self) -> list[Any]:
        """For each objective, what knows the best (mean, worst) loss so far."""
        return [] if self._liar is None else [create_liar(self._liar) for _ in self.objectives.names]

    def _loss(self, scores: Scores | None) -> Loss:
        losses = self.objectives.losses(scores)
        if scores is not None:
            for liar, loss in zip(self._liars, losses, strict=False):
                liar.update(loss)
        return self._as_loss(losses)

    @staticmethod
    def _as_loss(losses: tuple[float, ...]) -> Loss:
        return losses[0] if len(losses) == 1 else losses

    def _told(self, scores: Scores | None) -> tuple[float | None, dict[str, float] | None]:
        """A trial's end as the journal keeps it: a number, and all objectives by name unless it is the score alone."""
        if scores is None or not self._searches_trade_offs:
            return (None if scores is None else scores[0]), None
        return scores[0], dict(zip(self.objectives.names, scores, strict=True))

    def _note_reported(self, value: Any) -> None:
        """Remember which objectives trials report, and say so at once if one is not among it: it may be misspelt."""
        self._reported.update(reported(value))
        unknown = [name for name in self.objectives.missing(value) if name not in self._reported]
        if unknown and self._searches_trade_offs:
            self._num_incomplete += 1
            self._last_metric = without_record(value)
            if self._num_incomplete == 1:
                _logger.error("%s", self._explain(unknown, self._last_metric))

    def _unreported(self) -> bool:
        """Whether no trial reports an objective, so that the search is for nothing."""
        if self._num_incomplete < ENOUGH:
            return False
        unknown = [name for name in self.objectives.names if name not in self._reported]
        if unknown:
            _logger.error("%s; the search ends here", self._explain(unknown, self._last_metric))
        return bool(unknown)

    @staticmethod
    def _explain(unknown: list[str], value: Any) -> str:
        return (
            f"objectives names {', '.join(map(repr, unknown))}, which no trial reports: the final metric is {value!r:.300}; "
            "name what is in it (score is its 'default'), or report the objective"
        )


def _names(metric: Any) -> str:
    return ", ".join(sorted(map(str, reported(metric))))


def check_number(name: str, value: Any, *, whole: bool = False) -> None:
    """Refuse an argument that is no positive number, or too large to be meant. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not 0 < value <= 10**6:
        kind = "whole number" if whole else "number"
        raise ConfigError(f"{name} is {value!r}; it must be a {kind} above 0, and at most {10**6}")


class ProxyNotFoundError(ConfigError):
    """The ``proxy.yml`` that a tuner's ``classArgs`` name is in no folder that was looked into."""


def _load_proxy(section: ScreenConfig | ConstraintsConfig | None, setting: str) -> ProxyConfig | None:
    """A tuner's ``proxy.yml``: looked for in the working folder, where modules are (``codeDirectory``), beside the trials."""
    if section is None:
        return None
    trials = trial_code_directory()
    for folder in (Path.cwd(), *map(Path, sys.path), *([] if trials is None else [trials])):
        path = folder / section.proxy
        if path.is_file():
            # A space of the user's own lies beside its experiment.
            make_importable(path.parent, first=False)
            return ProxyConfig.load(path)
    raise ProxyNotFoundError(
        f"{setting}: proxy is {str(section.proxy)!r}, which is neither in {Path.cwd()} nor in codeDirectory "
        "nor in trialCodeDirectory"
    )
