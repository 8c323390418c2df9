"""Two SimCLR views (arXiv:2002.05709) of every image of a batch.

:func:`make_views` gives an object that is called with a uint8 batch and a ``torch.Generator``.
:class:`BatchedViews` works on the whole batch on its device; :class:`LightlyViews` runs lightly's
``SimCLRTransform`` image by image and is what the batched views are compared with.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nni_cssnas.config import ViewsConfig
from nni_cssnas.errors import ConfigError, DeviceError, ImagesError
from nni_cssnas.images.operations import (
    RATIO,
    Slots,
    ViewParameters,
    apply_jitter,
    blur_views,
    box_radius_of,
    central_box,
    luma_of,
    rotate_views,
    sample_positions,
    slots_of,
    sorts_operations,
    weights_of_resize,
)

__all__ = ["BatchedViews", "LightlyViews", "ViewParameters", "Views", "make_views"]

# lightly's IMAGENET_NORMALIZE, written out because importing lightly.transforms takes a second; a test compares them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TRIES = 10
# Values, and views, in one block. On a CPU the ~100 passes over a block then run in its cache, and its temporaries are
# small enough for malloc to keep. On an accelerator it only bounds the temporaries (some 6 blocks).
CPU_BLOCK, CPU_BLOCK_VIEWS = 2**19, 96
DEVICE_BLOCK = 2**26


class Views(Protocol):
    """What :func:`make_views` returns: stateless, so one object serves any number of batches."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw two views of each image; all randomness comes from ``generator``.

        Parameters
        ----------
        images
            uint8, (batch_size, 3, height, width).
        generator
            On the device of ``images``.

        Returns
        -------
        tuple of Tensor
            Two tensors (batch_size, 3, size, size), normalised with ImageNet's mean and deviation.
        """


def make_views(
    config: ViewsConfig, size: int, *, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> Views:
    """The views that ``config`` describes.

    Parameters
    ----------
    config
        The section ``views`` of ``proxy.yml``.
    size
        Edge of a view in pixels where ``config.input_size`` is not given: that of the images.
    dtype
        float32, float16 or bfloat16; views are computed in float32 and rounded once, at the end.
    channels_last
        Give the views in that memory format.

    Raises
    ------
    ConfigError
        If ``rr_degrees`` is negative.
    """
    kind = BatchedViews if config.backend == "batched" else LightlyViews
    return kind(config, config.input_size or size, dtype=dtype, channels_last=channels_last)


class BatchedViews:
    """SimCLR views of a whole batch: no Python loop over images, no host synchronisation on an accelerator.

    The operations, their order and the distributions of their parameters are those of lightly's
    ``SimCLRTransform``. The arithmetic is float32 throughout, where PIL rounds to 8 bits after every
    operation; each operation equals torchvision's on float tensors up to float rounding. The blur
    has PIL's own kernel (three extended box filters, not a sampled Gaussian): within 3 of 255 levels of
    PIL's result, 0.5 on average, which is PIL's rounding.

    Parameters are drawn (:meth:`draw`) apart from being applied (:meth:`apply`).
    """

    def __init__(
        self, config: ViewsConfig, size: int, *, dtype: torch.dtype = torch.float32, channels_last: bool = False
    ) -> None:
        _check_rotation(config)
        self.config = config
        self.size = size
        self.dtype = dtype
        self.channels_last = channels_last
        # How far one of the three box filters reaches for the widest blur; fixed, so that no size depends on data.
        self._reach = math.floor(box_radius_of(torch.tensor(config.sigmas[1], dtype=torch.float64)).item()) + 1

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r}, size={self.size})"

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two views of each image, see :class:`Views`.

        Raises
        ------
        ImagesError
            If ``images`` is not uint8 of shape (batch_size, 3, height, width).
        DeviceError
            If ``generator`` is on another device.
        """
        _check_images(images)
        if generator.device.type != images.device.type:
            raise DeviceError(
                f"the images are on {images.device} and the generator on {generator.device}; "
                f"make it with torch.Generator({str(images.device)!r})"
            )
        batch_size, _, height, width = images.shape
        # One draw for both views: half as many kernels.
        parameters = self.draw(2 * batch_size, generator, height, width)
        views = self._apply(images, torch.arange(batch_size, device=images.device).repeat(2), parameters)
        return views[:batch_size], views[batch_size:]

    def draw(self, batch_size: int, generator: torch.Generator, height: int, width: int) -> ViewParameters:
        """Draw the parameters of ``batch_size`` views of images of ``height`` x ``width`` pixels.

        The distributions are those of torchvision's ``RandomResizedCrop``, ``ColorJitter``,
        ``RandomGrayscale`` and ``RandomRotation`` and of lightly's ``GaussianBlur`` and
        ``RandomRotate``. The same number of values is drawn whatever is switched off, so that
        switching one operation off leaves the others as they were.
        """
        config = self.config
        device = generator.device
        # All uniforms in one kernel.
        uniform = torch.rand(batch_size, 2 * TRIES + 18, generator=generator, device=device)
        areas, ratios = uniform[:, :TRIES], uniform[:, TRIES : 2 * TRIES]
        u_top, u_left, u_horizontal, u_vertical, u_rotate, u_angle, u_jitter, u_gray, u_blur, u_sigma = uniform[
            :, 2 * TRIES : 2 * TRIES + 10
        ].unbind(1)
        u_factors, u_order = uniform[:, -8:-4], uniform[:, -4:]

        # All ten tries at once; the first box that fits is taken, or else the central crop.
        area = height * width * (config.min_scale + (1 - config.min_scale) * areas)
        ratio = torch.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * ratios)
        widths = (area * ratio).sqrt().round()
        heights = (area / ratio).sqrt().round()
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first = fits.byte().argmax(1, keepdim=True)
        found = fits.any(1)
        central_height, central_width = central_box(height, width)
        crop_height = torch.where(found, heights.gather(1, first).squeeze(1), central_height)
        crop_width = torch.where(found, widths.gather(1, first).squeeze(1), central_width)
        top = torch.where(found, u_top * (height - crop_height + 1), (height - central_height) // 2)
        left = torch.where(found, u_left * (width - crop_width + 1), (width - central_width) // 2)

        quarter = angle = order = factors = jitter = gray = sigma = None
        if config.rr_prob > 0:
            rotate = u_rotate < config.rr_prob
            if config.rr_degrees is None:
                quarter = rotate
            else:
                low, high = _degrees(config.rr_degrees)
                angle = (low + (high - low) * u_angle) * rotate
        strengths = [config.cj_strength * s for s in (config.cj_bright, config.cj_contrast, config.cj_sat)]
        shift = config.cj_strength * config.cj_hue
        if config.cj_prob > 0 and (any(strengths) or shift):
            lows = [max(0.0, 1 - s) for s in strengths] + [-shift]
            highs = [1 + s for s in strengths] + [shift]
            factors = torch.stack(
                [low + (high - low) * u for low, high, u in zip(lows, highs, u_factors.unbind(1), strict=True)], dim=1
            )
            order = u_order.argsort(1)
            jitter = u_jitter < config.cj_prob
        if config.random_gray_scale > 0:
            gray = u_gray < config.random_gray_scale
        if config.gaussian_blur > 0:
            low, high = config.sigmas
            sigma = (low + (high - low) * u_sigma) * (u_blur < config.gaussian_blur)
        return ViewParameters(
            top=top.long(),
            left=left.long(),
            height=crop_height.long(),
            width=crop_width.long(),
            horizontal=u_horizontal < config.hf_prob,
            vertical=u_vertical < config.vf_prob,
            quarter=quarter,
            angle=angle,
            order=order,
            factors=factors,
            jitter=jitter,
            gray=gray,
            sigma=sigma,
        )

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: ViewParameters) -> Tensor:
        """One view of each image with given parameters.

        Parameters
        ----------
        images
            uint8, (batch_size, 3, height, width).
        parameters
            Of ``batch_size`` views; ``sigma`` at most the upper one of the configuration.

        Returns
        -------
        Tensor
            (batch_size, 3, size, size).

        Raises
        ------
        ImagesError
            If ``images`` is not uint8 of that shape, or the batch sizes differ.
        """
        _check_images(images)
        if len(images) != len(parameters):
            raise ImagesError(f"{len(images)} images but the parameters of {len(parameters)} views")
        return self._apply(images, torch.arange(len(images), device=images.device), parameters)

    def _apply(self, images: Tensor, index: Tensor, parameters: ViewParameters) -> Tensor:
        """View number ``v`` is made of image ``index[v]``."""
        device = images.device
        num_views = len(index)
        views = torch.empty(
            (num_views, 3, self.size, self.size),
            dtype=self.dtype,
            device=device,
            memory_format=torch.channels_last if self.channels_last else torch.contiguous_format,
        )
        slots = None if parameters.order is None else slots_of(parameters)
        sort = sorts_operations(device)
        for place, reach in self._blocks(parameters, slots, sort=sort):
            some, colours = parameters[place], None if slots is None else slots[place]
            view = rotate_views(self._crop(images.index_select(0, index[place]), some), some)
            if colours is not None:
                apply_jitter(view, colours, skip=sort)
            if some.gray is not None:
                # As arithmetic on all views: cheaper than picking the grey ones out and putting them back.
                gray = some.gray.to(view.dtype).view(-1, 1, 1, 1)
                torch.addcmul(luma_of(view).mul_(gray), view, 1 - gray, out=view)
            for channel, mean, std in zip(view.unbind(1), MEAN, STD, strict=True):
                # Plain numbers: a tensor of them would have to be copied to the device, which waits for it.
                channel.sub_(mean).mul_(1 / std)
            if reach and some.sigma is not None:
                # The kernel adds up to 1, so it may follow the normalisation.
                view = blur_views(view, some.sigma, reach)
            if isinstance(place, slice):
                views[place] = view
            else:
                views.index_copy_(0, place, view.to(self.dtype))
        return views

    def _blocks(
        self, parameters: ViewParameters, slots: Slots | None, *, sort: bool
    ) -> Iterator[tuple[Tensor | slice, int]]:
        """Which views are made together, and how far their box filter reaches (0: none is blurred).

        With ``sort`` those that are blurred equally far are kept apart, and those whose hue comes at the same
        place in the order come together: each operation then runs on whole blocks or contiguous parts of them,
        and no view is given work that it does not need. Without it, nothing that was drawn is looked at.
        """
        total = len(parameters)
        block = max(1, (CPU_BLOCK if sort else DEVICE_BLOCK) // (3 * self.size * self.size))
        if sort:
            block = min(block, CPU_BLOCK_VIEWS)
        else:
            for start in range(0, total, block):
                yield slice(start, start + block), self._reach
            return
        ranks = torch.zeros(total) if slots is None else slots.rank
        sigma = parameters.sigma
        reaches = torch.zeros(total) if sigma is None else (box_radius_of(sigma).floor() + 1) * (sigma > 0)
        for reach in sorted(set(reaches.tolist())):
            chosen = (reaches == reach).nonzero().squeeze(1)
            chosen = chosen[ranks[chosen].argsort(stable=True)]
            for start in range(0, len(chosen), block):
                yield chosen[start : start + block], int(reach)

    def _crop(self, images: Tensor, parameters: ViewParameters) -> Tensor:
        """Crop, mirror and resize: torchvision's ``resized_crop`` with antialias, in [0, 1]."""
        height, width = images.shape[-2:]
        pixels = images.to(torch.float32).mul_(1 / 255)
        if height <= self.size and width <= self.size:
            # No crop is made smaller, so antialiasing does nothing and two taps an axis are all that bilinear
            # interpolation needs: 3 times faster at 96 px, 6 times at 224 px than products with weight matrices.
            x = sample_positions(parameters.left, parameters.width, parameters.horizontal, self.size)
            y = sample_positions(parameters.top, parameters.height, parameters.vertical, self.size)
            # (x, y) of each pixel as one product-sum over rows x 0 x 0 ... and 0 1 0 1 ...: two copies into every
            # other element are 4 times slower.
            x = F.pad(((2 * x + 1) / width - 1).unsqueeze(2), (0, 1)).flatten(1).unsqueeze(1)
            y = ((2 * y + 1) / height - 1).unsqueeze(2)
            odd = (torch.arange(2 * self.size, device=x.device) % 2).to(x.dtype)
            grid = torch.addcmul(x, y, odd).view(-1, self.size, self.size, 2)
            return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
        rows = weights_of_resize(parameters.top, parameters.height, parameters.vertical, height, self.size)
        columns = weights_of_resize(parameters.left, parameters.width, parameters.horizontal, width, self.size)
        # (batch_size, 1, size, height) @ (batch_size, 3, height, width) @ (batch_size, 1, width, size)
        return (rows.unsqueeze(1) @ pixels) @ columns.transpose(1, 2).unsqueeze(1)


class LightlyViews:
    """lightly's ``SimCLRTransform`` of one image after the other.

    It draws from torch's, numpy's and Python's global random states. Those are seeded from the
    generator for the length of a call and put back after it.
    """

    def __init__(
        self, config: ViewsConfig, size: int, *, dtype: torch.dtype = torch.float32, channels_last: bool = False
    ) -> None:
        from lightly.transforms import SimCLRTransform

        _check_rotation(config)
        self.config = config
        self.size = size
        self.dtype = dtype
        self.channels_last = channels_last
        self._transform = SimCLRTransform(input_size=size, **config.model_dump(exclude={"backend", "input_size"}))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r}, size={self.size})"

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two views of each image, see :class:`Views`; they are made on the CPU and moved to ``images``' device.

        Raises
        ------
        ImagesError
            If ``images`` is not uint8 of shape (batch_size, 3, height, width).
        """
        from PIL import Image

        _check_images(images)
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        pictures = images.permute(0, 2, 3, 1).cpu().numpy()
        with _seeded(seed):
            pairs = [self._transform(Image.fromarray(picture)) for picture in pictures]
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        first, second = (
            torch.stack(views).to(device=images.device, dtype=self.dtype, memory_format=memory_format)
            for views in zip(*pairs, strict=True)
        )
        return first, second


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global random states of torch (CPU), numpy and Python seeded with ``seed``, and put back afterwards."""
    state = np.random.get_state()  # noqa: NPY002 - lightly draws from the legacy state
    python_state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds the accelerators too; fork_rng(devices=[]) would not put those back.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
            random.setstate(python_state)


def _degrees(degrees: float | tuple[float, float]) -> tuple[float, float]:
    return degrees if isinstance(degrees, tuple) else (-degrees, degrees)


def _check_rotation(config: ViewsConfig) -> None:
    degrees = config.rr_degrees
    if isinstance(degrees, (int, float)) and degrees < 0:
        raise ConfigError(
            f"views.rr_degrees is {degrees:g}; one number must not be negative (or give two: [low, high])"
        )


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ImagesError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; "
            "they must be torch.uint8 of shape (batch_size, 3, height, width)"
        )
