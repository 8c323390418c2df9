"""NNI's evaluator: a concrete network in, a label-free score out, told to NNI and recorded.

Both doors lead here: :mod:`nni_cssnas.trial` (``nnictl``) and ``NasExperiment`` take the same way.
"""

from __future__ import annotations

import copy
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import nni
import torch
from nni.mutable import Mutable
from nni.nas.evaluator import Evaluator
from torch import nn

from nni_cssnas.base.files import write_atomically
from nni_cssnas.bridge import pairing
from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError, ExperimentError, ImagesError, SpaceError
from nni_cssnas.genotype import Choices, Genotype
from nni_cssnas.judge.costs import Costs
from nni_cssnas.judge.latencies import read_table
from nni_cssnas.judge.proxy import Candidate, Proxy, ProxyResult, candidate_seed
from nni_cssnas.results.carried import tell_end, with_record
from nni_cssnas.results.records import TrialRecord
from nni_cssnas.spaces.factory import make_space

__all__ = ["ProxyEvaluator"]

IMAGES_NAME = "images.txt"
"""In the folder of an experiment's trials: fingerprint and number of the images with which the first trial began."""


@nni.trace
class ProxyEvaluator(Evaluator):  # type: ignore[misc]
    """Judge a network without labels, as ``proxy.yml`` says.

    Life cycle: NNI calls :meth:`_execute` with an architecture. That opens the trial's record, checks everything that
    can be checked, builds the network under the architecture's own seed, scores it (:mod:`nni_cssnas.judge.proxy`) and
    reports to NNI where NNI runs it.

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
        self,
        config: str | Path | Mapping[str, Any] | ProxyConfig,
        record_dir: str | Path | None = None,
    ) -> None:
        # NNI puts the first candidate in the place of a choice, without a word.
        for name, value in getattr(self, "trace_kwargs", {"config": config, "record_dir": record_dir}).items():
            if isinstance(value, Mutable):
                raise ConfigError(
                    f"{name} is the choice {value!r}; choices belong in the model space, so give one value"
                )
        if isinstance(config, ProxyConfig):
            self.config = config
        elif isinstance(config, Mapping):
            self.config = ProxyConfig(**config)
        elif isinstance(config, (str, Path)):
            self.config = ProxyConfig.load(config)
        else:
            raise ConfigError(f"config is {config!r}; give the path of a proxy.yml, a mapping or a ProxyConfig")
        self.record_dir = Path(record_dir) if record_dir is not None else None
        self._judge: Proxy | None = None

    def _execute(self, model: Any) -> float:
        """NNI's hook: judge an architecture that a strategy of ``NasExperiment`` has sampled."""
        return self.run(model.executable_model, dict(model.sample)).score

    def evaluate(self, model: nn.Module) -> float:
        """Judge a copy of a network, weights included, and report to NNI where NNI runs this; gives the score.

        Raises
        ------
        SpaceError
            If the network cannot be copied, or judged.
        """
        try:
            own = copy.deepcopy(model)
        except Exception as error:  # whatever the network's parts raise
            raise SpaceError(
                f"the network, a {type(model).__name__}, cannot be copied ({error}), and judging it would change it; "
                "use run(build, parameters) with a function that builds it"
            ) from error
        return self.run(lambda: own, {}).score

    def run(self, build: Callable[[], nn.Module], parameters: dict[str, Any]) -> ProxyResult:
        """Judge one architecture, report to NNI and write its record.

        Parameters
        ----------
        build
            Gives the network; called once.
        parameters
            The choices that name the architecture.

        Raises
        ------
        CssnasError
            Whatever makes the trial fail; it is in the record and in ``error.txt`` too.
        """
        seed = candidate_seed(self.config, parameters)
        folder = self._record_folder(seed)
        if self.record_dir is None and folder is not None:
            before = TrialRecord.finished_before(folder, parameters, self.config.model_dump(mode="json"))
            if before is not None:
                found = ProxyResult(before.score or 0.0, before.components, tuple(before.epoch_losses))
                genotype = None if before.genotype is None else Genotype.from_dict(before.genotype)
                return _tell(found, before, self._beside(parameters, genotype, found.components))
        with _RecordWriter(folder, parameters, seed, self.config) as journal:
            proxy = self._proxy()
            if self.record_dir is None and journal.folder is not None:
                _refuse_other_images(journal.folder.parent, proxy)
            journal.note(environment=_environment(proxy.device))
            model = proxy.build(Candidate(build, seed))
            genotype = getattr(model, "genotype", None)
            journal.note(genotype=None if genotype is None else genotype.to_dict())
            losses: list[float] = []

            def on_epoch(epoch: int, loss: float) -> None:
                losses.append(loss)
                journal.note(epoch_losses=losses)
                if _inside_nni():
                    nni.report_intermediate_result({"default": _so_far(losses, self.config), "loss": loss})

            result = proxy.score(model, seed, on_epoch)
            beside = self._beside(parameters, genotype, result.components)
            if "latency_ms" in beside:
                result = replace(result, components={**result.components, "latency_ms": beside["latency_ms"]})
            journal.note(status="succeeded", score=result.score, components=result.components)
        return _tell(result, journal.record, beside)

    def _beside(
        self, parameters: Choices, genotype: Genotype | None, components: Mapping[str, float]
    ) -> dict[str, float]:
        """What the score is weighed against: costs of the network that will be trained, and the tuner's ``objectives``."""
        arguments = pairing.tuner_arguments()
        names = [name for name in arguments.get("objectives") or () if name not in ("score", "default")]
        if "latency_ms" not in names:
            return Costs(self.config, None).beside(names, parameters, genotype, components)
        path = (arguments.get("constraints") or {}).get("latency")
        table = None if path is None else read_table(Path(path), self.config)
        costs = Costs(self.config, make_space(self.config.scored_space), table)
        return costs.beside(names, parameters, genotype, components)

    def _proxy(self) -> Proxy:
        """The judge, ready to work; kept, for a sequential NasExperiment judges many candidates in one process."""
        if self._judge is None:
            proxy = Proxy(self.config)
            proxy.prepare()
            self._judge = proxy
        return self._judge

    def _record_folder(self, seed: int) -> Path | None:
        if self.record_dir is not None:
            return self.record_dir / f"candidate-{seed:014x}"
        folder = os.environ.get("NNI_OUTPUT_DIR")
        return Path(folder) if folder else None


class _RecordWriter:
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

    def __enter__(self) -> _RecordWriter:
        self.note()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):  # NNI's assessors and nnictl stop a trial by SIGINT
            self.record = replace(self.record, status="stopped")
        elif error is not None:
            self.record = replace(self.record, status="failed", error=f"{type(error).__name__}: {error}")
        try:
            if self.folder is not None and self.record.status == "failed" and error is not None:
                self.record.write_error(self.folder, error)
            self.note(duration=time.perf_counter() - self.start)
        except (ExperimentError, OSError):
            if error is None:
                raise  # else it is a full disk that the trial fails of, or hides what it fails of
        if error is not None and _inside_nni():
            tell_end(self.record)


def _refuse_other_images(folder: Path, proxy: Proxy) -> None:
    """Let all trials of an experiment judge on the same images: scores on two sets of images do not compare.

    Parameters
    ----------
    folder
        In which NNI has the trials' folders.
    proxy
        The judge of one trial.

    Raises
    ------
    ImagesError
        If an earlier trial has used others.
    """
    path = folder / IMAGES_NAME
    now = f"{proxy.images_key} {len(proxy.images)}\n"
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not re.fullmatch(r"[0-9a-f]{64} \d+\n", before):  # the first trial, or damaged
        write_atomically(path, now)
        # Another trial may have been first in the meantime.
        before = path.read_text(encoding="utf-8")
    if before != now:
        raise ImagesError(
            f"the {len(proxy.images)} images of {proxy.config.images.source!r} are not those with which this experiment "
            f"began ({before.split()[1]} images), so scores would not compare; restore them, or start a new experiment"
        )


def _so_far(losses: list[float], config: ProxyConfig) -> float:
    """What an assessor compares after each epoch: the criterion as it stands, larger is better.

    What is only measured at the end (``held_out``, ``alignment``, ``uniformity``) is stood in for by minus the loss.
    """
    return losses[0] - losses[-1] if config.contrastive.criterion == "drop" else -losses[-1]


def _tell(result: ProxyResult, record: TrialRecord, beside: Mapping[str, float]) -> ProxyResult:
    if _inside_nni():
        nni.report_final_result(with_record(result.metric(beside), record))
    return result


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
