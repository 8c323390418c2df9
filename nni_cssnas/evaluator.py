"""NNI's evaluator: a concrete network in, a label-free score out, told to NNI and recorded.

Both doors lead here: :mod:`nni_cssnas.trial` (``nnictl``) and ``NasExperiment`` take the same way.
"""

from __future__ import annotations

import json
import os
import platform
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nni
import torch
from nni.nas.evaluator import Evaluator
from torch import nn

from nni_cssnas.config import ImagesConfig, ProxyConfig
from nni_cssnas.errors import ConfigError
from nni_cssnas.images.sources import load_images
from nni_cssnas.images.views import make_views
from nni_cssnas.results.records import TrialRecord, write_atomically
from nni_cssnas.scores.contrastive import check_images, train_contrastive
from nni_cssnas.scores.cost import multiply_adds, num_parameters
from nni_cssnas.scores.device import derive_seed, resolve_device, seeded

__all__ = ["ProxyEvaluator", "ProxyResult"]


@dataclass(frozen=True)
class ProxyResult:
    """What the proxy says of one architecture.

    Attributes
    ----------
    score
        What is maximised.
    components
        Every number measured, by name: ``loss``, ``drop``, ``held_out`` (if images were held out),
        ``params``, ``macs``, ``seconds``, ``images_per_second``.
    epoch_losses
        Mean training loss of each epoch.
    """

    score: float
    components: dict[str, float]
    epoch_losses: tuple[float, ...]

    def metric(self) -> dict[str, float]:
        """NNI's final metric: ``default`` is the score, the rest shows in the portal for each trial."""
        return {"default": self.score, **self.components}


@nni.trace
class ProxyEvaluator(Evaluator):  # type: ignore[misc]
    """Judge a network without labels, as ``proxy.yml`` says.

    Life cycle: NNI calls :meth:`_execute` with an architecture, which seeds torch, builds the network and
    calls :meth:`evaluate`. That loads the images (once per process), checks everything that can be checked,
    scores, and reports to NNI where NNI runs it.

    Parameters
    ----------
    config
        Path of a ``proxy.yml``, or its contents, or a :class:`~nni_cssnas.config.ProxyConfig`.
    record_dir
        Folder of the trial's record. By default NNI's folder of the trial; without NNI none is written.

    Examples
    --------
    >>> from nni.nas.experiment import NasExperiment
    >>> from nni.nas.strategy import Random
    >>> experiment = NasExperiment(CellSpace(num_nodes=4), ProxyEvaluator("proxy.yml"), Random())
    """

    def __init__(
        self, config: str | Path | Mapping[str, Any] | ProxyConfig, record_dir: str | Path | None = None
    ) -> None:
        if isinstance(config, ProxyConfig):
            self.config = config
        elif isinstance(config, Mapping):
            self.config = ProxyConfig(**config)
        elif isinstance(config, (str, Path)):
            self.config = ProxyConfig.load(config)
        else:
            raise ConfigError(f"config is {config!r}; give the path of a proxy.yml, a mapping or a ProxyConfig")
        folder = record_dir or os.environ.get("NNI_OUTPUT_DIR")
        self.record_dir = Path(folder) if folder else None

    def _execute(self, model: Any) -> float:
        """NNI's hook: build the network of an architecture under the architecture's own seed, then evaluate it."""
        sample = dict(model.sample)
        seed = candidate_seed(self.config, sample)

        def build() -> nn.Module:
            return model.executable_model()  # type: ignore[no-any-return]

        return self.run(build, sample, seed).score

    def evaluate(self, model: nn.Module) -> float:
        """Score a network as it is and report to NNI where NNI runs this; gives the score."""
        return self.run(lambda: model, {}, self.config.seed).score

    def run(self, build: Any, parameters: dict[str, Any], seed: int) -> ProxyResult:
        """Build a network, score it, report and record; see the class.

        Raises
        ------
        CssnasError
            Whatever makes the trial fail; it is in the record and in ``error.txt`` too.
        """
        record = self._open_record(parameters, seed)
        start = time.perf_counter()
        try:
            images, device = self._prepare()
            with seeded(seed):
                model = build()
            genotype = getattr(model, "genotype", None)
            record.genotype = genotype.to_dict() if genotype is not None else None
            record.environment = _environment(device)
            self._save(record)
            result = self._score(model, images, device, seed, record)
            record.status, record.score, record.components = "succeeded", result.score, result.components
        except Exception as error:
            record.status, record.error = "failed", f"{type(error).__name__}: {error}"
            self._save_error(record)
            raise
        finally:
            record.duration = time.perf_counter() - start
            self._save(record)
        if _inside_nni():
            nni.report_final_result(result.metric())
        return result

    def _prepare(self) -> tuple[torch.Tensor, torch.device]:
        """Everything that can be wrong is found here, before a network is built."""
        config = self.config
        device = resolve_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        images = _images(config.images, config.contrastive.batch_size)
        check_images(len(images), config.contrastive)
        return images, device

    def _score(
        self, model: nn.Module, images: torch.Tensor, device: torch.device, seed: int, record: TrialRecord
    ) -> ProxyResult:
        config = self.config
        size = config.views.input_size or config.images.size

        def on_epoch(epoch: int, loss: float) -> None:
            record.epoch_losses.append(loss)
            self._save(record)
            if _inside_nni():
                nni.report_intermediate_result(loss)

        costs = {"params": float(num_parameters(model)), "macs": float(multiply_adds(model, (3, size, size)))}
        trained = train_contrastive(
            model,
            images,
            config.contrastive,
            views=make_views(config.views, size),
            seed=seed,
            data_seed=config.seed,
            device=device,
            on_epoch=on_epoch,
        )
        components = {"loss": trained.loss, "drop": trained.drop}
        if trained.held_out is not None:
            components["held_out"] = trained.held_out
        components |= costs | {"seconds": trained.seconds, "images_per_second": trained.images_per_second}
        return ProxyResult(trained.score(config.contrastive.criterion), components, trained.epoch_losses)

    def _open_record(self, parameters: dict[str, Any], seed: int) -> TrialRecord:
        current = nni.trial._params if _inside_nni() else None
        record = TrialRecord(
            experiment=nni.get_experiment_id(),
            trial=nni.get_trial_id(),
            sequence=nni.get_sequence_id() if _inside_nni() else -1,
            parameter_id=current.get("parameter_id") if isinstance(current, dict) else None,
            parameters=parameters,
            seed=seed,
            config=self.config.model_dump(mode="json"),
            started=time.time(),
        )
        self._save(record)
        return record

    def _save(self, record: TrialRecord) -> None:
        if self.record_dir is not None:
            record.write(self.record_dir)

    def _save_error(self, record: TrialRecord) -> None:
        if self.record_dir is not None:
            details = f"{record.error}\n\narchitecture: {json.dumps(record.parameters)}\n\n{traceback.format_exc()}"
            write_atomically(self.record_dir / "error.txt", details)


def candidate_seed(config: ProxyConfig, parameters: Mapping[str, Any]) -> int:
    """The seed of one architecture's weights: the experiment's seed and the architecture's content."""
    return derive_seed(config.seed, json.dumps(dict(parameters), sort_keys=True, default=str))


@lru_cache(maxsize=1)
def _images(config: ImagesConfig, batch_size: int) -> torch.Tensor:
    """The images, once per process: a sequential NasExperiment evaluates many candidates in one."""
    return load_images(config, min_images=batch_size)


def _inside_nni() -> bool:
    return nni.get_current_parameter() is not None


def _environment(device: torch.device) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "nni": nni.__version__}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": versions,
    }
