"""Decoded images kept in one file that all trials of an experiment map into memory.

A file is written once, under a lock and replaced atomically, and mapped copy-on-write by everyone
after that: concurrent trials share its pages.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["CACHE_VARIABLE", "Blocks", "cache_folder", "locked", "resident"]

CACHE_VARIABLE = "NNI_CSSNAS_CACHE"
# Part of every key: raise it when decoding, resizing or the drawing of subsets changes.
FORMAT = 2

Blocks = Callable[[], Iterator[NDArray[np.uint8]]]
"""Makes the images anew, as blocks of shape (n, 3, size, size) with n > 0."""


class _UnusableError(Exception):
    """The cache's folder or file cannot be read or written."""


def cache_folder(cache_dir: Path | None = None) -> Path:
    """``cache_dir``, or ``$NNI_CSSNAS_CACHE``, ``$XDG_CACHE_HOME/nni_cssnas``, ``~/.cache/nni_cssnas``."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "nni_cssnas"
    try:
        return Path.home() / ".cache" / "nni_cssnas"
    except RuntimeError:  # no home: containers with an unknown user
        return Path(tempfile.gettempdir()) / "nni_cssnas"


def resident(key: dict[str, Any], make: Blocks, *, kind: str, size: int, cache_dir: Path | None = None) -> torch.Tensor:
    """The images that ``make`` decodes, from the cache if they were decoded before.

    Parameters
    ----------
    key
        Everything that the images depend on, as JSON values.
    make
        Decodes the images; called at most twice (again if the cache could not be written to the end).
    kind
        First part of the file's name, for people who look into the folder.
    size
        Edge of the images in pixels.
    cache_dir
        See :func:`cache_folder`.

    Returns
    -------
    Tensor
        uint8, contiguous, (num_images, 3, size, size). Writing to it changes neither the file nor
        what other processes see.

    Warns
    -----
    UserWarning
        If the cached file is damaged (it is made again), or nothing can be kept in the folder.
    """
    folder = cache_folder(cache_dir)
    content = json.dumps({"format": FORMAT, "size": size, **key}, sort_keys=True, default=str)
    path = folder / f"{kind}-{size}px-{hashlib.sha256(content.encode()).hexdigest()[:20]}.npy"
    try:
        with suppress(ValueError):
            # Without the lock, so that a finished file needs no write access to the folder.
            if (images := _read(path, size)) is not None:
                return images
        with _usable():
            folder.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            # Another trial may have made it while this one waited.
            try:
                images = _read(path, size)
            except ValueError as error:
                warnings.warn(f"cached images {path} are damaged ({error}); they are made again", stacklevel=3)
                images = None
            if images is None:
                _write(path, make(), size)
                images = _read(path, size)
            if images is not None:
                return images
            reason = "the file vanished"
    except _UnusableError as error:
        reason = str(error)
    warnings.warn(
        f"decoded images cannot be kept in {folder} ({reason}); every trial decodes them again and holds a copy of its "
        f"own. Set {CACHE_VARIABLE} to a writable folder with enough space",
        stacklevel=3,
    )
    return torch.from_numpy(np.concatenate(list(make())))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock ``path``; the system lets it go when its holder dies, however it dies.

    Where there are no such locks (Windows, some network drives) nothing is held: files are still
    replaced atomically, only the work may be done twice.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with _usable():
        file = path.open("a")
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _UnusableError(error.strerror or str(error)) from None


def _read(path: Path, size: int) -> torch.Tensor | None:
    """The file's images, mapped; None if there is no such file.

    Raises
    ------
    ValueError
        If the file is not what :func:`_write` writes.
    """
    try:
        with _usable():
            # Copy-on-write: torch has no read-only tensors, and a write must not reach the other trials.
            array = np.load(path, mmap_mode="c", allow_pickle=False)
            length = path.stat().st_size
    except _UnusableError:
        if not os.path.lexists(path):
            return None
        raise
    except (EOFError, SyntaxError) as error:
        raise ValueError(str(error) or "no header") from None
    if not isinstance(array, np.memmap):
        raise ValueError("not one array")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (3, size, size):
        raise ValueError(f"{array.dtype} of shape {array.shape}")
    if length != array.offset + array.nbytes:
        raise ValueError(f"{length} bytes instead of {array.offset + array.nbytes}")
    return torch.from_numpy(array.view(np.ndarray))


def _write(path: Path, blocks: Iterator[NDArray[np.uint8]], size: int) -> None:
    """Write the blocks as one .npy, block by block: the whole is never in memory."""
    # The lock is held, so what an earlier writer left behind is nobody's.
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):
            stale.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _usable():
            file = temporary.open("wb")
        with file:
            count = 0
            with _usable():
                # numpy leaves room for the first number to grow, so the header is put right at the end.
                start = _write_header(file, count, size)
            for block in blocks:
                count += len(block)
                with _usable():
                    file.write(np.ascontiguousarray(block).data)
            with _usable():
                file.seek(0)
                if _write_header(file, count, size) != start:
                    raise OSError("numpy's header changed its length")
                file.flush()
                os.fsync(file.fileno())
        with _usable():
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _write_header(file: Any, count: int, size: int) -> int:
    description = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    np.lib.format.write_array_header_1_0(file, description)
    return int(file.tell())
