"""What a view does to the pixels: each operation on a whole batch at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

__all__ = ["BRIGHTNESS", "CONTRAST", "DENSE_BLUR", "HUE", "LUMA", "RATIO", "SATURATION", "ViewParameters"]

# The luma weights of torchvision's rgb_to_grayscale (ITU-R 601).
LUMA = (0.2989, 0.587, 0.114)


# RandomResizedCrop's aspect ratios and number of tries, as in torchvision.
RATIO = (3 / 4, 4 / 3)


BRIGHTNESS = 0


CONTRAST = 1


SATURATION = 2


HUE = 3


# Largest view that a CPU blurs with products of whole matrices.
DENSE_BLUR = 48


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


@dataclasses.dataclass(frozen=True)
class Slots:
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

    def __getitem__(self, index: Tensor | slice) -> Slots:
        return Slots(self.rank[index], self.scale[index], self.luma[index], self.mean[index], self.shift[index])


def slots_of(parameters: ViewParameters) -> Slots:
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
    return Slots(
        rank=torch.where(jitter, place[:, HUE], 4),
        scale=factor,
        luma=rest * (blends == SATURATION),
        mean=rest * (blends == CONTRAST),
        shift=6 * factors[:, HUE] * jitter,
    )


def apply_jitter(view: Tensor, slots: Slots, *, skip: bool) -> None:
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
    shift_hue(view[: jittered if skip else total], slots.shift[: jittered if skip else total])
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
    gray = luma_of(view)
    offset = gray.mean((1, 2, 3), keepdim=True).mul_(mean.view(-1, 1, 1, 1))
    gray.mul_(luma.view(-1, 1, 1, 1)).add_(offset)
    torch.addcmul(gray, view, scale.view(-1, 1, 1, 1), out=view).clamp_(0, 1)


def luma_of(view: Tensor) -> Tensor:
    """(batch_size, 3, height, width) -> (batch_size, 1, height, width)."""
    return (view[:, :1] * LUMA[0]).add_(view[:, 1:2], alpha=LUMA[1]).add_(view[:, 2:], alpha=LUMA[2])


def shift_hue(view: Tensor, shift: Tensor) -> None:
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


def rotate_views(view: Tensor, parameters: ViewParameters) -> Tensor:
    """Rotate counter-clockwise: quarter turns exactly, other angles as PIL does (nearest pixel, black outside)."""
    if parameters.quarter is not None:
        return torch.where(parameters.quarter.view(-1, 1, 1, 1), view.rot90(1, (2, 3)), view)
    if parameters.angle is None:
        return view
    if not sorts_operations(view.device):
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


def sample_positions(start: Tensor, extent: Tensor, flip: Tensor, size: int) -> Tensor:
    """The source coordinate of each of ``size`` target pixels, (batch_size, size); 0 is the first pixel's centre."""
    steps = torch.arange(size, device=start.device)
    steps = torch.where(flip.unsqueeze(1), size - 1 - steps, steps)
    inside = ((steps + 0.5) * (extent.unsqueeze(1) / size) - 0.5).clamp_min_(0)
    return torch.minimum(inside, (extent - 1).unsqueeze(1)) + start.unsqueeze(1)


def weights_of_resize(start: Tensor, extent: Tensor, flip: Tensor, length: int, size: int) -> Tensor:
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


def blur_views(view: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """PIL's ``GaussianBlur(radius=sigma)`` of each view, (batch_size, 3, size, size), without its rounding to 8 bits.

    ``reach`` is how many pixels the widest box takes in on either side.
    """
    size = view.shape[-1]
    pad = 3 * reach
    if not sorts_operations(view.device) or size <= DENSE_BLUR or size < 4 * pad:
        matrix = blur_matrix(sigma, reach, size).unsqueeze(1)
        return (matrix @ view) @ matrix.transpose(2, 3)
    # A matrix just large enough to hold what happens at both ends and, between them, the kernel of the interior.
    matrix = blur_matrix(sigma, reach, 4 * pad)
    return _blur_rows(_blur_rows(view, matrix, pad).transpose(2, 3), matrix, pad).transpose(2, 3)


def blur_matrix(sigma: Tensor, reach: int, size: int) -> Tensor:
    """PIL's Gaussian along a line of ``size`` pixels.

    Three times a box whose ends have a fraction of the weight (Gwosdek et al., "Theoretical Foundations
    of Gaussian Convolution by Extended Box Filtering", SSVM 2011); each time the border pixel is
    repeated beyond the border.

    Returns
    -------
    Tensor
        (batch_size, size, size), rows sum to 1; identities where ``sigma`` is 0.
    """
    radius = box_radius_of(sigma).view(-1, 1, 1)
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


def box_radius_of(sigma: Tensor) -> Tensor:
    """Radius of the box filter that, applied three times, PIL takes for a Gaussian of ``sigma`` (0 for 0)."""
    variance = sigma * sigma / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    end = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + end


def central_box(height: int, width: int) -> tuple[int, int]:
    """The largest central box with an allowed aspect ratio, as torchvision falls back to."""
    if width / height < RATIO[0]:
        return round(width / RATIO[0]), width
    if width / height > RATIO[1]:
        return height, round(height * RATIO[1])
    return height, width


def sorts_operations(device: torch.device) -> bool:
    """Whether views are sorted by what is done to them: needs their parameters on the host, free on a CPU only."""
    return device.type == "cpu"
