"""NNI's evaluator: a concrete network in, a label-free score out, told to NNI and recorded.

Both doors lead here: :mod:`nni_cssnas.trial` (``nnictl``) and ``NasExperiment`` take the same way.
"""

from __future__ import annotations

import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
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
from nni_cssnas.spaces.backbone import Backbone

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
        Folder in which every candidate gets a folder of its own for its record. By default the record goes to
        NNI's folder of the trial; without NNI none is written.

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
        self.record_dir = Path(record_dir) if record_dir is not None else None

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

    def run(self, build: Callable[[], nn.Module], parameters: dict[str, Any], seed: int) -> ProxyResult:
        """Build a network, score it, report and record; see the class.

        Raises
        ------
        CssnasError
            Whatever makes the trial fail; it is in the record and in ``error.txt`` too.
        """
        journal = _Journal(self._record_folder(seed), parameters, seed, self.config)
        with journal:
            images, device = self._prepare()
            journal.note(environment=_environment(device))
            with seeded(seed):
                model = build()
            genotype = getattr(model, "genotype", None)
            journal.note(genotype=None if genotype is None else genotype.to_dict())
            result = self._score(model, images, device, seed, journal)
            journal.note(status="succeeded", score=result.score, components=result.components)
        if _inside_nni():
            nni.report_final_result(result.metric())
        return result

    def _record_folder(self, seed: int) -> Path | None:
        if self.record_dir is not None:
            return self.record_dir / f"candidate-{seed:014x}"
        folder = os.environ.get("NNI_OUTPUT_DIR")
        return Path(folder) if folder else None

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
        self, model: nn.Module, images: torch.Tensor, device: torch.device, seed: int, journal: _Journal
    ) -> ProxyResult:
        config = self.config
        size = config.views.input_size or config.images.size
        backbone = Backbone(model, size, config.space.classifier)
        losses: list[float] = []

        def on_epoch(epoch: int, loss: float) -> None:
            losses.append(loss)
            journal.note(epoch_losses=losses)
            if _inside_nni():
                nni.report_intermediate_result(loss)

        costs = {
            "params": float(num_parameters(backbone)),
            "macs": float(multiply_adds(backbone, (3, size, size))),
        }
        trained = train_contrastive(
            backbone,
            images,
            config.contrastive,
            views=make_views(config.views, size),
            seed=seed,
            data_seed=config.seed,
            device=device,
            on_epoch=on_epoch,
        )
        components = trained.components | costs
        return ProxyResult(trained.score(config.contrastive.criterion), components, trained.epoch_losses)


class _Journal:
    """Keeps the record of one evaluation up to date in its folder, or nowhere if the folder is None."""

    def __init__(self, folder: Path | None, parameters: dict[str, Any], seed: int, config: ProxyConfig) -> None:
        current = nni.trial._params if _inside_nni() else None
        self.folder = folder
        self.start = time.perf_counter()
        self.record = TrialRecord(
            experiment=nni.get_experiment_id(),
            trial=nni.get_trial_id(),
            sequence=nni.get_sequence_id() if _inside_nni() else -1,
            parameter_id=current.get("parameter_id") if isinstance(current, dict) else None,
            parameters=parameters,
            seed=seed,
            config=config.model_dump(mode="json"),
            started=time.time(),
        )

    def note(self, **values: Any) -> None:
        """Set fields of the record and write it."""
        self.record = replace(self.record, **values)
        if self.folder is not None:
            self.record.write(self.folder)

    def __enter__(self) -> None:
        self.note()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.record = replace(self.record, status="failed", error=f"{type(error).__name__}: {error}")
            if self.folder is not None:
                story = "".join(traceback.format_exception(kind, error, trace))
                architecture = json.dumps(self.record.parameters)
                write_atomically(
                    self.folder / "error.txt", f"{self.record.error}\n\narchitecture: {architecture}\n\n{story}"
                )
        self.note(duration=time.perf_counter() - self.start)


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
