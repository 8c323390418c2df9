"""The experiments that lie on this machine: which there are, and how to be rid of one."""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni_cssnas.errors import ExperimentError, nearest
from nni_cssnas.results.experiments import known_experiments
from nni_cssnas.results.records import read_records

__all__ = ["Stored", "folder_size", "remove_experiment", "stored_experiments"]

UNFINISHED = {"INITIALIZED", "RUNNING", "VIEWED"}
"""What NNI calls an experiment whose manager should be there."""


@dataclass(frozen=True)
class Stored:
    """One experiment.

    Attributes
    ----------
    id, name
        NNI's.
    status
        NNI's, as ``DONE`` or ``STOPPED``; ``RUNNING`` and ``VIEWED`` only while its manager is there, else ``KILLED``;
        ``GONE`` where the folder was removed.
    portal
        Where its manager listens, or None.
    begun
        Seconds since 1970.
    trials, best
        Trials that finished, and the best score of them, or None.
    size
        Bytes of its folder.
    folder
        Where it lies.
    """

    id: str
    name: str
    status: str
    portal: str | None
    begun: float
    trials: int
    best: float | None
    size: int
    folder: Path


def stored_experiments() -> list[Stored]:
    """All that ``nnictl`` of this Python environment knows, the newest first."""
    found = [_stored(number, about) for number, about in known_experiments().items()]
    return sorted(found, key=lambda item: (-item.begun, item.id))


def remove_experiment(experiment_id: str) -> int:
    """Delete an experiment's folder and NNI's note of it; gives the bytes that became free.

    Raises
    ------
    ExperimentError
        If there is no such experiment, it is running, or its folder is not one that NNI has made.
    """
    known = known_experiments()
    if experiment_id not in known:
        hint = nearest(experiment_id, known) if known else "; nnictl of this Python environment knows no experiment"
        raise ExperimentError(f"there is no experiment {experiment_id!r}{hint}")
    item = _stored(experiment_id, known[experiment_id])
    if item.portal is not None:
        raise ExperimentError(f"experiment {item.id} is {item.status}; stop it first: nnictl stop {item.id}")
    if item.folder.is_symlink() or not re.fullmatch(r"\w+", item.id):
        raise ExperimentError(f"{item.folder} is no folder that NNI has made; remove it yourself")
    try:
        if item.folder.exists():
            shutil.rmtree(item.folder)
    except OSError as error:
        raise ExperimentError(f"cannot remove {item.folder}: {error.strerror or error}") from None
    from nni.tools.nnictl.config_utils import Experiments

    Experiments().remove_experiment(item.id)
    return item.size


def folder_size(folder: Path) -> int:
    """Bytes of all files below; those that vanish meanwhile do not count."""
    size = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                size += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return size


def _stored(number: str, about: dict[str, Any]) -> Stored:
    folder = Path(str(about.get("logDir") or Path.home() / "nni-experiments")).expanduser() / number
    status = str(about.get("status") or "UNKNOWN")
    alive = _is_there(about.get("pid"), number)
    if not folder.is_dir():
        status = "GONE"
    elif status in UNFINISHED and not alive:
        status = "KILLED"
    records = [record for record in read_records(folder) if record.finished] if folder.is_dir() else []
    prefix = f"/{about['prefixUrl']}" if about.get("prefixUrl") else ""
    return Stored(
        id=number,
        name=str(about.get("experimentName") or ""),
        status=status,
        portal=f"http://127.0.0.1:{about.get('port')}{prefix}" if alive else None,
        begun=_seconds(about.get("startTime")),
        trials=len(records),
        best=max((record.score for record in records if record.score is not None), default=None),
        size=folder_size(folder),
        folder=folder,
    )


def _is_there(pid: Any, number: str) -> bool:
    """Whether a manager lives: another process may have its number by now."""
    import psutil

    try:
        return number in " ".join(psutil.Process(int(pid)).cmdline())
    except (psutil.Error, TypeError, ValueError, OverflowError):
        return False


def _seconds(value: Any) -> float:
    """NNI writes milliseconds since 1970, or a text."""
    try:
        return float(value) / 1000
    except (TypeError, ValueError):
        try:
            return time.mktime(time.strptime(str(value), "%Y-%m-%d %H:%M:%S"))
        except (ValueError, OverflowError):
            return 0.0
