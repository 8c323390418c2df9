"""What can be measured of an untrained network: one entry for each measure, and a place for one's own.

Light on purpose: no function is imported before it is used, so that ``proxy.yml`` can be checked without torch.

A measure of your own is a function of a :class:`~nni_cssnas.scores.look.Look` that gives a number, larger is better. Name
it in ``proxy.yml`` as ``module:function``, beside the module, or :func:`register` it under a name::

    untrained:
      weights: {effective_macs: 1.0, "my_measures:flatness": 0.5}

A package makes its measures known by name with entry points of the group :data:`GROUP`, in its ``pyproject.toml``::

    [project.entry-points."nni_cssnas.measures"]
    flatness = "my_package.measures:flatness"
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING

from nni_cssnas.base.files import one_line
from nni_cssnas.errors import ConfigError, CssnasError, MeasureError, nearest

if TYPE_CHECKING:
    from nni_cssnas.scores.look import Look

__all__ = ["COSTS", "DEFAULT_WEIGHTS", "MEASURES", "SCALES", "Measure", "check_name", "find_measure", "register"]

COSTS = ("params", "macs", "channels")
"""Components of a score that are what a network costs; NNI's final metric has them beside the score."""

NEEDS = ("codes", "macs", "pair", "stages")
"""What costs time, and is only there for measures that need it: which activations are on; the multiply-adds of each layer;
both views of a batch, and the gradients of the weights; gradients from stage to stage."""

SCALES = ("linear", "log")
"""A count enters the score as its natural logarithm, a statistic as it is."""


@dataclass(frozen=True)
class Measure:
    """One number that is measured of an untrained network.

    Attributes
    ----------
    name
        In ``proxy.yml``, records and tables.
    function
        Of a :class:`~nni_cssnas.scores.look.Look`; or where it is found, as ``module:function``.
    needs
        Of :data:`NEEDS`.
    source
        Where it is from.
    scale
        Of :data:`SCALES`: how it enters the score.
    """

    name: str
    function: Callable[[Look], float] | str
    needs: frozenset[str] = frozenset()
    source: str = ""
    scale: str = "linear"

    def value(self, look: Look) -> float:
        """The number.

        Raises
        ------
        ConfigError
            If the function cannot be found, or gives no number.
        MeasureError
            If a function of the user's fails on this network, or gives a number that is not finite.
        """
        function = _imported(self.function) if isinstance(self.function, str) else self.function
        try:
            found = function(look)
        except CssnasError:
            raise
        except Exception as error:
            if self.is_own:
                raise
            raise MeasureError(f"measure {self.name!r} fails: {type(error).__name__}: {one_line(error)}") from error
        try:
            value = float(found.detach() if hasattr(found, "detach") else found)
        except (TypeError, ValueError):
            raise ConfigError(f"measure {self.name!r} gives {type(found).__name__}; it must give a number") from None
        if not (self.is_own or math.isfinite(value)):
            raise MeasureError(f"measure {self.name!r} gives {value}")
        return value

    @property
    def is_own(self) -> bool:
        """Whether it comes with this package, where a number that is not finite means that the network is dead."""
        return isinstance(self.function, str) and self.function.startswith("nni_cssnas.")


def _own(name: str, source: str, *needs: str, scale: str = "linear") -> Measure:
    return Measure(name, f"nni_cssnas.scores.measured:{name}", frozenset(needs), source, scale)


MEASURES: dict[str, Measure] = {
    item.name: item
    for item in (
        _own("macs", "multiply-adds", "macs", scale="log"),
        _own("effective_macs", "multiply-adds that an image can change", "macs", scale="log"),
        _own("expressivity", "AZ-NAS, arXiv:2403.19232"),
        _own("resolution_expressivity", "AZ-NAS, arXiv:2403.19232, of the last stage of each resolution"),
        _own("progressivity", "AZ-NAS, arXiv:2403.19232"),
        _own("continuity", "CKA of consecutive stages, arXiv:1905.00414"),
        _own("nonlinearity", "features of mixtures against mixtures of features"),
        _own("last_entropy", "AZ-NAS, arXiv:2403.19232, of the last stage alone"),
        _own("trainability", "AZ-NAS, arXiv:2403.19232", "stages"),
        _own("jacov", "Mellor et al., arXiv:2006.04647v1"),
        _own("naswot", "Mellor et al., arXiv:2006.04647", "codes"),
        _own("decorrelation", "the same, as the logarithm of the distance from the best"),
        _own("depth", "activations on the longest way, up to what can be trained, arXiv:1512.03385", scale="log"),
        _own("shortcuts", "short ways through deep networks, arXiv:1605.06431 and arXiv:1512.03385"),
        _own("deep_continuity", "continuity, where networks are deep"),
        _own("swap", "SWAP-NAS, arXiv:2403.04161", "codes", scale="log"),
        _own("gradient_flow", "the norm of the contrastive loss's gradients, arXiv:2101.08134", "pair"),
        _own("zico", "ZiCo, arXiv:2301.11300, with the contrastive loss", "pair"),
    )
}
"""By name: those of this package, and what was registered."""

GROUP = "nni_cssnas.measures"

DEFAULT_WEIGHTS = {
    "effective_macs": 0.5,
    "depth": 0.5,
    "resolution_expressivity": 0.25,
    "decorrelation": 0.25,
    "shortcuts": 1.25,
    "deep_continuity": 1.5,
}
"""What the default score is made of: the weight of each measure in its scale. Chosen on nine tables together (docs, measured
results)."""


def register(
    name: str,
    function: Callable[[Look], float],
    *,
    needs: Iterable[str] = (),
    source: str = "",
    scale: str = "linear",
) -> Measure:
    """Make a measure known by name in this process. In ``proxy.yml`` use ``module:function``: trials are other processes.

    Raises
    ------
    ConfigError
        If the name is taken or none, ``needs`` are not of :data:`NEEDS`, or ``scale`` is not of :data:`SCALES`.
    """
    if not name.isidentifier() or name in MEASURES:
        raise ConfigError(f"a measure is to be called {name!r}, which is {'taken' if name in MEASURES else 'no name'}")
    MEASURES[name] = _checked(Measure(name, function, frozenset(needs), source, scale))
    return MEASURES[name]


def check_name(name: str) -> None:
    """Refuse what cannot be a measure; what is named as ``module:function`` is only looked for when it is used.

    Raises
    ------
    ConfigError
        With the nearest name.
    """
    module, colon, function = name.partition(":")
    if name in MEASURES or (not colon and name in _installed()):
        return
    if not (colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ConfigError(f"unknown component {name!r}{nearest(name, [*MEASURES, *_installed()])}")


def find_measure(name: str) -> Measure:
    """The measure of that name, of this package or an installed one, or the one that ``module:function`` is.

    What is not of this package needs what its attribute ``needs`` says, and has the ``scale`` that it says.

    Raises
    ------
    ConfigError
        If there is no such measure, or the function cannot be imported.
    """
    check_name(name)
    if name in MEASURES:
        return MEASURES[name]
    place = _installed().get(name, name)
    function = _imported(place)
    needs = frozenset(getattr(function, "needs", ()))
    return _checked(Measure(name, function, needs, f"{place} of the user's", getattr(function, "scale", "linear")))


def _checked(measure: Measure) -> Measure:
    for need in measure.needs:
        if need not in NEEDS:
            raise ConfigError(f"measure {measure.name!r} needs {need!r}{nearest(need, NEEDS)}")
    if measure.scale not in SCALES:
        raise ConfigError(f"measure {measure.name!r} has the scale {measure.scale!r}{nearest(measure.scale, SCALES)}")
    return measure


@lru_cache(maxsize=1)
def _installed() -> dict[str, str]:
    """Where the measures of installed packages are found, by name."""
    return {item.name: item.value for item in metadata.entry_points(group=GROUP)}


def _imported(name: str) -> Callable[[Look], float]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever a module of the user's raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"measure {name!r} cannot be imported: {reason}; its module must lie beside proxy.yml or be installed"
        ) from None
    if not callable(found):
        raise ConfigError(f"measure {name!r} is {type(found).__name__}, and must be a function of a Look")
    return found  # type: ignore[no-any-return]
