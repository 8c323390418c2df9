"""Every error that nni_cssnas raises on purpose.

Each kind is also the builtin exception that a caller would catch, so ``except ValueError`` works
without knowing this package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CssnasError",
    "DeviceError",
    "DivergenceError",
    "ExperimentError",
    "ExportError",
    "GenotypeError",
    "ImagesError",
    "InvalidSampleError",
    "MeasureError",
    "SpaceError",
    "nearest",
    "printable",
]


class CssnasError(Exception):
    """Root of all errors of this package."""


class ConfigError(CssnasError, ValueError):
    """A value in ``proxy.yml``, or an argument, that cannot be used."""


class SpaceError(CssnasError, ValueError):
    """A model space that cannot be searched, or a sample that is not one of its architectures."""


class InvalidSampleError(SpaceError):
    """Choices that a constraint of their space forbids: no architecture, but no mistake of the user's either."""


class GenotypeError(CssnasError, ValueError):
    """A genotype that is malformed or does not fit."""


class ImagesError(CssnasError, ValueError):
    """A source of images that cannot be used."""


class DeviceError(CssnasError, RuntimeError):
    """A device that this machine does not have."""


class DivergenceError(CssnasError, ArithmeticError):
    """A loss that became NaN or infinite."""


class MeasureError(CssnasError, ArithmeticError):
    """A measure of the user's that fails on a network, or gives NaN or infinity."""


class CheckpointError(CssnasError, RuntimeError):
    """Saved weights, or the state of a training, that cannot be used."""


class ExperimentError(CssnasError, LookupError):
    """An experiment, or its records, that cannot be found, read or written."""


class ExportError(CssnasError, RuntimeError):
    """A network that a format cannot hold, or a file that cannot be written or read."""


def printable(text: str) -> str:
    """A text for files and messages: what was bytes that are not UTF-8 in a file's name becomes ``\\xe9``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def nearest(name: object, known: Iterable[str]) -> str:
    """``"; did you mean 'x'? known: 'x', 'y'"``, or only the known names when none is near."""
    choices = sorted(known)
    listing = "known: " + ", ".join(repr(choice) for choice in choices)
    close = difflib.get_close_matches(str(name), choices, n=1)
    return f"; did you mean {close[0]!r}? {listing}" if close else f"; {listing}"
