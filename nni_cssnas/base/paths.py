"""Where modules of the user's own are looked for: a space or a tuner that lies beside its experiment."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["importable", "make_importable"]


def make_importable(*folders: Path, first: bool = True) -> None:
    """Let modules of these folders be imported from now on.

    Parameters
    ----------
    folders
        Those that come first are looked into first.
    first
        Before everything else on ``sys.path``; otherwise after it, where it is not there already.
    """
    wanted = [str(folder.resolve()) for folder in folders]
    if first:
        sys.path[:0] = wanted
    else:
        sys.path.extend(folder for folder in wanted if folder not in sys.path)
    importlib.invalidate_caches()


@contextmanager
def importable(*folders: Path) -> Iterator[None]:
    """Let modules of these folders be imported inside, after all others, as NNI does for ``codeDirectory``."""
    before = list(sys.path)
    make_importable(*folders, first=False)
    try:
        yield
    finally:
        sys.path[:] = before
