"""Augmentation of labelled images: batched on the device where they are in memory, torchvision's where they are files."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nni_cssnas.config import ViewsConfig
from nni_cssnas.images.views import MEAN, STD, BatchedViews
from nni_cssnas.training.config import RetrainConfig

__all__ = ["Augmentation", "cutout", "picture_transforms", "random_crop"]


class Augmentation:
    """uint8 images to what the network takes: crop, flip and colour, then normalisation, then cutout (arXiv:1708.04552).

    Parameters
    ----------
    config
        The recipe.
    mean, std
        Of each channel, in [0, 1].
    cropped
        The images come out of :func:`picture_transforms`; only normalisation and cutout are left to do.
    """

    def __init__(
        self, config: RetrainConfig, mean: tuple[float, ...], std: tuple[float, ...], *, cropped: bool = False
    ) -> None:
        self.mean, self.std = mean, std
        self.cutout = config.cutout
        self.padding = config.padding if config.crop == "pad" and not cropped else 0
        self.flip = config.flip and not cropped
        self.views: BatchedViews | None = None
        if config.crop == "resized" and not cropped:
            self.views = BatchedViews(_crop_only(config), config.size)
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format

    @torch.no_grad()
    def train(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A random version of each image.

        Parameters
        ----------
        images
            uint8, ``(B, 3, S, S)``.
        generator
            On the same device; the only source of randomness.

        Returns
        -------
        Tensor
            float32, ``(B, 3, S, S)``.
        """
        if self.views is not None:
            parameters = self.views.draw(len(images), generator, images.shape[2], images.shape[3])
            batch = self.views.apply(images, parameters)
            # From ImageNet's normalisation, which the views have, to this one's.
            batch = self._scaled(batch, [s / t for s, t in zip(STD, self.std, strict=True)], self._offsets())
        else:
            batch = self._normalised(random_crop(images, self.padding, generator, flip=self.flip))
        return cutout(batch, self.cutout, generator) if self.cutout else batch

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> Tensor:
        """The images as they are, normalised: uint8 to float32, ``(B, 3, S, S)``."""
        return self._normalised(images)

    def _offsets(self) -> list[float]:
        return [(m - n) / t for m, n, t in zip(MEAN, self.mean, self.std, strict=True)]

    def _normalised(self, images: Tensor) -> Tensor:
        scales = [1 / (255 * std) for std in self.std]
        offsets = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        return self._scaled(images.float(), scales, offsets)

    def _scaled(self, batch: Tensor, scales: list[float], offsets: list[float]) -> Tensor:
        for channel, scale, offset in zip(batch.unbind(1), scales, offsets, strict=True):
            # Plain numbers: a tensor of them would have to be copied to the device.
            channel.mul_(scale).add_(offset)
        return batch.contiguous(memory_format=self.memory_format)


def random_crop(images: Tensor, padding: int, generator: torch.Generator, *, flip: bool = False) -> Tensor:
    """Each image ``(B, 3, H, W)``, shifted by up to ``padding`` pixels (black comes in) and mirrored at even odds."""
    batch_size, _, height, width = images.shape
    device = images.device
    # The same numbers are drawn whatever is switched off.
    down, right = torch.randint(0, 2 * padding + 1, (2, batch_size), generator=generator, device=device)
    mirrored = torch.rand(batch_size, generator=generator, device=device) < 0.5
    if not padding and not flip:
        return images
    columns = torch.arange(width, device=device).expand(batch_size, width)
    if flip:
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    rows = torch.arange(height, device=device) + down[:, None]
    columns = columns + right[:, None]
    padded = F.pad(images, (padding,) * 4)
    batch = torch.arange(batch_size, device=device)
    # (B, H, W, 3), which is the memory of channels_last
    cropped = padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Blank a square of ``side`` pixels around a random pixel of each image, in place; at the border a part of it."""
    batch_size, _, height, width = images.shape
    device = images.device

    def covered(length: int) -> Tensor:
        centre = torch.randint(0, length, (batch_size, 1), generator=generator, device=device)
        pixel = torch.arange(length, device=device)
        return (pixel >= centre - side // 2) & (pixel < centre - side // 2 + side)

    rows, columns = covered(height), covered(width)
    return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def _crop_only(config: RetrainConfig) -> ViewsConfig:
    """What RandomResizedCrop, flip and ColorJitter are in terms of SimCLR's views."""
    brightness, contrast, saturation, hue = config.jitter
    return ViewsConfig(
        cj_prob=float(any(config.jitter)),
        cj_strength=1.0,
        cj_bright=brightness,
        cj_contrast=contrast,
        cj_sat=saturation,
        cj_hue=hue,
        min_scale=0.08,
        random_gray_scale=0.0,
        gaussian_blur=0.0,
        hf_prob=0.5 if config.flip else 0.0,
    )


def picture_transforms(config: RetrainConfig, *, train: bool) -> Any:
    """torchvision's transforms of one RGB picture to uint8 ``(3, size, size)``; the rest is done by the batch."""
    from torchvision.transforms import v2

    size = config.size
    steps: list[Any] = []
    if config.crop == "resized":
        # As ImageNet is evaluated: 224 of 256 pixels.
        enlarged = round(size * 256 / 224)
        steps = (
            [v2.RandomResizedCrop(size, antialias=True)]
            if train
            else [v2.Resize(enlarged, antialias=True), v2.CenterCrop(size)]
        )
    else:
        steps = [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
        if train and config.padding:
            steps.append(v2.RandomCrop(size, padding=config.padding))
    if train and config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if train and any(config.jitter):
        steps.append(v2.ColorJitter(*config.jitter))
    return v2.Compose([*steps, v2.PILToTensor()])
