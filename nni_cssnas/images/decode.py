"""One picture file to one square uint8 image."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

__all__ = ["HEIF_ENDINGS", "endings", "fit", "formats", "load", "open_rgb", "to_rgb"]

HEIF_ENDINGS = (".heic", ".heif", ".hif")
# Containers that Pillow identifies but does not decode, and page descriptions, for which it starts another program.
NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
# Formats for which Pillow needs a library that it may have been built without.
LIBRARIES = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}


@cache
def formats() -> tuple[str, ...]:
    """Names of the formats that are decoded: those of this Pillow that are pictures, and HEIF if pillow-heif is there."""
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    absent = {name for name, library in LIBRARIES.items() if name in Image.OPEN and not features.check(library)}
    return tuple(name for name in Image.ID if name not in NO_PICTURES and name not in absent)


@cache
def endings() -> tuple[str, ...]:
    """Endings of the files that can be images (lower case, with the dot), in alphabetical order."""
    readable = set(formats())
    return tuple(sorted(ending for ending, name in Image.registered_extensions().items() if name in readable))


def load(path: str | Path, size: int) -> NDArray[np.uint8]:
    """Decode a file (the first frame of one with several), upright, as :func:`fit` gives it.

    Returns
    -------
    ndarray
        uint8, (3, size, size).

    Raises
    ------
    Exception
        Whatever Pillow raises for a file that is broken; there is no common class.
    """
    return fit(open_rgb(path, size), size)


def open_rgb(path: str | Path, size: int) -> Image.Image:
    """Decode a file upright and as RGB; a JPEG at a part of its size, but with a shorter side of at least ``2 * size``.

    Raises
    ------
    Exception
        As :func:`load`.
    """
    with Image.open(path, formats=formats()) as image:
        width, height = image.size
        factor = min(width, height) / (2 * size)
        if factor > 1:
            # JPEG only: decode at 1/2, 1/4 or 1/8 of the size, at least twice what is wanted. A photograph of 12
            # megapixels takes 17 ms instead of 104 for 224 px, and differs by at most 3 of 255 levels.
            image.draft(None, (int(width / factor), int(height / factor)))
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:  # a damaged EXIF block says nothing about the picture
            upright = image
        return to_rgb(upright)


def fit(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize so that the shorter side is ``size`` (bicubic, antialiased) and crop the centre.

    Both in one step, so that a very long picture is never resized as a whole.

    Parameters
    ----------
    image
        In mode RGB.

    Returns
    -------
    ndarray
        uint8, (3, size, size).
    """
    width, height = image.size
    if (width, height) != (size, size):
        edge = min(width, height)
        left, top = (width - edge) / 2, (height - edge) / 2
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + edge, top + edge))
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB.

    16-bit grey is scaled to 8 bits. 32-bit integers are taken for 16-bit values where they fit (so
    older Pillows open 16-bit PNG), or else scaled from their range, as floats beyond [0, 255] are;
    floats in [0, 1] are scaled by 255. Transparency is composited on white.
    """
    mode = image.mode
    if mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray(_to_8_bits(values, integer=mode != "F")).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        # RGBa and La hold colours already multiplied by alpha; Pillow converts them to their plain forms only.
        if mode in ("RGBa", "La"):
            image = image.convert(mode.upper())
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _to_8_bits(values: NDArray[np.float64], *, integer: bool) -> NDArray[Any]:
    values = np.nan_to_num(values)
    low, high = float(values.min()), float(values.max())
    if integer and low >= 0 and high <= 65535:
        values = values / 257
    elif not integer and low >= 0 and high <= 1:
        values = values * 255
    elif integer or low < 0 or high > 255:
        values = (values - low) / max(high - low, 1e-12) * 255
    return np.rint(values).clip(0, 255).astype(np.uint8)
