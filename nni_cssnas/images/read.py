"""One picture file to one square uint8 image."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, features

__all__ = ["HEIF_ENDINGS", "can_be_deep", "endings", "fit", "formats", "load", "needed_bits", "open_rgb", "to_rgb"]

HEIF_ENDINGS = (".heic", ".heif", ".hif")
# Containers that Pillow identifies but does not decode, and page descriptions, for which it starts another program.
NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
# Formats whose samples of 16 bits Pillow passes on as they are.
DEEP = ("FITS", "PNG", "PPM", "TIFF")
COLOURS = ("RGB", "RGBA")
# Pixels of a picture that counts as large: one of 13000 x 13000 takes 700 MB.
LARGE = 40_000_000
_one_at_a_time = threading.Lock()
T = TypeVar("T")
# Formats for which Pillow needs a library that it may have been built without.
LIBRARIES = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}


@cache
def formats() -> tuple[str, ...]:
    """Names of the formats that are decoded: those of this Pillow that are pictures, and HEIF if pillow-heif is there."""
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    absent = {name for name, library in LIBRARIES.items() if name in Image.OPEN and not features.check(library)}
    return tuple(name for name in Image.ID if name not in NO_PICTURES and name not in absent)


@cache
def endings() -> tuple[str, ...]:
    """Endings of the files that can be images (lower case, with the dot), in alphabetical order."""
    readable = set(formats())
    return tuple(sorted(ending for ending, name in Image.registered_extensions().items() if name in readable))


def load(path: str | Path, size: int, bits: int = 16) -> NDArray[np.uint8]:
    """Decode a file (the first frame of one with several), upright, as :func:`fit` gives it.

    Parameters
    ----------
    path, size
        The file, and the side of the image in pixels.
    bits
        What the 16-bit files of its set really hold (:func:`nni_cssnas.images.depth.common_depth`).

    Returns
    -------
    ndarray
        uint8, (3, size, size).

    Raises
    ------
    Exception
        Whatever Pillow raises for a file that is broken; there is no common class.
    """
    return fit(open_rgb(path, size, bits), size)


def open_rgb(path: str | Path, size: int, bits: int = 16) -> Image.Image:
    """Decode a file upright and as RGB; a JPEG at a part of its size, but with a shorter side of at least ``2 * size``.

    Raises
    ------
    Exception
        As :func:`load`.
    """
    return _with_room(path, lambda image: _upright_rgb(image, path, size, bits))


def _upright_rgb(image: ImageFile.ImageFile, path: str | Path, size: int, bits: int) -> Image.Image:
    width, height = image.size
    factor = min(width, height) / (2 * size)
    if factor > 1:
        # JPEG only: decode at 1/2, 1/4 or 1/8 of the size, at least twice what is wanted. A photograph of 12
        # megapixels takes 17 ms instead of 104 for 224 px, and differs by at most 3 of 255 levels.
        image.draft(None, (int(width / factor), int(height / factor)))
    deep = bits < 16 and _is_deep(image)
    tiles = list(image.tile)
    image.load()
    if deep and image.mode in COLOURS:
        image.paste(Image.fromarray(_to_8_bits(_both_bytes(path, image, tiles), integer=True, bits=bits)))
    # A damaged EXIF block says nothing about the picture.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    shrunk: Image.Image = image
    if factor > 2 and width * height > LARGE:
        # The conversion to RGB takes four bytes a pixel.
        shrunk = image.convert("L") if image.mode == "1" else image
        shrunk = shrunk.reduce(int(factor)) if shrunk.mode in ("L", "RGB") else shrunk
    return to_rgb(shrunk, bits if deep else 16)


def needed_bits(path: str | Path) -> int:
    """Bits of the largest value in a file that keeps 16 bits a sample; 0 for any other file, and for one that is broken.

    Files that say how many bits count (JPEG 2000, a PGM of fewer than 16) are scaled to all 16 by Pillow and are no such
    files, nor are files with values below 0 or of more than 16 bits.
    """
    try:
        return _with_room(path, _bits_of)
    except MemoryError:
        raise
    except Exception:  # as load: whoever loads it says what is wrong
        return 0


def _bits_of(image: ImageFile.ImageFile) -> int:
    if not _is_deep(image):
        return 0
    image.load()
    if image.mode in COLOURS:
        # The upper bytes alone tell.
        high = int(np.asarray(image)[..., :3].max())
        return high.bit_length() + 8 if high else 8
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    return high.bit_length() if low >= 0 and high <= 65535 else 0


def can_be_deep(path: str | Path) -> bool:
    """Whether a file of this name may have 16 bits a sample, so that it must be looked at."""
    return os.path.splitext(path)[1].lower() in _deep_endings()


@cache
def _deep_endings() -> frozenset[str]:
    return frozenset(ending for ending in endings() if Image.registered_extensions()[ending] in DEEP)


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether an opened image, not loaded yet, has 16 bits a sample."""
    if image.format not in DEEP or (image.format == "PPM" and image.tile[0][0] != "raw"):
        return False
    return image.mode.startswith("I") or (
        image.mode in COLOURS and bool(image.tile) and ";16" in _raw_mode(image.tile[0])
    )


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]
    return str(arguments if isinstance(arguments, str) else arguments[0] if arguments else "")


def _both_bytes(path: str | Path, upper: Image.Image, tiles: list[Any]) -> NDArray[np.float64]:
    """The 16-bit samples of a colour image: Pillow keeps the upper bytes only, (height, width, 3 or 4).

    Read in the other byte order, the upper byte is what was the lower one. Where Pillow cannot (planes apart), the upper
    ones must do.
    """
    with suppress(Exception):
        return np.asarray(upper, dtype=np.float64) * 256 + _lower_bytes(path, tiles)
    return np.asarray(upper, dtype=np.float64) * 257


def _lower_bytes(path: str | Path, tiles: list[Any]) -> NDArray[np.float64]:
    swap = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    swapped = []
    for codec, extents, offset, arguments in tiles:
        plain, _, order = _raw_mode((codec, extents, offset, arguments)).partition(";16")
        raw = f"{plain};16{swap[order]}"
        swapped.append((codec, extents, offset, raw if isinstance(arguments, str) else (raw, *arguments[1:])))
    with Image.open(path, formats=formats()) as lower:
        lower.tile = [type(tile)(*new) for tile, new in zip(tiles, swapped, strict=True)]
        lower.load()
        return np.asarray(lower, dtype=np.float64)


def _with_room(path: str | Path, work: Callable[[ImageFile.ImageFile], T]) -> T:
    """Open a file and work on it. Large pictures come one at a time: several in several threads would fill the memory."""
    with Image.open(path, formats=formats()) as image:
        if image.width * image.height <= LARGE:
            return work(image)
    with _one_at_a_time:
        try:
            return _opened(path, work)
        finally:
            _give_back()


def _opened(path: str | Path, work: Callable[[ImageFile.ImageFile], T]) -> T:
    """In a function of its own, which lets go of the picture when it returns."""
    with Image.open(path, formats=formats()) as image:
        return work(image)


def _give_back() -> None:
    """Return what was freed to the system: glibc keeps it for the thread that had it, so that each would hold a picture's."""
    with suppress(OSError, AttributeError):  # another C library has no such function, nor this habit
        ctypes.CDLL(None).malloc_trim(0)


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


def to_rgb(image: Image.Image, bits: int = 16) -> Image.Image:
    """Any of Pillow's modes as RGB.

    16-bit grey is scaled to 8 bits, from the ``bits`` that its set holds. 32-bit integers are taken for 16-bit values where they fit (so
    older Pillows open 16-bit PNG), or else scaled from their range, as floats beyond [0, 255] are;
    floats in [0, 1] are scaled by 255. Transparency is composited on white.
    """
    mode = image.mode
    if mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray(_to_8_bits(values, integer=mode != "F", bits=bits)).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        # RGBa and La hold colours already multiplied by alpha; Pillow converts them to their plain forms only.
        if mode in ("RGBa", "La"):
            image = image.convert(mode.upper())
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _to_8_bits(values: NDArray[np.float64], *, integer: bool, bits: int = 16) -> NDArray[Any]:
    values = np.nan_to_num(values)
    low, high = float(values.min()), float(values.max())
    if integer and low >= 0 and high <= 65535:
        values = values / (2**bits - 1) * 255
    elif not integer and low >= 0 and high <= 1:
        values = values * 255
    elif integer or low < 0 or high > 255:
        values = (values - low) / max(high - low, 1e-12) * 255
    return np.rint(values).clip(0, 255).astype(np.uint8)
