"""From a name in ``proxy.yml`` to an NNI model space."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from nni_cssnas.base.files import one_line
from nni_cssnas.config import SpaceConfig
from nni_cssnas.errors import CssnasError, SpaceError, nearest
from nni_cssnas.genotype import Sample
from nni_cssnas.spaces.primitives import ModelSpace

__all__ = ["Space", "make_space"]


class Space(Protocol):
    """What of NNI's ``ModelSpace`` is used here; any space that NNI can make is one."""

    def freeze(self, sample: Sample) -> nn.Module:
        """The network of a sample."""

    def simplify(self) -> dict[str, Any]:
        """Its choices and constraints, by label."""


def make_space(config: SpaceConfig) -> Any:
    """The model space ``config.name``, made with ``config.arguments``.

    Raises
    ------
    SpaceError
        If the module or attribute does not exist, fails, does not take the arguments, or gives no NNI ``ModelSpace``.
    """
    module_name, attribute = config.name.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SpaceError(
            f"space {config.name!r}: cannot import module {module_name!r}: {error}; "
            "it must be installed or lie in the folder of experiment.yml (trialCodeDirectory)"
        ) from error
    except Exception as error:  # the user's code, which may fail in any way
        raise SpaceError(f"space {config.name!r}: module {module_name!r} fails: {_where(error)}") from error
    factory = getattr(module, attribute, None)
    if factory is None:
        names = [name for name in vars(module) if not name.startswith("_")]
        raise SpaceError(
            f"space {config.name!r}: module {module_name!r} has no {attribute!r}{nearest(attribute, names)}"
        )
    if isinstance(factory, ModelSpace):
        return factory
    try:
        space = factory(**config.arguments)
    except CssnasError:
        raise
    except Exception as error:  # the user's code, which may fail in any way
        remedy = ""
        if "label" in str(error).lower():
            remedy = "; give every choice a name of its own, as in LayerChoice([...], label='op1')"
        raise SpaceError(
            f"space {config.name!r} cannot be made with {config.arguments}: {_where(error)}{remedy}"
        ) from error
    if not isinstance(space, ModelSpace):
        raise SpaceError(f"space {config.name!r} gives {type(space).__name__}, which is no NNI ModelSpace")
    return space


def _where(error: Exception) -> str:
    """What went wrong, in one line, and where in the file it was."""
    text = one_line(error) or type(error).__name__
    if isinstance(error, (TypeError, SyntaxError)):
        return text  # names the place by itself
    [*_, last] = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {text} ({Path(last.filename).name}, line {last.lineno})"
