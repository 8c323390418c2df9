"""A mapping of ``experiment.yml`` as NNI reads it, and the paths in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_cssnas.base.files import one_line
from nni_cssnas.errors import ConfigError

__all__ = ["Settings", "path_of", "plain"]

Settings = Mapping[str, Any]
"""A mapping of ``experiment.yml``; its keys are lower case without underscores, since NNI takes every spelling."""


def plain(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """With keys as :data:`Settings` has them."""
    return {str(key).lower().replace("_", ""): value for key, value in settings.items()}


def path_of(name: str, value: Any, base: Path) -> Path:
    """What the setting ``name`` names, relative to the file's folder. Raises ConfigError if it can be no path."""
    try:
        path = base / Path(str(value)).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path  # whoever needs it says so
    except (OSError, RuntimeError, ValueError) as error:  # too long, an unknown user, characters that no name has
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"{name} is {str(value)[:80]!r}: {one_line(reason)}") from None
    return path
