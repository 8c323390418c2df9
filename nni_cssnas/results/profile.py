"""What NNI's own database says of an experiment: its name and settings, without a running manager."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

__all__ = ["num_random_trials", "objectives_of", "read_profile"]


def read_profile(folder: Path) -> dict[str, Any]:
    """The settings as NNI keeps them (``experimentName``, ``maxTrialNumber``, ``tuner``, ...); empty if there are none.

    The database is opened read-only, also while a manager writes to it.
    """
    path = folder / "db" / "nni.sqlite"
    if not path.is_file():
        return {}
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)) as database:
            row = database.execute("SELECT params FROM ExperimentProfile ORDER BY revision DESC LIMIT 1").fetchone()
        data = json.loads(row[0]) if row else {}
    except (sqlite3.Error, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def num_random_trials(profile: dict[str, Any]) -> int | None:
    """How many of the first trials the tuner draws at random; None if that is not known."""
    tuner = profile.get("tuner")
    if not isinstance(tuner, dict):
        return None
    name = str(tuner.get("className") or tuner.get("name") or "").rpartition(".")[2]
    arguments = tuner.get("classArgs") or {}
    if name in ("Tpe", "TPE", "CssnasTPE"):
        return int((arguments.get("tpe_args") or {}).get("n_startup_jobs", 10))
    if name in ("Hyperopt", "CssnasHyperopt"):
        return int(arguments.get("n_startup_jobs", 20))
    return None


def objectives_of(profile: dict[str, Any]) -> tuple[str, ...]:
    """What the tuner's ``objectives`` make small, beside the score; nothing if it has none."""
    tuner = profile.get("tuner")
    arguments = tuner.get("classArgs") if isinstance(tuner, dict) else None
    found = arguments.get("objectives") if isinstance(arguments, dict) else None
    if not isinstance(found, dict):
        return ()
    return tuple(str(name) for name, direction in found.items() if direction == "minimize")
