"""NNI checks ``classArgs`` of registered tuners by these before it starts an experiment."""

from __future__ import annotations

import inspect
from typing import Any

from nni import ClassArgsValidator

from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.tuners.base import SearchTuner
from nni_cssnas.tuners.hyperopt import Hyperopt
from nni_cssnas.tuners.tpe import Tpe

__all__ = ["HyperoptValidator", "TpeValidator"]


class _Validator(ClassArgsValidator):  # type: ignore[misc]
    tuner: type[SearchTuner]

    def validate_class_args(self, **arguments: Any) -> None:
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
