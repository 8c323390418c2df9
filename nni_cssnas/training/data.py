"""Batches of labelled images for Lightning, the same whenever the same epoch is asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nni_cssnas.base.device import derive_seed
from nni_cssnas.errors import ImagesError
from nni_cssnas.images import read
from nni_cssnas.images.labelled import Files, Split
from nni_cssnas.images.pool import Pool
from nni_cssnas.training.augment import picture_transforms
from nni_cssnas.training.config import RetrainConfig

__all__ = ["NO_LABEL", "LabelledData", "Order", "default_workers"]

NO_LABEL = -100
"""Label of an image that is there only to fill a batch; losses and metrics leave it out."""

Batch = tuple[Tensor, Tensor]
"""Images, uint8 ``(B, 3, S, S)``, and labels, int64 ``(B,)``."""


class Order:
    """Which images stand in which batch: an iterable of ``(epoch, positions)``.

    The order of an epoch depends on the seed and the epoch alone, so that a resumed run sees what it would have seen.

    Parameters
    ----------
    num_images
        How many there are.
    batch_size
        Of all devices together.
    seed
        Of the order.
    shuffle
        A random order, whose last batch is left out if a device gets fewer than 2 images of it (batch norm needs 2);
        otherwise that of the images, filled up with -1 so that all devices get equally many batches.
    rank, world_size
        Which of how many devices this is; each takes every ``world_size``-th image of a batch.
    epoch
        The first epoch that is asked for. Lightning calls :meth:`set_epoch` before the others.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.num_images, self.batch_size)
        least = 2 * self.world_size if self.shuffle else 1
        return full + (rest >= least)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        order = torch.arange(self.num_images)
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, f"order of epoch {self.epoch}"))
            order = torch.randperm(self.num_images, generator=generator)
        for batch in order.split(self.batch_size)[: len(self)]:
            surplus = len(batch) % self.world_size
            if surplus and self.shuffle:
                batch = batch[:-surplus]
            elif surplus:
                batch = torch.cat([batch, batch.new_full((self.world_size - surplus,), -1)])
            yield self.epoch, batch[self.rank :: self.world_size]


class ResidentBatches:
    """Batches of images in memory, by way of a :class:`~nni_cssnas.images.pool.Pool`."""

    def __init__(self, pool: Pool, labels: Tensor, order: Order) -> None:
        self.pool = pool
        self.labels = labels
        # Where Lightning looks for set_epoch.
        self.sampler = order
        self.batch_sampler = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        chosen = [positions for _, positions in self.sampler]
        device = self.pool.device
        batches = self.pool.batches(positions.clamp_min(0) for positions in chosen)
        for positions, images in zip(chosen, batches, strict=True):
            yield images, _labels(self.labels, positions).to(device)


class PictureBatches(Dataset[Batch]):
    """Batches of pictures that are decoded and transformed when they are asked for, by ``(epoch, positions)``.

    What is drawn for a picture depends on the seed, the epoch and its position, not on the process that reads it. One
    that cannot be read is left out with a warning.
    """

    def __init__(self, split: Split, config: RetrainConfig, *, train: bool) -> None:
        assert isinstance(split.images, Files)
        self.files, self.labels = split.images, split.labels
        self.seed = config.seed
        # A random crop is enlarged: decode more than is needed of the whole.
        self.edge = config.size * (2 if config.crop == "resized" else 1)
        self.transform = picture_transforms(config, train=train)
        self.warned = False

    def __getitem__(self, key: tuple[int, Tensor]) -> Batch:
        epoch, positions = key
        images = {}
        for place, position in enumerate(positions.tolist()):
            image = self._picture(epoch, max(position, 0))
            if image is not None:
                images[place] = image
        if not images:
            raise ImagesError(f"none of the {len(positions)} pictures of a batch in {self.files.folder} can be read")
        return torch.stack(list(images.values())), _labels(self.labels, positions[list(images)])

    def _picture(self, epoch: int, position: int) -> Tensor | None:
        try:
            picture = read.open_rgb(self.files.path(position), self.edge, self.files.bits)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            if not self.warned:
                self.warned = True
                name = self.files.names[position]
                warnings.warn(f"{name} could not be read ({error}); such files are left out", stacklevel=2)
            return None
        # torch's global generator is all that torchvision's transforms know.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, f"picture {position} in epoch {epoch}"))
            return self.transform(picture)  # type: ignore[no-any-return]


def default_workers(devices: int) -> int:
    """How many processes read pictures for each device: one for each core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // devices)


def _labels(labels: Tensor, positions: Tensor) -> Tensor:
    return torch.where(positions < 0, NO_LABEL, labels[positions.clamp_min(0)])


class LabelledData(pl.LightningDataModule):
    """Training and validation batches as the recipe says; under DDP, this process's share of them.

    Parameters
    ----------
    train, val
        Of one size.
    config
        The recipe.
    """

    def __init__(self, train: Split, val: Split, config: RetrainConfig) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.config = config
        self._pools: dict[int, Pool] = {}

    def train_dataloader(self) -> Any:
        """Shuffled batches, from the epoch that the trainer is about to begin."""
        assert self.trainer is not None
        # Lightning makes the first iterator before it tells the sampler the epoch, also when it resumes.
        epoch = self.trainer.fit_loop.epoch_progress.current.processed
        return self._loader(self.train, train=True, epoch=epoch)

    def val_dataloader(self) -> Any:
        """All validation images in their order."""
        return self._loader(self.val, train=False, epoch=0)

    def _loader(self, split: Split, *, train: bool, epoch: int) -> Any:
        assert self.trainer is not None
        config, trainer = self.config, self.trainer
        order = Order(
            len(split),
            config.batch_size if train else max(config.batch_size, 128),
            config.seed,
            shuffle=train,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            epoch=epoch,
        )
        device = trainer.strategy.root_device
        if not isinstance(split.images, Files):
            # Lightning asks for the loaders again at every start; the images go to the device once.
            pool = self._pools.setdefault(id(split), Pool(split.images, device))
            return ResidentBatches(pool, split.labels, order)
        workers = config.workers
        if workers is None:
            workers = default_workers(config.devices)
        return DataLoader(
            PictureBatches(split, config, train=train),
            sampler=order,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
