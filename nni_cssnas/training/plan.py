"""What a training is about to do, and about how long it will take: a few real batches are timed before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nni_cssnas.base.device import resolve_device, seeded
from nni_cssnas.config import ContrastiveConfig
from nni_cssnas.images.labelled import Files, Split
from nni_cssnas.spaces.network import CellNetwork
from nni_cssnas.training.config import RetrainConfig
from nni_cssnas.training.data import PictureBatches, default_workers
from nni_cssnas.training.module import Classifier

__all__ = ["Plan", "make_plan"]

FEW = 8
"""Images of the first batch that is timed."""
PATIENCE = 5.0
"""Seconds; a whole batch is timed only if it is expected to take less."""
LONG = 3600.0
"""Seconds; for a longer training the settings of a first look are named."""
FIRST_LOOK = {"num_cells": ("--cells", 8), "channels": ("--channels", 16), "epochs": ("--epochs", 20)}


@dataclass(frozen=True)
class Plan:
    """A training before it starts.

    Attributes
    ----------
    network
        ``8 cells of 24 channels``, or the name of another architecture.
    params
        Trainable weights, with the auxiliary head.
    images, epochs
        To train on, and how many epochs are left of all.
    batch, epoch
        Estimated seconds of a batch, and of an epoch with its validation.
    pretraining
        What is trained without labels first, or empty.
    pretraining_seconds
        Estimated; two views of every image cost two images.
    first_look
        Settings with which a long training becomes short, or empty.
    """

    device: str
    network: str
    size: int
    params: int
    images: int
    epochs: int
    total_epochs: int
    batch_size: int
    batch: float
    epoch: float
    pretraining: str
    pretraining_seconds: float
    first_look: str

    @property
    def seconds(self) -> float:
        """Estimated, of all that is left."""
        return self.epochs * self.epoch + self.pretraining_seconds

    def __str__(self) -> str:
        left = "" if self.epochs == self.total_epochs else f"the last {self.epochs} of "
        text = (
            f"{self.device}: {self.network}, {self.size} px, {self.params:,} parameters; {self.images} images, "
            f"{self.pretraining}{left}{_epochs(self.total_epochs)} in batches of {self.batch_size}: about {_duration(self.seconds)}"
        )
        if self.batch >= 2:
            text += f" (a batch takes {self.batch:.0f} s)"
        return text + (f"; for a first look: {self.first_look}" if self.first_look else "")


def make_plan(
    module: Classifier,
    config: RetrainConfig,
    train: Split,
    val: Split,
    *,
    name: str,
    done: int = 0,
    pretraining: tuple[ContrastiveConfig, int] | None = None,
) -> Plan:
    """Time a few batches of ``module``, which is spent thereafter.

    Parameters
    ----------
    train, val
        The images of the training.
    name
        Of the architecture, if it is no network of cells.
    done
        Epochs that are trained already.
    pretraining
        The training without labels that comes first, and its number of images.
    """
    device = resolve_device(config.device)
    batch_size = min(config.batch_size // config.devices, len(train))
    batch, evaluation = _measure(module.to(device), config, train, batch_size, device)
    batches = max(1, len(train) // config.devices // batch_size)
    epoch = batches * batch + len(val) / config.devices * evaluation
    seconds, text = 0.0, ""
    if pretraining is not None:
        contrastive, number = pretraining
        steps = contrastive.steps or contrastive.epochs * max(1, number // contrastive.batch_size)
        seconds = 2 * steps * contrastive.batch_size * batch / batch_size
        text = f"first {_epochs(contrastive.epochs)} without labels on {number} images in batches of {contrastive.batch_size}, then "
    cells = isinstance(module.network, CellNetwork)
    shorter = [
        f"{flag} {value}"
        for key, (flag, value) in FIRST_LOOK.items()
        if getattr(config, key) > value and (cells or key == "epochs")
    ]
    left = config.epochs - done
    long = left * epoch + seconds > LONG
    return Plan(
        device=f"{config.devices} x {torch.cuda.get_device_name(device)}" if device.type == "cuda" else _cpu(),
        network=f"{config.num_cells} cells of {config.channels} channels" if cells else name,
        size=config.size,
        params=sum(weight.numel() for weight in module.network.parameters() if weight.requires_grad),
        images=len(train),
        epochs=left,
        total_epochs=config.epochs,
        batch_size=config.batch_size,
        batch=batch,
        epoch=epoch,
        pretraining=text,
        pretraining_seconds=seconds,
        first_look=" ".join(shorter) if long and not done else "",
    )


def _measure(
    module: Classifier, config: RetrainConfig, train: Split, batch_size: int, device: torch.device
) -> tuple[float, float]:
    """Seconds of a training batch, and of the evaluation of one image."""
    optimizer = torch.optim.SGD(module.network.parameters(), lr=config.lr, momentum=config.momentum)
    half = torch.bfloat16 if config.amp == "bf16" or device.type == "cpu" else torch.float16

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast(device.type, half, enabled=config.amp != "off"):
            loss = module.training_step((images, labels), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def evaluate(images: Tensor) -> None:
        module.network(module.augmentation.evaluate(images))

    with seeded(config.seed):
        reading, images, labels = _read(train, config, min(FEW, batch_size))
        images, labels = images.to(device), labels.to(device)
        module.train()
        step(images[:2], labels[:2])  # sets up what is set up once
        whole = _seconds(lambda: step(images, labels), device) / len(images) * batch_size
        if len(images) < batch_size and whole < PATIENCE:
            more, pictures, numbers = _read(train, config, batch_size)
            pictures, numbers = pictures.to(device), numbers.to(device)
            _seconds(lambda: step(pictures, numbers), device)
            whole = _seconds(lambda: step(pictures, numbers), device)
            reading = more / len(pictures) * len(images)
        module.eval()
        evaluation = _seconds(lambda: evaluate(images), device) / len(images)
    read = reading / len(images)
    # Processes read while the network works; the slower of the two counts.
    return max(whole, read * batch_size), max(evaluation, read)


def _read(train: Split, config: RetrainConfig, number: int) -> tuple[float, Tensor, Tensor]:
    """So many images with their labels, and the seconds that the reading processes need for them."""
    positions = torch.arange(number)
    if not isinstance(train.images, Files):
        return 0.0, train.images[positions], train.labels[positions]
    begun = time.perf_counter()
    images, labels = PictureBatches(train, config, train=True)[0, positions]
    workers = default_workers(config.devices) if config.workers is None else config.workers
    return (time.perf_counter() - begun) / max(1, workers), images, labels


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun


def _cpu() -> str:
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' * (number != 1)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.3g} hours"
