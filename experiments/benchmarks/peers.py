"""Optuna as a peer of our tuners, in its best case.

A refused candidate is a pruned trial, which Optuna's samplers take for bad ones (a failed trial teaches them nothing). A
candidate that was proposed before is answered from a cache and does not count as an evaluation. With several objectives
Optuna sorts its whole history for every choice, and takes minutes to find something new by itself: there a repeat is told as
failed, which it passes over, and after a few in a row a random new candidate is tried.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from nni_cssnas.errors import ConfigError

__all__ = ["OptunaTuner"]

REPEATS, FEW_REPEATS = 500, 10
"""Repeats in a row after which a proposal is given out once more, so that no search goes on for ever; and, with several
objectives, after which one is drawn at random."""


class OptunaTuner:
    """A sampler of Optuna with the methods of an NNI tuner, for spaces of choices, one trial after the other.

    Parameters
    ----------
    seed
        Of the sampler.
    sampler
        Name of a class in ``optuna.samplers``; with its own defaults.
    objectives
        As our ``Tpe`` has them; None maximises the score.

    Raises
    ------
    ConfigError
        If Optuna is not installed.
    """

    def __init__(self, seed: int, sampler: str = "TPESampler", objectives: Mapping[str, str] | None = None) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                f"optuna cannot be imported ({error}); pip install 'optuna>=5', or leave it out with --tuners"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._pruned, self._failed = optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL
        self._objectives = dict(objectives or {"default": "maximize"})
        self._study = optuna.create_study(
            directions=list(self._objectives.values()), sampler=getattr(optuna.samplers, sampler)(seed=seed)
        )
        self._rng = np.random.default_rng(seed)
        self._space: Mapping[str, Any] = {}
        self._known: dict[str, list[float] | None] = {}  # the values of what was proposed, None: refused
        self._running: dict[int, tuple[str, Any]] = {}

    def update_search_space(self, space: Mapping[str, Any]) -> None:
        self._space = space

    def generate_parameters(self, number: int) -> dict[str, Any]:
        several = len(self._objectives) > 1
        for attempt in range(REPEATS + 1):
            if several and attempt >= FEW_REPEATS:
                drawn = {
                    name: spec["_value"][self._rng.integers(len(spec["_value"]))] for name, spec in self._space.items()
                }
                self._study.enqueue_trial(drawn)
            trial = self._study.ask()
            parameters = {name: trial.suggest_categorical(name, spec["_value"]) for name, spec in self._space.items()}
            key = json.dumps(parameters, sort_keys=True)
            if key not in self._known or attempt == REPEATS:
                break
            if several:
                self._study.tell(trial, state=self._failed)
            else:
                self._tell(trial, self._known[key])
        self._running[number] = key, trial
        return parameters

    def receive_trial_result(self, number: int, parameters: Any, value: Any) -> None:
        metric = value if isinstance(value, Mapping) else {"default": value}
        key, trial = self._running.pop(number)
        self._known[key] = [float(metric[name]) for name in self._objectives]
        self._tell(trial, self._known[key])

    def trial_end(self, number: int, success: bool) -> None:
        if number in self._running:
            key, trial = self._running.pop(number)
            self._known[key] = None
            self._tell(trial, None)

    def _tell(self, trial: Any, values: list[float] | None) -> None:
        if values is None:
            self._study.tell(trial, state=self._pruned)
        else:
            self._study.tell(trial, values)
