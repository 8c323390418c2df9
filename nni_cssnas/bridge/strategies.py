"""The tuners of this package as strategies of NNI's ``NasExperiment``."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from nni import NoMoreTrialError
from nni.mutable import SampleValidationError
from nni.nas.execution.event import FinalMetricEvent, ModelEventType, TrainingEndEvent
from nni.nas.space import ModelStatus
from nni.nas.strategy import Strategy

from nni_cssnas.errors import InvalidSampleError
from nni_cssnas.spaces.encoding import decode, search_space
from nni_cssnas.tuners.base import ATTEMPTS, SearchTuner
from nni_cssnas.tuners.journal import Entry
from nni_cssnas.tuners.tpe import Tpe

__all__ = ["TPE", "TunerStrategy"]

_logger = logging.getLogger("nni.nas.strategy.cssnas")


class TunerStrategy(Strategy):  # type: ignore[misc]
    """Explore a model space with a tuner of :mod:`nni_cssnas.tuners`.

    Where NNI's ``HPOTunerStrategy`` stops, this goes on: cells and choices of several are carried, architectures that
    the space forbids are rejected before they are trained, failed ones count as bad, and what was learned is part of
    the experiment's checkpoint.

    Life cycle: NNI calls ``initialize``, then on resume ``load_state_dict``, then ``run``.

    Parameters
    ----------
    tuner
        A tuner that has not been used yet.

    Examples
    --------
    >>> from nni_cssnas import NasExperiment, ProxyEvaluator
    >>> from nni_cssnas.tuners.hyperopt import Hyperopt
    >>> experiment = NasExperiment(space, ProxyEvaluator("proxy.yml"), TunerStrategy(Hyperopt(seed=0)))
    """

    def __init__(self, tuner: SearchTuner) -> None:
        super().__init__()
        self.tuner = tuner
        self._ids: dict[Any, int] = {}  # models that run
        self._lock = threading.RLock()  # events come from another thread

    def extra_repr(self) -> str:
        """For NNI's logs."""
        return f"tuner={self.tuner!r}"

    def _initialize(self, model_space: Any, engine: Any) -> Any:
        self.tuner.update_search_space(search_space(model_space))
        engine.register_model_event_callback(ModelEventType.FinalMetric, self._on_metric)
        engine.register_model_event_callback(ModelEventType.TrainingEnd, self._on_end)
        return model_space

    def _cleanup(self) -> None:
        # Models may still run: they are listened to until the engine ends.
        pass

    def _run(self) -> None:
        number = rejected = 0
        while self.wait_for_resource():
            try:
                parameters = self.tuner.generate_parameters(number)
            except NoMoreTrialError:
                _logger.warning("the tuner proposes no more architectures; the search ends early")
                break
            try:
                model = self.model_space.freeze(decode(self.model_space, parameters))
            except (InvalidSampleError, SampleValidationError) as error:
                _logger.info("rejected %s: %s", parameters, error)
                self.tuner.trial_end(number, False)
                rejected += 1
                if rejected == ATTEMPTS:
                    _logger.error("%d proposals in a row break the constraints, the last: %s", ATTEMPTS, error)
                    break
            else:
                rejected = 0
                with self._lock:
                    self._ids[model] = number
                self.engine.submit_models(model)
            number += 1
        # NNI takes the end of this for the end of the search.
        while self._ids and self.engine.budget_available():
            time.sleep(0.5)

    def _on_metric(self, event: FinalMetricEvent) -> None:
        with self._lock:
            if event.model in self._ids:
                self.tuner.receive_trial_result(self._ids[event.model], event.model.sample, event.metric)

    def _on_end(self, event: TrainingEndEvent) -> None:
        with self._lock:
            if event.model in self._ids:
                self.tuner.trial_end(self._ids.pop(event.model), event.status == ModelStatus.Trained)

    def state_dict(self) -> dict[str, Any]:
        """What was proposed and learned."""
        with self._lock:
            return {"history": [tuple(vars(entry).values()) for entry in self.tuner.history()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue; what was running when the experiment ended may be proposed again."""
        entries = [Entry(*item) for item in state_dict["history"]]
        self.tuner.restore([entry for entry in entries if entry.judged])


class TPE(TunerStrategy):
    """:class:`nni_cssnas.tuners.tpe.Tpe` as a strategy, with its arguments."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(Tpe(**arguments))
