"""Unlabelled images of any source as one uint8 array, resident or streamed from disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nni_cssnas.base.files import one_line
from nni_cssnas.config import ImagesConfig
from nni_cssnas.errors import ImagesError, nearest
from nni_cssnas.images import read, tiles
from nni_cssnas.images.cache import Blocks, cache_folder, locked, resident
from nni_cssnas.images.carried import carried_images
from nni_cssnas.images.depth import common_depth
from nni_cssnas.images.files import stamp, threads
from nni_cssnas.images.listing import Listing, image_files
from nni_cssnas.images.pool import Images, StreamedImages

__all__ = ["BLOCK_BYTES", "CIFAR10_FOLDER", "is_here", "listed", "load_images", "read_npz", "stamp", "threads"]

NAMES = ("cifar10", "tiles")
# Keys of the section that say how many images.
DRAWN = ("num_images", "fraction", "max_images")
# Bytes of images decoded before they are written to the cache.
BLOCK_BYTES = 2**25
# Names in a message about unreadable files.
NAMED = 5
CIFAR10_FOLDER = "cifar-10-batches-py"
# Part of the key of streamed images: raise it when decoding or resizing changes.
DECODING = 2
CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


def load_images(
    config: ImagesConfig, *, cache_dir: Path | None = None, min_images: int = 2, needed_by: str = "batch_size"
) -> Images:
    """The images that ``config`` names, decoded, square and all of one size.

    They are decoded once: later calls, and other processes, map the same file
    (:mod:`nni_cssnas.images.cache`). A folder or file that changed is noticed by its names, sizes and
    times. With ``num_images``, ``fraction`` or ``max_images``, a random subset without replacement, in the order in
    which it was drawn; of a folder only the drawn files are decoded, and an unreadable one is
    replaced by the next drawn. 16-bit images are scaled from the bits that the whole set holds. The images of a folder that would take more than ``resident_gb`` are not
    kept, but decoded whenever they are asked for.

    Parameters
    ----------
    config
        The section ``images`` of ``proxy.yml``.
    cache_dir
        Folder of the decoded images; default ``$NNI_CSSNAS_CACHE``, ``$XDG_CACHE_HOME/nni_cssnas`` or
        ``~/.cache/nni_cssnas``.
    min_images
        Fewest images that are of use, for example the batch size.
    needed_by
        The key of ``proxy.yml`` that asks for so many, which the message names.

    Returns
    -------
    Tensor or StreamedImages
        uint8, contiguous, (num_images, 3, size, size).

    Raises
    ------
    ImagesError
        If the source does not exist, cannot be used, or holds too few images.

    Warns
    -----
    UserWarning
        If files of a folder are passed over or cannot be read, if there are fewer images than ``max_images``, or the
        cache cannot be used.
    """
    images = _load(config, cache_dir, min_images, needed_by)
    if len(images) < min_images:
        asked = ", ".join(f"{key} {value}" for key in DRAWN if (value := getattr(config, key)) is not None)
        raise ImagesError(
            f"images.source {config.source!r} gives {len(images)} images{asked and f' ({asked})'}; "
            f"at least {min_images} are needed: take more images or lower {needed_by}"
        )
    if config.max_images is not None and config.fraction is None and len(images) < config.max_images:
        warnings.warn(
            f"images.source {config.source!r} has {len(images)} images, fewer than images.max_images "
            f"{config.max_images}: all are taken",
            stacklevel=2,
        )
    return images


def _load(config: ImagesConfig, cache_dir: Path | None, min_images: int, needed_by: str) -> Images:
    source = config.source
    if not is_here(config, cache_dir) and (carried := carried_images(config, cache_dir)) is not None:
        return carried
    if source == "tiles":
        key, make = _tiles(config)
    elif source == "cifar10":
        key, make = _cifar10(config, cache_dir)
    else:
        path = Path(source).expanduser()
        if os.path.isdir(path):  # pathlib's raises for a name that is too long
            found = _folder(config, path, min_images, needed_by, cache_dir)
            if isinstance(found, StreamedImages):
                return found
            key, make = found
        elif os.path.isfile(path) and path.suffix.lower() == ".npz":
            key, make = _npz(config, path)
        elif os.path.exists(path):
            raise ImagesError(f"images.source is {source!r}, a file; it must be a folder of images or an .npz file")
        else:
            raise ImagesError(f"images.source is {source!r}; no such folder or file{nearest(path.name, NAMES)}")
    drawn = {name: getattr(config, name) for name in DRAWN}
    # Without a subset the seed changes nothing, and must not make a second copy.
    key |= drawn | ({"seed": config.seed} if any(value is not None for value in drawn.values()) else {})
    kind = source if source in NAMES else "npz" if Path(source).suffix.lower() == ".npz" else "folder"
    return resident(key, make, kind=kind, size=config.size, cache_dir=cache_dir)


def is_here(config: ImagesConfig, cache_dir: Path | None = None) -> bool:
    """Whether this machine has the source."""
    if config.source == "tiles":
        return True
    if config.source == "cifar10":
        return all(path.is_file() for path in _cifar10_files(config, cache_dir))
    return os.path.exists(Path(config.source).expanduser())


def _cifar10_root(config: ImagesConfig, cache_dir: Path | None) -> Path:
    return cache_folder(cache_dir) / "datasets" if config.root is None else config.root.expanduser()


def _cifar10_files(config: ImagesConfig, cache_dir: Path | None) -> list[Path]:
    return [_cifar10_root(config, cache_dir) / CIFAR10_FOLDER / name for name in CIFAR10_FILES]


def _tiles(config: ImagesConfig) -> tuple[dict[str, Any], Blocks]:
    def make() -> Iterator[NDArray[np.uint8]]:
        images = tiles.cut(config.size)
        yield images[_draw(len(images), config)]

    return {"source": "tiles", "photographs": [stamp(path)[:2] for path in tiles.photographs()]}, make


def _cifar10(config: ImagesConfig, cache_dir: Path | None) -> tuple[dict[str, Any], Blocks]:
    root, files = _cifar10_root(config, cache_dir), _cifar10_files(config, cache_dir)

    def read() -> NDArray[np.uint8]:
        from torchvision.datasets import CIFAR10

        try:
            if config.download:
                root.mkdir(parents=True, exist_ok=True)
                # Two trials that start together must not unpack into one folder at the same time.
                with locked(root / ".cifar10.lock"):
                    CIFAR10(root, train=True, download=True)
            return np.asarray(CIFAR10(root, train=True).data, dtype=np.uint8)
        except Exception as error:  # RuntimeError, URLError, OSError, UnpicklingError, ...
            remedy = (
                "the download failed: put the folder there by hand"
                if config.download
                else "set images.download: true, or images.root to the folder that holds it"
            )
            raise ImagesError(
                f"images.source is 'cifar10', but CIFAR-10 is not in {root} ({error}); "
                f"its files must be in {root / CIFAR10_FOLDER}: {remedy}"
            ) from None

    data: NDArray[np.uint8] | None = None
    if not all(path.is_file() for path in files):
        # First read (and download), so that the key is that of the files which later calls find.
        data = read()

    def make() -> Iterator[NDArray[np.uint8]]:
        return _resized(read() if data is None else data, config)

    return {"source": "cifar10", "files": [stamp(path) for path in files]}, make


def _npz(config: ImagesConfig, path: Path) -> tuple[dict[str, Any], Blocks]:
    listed = stamp(path.resolve())

    def make() -> Iterator[NDArray[np.uint8]]:
        array = read_npz(path)
        _refuse_changed(path.parent, (path.name, *listed[1:]))
        return _resized(array, config)

    return {"source": "npz", "file": listed}, make


def read_npz(path: Path) -> NDArray[np.uint8]:
    """The array ``images`` as (num_images, height, width, 3)."""
    wanted = "it must hold uint8 'images' of shape (N, H, W, 3), as numpy.savez(path, images=array) writes it"
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ImagesError(f"{path} is one array and not an archive; {wanted}")
        with archive:
            if "images" not in archive.files:
                keys = ", ".join(repr(name) for name in archive.files) or "none"
                raise ImagesError(f"{path} has no key 'images' (keys: {keys}); {wanted}")
            if (claim := _false_claim(archive)) is not None:
                raise ImagesError(f"{path}: {claim}; {wanted}")
            array = archive["images"]
    except ImagesError:
        raise
    except MemoryError:
        raise ImagesError(
            f"{path}: its 'images' do not fit into memory, or its header claims more than it holds; {wanted}"
        ) from None
    except Exception as error:  # a zip, a header in Python's syntax and a compressed stream fail in many ways
        raise ImagesError(f"{path} cannot be read ({_numpys_reason(error)}); {wanted}") from None
    found = f"{path}: 'images' is {array.dtype} of shape {array.shape}"
    if array.dtype != np.uint8:
        hint = "; scale to 0..255 and use .astype('uint8')" if array.dtype.kind == "f" else ""
        raise ImagesError(f"{found}; {wanted}{hint}")
    if array.ndim == 3:
        array = array[..., None].repeat(3, axis=3)
    elif array.ndim == 4 and array.shape[3] == 1:
        array = array.repeat(3, axis=3)
    elif array.ndim == 4 and array.shape[1] == 3 and array.shape[3] != 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] != 3 or not array.size:
        raise ImagesError(f"{found}; {wanted}")
    return np.asarray(array)


def _folder(
    config: ImagesConfig, folder: Path, min_images: int, needed_by: str, cache_dir: Path | None
) -> tuple[dict[str, Any], Blocks] | StreamedImages:
    found = _unlabelled(folder)
    names = found.names
    order = _draw(len(names), config, all_of_them=True)
    wanted = _wanted(len(names), config)
    drawn = [names[index] for index in order[:wanted].tolist()]

    def try_one(listed: tuple[str, int, int], bits: int) -> NDArray[np.uint8] | str:
        name = listed[0]
        found: NDArray[np.uint8] | str
        try:
            found = read.load(folder / name, config.size, bits)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            found = f"{name} ({_reason(error)})"
        # After it: the file may change while it is read.
        _refuse_changed(folder, listed)
        return found

    stamps = [(name, *stamp(folder / name)[1:]) for name in names]
    if wanted >= min_images and wanted * 3 * config.size**2 > config.resident_gb * 2**30:
        bits = common_depth(folder, drawn, cache_dir=cache_dir)
        content = json.dumps(
            [DECODING, bits, config.size, str(folder.resolve()), [stamps[index] for index in order[:wanted].tolist()]]
        )
        return StreamedImages(
            drawn,
            lambda position: try_one(stamps[int(order[position])], bits),
            hashlib.sha256(content.encode()).hexdigest(),
            threads(),
        )

    def make() -> Iterator[NDArray[np.uint8]]:
        bits = common_depth(folder, drawn, cache_dir=cache_dir)
        block = max(16, BLOCK_BYTES // (3 * config.size**2))
        unreadable: list[str] = []
        count = position = 0
        with ThreadPoolExecutor(threads()) as pool:
            while count < wanted and position < len(order):
                some = [stamps[index] for index in order[position : position + min(block, wanted - count)].tolist()]
                position += len(some)
                with warnings.catch_warnings():
                    # Pillow warns of what it then raises or mends; one warning of ours names the files.
                    warnings.filterwarnings("ignore", module="PIL")
                    decoded = list(pool.map(try_one, some, [bits] * len(some)))
                unreadable += [item for item in decoded if isinstance(item, str)]
                images = [item for item in decoded if not isinstance(item, str)]
                count += len(images)
                if images:
                    yield np.stack(images)
        # A draw that is too small to begin with is load_images' to refuse.
        least = min(wanted, max(min_images, config.num_images or 0))
        if count < least:
            exact = least == config.num_images
            asked = f"images.num_images is {least}" if exact else f"at least {least} are needed ({needed_by})"
            raise ImagesError(
                f"{folder} has {count} readable images, but {asked}"
                + (f"; {listed(unreadable)} could not be read" if unreadable else "")
                + (" (images.fraction takes a part of them)" if config.fraction is not None else "")
                + f": lower {'images.num_images' if exact else needed_by} or add images"
            )
        if unreadable:
            warnings.warn(f"{folder}: {listed(unreadable)} could not be read, left out", stacklevel=2)

    return {"source": "folder", "folder": str(folder.resolve()), "files": stamps}, make


def _refuse_changed(folder: Path, before: tuple[str, int, int]) -> None:
    """Refuse a file that is no longer the one that was listed.

    Raises
    ------
    ImagesError
        If it is another, or gone: a search on a mixture of two sets of images could not be repeated.
    """
    name = before[0]
    now = stamp(folder / name)[1:]
    if now != before[1:]:
        what = "is gone" if now == (-1, -1) else "was changed"
        raise ImagesError(
            f"{folder / name} {what} while the images are in use; start again with the images as they are now"
        )


def _unlabelled(folder: Path) -> Listing:
    """All images below ``folder``, at any depth, after a warning of what was passed over.

    Raises
    ------
    ImagesError
        If there is none.
    """
    try:
        found = image_files(folder)
    except OSError as error:
        raise ImagesError(f"images.source {str(folder)!r} cannot be read: {error.strerror or error}") from None
    if found.names:
        found.warn(stacklevel=4)
        return found
    passed = found.passed_over()
    state = f"has no image in it; passed over: {passed}" if passed else "is empty"
    raise ImagesError(
        f"images.source {str(folder)!r} {state}; what counts are pictures that Pillow reads, as .jpg and .png"
    )


def _false_claim(archive: Any) -> str | None:
    """What is wrong with the size that the header of 'images' names; asked before so much memory is taken."""
    with archive.zip.open("images.npy") as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            return None
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        held = archive.zip.getinfo("images.npy").file_size - file.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize == held:
        return None
    return f"the header of 'images' claims {dtype} of shape {shape}, but {held} bytes follow"


def _numpys_reason(error: Exception) -> str:
    """numpy's message without its advice to load what may run code."""
    text = _reason(error)
    if text.startswith("Object arrays"):
        return "it holds Python objects, which are not loaded"
    # numpy takes all that it does not know for a pickle.
    return "it is no .npz archive" if "pickle" in text else text


def _reason(error: Exception) -> str:
    return one_line(error) or type(error).__name__


def _resized(array: NDArray[np.uint8], config: ImagesConfig) -> Iterator[NDArray[np.uint8]]:
    """The drawn ones of (num_images, height, width, 3) as blocks of (n, 3, size, size)."""
    from PIL import Image

    def fit(index: int) -> NDArray[np.uint8]:
        return read.fit(Image.fromarray(np.ascontiguousarray(array[index])), config.size)

    order = _draw(len(array), config)
    block = max(16, BLOCK_BYTES // (3 * config.size**2))
    with ThreadPoolExecutor(threads()) as pool:
        for start in range(0, len(order), block):
            some = order[start : start + block]
            if array.shape[1:3] == (config.size, config.size):
                yield array[some].transpose(0, 3, 1, 2)
            else:
                yield np.stack(list(pool.map(fit, some.tolist())))


def _wanted(total: int, config: ImagesConfig) -> int:
    """How many of ``total`` images are asked for.

    Raises
    ------
    ImagesError
        If ``num_images`` is more than there are.
    """
    if config.num_images is not None:
        if config.num_images > total:
            raise ImagesError(
                f"images.num_images is {config.num_images}, but images.source {config.source!r} has only {total}; "
                f"use images.max_images to take at most {config.num_images}"
            )
        return config.num_images
    part = total if config.fraction is None else max(1, round(config.fraction * total))
    return part if config.max_images is None else min(part, config.max_images)


def _draw(total: int, config: ImagesConfig, *, all_of_them: bool = False) -> NDArray[np.int64]:
    """Indices of the images to take; ``all_of_them``: also the rest, as what would be drawn next."""
    wanted = _wanted(total, config)
    if config.num_images is None and config.fraction is None and wanted == total:
        return np.arange(total)
    generator = torch.Generator().manual_seed(config.seed % 2**63)
    order = torch.randperm(total, generator=generator).numpy()
    return order if all_of_them else order[:wanted]


def listed(items: Sequence[str], one: str = "file", many: str = "files") -> str:
    """``2 files: a.png, b.png``; of many, the first and how many more."""
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return f"{len(items)} {one if len(items) == 1 else many}: {', '.join(items[:NAMED])}{more}"
