"""Two SimCLR views (arXiv:2002.05709) of every image of a batch.

:func:`make_views` gives an object that is called with a uint8 batch and a ``torch.Generator``.
:class:`BatchedViews` works on the whole batch on its device; :class:`LightlyViews` runs lightly's
``SimCLRTransform`` image by image and is what the batched views are compared with.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nni_cssnas.config import ViewsConfig
from nni_cssnas.errors import ConfigError, DeviceError, ImagesError

__all__ = ["BatchedViews", "LightlyViews", "ViewParameters", "Views", "make_views"]

# lightly's IMAGENET_NORMALIZE, written out because importing lightly.transforms takes a second; a test compares them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# The luma weights of torchvision's rgb_to_grayscale (ITU-R 601).
LUMA = (0.2989, 0.587, 0.114)
# RandomResizedCrop's aspect ratios and number of tries, as in torchvision.
RATIO = (3 / 4, 4 / 3)
TRIES = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# Values, and views, in one block. On a CPU the ~100 passes over a block then run in its cache, and its temporaries are
# small enough for malloc to keep. On an accelerator it only bounds the temporaries (some 6 blocks).
CPU_BLOCK, CPU_BLOCK_VIEWS = 2**19, 96
DEVICE_BLOCK = 2**26
# Largest view that a CPU blurs with products of whole matrices.
DENSE_BLUR = 48


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


@dataclasses.dataclass(frozen=True)
class ViewParameters:
    """What was drawn for each view of a batch; ``None`` where the operation is off for all.

    Attributes
    ----------
    top, left, height, width
        Crop box in pixels of the source, int64, (batch_size,).
    horizontal, vertical
        Whether the crop is mirrored, bool, (batch_size,).
    quarter
        Whether the crop is turned by 90 degrees counter-clockwise, bool, (batch_size,).
    angle
        Rotation in degrees counter-clockwise, 0 for none, float, (batch_size,).
    order
        The colour operations (0 brightness, 1 contrast, 2 saturation, 3 hue) in the order in which
        they are applied, int64, (batch_size, 4).
    factors
        Factor of brightness, contrast and saturation, and shift of hue (1 is the full circle),
        float, (batch_size, 4).
    jitter
        Whether the colour operations are applied at all, bool, (batch_size,).
    gray
        Whether the view is grey, bool, (batch_size,).
    sigma
        Standard deviation of the blur in pixels of the view, 0 for none, float, (batch_size,).
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    horizontal: Tensor
    vertical: Tensor
    quarter: Tensor | None = None
    angle: Tensor | None = None
    order: Tensor | None = None
    factors: Tensor | None = None
    jitter: Tensor | None = None
    gray: Tensor | None = None
    sigma: Tensor | None = None

    def __len__(self) -> int:
        return self.top.shape[0]

    def __getitem__(self, index: Tensor | slice) -> ViewParameters:
        """The parameters of some of the views."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values[field.name] = None if value is None else value[index]
        return ViewParameters(**values)


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
        self._reach = math.floor(_box_radius(torch.tensor(config.sigmas[1], dtype=torch.float64)).item()) + 1

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
        central_height, central_width = _central_crop(height, width)
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
        slots = None if parameters.order is None else _slots(parameters)
        sort = _sorts(device)
        for place, reach in self._blocks(parameters, slots, sort=sort):
            some, colours = parameters[place], None if slots is None else slots[place]
            view = _rotate(self._crop(images.index_select(0, index[place]), some), some)
            if colours is not None:
                _jitter(view, colours, skip=sort)
            if some.gray is not None:
                # As arithmetic on all views: cheaper than picking the grey ones out and putting them back.
                gray = some.gray.to(view.dtype).view(-1, 1, 1, 1)
                torch.addcmul(_luma(view).mul_(gray), view, 1 - gray, out=view)
            for channel, mean, std in zip(view.unbind(1), MEAN, STD, strict=True):
                # Plain numbers: a tensor of them would have to be copied to the device, which waits for it.
                channel.sub_(mean).mul_(1 / std)
            if reach and some.sigma is not None:
                # The kernel adds up to 1, so it may follow the normalisation.
                view = _blur(view, some.sigma, reach)
            if isinstance(place, slice):
                views[place] = view
            else:
                views.index_copy_(0, place, view.to(self.dtype))
        return views

    def _blocks(
        self, parameters: ViewParameters, slots: _Slots | None, *, sort: bool
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
        reaches = torch.zeros(total) if sigma is None else (_box_radius(sigma).floor() + 1) * (sigma > 0)
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
            x = _positions(parameters.left, parameters.width, parameters.horizontal, self.size)
            y = _positions(parameters.top, parameters.height, parameters.vertical, self.size)
            # (x, y) of each pixel as one product-sum over rows x 0 x 0 ... and 0 1 0 1 ...: two copies into every
            # other element are 4 times slower.
            x = F.pad(((2 * x + 1) / width - 1).unsqueeze(2), (0, 1)).flatten(1).unsqueeze(1)
            y = ((2 * y + 1) / height - 1).unsqueeze(2)
            odd = (torch.arange(2 * self.size, device=x.device) % 2).to(x.dtype)
            grid = torch.addcmul(x, y, odd).view(-1, self.size, self.size, 2)
            return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
        rows = _resize_weights(parameters.top, parameters.height, parameters.vertical, height, self.size)
        columns = _resize_weights(parameters.left, parameters.width, parameters.horizontal, width, self.size)
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


@dataclasses.dataclass(frozen=True)
class _Slots:
    """Colour jitter rearranged: three blends at most before the hue, the hue, three blends at most after it.

    Brightness, contrast and saturation are all ``clamp(scale * x + luma * luma(x) + mean * mean(luma(x)))``.
    Blend ``k`` of a view comes before its hue if ``k`` is less than the place of the hue; the same
    blends stand in both rows of slots as far as they are not identities there. This makes 6 blends
    and 1 hue of what would be 4 blends and 4 hues where all views go through the same kernels.

    Attributes
    ----------
    rank
        Place of the hue in the order, 0 to 3; 4 where there is no jitter, (batch_size,).
    scale, luma, mean
        Coefficients of the blends, (batch_size, 3).
    shift
        Hue shift in sixths of the circle, (batch_size,).
    """

    rank: Tensor
    scale: Tensor
    luma: Tensor
    mean: Tensor
    shift: Tensor

    def __getitem__(self, index: Tensor | slice) -> _Slots:
        return _Slots(self.rank[index], self.scale[index], self.luma[index], self.mean[index], self.shift[index])


def _slots(parameters: ViewParameters) -> _Slots:
    order, factors, jitter = parameters.order, parameters.factors, parameters.jitter
    assert order is not None
    assert factors is not None
    assert jitter is not None
    # Where each operation stands, (batch_size, 4).
    place = order.argsort(1)
    # The three blends in their order, (batch_size, 3).
    blends = place[:, :HUE].argsort(1)
    factor = torch.where(jitter.unsqueeze(1), factors[:, :HUE].gather(1, blends), 1.0)
    rest = 1 - factor
    return _Slots(
        rank=torch.where(jitter, place[:, HUE], 4),
        scale=factor,
        luma=rest * (blends == SATURATION),
        mean=rest * (blends == CONTRAST),
        shift=6 * factors[:, HUE] * jitter,
    )


def _jitter(view: Tensor, slots: _Slots, *, skip: bool) -> None:
    """Colour jitter in place; ``skip``: the views are sorted by ``slots.rank``, leave out what is an identity."""
    total = len(view)
    if skip:
        ranks = slots.rank.bincount(minlength=5).cumsum(0).tolist()
        # Views with rank <= k, and those that are jittered at all.
        upto, jittered = ranks, ranks[3]
    for k in range(3):
        if skip:
            part = slice(upto[k], jittered)
            _blend(view[part], slots.scale[part, k], slots.luma[part, k], slots.mean[part, k])
        else:
            # Identity for those whose hue comes earlier; clamping again changes nothing.
            before = slots.rank > k
            _blend(
                view, torch.where(before, slots.scale[:, k], 1.0), slots.luma[:, k] * before, slots.mean[:, k] * before
            )
    _shift_hue(view[: jittered if skip else total], slots.shift[: jittered if skip else total])
    for k in range(3):
        if skip:
            part = slice(0, upto[k])
            _blend(view[part], slots.scale[part, k], slots.luma[part, k], slots.mean[part, k])
        else:
            after = slots.rank <= k
            _blend(view, torch.where(after, slots.scale[:, k], 1.0), slots.luma[:, k] * after, slots.mean[:, k] * after)


def _blend(view: Tensor, scale: Tensor, luma: Tensor, mean: Tensor) -> None:
    """``clamp(scale * view + luma * gray + mean * mean(gray), 0, 1)`` in place.

    ``view`` is (batch_size, 3, height, width), the coefficients are (batch_size,). With
    ``scale = f``: brightness has no other term, contrast ``mean = 1 - f``, saturation ``luma = 1 - f``.
    """
    if not len(view):
        return
    gray = _luma(view)
    offset = gray.mean((1, 2, 3), keepdim=True).mul_(mean.view(-1, 1, 1, 1))
    gray.mul_(luma.view(-1, 1, 1, 1)).add_(offset)
    torch.addcmul(gray, view, scale.view(-1, 1, 1, 1), out=view).clamp_(0, 1)


def _luma(view: Tensor) -> Tensor:
    """(batch_size, 3, height, width) -> (batch_size, 1, height, width)."""
    return (view[:, :1] * LUMA[0]).add_(view[:, 1:2], alpha=LUMA[1]).add_(view[:, 2:], alpha=LUMA[2])


def _shift_hue(view: Tensor, shift: Tensor) -> None:
    """Shift the HSV hue in place by ``shift`` sixths of the circle; value and saturation stay.

    Equals torchvision's way through HSV, in 30 passes over one channel without a branch: hue minus
    3 is ``copysign(2 + (r + min - g - b) / (max - min), b - g)``, and each new channel is a clamped
    distance of the hue from where that channel peaks.
    """
    if not len(view):
        return
    red, green, blue = view.unbind(1)
    low = torch.minimum(red, green)
    low = torch.minimum(low, blue, out=low)
    chroma = torch.maximum(red, green)
    chroma = torch.maximum(chroma, blue, out=chroma).sub_(low)
    hue = (red - green).sub_(blue).add_(low)
    # Where the chroma is 0 the numerator is too, and the hue does not matter.
    hue.div_(chroma.clamp_min(1e-12)).add_(2).copysign_(blue - green).add_(shift.view(-1, 1, 1))
    # Back to [-3, 3].
    hue.sub_((hue * (1 / 6)).round_(), alpha=6)
    torch.addcmul(low - chroma, chroma, hue.abs().clamp_(1, 2), out=red)
    high = low.add_(chroma, alpha=2)
    torch.addcmul(high, chroma, (hue + 1).abs_().clamp_(1, 2), value=-1, out=green)
    torch.addcmul(high, chroma, hue.sub_(1).abs_().clamp_(1, 2), value=-1, out=blue)


def _rotate(view: Tensor, parameters: ViewParameters) -> Tensor:
    """Rotate counter-clockwise: quarter turns exactly, other angles as PIL does (nearest pixel, black outside)."""
    if parameters.quarter is not None:
        return torch.where(parameters.quarter.view(-1, 1, 1, 1), view.rot90(1, (2, 3)), view)
    if parameters.angle is None:
        return view
    if not _sorts(view.device):
        return _turn(view, parameters.angle)
    turned = parameters.angle.nonzero().squeeze(1)
    return view.index_copy_(0, turned, _turn(view[turned], parameters.angle[turned]))


def _turn(view: Tensor, degrees: Tensor) -> Tensor:
    size = view.shape[-1]
    angle = torch.deg2rad(degrees).view(-1, 1, 1)
    cosine, sine = angle.cos(), angle.sin()
    centre = torch.arange(size, device=view.device) + (0.5 - size / 2)
    y, x = centre.view(1, size, 1), centre.view(1, 1, size)
    # Where each pixel comes from, (batch_size, size, size); the source pixel is the one that holds this point.
    column = (cosine * x - sine * y + size / 2).floor_()
    row = (sine * x + cosine * y + size / 2).floor_()
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    source = (row * size + column).mul_(inside).long()
    turned = view.flatten(2).gather(2, source.flatten(1).unsqueeze(1).expand(-1, 3, -1)).view_as(view)
    return turned.mul_(inside.unsqueeze(1))


def _positions(start: Tensor, extent: Tensor, flip: Tensor, size: int) -> Tensor:
    """The source coordinate of each of ``size`` target pixels, (batch_size, size); 0 is the first pixel's centre."""
    steps = torch.arange(size, device=start.device)
    steps = torch.where(flip.unsqueeze(1), size - 1 - steps, steps)
    inside = ((steps + 0.5) * (extent.unsqueeze(1) / size) - 0.5).clamp_min_(0)
    return torch.minimum(inside, (extent - 1).unsqueeze(1)) + start.unsqueeze(1)


def _resize_weights(start: Tensor, extent: Tensor, flip: Tensor, length: int, size: int) -> Tensor:
    """Antialiased bilinear resizing of pixels ``start .. start + extent`` to ``size`` as matrices.

    The triangle filter is widened by the scale when it shrinks, cut off at the crop and normalised,
    as PIL and torchvision's ``resize(antialias=True)`` do.

    Returns
    -------
    Tensor
        (batch_size, size, length), rows sum to 1.
    """
    steps = torch.arange(size, device=start.device)
    steps = torch.where(flip.unsqueeze(1), size - 1 - steps, steps)
    scale = (extent / size).unsqueeze(1)
    centre = ((steps + 0.5) * scale).unsqueeze(2)
    # (batch_size, 1, length)
    pixel = (torch.arange(length, device=start.device) - start.unsqueeze(1)).unsqueeze(1)
    inside = (pixel >= 0) & (pixel < extent.view(-1, 1, 1))
    weights = (1 - (pixel + 0.5 - centre).abs() / scale.clamp_min(1).unsqueeze(2)).clamp_min_(0) * inside
    return weights.div_(weights.sum(2, keepdim=True))


def _blur(view: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """PIL's ``GaussianBlur(radius=sigma)`` of each view, (batch_size, 3, size, size), without its rounding to 8 bits.

    ``reach`` is how many pixels the widest box takes in on either side.
    """
    size = view.shape[-1]
    pad = 3 * reach
    if not _sorts(view.device) or size <= DENSE_BLUR or size < 4 * pad:
        matrix = _blur_matrix(sigma, reach, size).unsqueeze(1)
        return (matrix @ view) @ matrix.transpose(2, 3)
    # A matrix just large enough to hold what happens at both ends and, between them, the kernel of the interior.
    matrix = _blur_matrix(sigma, reach, 4 * pad)
    return _blur_rows(_blur_rows(view, matrix, pad).transpose(2, 3), matrix, pad).transpose(2, 3)


def _blur_matrix(sigma: Tensor, reach: int, size: int) -> Tensor:
    """PIL's Gaussian along a line of ``size`` pixels.

    Three times a box whose ends have a fraction of the weight (Gwosdek et al., "Theoretical Foundations
    of Gaussian Convolution by Extended Box Filtering", SSVM 2011); each time the border pixel is
    repeated beyond the border.

    Returns
    -------
    Tensor
        (batch_size, size, size), rows sum to 1; identities where ``sigma`` is 0.
    """
    radius = _box_radius(sigma).view(-1, 1, 1)
    row = torch.arange(size, device=sigma.device).unsqueeze(1)
    column = torch.arange(-reach, size + reach, device=sigma.device)
    # (batch_size, size, size + 2 * reach)
    beyond = (radius + 1 - (column - row).abs()).clamp_(0, 1).div_(2 * radius + 1)
    box = beyond[:, :, reach : size + reach].contiguous()
    box[:, :, 0] += beyond[:, :, :reach].sum(2)
    box[:, :, -1] += beyond[:, :, size + reach :].sum(2)
    return box @ box @ box


def _blur_rows(view: Tensor, matrix: Tensor, pad: int) -> Tensor:
    """The product with the banded matrix whose two ends and interior ``matrix`` holds.

    Sums of shifted views inside and small products at the ends: half the time of the whole product at 96 px, a
    fifth at 224 px.

    Parameters
    ----------
    view
        (batch_size, 3, height, width).
    matrix
        (batch_size, 4 * pad, 4 * pad).
    pad
        How many rows away a row has an effect.
    """
    height, rows = view.shape[2], matrix.shape[1]
    length = height - 2 * pad
    # (2 * pad + 1, batch_size, 1, 1, 1)
    kernel = matrix[:, rows // 2, rows // 2 - pad : rows // 2 + pad + 1].t()[:, :, None, None, None]
    blurred = torch.empty_like(view)
    inside = torch.mul(view[:, :, pad : pad + length], kernel[pad], out=blurred[:, :, pad : pad + length])
    for k in range(pad):
        # Rows of the same weight are added first: half as many products.
        inside.addcmul_(view[:, :, k : k + length] + view[:, :, 2 * pad - k : 2 * pad - k + length], kernel[k])
    blurred[:, :, :pad] = matrix[:, None, :pad, : 2 * pad] @ view[:, :, : 2 * pad]
    blurred[:, :, -pad:] = matrix[:, None, -pad:, -2 * pad :] @ view[:, :, -2 * pad :]
    return blurred


def _box_radius(sigma: Tensor) -> Tensor:
    """Radius of the box filter that, applied three times, PIL takes for a Gaussian of ``sigma`` (0 for 0)."""
    variance = sigma * sigma / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    end = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + end


def _central_crop(height: int, width: int) -> tuple[int, int]:
    """The largest central box with an allowed aspect ratio, as torchvision falls back to."""
    if width / height < RATIO[0]:
        return round(width / RATIO[0]), width
    if width / height > RATIO[1]:
        return height, round(height * RATIO[1])
    return height, width


def _degrees(degrees: float | tuple[float, float]) -> tuple[float, float]:
    return degrees if isinstance(degrees, tuple) else (-degrees, degrees)


def _sorts(device: torch.device) -> bool:
    """Whether views are sorted by what is done to them: needs their parameters on the host, free on a CPU only."""
    return device.type == "cpu"


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
