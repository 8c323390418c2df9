"""One training with labels, from the checks to the summary: :func:`retrain`."""

from __future__ import annotations

import copy
import errno
import json
import logging
import platform
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from nni_cssnas.base.device import bears_channels_last, derive_seed, resolve_device, seeded
from nni_cssnas.base.files import write_atomically
from nni_cssnas.errors import CheckpointError
from nni_cssnas.images.labelled import Files, LabelledImages, Split
from nni_cssnas.images.pool import Images, fingerprint
from nni_cssnas.images.views import MEAN, STD
from nni_cssnas.scores.cost import multiply_adds
from nni_cssnas.spaces.architecture import Architecture
from nni_cssnas.spaces.network import CellNetwork
from nni_cssnas.training.augment import Augmentation
from nni_cssnas.training.checks import (
    RUN,
    SUMMARY,
    WRITTEN,
    check_hardware,
    check_network,
    check_output,
    check_size,
    epochs_done,
    has_begun,
    labelled_part,
    network_shape,
    refuse_another_run,
    run_identity,
)
from nni_cssnas.training.config import RetrainConfig
from nni_cssnas.training.data import LabelledData
from nni_cssnas.training.epochs import EpochLog, checkpoint_epoch, newest_checkpoint
from nni_cssnas.training.module import Classifier, class_weights
from nni_cssnas.training.plan import Plan, make_plan
from nni_cssnas.training.pretrain import contrastive_config, pretrain
from nni_cssnas.training.result import RetrainResult
from nni_cssnas.training.weights import Weights

__all__ = [
    "check_network",
    "check_output",
    "make_module",
    "make_trainer",
    "normalisation",
    "retrain",
]


UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""A full disk, a quota, and what may not be written."""


def retrain(
    architecture: Architecture,
    config: RetrainConfig,
    data: LabelledImages,
    out: str | Path,
    *,
    unlabelled: Images | None = None,
    force: bool = False,
    tensorboard: bool = True,
    progress_bar: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    on_pretrain_epoch: Callable[[int, float], None] | None = None,
) -> RetrainResult:
    """Train an architecture with labels, as the recipe says; where ``out`` holds the same run unfinished, go on with it.

    A run that was stopped in any way goes on after its last finished epoch and ends with the same numbers; one that is
    finished is not repeated. Under a strategy with several processes every process gets the result.

    Parameters
    ----------
    architecture, config, data
        What is trained, how, and with what.
    out
        Folder of the run.
    unlabelled
        For ``pretrain: contrastive``, in place of the training images: uint8, ``(N, 3, S, S)``.
    force
        Remove another run that lies in ``out``.
    tensorboard
        Write event files for TensorBoard.
    progress_bar
        Show Lightning's progress bar.
    on_plan
        Called with what is about to be done and how long that will take, before anything is written; a few batches are
        timed for it.
    on_epoch
        Called with the row of every epoch; see :attr:`~nni_cssnas.training.module.Classifier.row`.
    on_pretrain_epoch
        Called with the number from 0 and the mean loss of every epoch of pre-training.

    Raises
    ------
    ConfigError
        If ``out`` holds another run, or the recipe does not fit the images.
    ImagesError
        If there are too few labels.
    SpaceError
        If the network does not fit the images.
    CheckpointError
        If no checkpoint of the run is whole, or ``out`` cannot be written.
    DivergenceError
        If the loss becomes NaN.
    DeviceError
        If the device is not there.
    """
    out = Path(out)
    check_hardware(config)
    check_size(config, data)
    train = labelled_part(config, data)
    check_output(out, architecture, config, force=force)
    shape = network_shape(architecture, config, len(data.classes))
    check_network(architecture, config, len(data.classes))
    identity = run_identity(architecture, config) | {"data": data.key}
    if unlabelled is not None and config.pretrain == "contrastive":
        identity["unlabelled"] = fingerprint(unlabelled)
    others = data.unlabelled() if unlabelled is None else unlabelled
    pretraining = None
    if config.pretrain == "contrastive":
        pretraining = contrastive_config(config, len(others)), len(others)
    if not force:
        refuse_another_run(out, identity)
        if (out / SUMMARY).exists():
            return read_summary(out)
    if on_plan is not None:
        spent = make_module(architecture, config, data, train=train)
        begun = not force and (out / "pretrained.pt").exists()
        on_plan(
            make_plan(
                spent,
                config,
                train,
                data.val,
                name=architecture.space.name if architecture.space is not None else "",
                done=0 if force else epochs_done(out),
                pretraining=None if begun else pretraining,
            )
        )
        del spent
    with _writing(out):
        _open(out, identity, force=force)
        pretrained = None
        if pretraining is not None:
            pretrained = pretrain(architecture, config, others, out, on_epoch=on_pretrain_epoch)
        module = make_module(architecture, config, data, train=train, pretrained=pretrained)
        mean, std = normalisation(config, data)
        records = EpochLog(out, Weights(architecture, shape, {}, mean, std, data.classes), on_epoch)
        start = newest_checkpoint(out / "checkpoints")
        _fit(module, LabelledData(train, data.val, config), records, config, start, out, tensorboard, progress_bar)
        costs = _costs(module.network, config.size)
        return _finish(out, records, architecture, config, data, train, costs, pretrained is not None)


# ---- before the training --------------------------------------------------------------------------


def _open(out: Path, identity: dict[str, Any], *, force: bool) -> None:
    """Begin a run in ``out``, or go on with the same one."""
    # The processes of the other devices are started by the first one, in the middle of its run.
    first = rank_zero_only.rank == 0
    if force and first:
        for name in WRITTEN:
            path = out / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    refuse_another_run(out, identity)
    if first:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        for left_over in [*out.glob(".*.tmp"), *(out / "checkpoints").glob(".*.tmp")]:
            left_over.unlink(missing_ok=True)
        if not (out / RUN).exists() or not has_begun(out):
            write_atomically(out / RUN, json.dumps(identity, indent=1))


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Say in one line that the disk is full, or the folder may not be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise CheckpointError(
            f"cannot write in {out}: {error.strerror}; the epochs that are finished are kept. Make space, or let it be "
            "written, and the same command goes on after the last one"
        ) from None


def normalisation(config: RetrainConfig, data: LabelledImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the channels: the recipe's, those of the pre-training's views, or the training images'."""
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    if config.pretrain == "contrastive":
        # What the network saw before.
        return MEAN, STD
    return data.statistics


def make_module(
    architecture: Architecture,
    config: RetrainConfig,
    data: LabelledImages,
    *,
    train: Split | None = None,
    pretrained: Weights | None = None,
) -> Classifier:
    """The network and how it is trained.

    Parameters
    ----------
    train
        The part of the training images whose labels are used; by default as the recipe says.
    pretrained
        Weights to start from.
    """
    num_classes = len(data.classes)
    train = labelled_part(config, data) if train is None else train
    shape = network_shape(architecture, config, num_classes)
    with seeded(derive_seed(config.seed, "weights")):
        network = shape.build(architecture)
    if pretrained is not None:
        # What features have no need of, the heads, stays as it was drawn.
        _, unexpected = network.load_state_dict(pretrained.state, strict=False)
        if unexpected:
            raise CheckpointError(f"the pre-trained weights do not fit the network: {unexpected[0]} is none of it")
    if config.channels_last and not bears_channels_last(network, resolve_device(config.device)):
        config = config.model_copy(update={"channels_last": False})
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean, std = normalisation(config, data)
    augmentation = Augmentation(config, mean, std, cropped=isinstance(train.images, Files))
    weights = class_weights(train.counts(num_classes)) if config.class_weights == "balanced" else None
    return Classifier(network, config, augmentation, num_classes=num_classes, weights=weights)


# ---- the training ---------------------------------------------------------------------------------


def make_trainer(config: RetrainConfig, out: Path, **options: Any) -> pl.Trainer:
    """Lightning's trainer as the recipe says.

    Parameters
    ----------
    options
        Further arguments of :class:`pytorch_lightning.Trainer`; ``callbacks`` come after those of the recipe.
    """
    callbacks = list(options.pop("callbacks", []))
    if config.ema:
        from pytorch_lightning.callbacks import EMAWeightAveraging

        callbacks.insert(0, EMAWeightAveraging(decay=config.ema))
    device = resolve_device(config.device)
    # The CPU has no fp16 kernels for all operations.
    half = "bf16-mixed" if config.amp == "bf16" or device.type == "cpu" else "16-mixed"
    settings: dict[str, Any] = {
        "accelerator": "gpu" if device.type == "cuda" else "cpu",
        "devices": config.devices,
        "strategy": config.strategy,
        "precision": "32-true" if config.amp == "off" else half,
        "max_epochs": config.epochs,
        "gradient_clip_val": config.gradient_clip or None,
        "gradient_clip_algorithm": "norm",
        "sync_batchnorm": config.sync_batchnorm,
        "use_distributed_sampler": False,  # Order shares the images out
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "logger": False,
        "default_root_dir": out,
        "benchmark": device.type == "cuda",
    }
    return pl.Trainer(**(settings | options), callbacks=callbacks)


def _fit(
    module: Classifier,
    data: LabelledData,
    records: EpochLog,
    config: RetrainConfig,
    start: Path | None,
    out: Path,
    tensorboard: bool,
    progress_bar: bool,
) -> None:
    logger: Any = False
    if tensorboard:
        from pytorch_lightning.loggers import TensorBoardLogger

        # Events of an epoch that is run again are hidden by those of this start.
        first = 1 if start is None else checkpoint_epoch(start) + 1
        logger = TensorBoardLogger(out / "tensorboard", name="", version="", purge_step=first)
    with _quiet(), seeded(config.seed):
        callbacks: list[Any] = [records]
        if progress_bar:
            from nni_cssnas.training.bar import EpochBar

            callbacks.append(EpochBar())
        trainer = make_trainer(
            config, out, callbacks=callbacks, logger=logger, enable_progress_bar=progress_bar, enable_checkpointing=True
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
        except SystemExit:
            # Lightning ends the process at Ctrl-C, and leaves the signal ignored.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says about itself; its errors are raised, and say enough."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch\.utils\.data)")
            warnings.filterwarnings("ignore", message=r".*(lr_scheduler\.step|isinstance\(treespec).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---- after it -------------------------------------------------------------------------------------


def _costs(network: nn.Module, size: int) -> dict[str, int]:
    network = copy.deepcopy(network).cpu().float()
    counted = [
        parameter.numel()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and not (isinstance(network, CellNetwork) and name.startswith("auxiliary_head."))
    ]
    return {"params": sum(counted), "macs": multiply_adds(network, (3, size, size))}


def _finish(
    out: Path,
    records: EpochLog,
    architecture: Architecture,
    config: RetrainConfig,
    data: LabelledImages,
    train: Split,
    costs: Mapping[str, int],
    pretrained: bool,
) -> RetrainResult:
    best, final = records.best, records.rows[-1]
    result = RetrainResult(
        best_top1=best["val_top1"],
        best_top5=best.get("val_top5"),
        best_balanced=best["val_balanced"],
        best_epoch=int(best["epoch"]),
        final_top1=final["val_top1"],
        final_top5=final.get("val_top5"),
        final_balanced=final["val_balanced"],
        epochs=len(records.rows),
        params=costs["params"],
        macs=costs["macs"],
        seconds=sum(row["seconds"] for row in records.rows),
        folder=out,
    )
    counts = {"train": train, "val": data.val}
    summary = {
        **{name: value for name, value in asdict(result).items() if name != "folder"},
        "seed": config.seed,
        "architecture": architecture.to_dict(),
        "recipe": config.model_dump(mode="json"),
        "pretrained": pretrained,
        "data": {
            "classes": list(data.classes),
            **{name: split.counts(len(data.classes)).tolist() for name, split in counts.items()},
            "training_images": len(data.train),
            "key": data.key,
        },
        "normalisation": dict(zip(("mean", "std"), normalisation(config, data), strict=True)),
        "environment": environment(config),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if rank_zero_only.rank == 0:
        write_atomically(out / SUMMARY, json.dumps(summary, indent=1))
    return result


def read_summary(out: Path) -> RetrainResult:
    """The result of a finished run.

    Raises
    ------
    CheckpointError
        If its summary cannot be read.
    """
    try:
        content = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        names = [name for name in RetrainResult.__dataclass_fields__ if name != "folder"]
        return RetrainResult(**{name: content[name] for name in names}, folder=out)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{out / SUMMARY} cannot be read ({error}); remove it, and the run ends anew") from None


def environment(config: RetrainConfig) -> dict[str, Any]:
    """Versions, device and threads, for records."""
    versions = {}
    for name in ("nni-cssnas", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "lightly", "nni", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    device = resolve_device(config.device)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "devices": config.devices,
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        **versions,
    }
