"""NNI's ``NasExperiment`` with the defects of NNI 3.0 mended: swapped trials, and a resume that hangs or forgets."""

from __future__ import annotations

import functools
import json
import logging
import os
import pickle
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import nni
from nni.nas import experiment as nni_experiment
from nni.nas.execution import SequentialExecutionEngine, TrainingServiceExecutionEngine, training_service
from nni.nas.execution.event import ModelEventType, TrainingEndEvent
from nni.nas.experiment.config import SequentialEngineConfig, TrainingServiceEngineConfig
from nni.nas.space import ExecutableModelSpace, ModelStatus
from nni.nas.utils import serializer
from nni.runtime.command_channel.websocket import connection
from nni.runtime.tuner_command_channel import TunerCommandChannel, channel
from nni.runtime.tuner_command_channel.command_type import CommandType

from nni_cssnas.bridge.deferred import no_one_shot
from nni_cssnas.bridge.guard import manager_environment
from nni_cssnas.bridge.nnictl import be_patient, check_libraries
from nni_cssnas.bridge.owned import MODELS, own_folder, read_model, read_owned, write_model, write_owned
from nni_cssnas.errors import ExperimentError
from nni_cssnas.tuners.dispatcher import plain_json

__all__ = ["NasExperiment"]

_logger = logging.getLogger("nni.nas.experiment.cssnas")


class NasExperiment(nni_experiment.NasExperiment):  # type: ignore[misc]
    """To be used as :class:`nni.nas.experiment.NasExperiment`; what differs:

    * concurrent trials get their own architectures (:mod:`nni_cssnas.bridge.pairing`), so that
      ``export_top_models`` exports the right one;
    * the state is saved, atomically, whenever a model ends, so that a killed experiment loses only what was running;
    * the portal listens on this machine only and is guarded; architectures, whose form can hold any code, do not go
      through it, but from this process to its trials in files of the experiment's folder;
    * ``resume`` works, with the strategy's history, on the training-service and on the sequential engine.

    Examples
    --------
    >>> experiment = NasExperiment(space, ProxyEvaluator("proxy.yml"), TPE(seed=0))
    >>> experiment.config.max_trial_number = 50
    >>> experiment.run(port=8081)
    >>> experiment.export_top_models(1, formatter="dict")

    and after the process was killed:

    >>> experiment = NasExperiment(space, ProxyEvaluator("proxy.yml"), TPE(seed=0), id="the experiment's id")
    >>> experiment.config.max_trial_number = 50
    >>> experiment.resume(port=8081)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with no_one_shot():
            super().__init__(*args, **kwargs)
        self._saves_by_itself = False
        self._saving = threading.Lock()  # models begin in one thread and end in another

    def execution_engine_factory(self, config: Any) -> Any:
        """The engine that the configuration names, mended."""
        if isinstance(config, TrainingServiceEngineConfig):
            channel = functools.partial(_Channel, self._models)
            with mock.patch.object(training_service, "TunerCommandChannel", channel):
                return _TrainingServiceEngine(self)
        if isinstance(config, SequentialEngineConfig):
            engine = _SequentialEngine(config.max_model_count, config.max_duration, config.continue_on_failure)
            engine.experiment = self
            return engine
        return super().execution_engine_factory(config)

    def start(self, *args: Any, **kwargs: Any) -> None:
        """Start or resume, as NNI's; its trials ask for their own parameters."""
        python = f"{sys.executable} -m nni_cssnas.bridge.nas_trial"
        self.config._trial_command_params = {"python": python, **(self.config._trial_command_params or {})}
        super().start(*args, **kwargs)

    def _start_nni_manager(self, *args: Any, **kwargs: Any) -> None:
        # The portal has no password: it listens on this machine only.
        check_libraries()
        be_patient()
        with mock.patch.dict(os.environ, {"NODE_OPTIONS": manager_environment()["NODE_OPTIONS"]}):
            super()._start_nni_manager(*args, **kwargs)

    @property
    def _models(self) -> Path:
        return self._checkpoint_directory.parent / MODELS

    def list_trial_jobs(self) -> list[Any]:
        """NNI's trials; their parameters are the architectures of :func:`read_model`, whatever the manager tells."""
        trials = super().list_trial_jobs()
        for parameters in (parameters for trial in trials for parameters in trial.hyperParameters):
            try:
                text = read_model(self._models, parameters.parameters)
            except (ExperimentError, OSError) as error:
                _logger.warning("the architecture of parameters %s is left out: %s", parameters.parameter_id, error)
                text = "null"
            parameters.parameters = json.loads(text)
        return trials

    def save_checkpoint(self) -> None:
        """Save settings and state, each as a whole; from the first time on, whenever a model begins or ends."""
        folder = self._checkpoint_directory
        try:
            with self._saving:
                own_folder(folder)
                write_owned(folder / "config.json", nni.dump(self.config.json(), indent=2))
                if self._engine is not None:
                    _Pickle().save(self.state_dict(), folder / "state.ckpt")
        except Exception:
            # Without a checkpoint the experiment cannot be resumed; without this line it would end.
            _logger.exception("the checkpoint %s cannot be written", folder)
        if self._engine is not None and not self._saves_by_itself:
            self._saves_by_itself = True
            # After the strategy's own callbacks, so that it has learned already.
            self._engine.register_model_event_callback(ModelEventType.TrainingEnd, self._on_end)

    def load_checkpoint(self) -> None:
        """Load settings and state. Raises ExperimentError if other users may have written them."""
        read_owned(self._checkpoint_directory / "config.json")
        before = serializer.get_default_serializer()
        serializer.set_default_serializer(_Pickle())
        try:
            super().load_checkpoint()
        finally:
            serializer.set_default_serializer(before)

    def _on_end(self, event: TrainingEndEvent) -> None:
        event.model.status = event.status  # NNI does this after all callbacks
        self.save_checkpoint()


class _Channel(TunerCommandChannel):  # type: ignore[misc]
    """NNI's, but what comes through it is plain JSON, and architectures do not go through it.

    It ignores what the manager sends on resume and NNI's engine does not know; it would end the listener.
    """

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(url)
        self._folder = folder
        # NNI unpickles whatever a message holds, and anybody who reaches the manager can send one.
        channel.load = plain_json
        connection.nni = SimpleNamespace(load=plain_json, dump=nni.dump)

    def send_trial(self, parameter_id: int, parameters: Any, **settings: Any) -> None:
        super().send_trial(parameter_id, write_model(self._folder, parameter_id, parameters), **settings)

    def _receive(self) -> Any:
        while True:
            command, data = super()._receive()
            if command not in (CommandType.ImportData, CommandType.AddCustomizedTrialJob, CommandType.Ping):
                return command, data


class _TrainingServiceEngine(TrainingServiceExecutionEngine):  # type: ignore[misc]
    """Saves what a strategy has drawn: of a model that the strategy does not keep, NNI does not tell the end."""

    def submit_models(self, *models: ExecutableModelSpace) -> None:
        super().submit_models(*models)
        self.nodejs_binding.save_checkpoint()


class _SequentialEngine(SequentialExecutionEngine):  # type: ignore[misc]
    """Remembers across a resume what it has run."""

    experiment: NasExperiment

    def state_dict(self) -> dict[str, Any]:
        done = [(model.sample, model.status.value, model.metric) for model in self._history if model.status.completed()]
        return {**super().state_dict(), "model_count": len(done), "done": done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "model_count": 0})
        self._model_count = state_dict["model_count"]
        self._history = list(self._restored(state_dict["done"]))

    def _restored(self, done: Iterable[tuple[Any, str, Any]]) -> Iterator[ExecutableModelSpace]:
        space = self.experiment._exec_model_space
        assert space is not None
        for sample, status, metric in done:
            model = space.freeze(sample)
            model.status = ModelStatus(status)
            model.metrics.final = metric
            yield model


class _Pickle(serializer.Serializer):  # type: ignore[misc]
    """NNI's own uses ``torch.load``, which has refused a strategy's state since torch 2.6."""

    def save(self, data: Any, path: Path) -> None:
        write_owned(path, pickle.dumps(data))

    def load(self, path: Path) -> Any:
        return pickle.loads(read_owned(path))
