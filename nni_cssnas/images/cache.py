"""Decoded images kept in one file that all trials of an experiment map into memory.

A file is written once, under a lock and replaced atomically, and mapped copy-on-write by everyone
after that: concurrent trials share its pages. Its checksum is read whenever it is mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nni_cssnas.base.files import beside, one_line

__all__ = ["CACHE_VARIABLE", "FORMAT", "Blocks", "cache_folder", "footer", "locked", "read_cached", "resident"]

CACHE_VARIABLE = "NNI_CSSNAS_CACHE"
# Part of every key: raise it when decoding, resizing or the drawing of subsets changes.
FORMAT = 2
PATIENCE = 60.0
"""Seconds to wait for a lock before it is said who holds it."""

Blocks = Callable[[], Iterator[NDArray[np.uint8]]]
"""Makes the images anew, as blocks of shape (n, 3, size, size) with n > 0."""


class _UnusableError(OSError):
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


def empty_cache(cache_dir: Path | None = None) -> int:
    """Delete what this package keeps in the cache's folder, which is all made again; gives the bytes that became free.

    What another process is making is left alone, and so is every file of another kind.
    """
    from filelock import FileLock, Timeout

    folder = cache_folder(cache_dir)
    freed = 0
    for pattern in ("*px-*.npy", "depth-*.json"):
        for path in folder.glob(pattern):
            with suppress(OSError, Timeout), FileLock(path.with_suffix(".lock"), timeout=0):
                size = path.lstat().st_size
                path.unlink()
                freed += size
    return freed


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
            if (images := read_cached(path, size)) is not None:
                return images
        with _usable():
            folder.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            # Another trial may have made it while this one waited.
            try:
                images = read_cached(path, size)
            except ValueError as error:
                warnings.warn(f"cached images {path} are damaged ({error}); they are made again", stacklevel=3)
                images = None
            if images is None:
                _write(path, make(), size)
                images = read_cached(path, size)
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
def locked(path: Path, waiting: Callable[[], None] = lambda: None, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the exclusive lock ``path``; the system lets it go when its holder dies, however it dies.

    Where there are no such locks (some network drives) nothing is held: files are still replaced atomically, only the
    work may be done twice.

    Parameters
    ----------
    path
        The lock's file, which stays. Beside it ``path.owner`` says who holds it.
    waiting
        Called once if another process holds it.
    patience
        Seconds after which a process that waits says for whom.

    Raises
    ------
    OSError
        If the lock's file cannot be written.

    Warns
    -----
    UserWarning
        If ``patience`` is over: once, and the waiting goes on, since whoever holds it lives.
    """
    from filelock import FileLock, Timeout

    owner = path.with_name(f"{path.name}.owner")
    lock = FileLock(path)
    with _usable(), suppress(NotImplementedError):
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire(timeout=patience)
        except Timeout:
            # A holder has its name beside the lock. Without one, nothing can be locked on this drive.
            if owner.is_file():
                warnings.warn(
                    f"waiting for {_owner(owner)}, which holds {path}; end that process if it hangs", stacklevel=3
                )
                lock.acquire()
    if not lock.is_locked:
        yield
        return
    try:
        with suppress(OSError):
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            owner.unlink()
        lock.release()


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:200]
    except (OSError, ValueError):
        return "another process"


@contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _UnusableError(error.strerror or str(error)) from None


def read_cached(path: Path, size: int) -> torch.Tensor | None:
    """The file's images, mapped; None if there is no such file.

    Raises
    ------
    ValueError
        If the file is not what :func:`_write` writes.
    """
    try:
        with _usable():
            # Copy-on-write: torch has no read-only tensors, and a write must not reach the other trials.
            # Opening a pipe would wait for ever.
            is_file = stat.S_ISREG(path.stat().st_mode)
            array = np.load(path, mmap_mode="c", allow_pickle=False) if is_file else None
            length = path.stat().st_size
    except _UnusableError:
        if not os.path.lexists(path):
            return None
        raise
    except Exception as error:  # numpy reads a header as Python's syntax, which fails in many ways
        raise ValueError(one_line(error) or "no header") from None
    if array is None:
        raise ValueError("not a file")
    if not isinstance(array, np.memmap):
        raise ValueError("not one array")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (3, size, size):
        raise ValueError(f"{array.dtype} of shape {array.shape}")
    whole = array.offset + array.nbytes + len(footer(0))
    if length != whole:
        raise ValueError(f"{length} bytes instead of {whole}")
    with _usable(), path.open("rb") as file:
        file.seek(array.offset + array.nbytes)
        if file.read() != footer(zlib.crc32(array.view(np.ndarray).data)):
            raise ValueError("wrong checksum")
    return torch.from_numpy(array.view(np.ndarray))


def _write(path: Path, blocks: Iterator[NDArray[np.uint8]], size: int) -> None:
    """Write the blocks as one .npy, block by block: the whole is never in memory."""
    # The lock is held, so what an earlier writer left behind is nobody's.
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):
            stale.unlink()
    temporary = beside(path)
    try:
        with _usable():
            file = temporary.open("wb")
        try:
            _fill(file, blocks, size)
        except BaseException:
            # What is still to be written may have no space either.
            with suppress(OSError):
                file.close()
            raise
        file.close()
        with _usable():
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _fill(file: Any, blocks: Iterator[NDArray[np.uint8]], size: int) -> None:
    count = 0
    with _usable():
        # numpy leaves room for the first number to grow, so the header is put right at the end.
        start = _write_header(file, count, size)
    checksum = 0
    for block in blocks:
        count += len(block)
        content = np.ascontiguousarray(block).data
        checksum = zlib.crc32(content, checksum)
        with _usable():
            file.write(content)
    with _usable():
        file.write(footer(checksum))
        file.seek(0)
        if _write_header(file, count, size) != start:
            raise OSError("numpy's header changed its length")
        file.flush()
        os.fsync(file.fileno())


def footer(checksum: int) -> bytes:
    """What follows the images: the CRC-32 of their bytes. Whoever reads the file as an .npy does not see it."""
    return b"CRC-32: %08x\n" % checksum


def _write_header(file: Any, count: int, size: int) -> int:
    description = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    np.lib.format.write_array_header_1_0(file, description)
    return int(file.tell())
