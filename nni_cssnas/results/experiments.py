"""Where NNI keeps an experiment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nni_cssnas.errors import ExperimentError, nearest

__all__ = ["find_experiment", "known_experiments"]


def known_experiments() -> dict[str, dict[str, Any]]:
    """Every experiment that ``nnictl`` of this Python environment knows, by id."""
    from nni.tools.nnictl.config_utils import Experiments

    return dict(Experiments().get_all_experiments())


def find_experiment(name: str) -> Path:
    """The folder of an experiment given by its NNI id, or by the folder itself.

    Raises
    ------
    ExperimentError
        If there is no such experiment; tells the known ids.
    """
    if Path(name).is_dir():
        return Path(name)
    folders = [Path.home() / "nni-experiments"]
    known: dict[str, dict[str, Any]] = {}
    if re.fullmatch(r"\w+", name):
        known = known_experiments()
        if name in known:
            folders.insert(0, Path(known[name]["logDir"]).expanduser())
        for folder in folders:
            if (folder / name).is_dir():
                return folder / name
    if name in known:
        raise ExperimentError(f"the folder of experiment {name} is gone: {folders[0] / name}")
    hint = nearest(name, known) if known else "; nnictl of this Python environment knows no experiment"
    raise ExperimentError(f"there is no experiment {name!r}, nor a folder of that name{hint}")
