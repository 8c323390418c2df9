"""The operations of our views by torchvision and by kornia, to compare their speed with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nni_cssnas.config import ViewsConfig
from nni_cssnas.images.views import MEAN, STD

__all__ = ["kornia_views", "torchvision_views"]


def blur_kernel(size: int) -> int:
    """Odd, a tenth of the view, as in SimCLR; these libraries sample a kernel of fixed size."""
    return max(3, round(size / 10) // 2 * 2 + 1)


def jitter_of(config: ViewsConfig) -> tuple[float, float, float, float]:
    """Brightness, contrast, saturation, hue."""
    values = (config.cj_bright, config.cj_contrast, config.cj_sat, config.cj_hue)
    return tuple(config.cj_strength * value for value in values)  # type: ignore[return-value]


def torchvision_views(config: ViewsConfig, size: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """The same operations by torchvision's v2 on tensors. A batch would get one draw for all, so it goes image by image."""
    from torchvision.transforms import v2

    assert isinstance(config.rr_degrees, float)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, (config.min_scale, 1.0), antialias=True),
            v2.RandomApply([v2.RandomRotation(config.rr_degrees)], config.rr_prob),
            v2.RandomHorizontalFlip(config.hf_prob),
            v2.RandomVerticalFlip(config.vf_prob),
            v2.RandomApply([v2.ColorJitter(*jitter_of(config))], config.cj_prob),
            v2.RandomGrayscale(config.random_gray_scale),
            v2.RandomApply([v2.GaussianBlur(blur_kernel(size), config.sigmas)], config.gaussian_blur),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def make(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        first, second = (torch.stack([transform(image) for image in images]) for _ in range(2))
        return first, second

    return make


def kornia_views(config: ViewsConfig, size: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """The same operations by kornia, which draws anew for each image of a batch."""
    from kornia import augmentation

    transform = nn.Sequential(
        augmentation.RandomResizedCrop((size, size), (config.min_scale, 1.0)),
        augmentation.RandomRotation(config.rr_degrees, p=config.rr_prob),
        augmentation.RandomHorizontalFlip(p=config.hf_prob),
        augmentation.RandomVerticalFlip(p=config.vf_prob),
        augmentation.ColorJitter(*jitter_of(config), p=config.cj_prob),
        augmentation.RandomGrayscale(p=config.random_gray_scale),
        augmentation.RandomGaussianBlur((blur_kernel(size),) * 2, config.sigmas, p=config.gaussian_blur),
        augmentation.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )

    def make(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pixels = images.float() / 255
        return transform(pixels), transform(pixels)

    return make
