"""What NNI's advisors that work in rounds, Hyperband and BOHB, need to survive accidents.

Life cycle of a round: the advisor gives so many candidates out, each trial reports while it trains and once at its end,
and when all have ended the best go on with more epochs. NNI's advisors never end a round, or raise, when one of
the candidates fails, and an advisor that raises ends the experiment.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from types import ModuleType
from typing import Any

import nni
from nni.runtime.env_vars import dispatcher_env_vars
from nni.runtime.tuner_command_channel import CommandType

from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.tuners.base import finite_score

__all__ = ["Rounds", "check_known", "check_numbers", "smallest_budget"]

_logger = logging.getLogger("nni.tuner.cssnas")


class Rounds:
    """Comes before NNI's advisor among a class's bases; :meth:`begin_rounds` comes last in its constructor.

    * NNI's advisors compare their ids, which are text, with a number, and so end at the first metric;
    * a trial that fails, or whose score is not finite, is the worst of its round;
    * messages are handled in the order in which they came; NNI handles ends of trials beside their results;
    * after ``nnictl resume`` no new candidate has the id of one that NNI runs again;
    * an exception is logged and the search goes on; where no candidate can be proposed, it ends. NNI's leaves the
      experiment RUNNING for ever without an advisor.
    """

    brackets: dict[Any, Any]

    def begin_rounds(self, module: ModuleType, optimize_mode: str) -> None:
        """Set what the mixin needs; ``module`` is NNI's, in which candidates are counted."""
        self._issued: set[str] = set()
        self._worst = -math.inf if optimize_mode == "maximize" else math.inf
        if dispatcher_env_vars.NNI_MODE == "resume":
            # The earlier sessions' numbers are not known here; a clock has passed them all.
            module._next_parameter_id = time.time_ns() // 1_000_000  # type: ignore[attr-defined]

    def enqueue_command(self, command: Any, data: Any) -> None:
        """One queue for everything."""
        self.default_command_queue.put((command, data))  # type: ignore[attr-defined]

    def process_command(self, command: Any, data: Any) -> None:
        """Handle a message of NNI's manager."""
        try:
            super().process_command(command, data)  # type: ignore[misc]
        except Exception as error:
            _logger.exception("%s failed, and the search goes on: %s", command, error)
            if command is CommandType.Initialize:
                self.send(CommandType.Initialized, "")  # type: ignore[attr-defined]
            elif command is CommandType.RequestTrialJobs:
                end = {"parameter_id": "-1_0_0", "parameter_source": "algorithm", "parameters": ""}
                self.send(CommandType.NoMoreTrialJobs, nni.dump(end))  # type: ignore[attr-defined]

    def _get_one_trial_job(self) -> Any:
        job = super()._get_one_trial_job()  # type: ignore[misc]
        if job is not None:
            self._issued.add(job["parameter_id"])
            # NNI's changes the budget in the same object for the next round.
            job["parameters"] = dict(job["parameters"])
        return job

    def is_created_in_previous_exp(self, param_id: Any) -> bool:
        """Whether a trial is not one of this session's, or is over."""
        return param_id not in self._issued

    def handle_add_customized_trial(self, data: Any) -> None:
        """Trials of an earlier session that NNI runs again are none of a round."""

    def handle_report_metric_data(self, data: Any) -> None:
        """Learn from an intermediate or final metric; one that is no finite number is the worst."""
        if "value" in data and finite_score(nni.load(data["value"])) is None:
            _logger.warning(
                "the score of parameters %s is %s; it counts as the worst", data["parameter_id"], data["value"]
            )
            data["value"] = nni.dump(self._worst)
        super().handle_report_metric_data(data)  # type: ignore[misc]

    def handle_trial_end(self, data: Any) -> None:
        """Learn that a trial has ended; one without a score is the worst of its round."""
        name = nni.load(data["hyper_params"])["parameter_id"]
        if name in self._issued:
            scores = self._scores(name)
            if data["event"] != "SUCCEEDED" or name not in scores:
                scores[name] = [sys.maxsize, self._worst]
        super().handle_trial_end(data)  # type: ignore[misc]
        # What comes after belongs to no round.
        self._issued.discard(name)

    def _scores(self, name: str) -> Any:
        bracket, number, _ = name.split("_")
        return self.brackets[bracket if bracket in self.brackets else int(bracket)].configs_perf[int(number)]


def check_known(arguments: Any, **choices: tuple[str, ...]) -> None:
    """Refuse attributes of ``arguments`` that are none of the known values. Raises ConfigError."""
    for name, known in choices.items():
        value = getattr(arguments, name)
        if value not in known:
            raise ConfigError(f"{name} is {value!r}{nearest(value, known)}")


def check_numbers(arguments: Any, **least: int) -> None:
    """Refuse attributes of ``arguments`` that are no whole numbers from what is given. Raises ConfigError."""
    for name, bound in least.items():
        number = getattr(arguments, name)
        if not isinstance(number, int) or number < bound:
            raise ConfigError(f"{name} is {number!r}; it must be a whole number from {bound}")


def smallest_budget(largest: int, eta: int, least: int = 1) -> int:
    """Epochs of the first round of the widest bracket, where no round may have fewer than ``least``."""
    budget = largest
    while budget >= eta * least:
        budget //= eta
    return budget
