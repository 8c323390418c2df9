"""``classArgs`` are checked by these before an experiment is started: by NNI for registered tuners, by ``nni-cssnas run`` for all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nni import ClassArgsValidator

from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.tuners.base import ProxyNotFoundError
from nni_cssnas.tuners.curvefitting import Extrapolation
from nni_cssnas.tuners.hyperband import Budgets
from nni_cssnas.tuners.hyperopt import Hyperopt
from nni_cssnas.tuners.tpe import Tpe

__all__ = [
    "VALIDATORS",
    "BohbValidator",
    "CurvefittingValidator",
    "HyperbandValidator",
    "HyperoptValidator",
    "TpeValidator",
]


class _Validator(ClassArgsValidator):  # type: ignore[misc]
    tuner: Callable[..., Any]

    def validate_class_args(self, **arguments: Any) -> None:
        """What NNI calls, which does not say where the trials are: a ``proxy.yml`` beside them is looked for later.

        Raises ConfigError if they are wrong.
        """
        with suppress(ProxyNotFoundError):
            self.check(**arguments)

    def check(self, **arguments: Any) -> None:
        """Make a tuner of them. Raises ConfigError if they are wrong."""
        known = inspect.signature(self.tuner).parameters
        for name in arguments:
            if name not in known:
                raise ConfigError(f"unknown key {name!r} in classArgs{nearest(name, known)}")
        self.tuner(**arguments)


class TpeValidator(_Validator):
    """For :class:`~nni_cssnas.tuners.tpe.Tpe`."""

    tuner = Tpe


class HyperoptValidator(_Validator):
    """For :class:`~nni_cssnas.tuners.hyperopt.Hyperopt`."""

    tuner = Hyperopt


class HyperbandValidator(_Validator):
    """For :class:`~nni_cssnas.tuners.hyperband.Hyperband`."""

    tuner = Budgets


class BohbValidator(_Validator):
    """For :class:`~nni_cssnas.tuners.bohb.Bohb`, and whether what it needs is installed."""

    def check(self, **arguments: Any) -> None:
        """Make a tuner of them. Raises ConfigError if they are wrong, or an extra is missing."""
        from nni_cssnas.tuners.bohb import Budgets as BohbBudgets  # statsmodels: only for who asks for it

        self.tuner = BohbBudgets
        super().check(**arguments)


class CurvefittingValidator(_Validator):
    """For :class:`~nni_cssnas.tuners.curvefitting.Curvefitting`."""

    tuner = Extrapolation


VALIDATORS: dict[str, type[_Validator]] = {
    "nni_cssnas.tuners.tpe.Tpe": TpeValidator,
    "nni_cssnas.tuners.hyperopt.Hyperopt": HyperoptValidator,
    "nni_cssnas.tuners.hyperband.Hyperband": HyperbandValidator,
    "nni_cssnas.tuners.bohb.Bohb": BohbValidator,
    "nni_cssnas.tuners.curvefitting.Curvefitting": CurvefittingValidator,
}
"""By the tuner's ``className``."""
