"""NNI's Hyperband, repaired (Li et al., Hyperband, JMLR 2018, arXiv:1603.06560)."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import dataclass
from typing import Any

import nni
import numpy as np
from nni.algorithms.hpo import hyperband_advisor

from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.tuners.base import finite_score

__all__ = ["Hyperband"]

_logger = logging.getLogger("nni.tuner.cssnas")


@dataclass(frozen=True)
class Budgets:
    """Arguments of :class:`Hyperband`, checked: raises ConfigError."""

    optimize_mode: str = "maximize"
    R: int = 18
    eta: int = 3
    exec_mode: str = "parallelism"
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("optimize_mode", ("maximize", "minimize")), ("exec_mode", ("parallelism", "serial"))):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name} is {value!r}{nearest(value, known)}")
        for name, least in (("R", 1), ("eta", 2)):
            number = getattr(self, name)
            if not isinstance(number, int) or number < least:
                raise ConfigError(f"{name} is {number!r}; it must be a whole number from {least}")

    @property
    def smallest(self) -> int:
        """Epochs of the first round of the widest bracket."""
        budget = self.R
        while budget >= self.eta:
            budget //= self.eta
        return budget


class Hyperband(hyperband_advisor.Hyperband):  # type: ignore[misc]
    """NNI's advisor that ends a round in spite of accidents. A trial trains for ``TRIAL_BUDGET`` epochs.

    Differences to NNI's own, which cannot be used with NNI 3.0:

    * the first metric of a trial does not end the advisor (NNI's compares its ids, which are text, with a number);
    * a trial that fails, or whose score is not finite, is the worst of its round; NNI's raises and the experiment hangs;
    * proposals come from ``seed``.

    After ``nnictl resume`` it begins new brackets, as NNI's; finished trials are kept in the records.

    Parameters
    ----------
    optimize_mode
        ``maximize`` or ``minimize``.
    R
        Epochs that the best candidates get.
    eta
        One of so many candidates goes on to the next round, with so many times the epochs.
    exec_mode
        ``parallelism``: a bracket may begin while another one runs. ``serial``: one after the other.
    seed
        Of the proposals.

    Raises
    ------
    ConfigError
        If an argument is wrong.

    Examples
    --------
    In ``experiment.yml``::

        advisor:
          className: nni_cssnas.tuners.hyperband.Hyperband
          codeDirectory: .
          classArgs: {R: 18, eta: 3, seed: 0}
    """

    def __init__(
        self,
        optimize_mode: str = "maximize",
        R: int = 18,  # noqa: N803 - the paper's name, and NNI's
        eta: int = 3,
        exec_mode: str = "parallelism",
        seed: int | None = None,
    ) -> None:
        Budgets(optimize_mode, R, eta, exec_mode, seed)
        super().__init__(optimize_mode, R, eta, exec_mode)
        self._seed = seed
        self._issued: set[str] = set()
        self._worst = -math.inf if optimize_mode == "maximize" else math.inf

    def handle_update_search_space(self, data: Any) -> None:
        """Take the search space; draw from the seed."""
        super().handle_update_search_space(data)
        if self._seed is not None:
            self.random_state = np.random.RandomState(self._seed)

    def _get_one_trial_job(self) -> Any:
        job = super()._get_one_trial_job()
        if job is not None:
            self._issued.add(job["parameter_id"])
            # NNI's changes the budget in the same object for the next round.
            job["parameters"] = dict(job["parameters"])
        return job

    def is_created_in_previous_exp(self, param_id: Any) -> bool:
        """Whether a trial is not one of this session's."""
        return param_id not in self._issued

    def handle_report_metric_data(self, data: Any) -> None:
        """Learn from an intermediate or final metric; one that is no finite number is the worst."""
        if "value" in data and finite_score(nni.load(data["value"])) is None:
            _logger.warning(
                "the score of parameters %s is %s; it counts as the worst", data["parameter_id"], data["value"]
            )
            data["value"] = nni.dump(self._worst)
        super().handle_report_metric_data(data)

    def handle_trial_end(self, data: Any) -> None:
        """Learn that a trial has ended; one without a score is the worst of its round."""
        name = nni.load(data["hyper_params"])["parameter_id"]
        if name in self._issued:
            bracket, number, _ = name.split("_")
            scores = self.brackets[bracket].configs_perf[int(number)]
            if data["event"] != "SUCCEEDED" or name not in scores:
                scores[name] = [sys.maxsize, self._worst]
        super().handle_trial_end(data)
