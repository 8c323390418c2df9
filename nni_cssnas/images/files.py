"""Small facts about files and machine that all sources of images need."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["stamp", "threads"]


def stamp(path: Path) -> tuple[str, int, int]:
    """Name, size and time of a file; they stand for its content."""
    try:
        status = path.stat()
    except OSError:  # a dangling link: unreadable, and a changed key once it is mended
        return str(path), -1, -1
    return str(path), status.st_size, status.st_mtime_ns


def threads() -> int:
    """Pillow decodes without Python's lock; more threads than a few only compete with the other trials."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)
