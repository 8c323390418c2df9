"""Files that may run code when they are read: only the user's own, which nobody else can have written."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from nni_cssnas.base.files import write_atomically
from nni_cssnas.errors import ExperimentError

__all__ = ["MODELS", "own_folder", "read_model", "read_owned", "write_model", "write_owned"]

MODELS, KEY = "models", "model"
"""The folder, in the experiment's, of the architectures that its trials evaluate, and the parameter that names one."""


def own_folder(path: Path) -> Path:
    """Make a folder that only its owner can write, or make it so; gives it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(path.stat().st_mode & ~0o022)
    return path


def write_owned(path: Path, content: str | bytes) -> None:
    """Write a file that only its owner can read and write, whatever the umask lets others do."""
    write_atomically(path, content, mode=0o600)


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


def write_model(folder: Path, number: int, model: Any) -> dict[str, str]:
    """Write an architecture for its trial, as NNI serializes it; gives what travels through the manager instead."""
    import nni

    path = own_folder(folder) / f"{number}.json"
    write_owned(path, nni.dump(model, pickle_size_limit=2**31))
    return {KEY: path.name}


def read_model(folder: Path, parameters: Any) -> str:
    """The text of an architecture that :func:`write_model` has written.

    Parameters
    ----------
    folder
        :data:`MODELS` in the experiment's folder.
    parameters
        What travelled through the manager: anybody may have sent it. Only a name of that folder is taken from it.

    Raises
    ------
    ExperimentError
        If it is no such name, or other users may write the file.
    FileNotFoundError
        If there is no such file.
    """
    name = parameters.get(KEY) if isinstance(parameters, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"[0-9]{1,18}\.json", name):
        raise ExperimentError(f"the parameters {str(parameters)[:80]!r} are none that this experiment has sent")
    return read_owned(folder / name).decode()


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
