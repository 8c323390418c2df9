"""Modules that had another name before 0.1.0: whoever imports the old one is told the new one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

__all__ = ["MOVED", "tell_new_names"]

MOVED = {
    "nni_cssnas.compare": "nni_cssnas.comparison",
    "nni_cssnas.export": "nni_cssnas.formats",
    "nni_cssnas.retrain": "nni_cssnas.training",
    "nni_cssnas.dispatcher": "nni_cssnas.tuners.dispatcher",
    "nni_cssnas.evaluator": "nni_cssnas.bridge.evaluator",
    "nni_cssnas.experiment": "nni_cssnas.bridge.experiment",
    "nni_cssnas.guard": "nni_cssnas.bridge.guard",
    "nni_cssnas.imports": "nni_cssnas.bridge.deferred",
    "nni_cssnas.launch": "nni_cssnas.bridge.launch",
    "nni_cssnas.messages": "nni_cssnas.base.messages",
    "nni_cssnas.modules": "nni_cssnas.base.modules",
    "nni_cssnas.nas_trial": "nni_cssnas.bridge.nas_trial",
    "nni_cssnas.nnictl": "nni_cssnas.bridge.nnictl",
    "nni_cssnas.oneshot": "nni_cssnas.bridge.oneshot",
    "nni_cssnas.owned": "nni_cssnas.bridge.owned",
    "nni_cssnas.pairing": "nni_cssnas.bridge.pairing",
    "nni_cssnas.proxy": "nni_cssnas.judge.proxy",
    "nni_cssnas.scaffold": "nni_cssnas.bridge.scaffold",
    "nni_cssnas.scores.device": "nni_cssnas.base.device",
    "nni_cssnas.screening": "nni_cssnas.judge.screening",
    "nni_cssnas.strategies": "nni_cssnas.bridge.strategies",
    "nni_cssnas.workers": "nni_cssnas.base.workers",
}


class _NewNames(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if fullname in MOVED:
            raise ModuleNotFoundError(f"{fullname} is now {MOVED[fullname]}", name=fullname)


def tell_new_names() -> None:
    """Answer before any other finder does: an older version of this package may lie on the path as well."""
    if not any(isinstance(finder, _NewNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, _NewNames())
