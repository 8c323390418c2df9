"""From a name in ``proxy.yml`` to an NNI model space."""

from __future__ import annotations

import importlib
from typing import Any

from nni_cssnas.config import SpaceConfig
from nni_cssnas.errors import CssnasError, SpaceError, nearest
from nni_cssnas.spaces.primitives import ModelSpace

__all__ = ["make_space"]


def make_space(config: SpaceConfig) -> Any:
    """The model space ``config.name``, made with ``config.arguments``.

    Raises
    ------
    SpaceError
        If the module or attribute does not exist, does not take the arguments, or gives no NNI ``ModelSpace``.
    """
    module_name, attribute = config.name.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SpaceError(
            f"space {config.name!r}: cannot import module {module_name!r}: {error}; "
            "it must be installed or lie in the folder of experiment.yml (trialCodeDirectory)"
        ) from error
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
    except TypeError as error:
        raise SpaceError(f"space {config.name!r} cannot be made with {config.arguments}: {error}") from error
    if not isinstance(space, ModelSpace):
        raise SpaceError(f"space {config.name!r} gives {type(space).__name__}, which is no NNI ModelSpace")
    return space
