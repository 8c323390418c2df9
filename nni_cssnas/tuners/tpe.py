"""NNI's TPE, repaired (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011)."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from nni import NoMoreTrialError, load
from nni.algorithms.hpo.tpe_tuner import Record, TpeTuner
from nni.common.hpo_utils import OptimizeMode, deformat_parameters, format_parameters, format_search_space

from nni_cssnas.config import ScreenConfig
from nni_cssnas.tuners.base import finite_score

__all__ = ["Tpe"]

_logger = logging.getLogger("nni.tuner.cssnas")


class Tpe(TpeTuner):  # type: ignore[misc]
    """NNI's ``TpeTuner`` that keeps searching.

    Differences to NNI's own:

    * a suggestion that was seen before is changed in a few random choices; NNI's walks a grid instead,
      which after some trials is most of what it proposes;
    * a failed trial, and one whose score is not finite, counts as the worst seen; NNI's forgets the first
      and is poisoned by the second;
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

    Raises
    ------
    CssnasError
        If ``screen`` is wrong.

    Examples
    --------
    In ``experiment.yml``::

        tuner:
          className: nni_cssnas.tuners.tpe.Tpe
          codeDirectory: .
          classArgs: {seed: 0, tpe_args: {n_startup_jobs: 8}}
    """

    def __init__(
        self,
        optimize_mode: str = "maximize",
        seed: int | None = None,
        tpe_args: dict[str, Any] | None = None,
        screen: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(optimize_mode=optimize_mode, seed=seed, tpe_args=tpe_args)
        # NNI calls trial_end from another thread than the rest.
        self._lock = threading.RLock()
        self._judged: set[int] = set()
        self._screen = ScreenConfig(**screen) if screen else None
        self._screener: Any = None

    def update_search_space(self, space: Any) -> None:
        """Take the choices of ``search_space.json``."""
        self.space = format_search_space(space)
        self.dedup = _Mutation(self.space, self.rng)

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> Any:
        """Propose parameters that were never proposed before. Raises NoMoreTrialError if there are none left."""
        with self._lock:
            if self._screen is None or self._screen.candidates == 1:
                return super().generate_parameters(parameter_id, **kwargs)
            return self._screened(parameter_id, self._screen, kwargs)

    def _screened(self, parameter_id: int, screen: ScreenConfig, kwargs: dict[str, Any]) -> Any:
        """The best of several proposals; the others are forgotten and may be proposed again."""
        if self._screener is None:
            from nni_cssnas.screening import Screener  # torch: only for who screens

            self._screener = Screener.of(screen)
        proposals: list[tuple[float, int, Any, Any]] = []
        for _ in range(screen.candidates):
            try:
                parameters = super().generate_parameters(parameter_id, **kwargs)
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
        """Learn from finished trials that NNI replays on ``nnictl resume``; what does not fit is left out."""
        with self._lock:
            taken = 0
            for trial in load(data) if isinstance(data, str) else data:
                trial = load(trial) if isinstance(trial, str) else trial
                try:
                    params = format_parameters(trial["parameter"], self.space)
                except (KeyError, TypeError, ValueError, IndexError):
                    _logger.warning("left out an imported trial that does not fit the search space: %r", trial)
                    continue
                self.dedup.add(params)
                self._remember(params, finite_score(trial.get("value")))
                taken += 1
            _logger.info("took over %d finished trials", taken)

    def _learn(self, parameter_id: int, params: Mapping[Any, Any], score: float | None) -> None:
        self._judged.add(parameter_id)
        self._running_params.pop(parameter_id, None)
        self._remember(params, score)

    def _remember(self, params: Mapping[Any, Any], score: float | None) -> None:
        """Add to TPE's history; it only sorts by loss, so infinity is simply the worst."""
        if score is None:
            loss = math.inf
        else:
            loss = -score if self.optimize_mode is OptimizeMode.Maximize else score
            if self.liar:
                self.liar.update(loss)
        for key, value in params.items():
            self._history[key].append(Record(value, loss))


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
        key = self._key(params)
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def discard(self, params: Mapping[Any, Any]) -> None:
        """Forget parameters that no trial was made of."""
        self.seen.discard(self._key(params))

    def _key(self, params: Mapping[Any, Any]) -> str:
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
