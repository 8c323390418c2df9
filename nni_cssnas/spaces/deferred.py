"""NNI imports what a search does not need; here it is put off until somebody asks for it."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["defer_lightning"]


def defer_lightning() -> None:
    """Let ``nni.nas.evaluator`` load pytorch-lightning (seconds) when one of its lightning names is first used.

    Without effect if ``nni.nas`` is imported already.
    """
    if "nni.nas.evaluator" in sys.modules:
        return
    import nni
    from nni.common.framework import get_default_framework, shortcut_framework

    framework = get_default_framework()
    nni.set_default_framework("none")
    try:
        import nni.nas.evaluator as module
    finally:
        nni.set_default_framework(framework)

    def load(name: str) -> Any:
        # Python's own machinery asks for such names; they are never NNI's.
        if name.startswith("__"):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        del module.__getattr__
        shortcut_framework(module.__name__)
        return getattr(module, name)

    module.__getattr__ = load  # type: ignore[attr-defined]
