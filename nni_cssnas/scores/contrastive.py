"""The paper's criterion: a short contrastive training of the candidate (arXiv:2102.10557; SimCLR, arXiv:2002.05709)."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nni_cssnas.base.device import bears_channels_last, seeded
from nni_cssnas.base.files import replacing
from nni_cssnas.config import ContrastiveConfig
from nni_cssnas.errors import ConfigError, DivergenceError, SpaceError
from nni_cssnas.images.pool import Pool, StreamedImages
from nni_cssnas.images.views import Views
from nni_cssnas.scores.losses import PretextInvariantLoss, nt_xent

# lightly is imported where it is used: it takes seconds, which a trial of an untrained score does not have.

__all__ = ["ContrastiveResult", "alignment", "check_images", "train_contrastive", "uniformity"]

MAX_HELD_OUT = 4096
"""More held-out images than that are not looked at: loss and uniformity compare all with all."""

MAX_COMPARED = 32
"""So many images tell whether the features depend on the image."""


@dataclass(frozen=True)
class ContrastiveResult:
    """What one short training showed. Losses are natural logarithms, means over images.

    Attributes
    ----------
    epoch_losses
        Mean training loss of every epoch.
    held_out, alignment, uniformity
        On images that were not trained on: the loss, and :func:`alignment` and :func:`uniformity` of the
        backbone's features; None where no images were held out.
    steps
        Optimiser steps made.
    seconds
        Time of the training alone.
    images_per_second
        Images (not views) trained on in a second.
    worst
        None, or the score of a network that gives the same features for every image, whatever the criterion: minus the
        largest loss that there can be, about ``2 / temperature + log(negatives)``. Its own loss, that of a guess, is less
        than what a living network may have after a few steps, and its alignment is perfect.
    """

    epoch_losses: tuple[float, ...]
    steps: int
    seconds: float
    images_per_second: float
    held_out: float | None = None
    alignment: float | None = None
    uniformity: float | None = None
    worst: float | None = None

    @property
    def loss(self) -> float:
        """Mean training loss of the last epoch: the paper's criterion, lower is better."""
        return self.epoch_losses[-1]

    @property
    def drop(self) -> float:
        """Loss of the first epoch minus that of the last: how much was learned."""
        return self.epoch_losses[0] - self.epoch_losses[-1]

    @property
    def components(self) -> dict[str, float]:
        """What was measured, by name; see the attributes."""
        names = ("loss", "drop", "held_out", "alignment", "uniformity", "seconds", "images_per_second")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def score(self, criterion: str) -> float:
        """The number to maximise for a criterion: ``drop`` as it is, the others turned in sign."""
        if criterion not in ("loss", "drop", "held_out", "alignment", "uniformity") or criterion not in self.components:
            raise ConfigError(f"criterion {criterion!r} was not measured; measured: {', '.join(self.components)}")
        if self.worst is not None:
            return self.worst
        value = self.components[criterion]
        return value if criterion == "drop" else -value


def alignment(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean squared distance of the two views' features on the unit sphere, lower is better.

    Wang & Isola, arXiv:2005.10242, with their alpha = 2. Features are ``(N, D)``.
    """
    distances = F.normalize(first, dim=1) - F.normalize(second, dim=1)
    return float(distances.square().sum(1).mean())


def uniformity(features: torch.Tensor) -> float:
    """Logarithm of the mean Gaussian potential of all pairs on the unit sphere, lower is better.

    Wang & Isola, arXiv:2005.10242, with their t = 2. Features are ``(N, D)``.
    """
    return float(torch.pdist(F.normalize(features, dim=1)).square().mul(-2).exp().mean().log())


def check_images(num_images: int, config: ContrastiveConfig) -> int:
    """How many of ``num_images`` are held out.

    Raises
    ------
    ConfigError
        If what is left to train on is less than one batch, fewer than 2 images are held out, or ``steps`` end within the
        first epoch where the criterion is the drop from the first epoch to the last.
    """
    num_held_out = round(config.held_out * num_images)
    if config.held_out and num_held_out < 2:
        raise ConfigError(
            f"held_out {config.held_out} of {num_images} images leaves {num_held_out} held out; 2 or more are needed. "
            "Raise held_out, use more images, or set held_out: 0"
        )
    if config.batch_size > num_images - num_held_out:
        raise ConfigError(
            f"batch_size is {config.batch_size} but there are only {num_images - num_held_out} images to train on "
            f"({num_images} less {num_held_out} held out); lower batch_size or use more images"
        )
    epoch = (num_images - num_held_out) // config.batch_size
    if config.criterion == "drop" and config.steps is not None and config.steps <= epoch:
        raise ConfigError(
            f"criterion is 'drop' but steps is {config.steps} and one epoch has {epoch}, so that every drop would be 0; "
            f"set steps to {2 * epoch} or more, or criterion: loss"
        )
    return num_held_out


def train_contrastive(
    backbone: nn.Module,
    images: torch.Tensor | Pool,
    config: ContrastiveConfig,
    *,
    views: Views,
    seed: int,
    data_seed: int = 0,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> ContrastiveResult:
    """Train ``backbone`` and a projection head on contrastive views of ``images`` for a few epochs.

    Parameters
    ----------
    backbone
        Maps ``(B, 3, S, S)`` to features ``(B, D)``. It is trained in place.
    images
        uint8, ``(N, 3, H, W)``; a :class:`~nni_cssnas.images.pool.Pool` has them on the device already. The
        first part of a random order is held out; at most 4096 of these are looked at.
    config
        The training; see :class:`~nni_cssnas.config.ContrastiveConfig`.
    views
        Draws the two views of a batch.
    seed
        Of the projection head and whatever the network draws; the candidate's own.
    data_seed
        Of the split, the order and the views; the same for all candidates, which makes them comparable.
    device
        Where to train.
    on_epoch
        Called with the epoch's number from 0 and its mean loss.
    checkpoint
        A file that holds the state after every epoch. One that is there is gone on from: with the same arguments the
        result is that of a training without interruption.

    Raises
    ------
    ConfigError
        If there are fewer images than one batch, or a fixed pool of views is asked of streamed images.
    DivergenceError
        If the loss becomes NaN or infinite; names the step, the learning rate and the remedy.
    SpaceError
        If the backbone does not give one feature vector for each image.
    """
    from lightly.models.modules.heads import SimCLRProjectionHead

    device = torch.device(device)
    pool = images if isinstance(images, Pool) else Pool(images, device)
    num_held_out = check_images(len(pool), config)
    if config.view_pool == "fixed" and isinstance(pool.images, StreamedImages):
        raise ConfigError(
            f"view_pool is 'fixed', which keeps the views of all {len(pool)} images in memory, but the images are too many "
            "to be kept (images.resident_gb); set view_pool: fresh, or take a part of them with images.num_images"
        )
    generator = torch.Generator(device).manual_seed(data_seed)
    order = torch.randperm(len(pool), generator=generator, device=device)
    train, held_out = order[num_held_out:], order[: min(num_held_out, MAX_HELD_OUT)]
    if config.channels_last and not bears_channels_last(backbone, device):
        config = config.model_copy(update={"channels_last": False})
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    with seeded(seed):
        backbone = backbone.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        width, dead = _probe(backbone, views, pool.take(train[:MAX_COMPARED]))
        head = SimCLRProjectionHead(width, config.projection_hidden, config.projection_dim).to(device)
        loss_function = _loss(config, len(train), generator, device)
        trainer = _Trainer(backbone, head, loss_function, config, num_images=len(train), device=device)
        pairs = views(pool.take(train), generator) if config.view_pool == "fixed" else None
        if pairs is not None:
            pairs = (pairs[0].contiguous(memory_format=memory_format), pairs[1].contiguous(memory_format=memory_format))

        epoch_losses: list[float] = []
        state = _State(checkpoint, backbone, head, loss_function, trainer, generator) if checkpoint else None
        before = state.restore(epoch_losses) if state else 0.0
        backbone.train()
        head.train()
        start = time.perf_counter() - before
        for epoch in range(len(epoch_losses), math.ceil(trainer.steps / trainer.steps_per_epoch)):
            batches = _batches(len(train), config.batch_size, generator)
            # numbers: of a batch's images among those trained on
            numbers = list(itertools.islice(batches, trainer.steps - epoch * trainer.steps_per_epoch))
            if pairs is not None:
                for number in numbers:
                    trainer.step(pairs[0][number], pairs[1][number], number)
            else:
                for number, batch in zip(numbers, pool.batches(train[number] for number in numbers), strict=True):
                    trainer.step(*views(batch, generator), number)
            epoch_losses.append(trainer.finish_epoch())
            if state is not None:
                state.save(epoch_losses, time.perf_counter() - start)
            if on_epoch is not None:
                on_epoch(epoch, epoch_losses[-1])
        seconds = time.perf_counter() - start
        unseen = _evaluate(backbone, head, pool, held_out, views, generator, config) if num_held_out else {}
    return ContrastiveResult(
        epoch_losses=tuple(epoch_losses),
        steps=trainer.steps,
        seconds=seconds,
        images_per_second=trainer.steps * config.batch_size / max(seconds, 1e-9),
        worst=_worst(config) if dead else None,
        **unseen,
    )


class _Trainer:
    """One optimiser step at a time, without waiting for the device until the epoch's end."""

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        loss_function: Callable[..., torch.Tensor],
        config: ContrastiveConfig,
        *,
        num_images: int,
        device: torch.device,
    ) -> None:
        self.embed: Callable[[torch.Tensor], torch.Tensor] = nn.Sequential(backbone, head)
        if config.compile:
            self.embed = torch.compile(self.embed)
        self.loss_function = loss_function
        self.config = config
        self.device = device
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.steps_per_epoch = num_images // config.batch_size
        self.steps = config.steps or config.epochs * self.steps_per_epoch
        parameters = [p for module in (backbone, head) for p in module.parameters() if p.requires_grad]
        from lightly.utils.scheduler import CosineWarmupScheduler

        self.optimizer = torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        warmup = min(round(config.warmup_epochs * self.steps_per_epoch), self.steps)
        self.scheduler = CosineWarmupScheduler(self.optimizer, warmup, self.steps, end_value=0.0)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16" and device.type == "cuda")
        self.step_count = 0
        self.losses: list[torch.Tensor] = []
        self.rates: list[float] = []

    def autocast(self) -> AbstractContextManager[Any]:
        """Half precision where the config asks for it; fp16 is bf16 on the CPU, which has no fp16 kernels for all."""
        dtype = torch.float16 if self.config.amp == "fp16" and self.device.type == "cuda" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.config.amp != "off")

    def step(self, first: torch.Tensor, second: torch.Tensor, index: torch.Tensor) -> None:
        """Forward, backward and update on two views ``(B, 3, S, S)`` of the images ``index``."""
        batch = torch.cat([first, second]).contiguous(memory_format=self.memory_format)
        with self.autocast():
            embeddings = self.embed(batch)
        u, v = embeddings.float().chunk(2)
        loss = (
            self.loss_function(u, v, index)
            if isinstance(self.loss_function, PretextInvariantLoss)
            else self.loss_function(u, v)
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.losses.append(loss.detach())

    def finish_epoch(self) -> float:
        """The epoch's mean loss: the only place where the device is waited for.

        Raises
        ------
        DivergenceError
            If a loss of the epoch was NaN or infinite.
        """
        losses = torch.stack(self.losses).tolist()
        for offset, (loss, rate) in enumerate(zip(losses, self.rates, strict=True)):
            if not math.isfinite(loss):
                hint = "" if self.config.amp == "off" else " or set amp: off"
                raise DivergenceError(
                    f"contrastive loss is {loss} at step {self.step_count + offset + 1} (lr {rate:g}, "
                    f"temperature {self.config.temperature:g}); lower lr ({self.config.lr:g}), raise temperature{hint}"
                )
        self.step_count += len(losses)
        self.losses.clear()
        self.rates.clear()
        return sum(losses) / len(losses)


class _State:
    """All that a training depends on between two epochs, in one file."""

    def __init__(
        self,
        path: Path,
        backbone: nn.Module,
        head: nn.Module,
        loss_function: Callable[..., torch.Tensor],
        trainer: _Trainer,
        generator: torch.Generator,
    ) -> None:
        self.path = path
        self.stateful = {
            "backbone": backbone,
            "head": head,
            "optimizer": trainer.optimizer,
            "scheduler": trainer.scheduler,
            "scaler": trainer.scaler,
        }
        self.loss_function = loss_function
        self.trainer = trainer
        self.generator = generator

    def _memories(self) -> dict[str, torch.Tensor]:
        """Buffers of the loss, which its state_dict may leave out."""
        return dict(self.loss_function.named_buffers()) if isinstance(self.loss_function, nn.Module) else {}

    def save(self, epoch_losses: list[float], seconds: float) -> None:
        content = {
            **{name: part.state_dict() for name, part in self.stateful.items()},
            "memories": self._memories(),
            "epoch_losses": epoch_losses,
            "seconds": seconds,
            "steps": self.trainer.step_count,
            "generators": [self.generator.get_state(), torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
        }
        with replacing(self.path) as temporary:
            torch.save(content, temporary)

    def restore(self, epoch_losses: list[float]) -> float:
        """Fill the losses of the finished epochs in; gives the seconds that they took."""
        if not self.path.exists():
            return 0.0
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch's reader raises for a damaged file
            warnings.warn(f"{self.path} is damaged ({error}); the training begins anew", stacklevel=3)
            return 0.0
        for name, part in self.stateful.items():
            part.load_state_dict(content[name])
        for name, memory in self._memories().items():
            memory.copy_(content["memories"][name])
        epoch_losses.extend(content["epoch_losses"])
        self.trainer.step_count = content["steps"]
        own, cpu, *devices = content["generators"]
        self.generator.set_state(own)
        torch.set_rng_state(cpu)
        if len(devices) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(devices)
        return float(content["seconds"])


def _batches(num_images: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Random batches of one epoch; an incomplete last one is left out, for it would have fewer negatives."""
    order = torch.randperm(num_images, generator=generator, device=generator.device)
    for start in range(0, num_images - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def _loss(
    config: ContrastiveConfig, num_images: int, generator: torch.Generator, device: torch.device
) -> Callable[..., torch.Tensor]:
    if config.loss == "pirl":
        return PretextInvariantLoss(
            num_images,
            config.projection_dim,
            temperature=config.temperature,
            weight=config.pirl_weight,
            momentum=config.pirl_momentum,
            generator=generator,
        )
    if not config.memory_bank_size:
        return partial(nt_xent, temperature=config.temperature)
    from lightly.loss.ntx_ent_loss import NTXentLoss

    bank = (config.memory_bank_size, config.projection_dim)
    return NTXentLoss(temperature=config.temperature, memory_bank_size=bank).to(device)


def _probe(backbone: nn.Module, views: Views, images: torch.Tensor) -> tuple[int, bool]:
    """Width of the features, and whether all images have the same to the last bits; leaves no trace in the network."""
    training = backbone.training
    backbone.eval()
    probe = views(images, torch.Generator(images.device).manual_seed(0))[0]
    with torch.no_grad():
        features = backbone(probe)
    backbone.train(training)
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(probe):
        shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise SpaceError(
            f"the backbone gives {shape} for {len(probe)} images; it must give features of shape (batch, width)"
        )
    difference, size = (features - features[0]).abs().max(), features.abs().max()
    return features.shape[1], bool(difference <= 1e-6 * size)


def _worst(config: ContrastiveConfig) -> float:
    """Minus the largest loss: the positive's cosine is -1, those of all negatives are 1."""
    negatives = max(2 * config.batch_size - 2, config.memory_bank_size)
    # In this form, exp(2 / temperature) cannot overflow.
    return -(2 / config.temperature + math.log(negatives + math.exp(-2 / config.temperature)))


@torch.no_grad()
def _evaluate(
    backbone: nn.Module,
    head: nn.Module,
    pool: Pool,
    held_out: torch.Tensor,
    views: Views,
    generator: torch.Generator,
    config: ContrastiveConfig,
) -> dict[str, float]:
    """The trained network on two views of the held-out images: NT-Xent against each other, alignment, uniformity."""
    backbone.eval()
    head.eval()
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    parts = []
    for batch in pool.batches(held_out.split(config.batch_size)):
        pair = torch.cat(views(batch, generator)).contiguous(memory_format=memory_format)
        parts.append(backbone(pair).float().chunk(2))
    first, second = (torch.cat(features) for features in zip(*parts, strict=True))
    return {
        "held_out": float(nt_xent(head(first), head(second), config.temperature)),
        "alignment": alignment(first, second),
        "uniformity": uniformity(first),
    }
