"""Files that may run code when they are read: only the user's own, which nobody else can have written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nni_cssnas.errors import ExperimentError

__all__ = ["own_folder", "read_owned"]


def own_folder(path: Path) -> Path:
    """Make a folder that only its owner can write, or make it so; gives it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(path.stat().st_mode & ~0o022)
    return path


def read_owned(path: Path) -> bytes:
    """The contents of a file that only this user, or root, can have written.

    Raises
    ------
    ExperimentError
        If another user owns or may write the file or its folder; names which, and the remedy.
    FileNotFoundError
        If there is no such file.
    """
    with path.open("rb") as file:
        # The open file: the name may be another one's by now.
        _refuse(path, os.fstat(file.fileno()))
        _refuse(path.parent, path.parent.stat())
        return file.read()


def _refuse(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise ExperimentError(
            f"{path} belongs to user {found.st_uid}, and reading it may run code; use only experiments of your own"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ExperimentError(
            f"{path} may be written by other users, and reading it may run code; if it is as you left it: "
            f"chmod go-w {path}"
        )
