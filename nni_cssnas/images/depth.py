"""How many bits the 16-bit images of a set really hold: cameras and scanners give 10, 12 or 14 in files of 16.

Divided by 257, 12-bit images would come out nearly black, in 17 levels. One number holds for a whole set: an image alone
cannot tell a dark picture from a shallow one.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from nni_cssnas.base.files import write_atomically
from nni_cssnas.images import read
from nni_cssnas.images.cache import cache_folder
from nni_cssnas.images.files import stamp, threads

__all__ = ["DEPTHS", "common_depth"]

DEPTHS = (8, 10, 12, 14, 16)
"""Bits a sample that are told apart."""

FULL = DEPTHS[-1]
# Files that are looked at before it is seen whether more can change the answer.
BLOCK = 64
# Part of the kept answer's name: raise it when the answer changes.
FORMAT = 1


def common_depth(folder: Path, names: Sequence[str], *, cache_dir: Path | None = None) -> int:
    """The smallest of :data:`DEPTHS` that holds every value of the 16-bit images of a set; 16 if it has none.

    Only files that can have 16 bits a sample are opened, only those that have are decoded, and none after one needs all
    16. The answer is kept with the decoded images, under the names, sizes and times of these files.

    Parameters
    ----------
    folder, names
        The set: paths below the folder.
    cache_dir
        See :func:`nni_cssnas.images.cache.cache_folder`.

    Warns
    -----
    UserWarning
        If it is less than 16, when it is found and not when it is remembered.
    """
    suspects = sorted(name for name in names if read.can_be_deep(name))
    if not suspects:
        return FULL
    content = json.dumps([FORMAT, str(folder.resolve()), [(name, *stamp(folder / name)[1:]) for name in suspects]])
    path = cache_folder(cache_dir) / f"depth-{hashlib.sha256(content.encode()).hexdigest()[:20]}.json"
    if (kept := _kept(path)) is not None:
        return kept
    found = _find([folder / name for name in suspects])
    if found < FULL:
        warnings.warn(
            f"{folder}: its 16-bit images hold values of {found} bits at most; they are scaled from {found} bits",
            stacklevel=2,
        )
    # Without it the next process looks again.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"folder": str(folder), "bits": found}))
    return found


def _find(paths: Sequence[Path]) -> int:
    most = 0
    with ThreadPoolExecutor(threads()) as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        for start in range(0, len(paths), BLOCK):
            most = max(most, *pool.map(read.needed_bits, paths[start : start + BLOCK]))
            if most > DEPTHS[-2]:
                break
    return next(depth for depth in DEPTHS if depth >= most) if most else FULL


def _kept(path: Path) -> int | None:
    if not path.is_file():  # a pipe would wait for ever
        return None
    try:
        bits = json.loads(path.read_text(encoding="utf-8"))["bits"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return bits if bits in DEPTHS else None
