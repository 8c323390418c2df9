"""A model space as the flat choices that ``search_space.json`` and NNI's tuners carry, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from nni_cssnas.errors import SpaceError, nearest
from nni_cssnas.spaces.primitives import Categorical, ModelSpace

__all__ = ["decode", "random_parameters", "search_space"]


def search_space(space: ModelSpace) -> dict[str, dict[str, Any]]:
    """The contents of ``search_space.json``: ``{label: {"_type": "choice", "_value": [...]}}``.

    Raises
    ------
    SpaceError
        If the space has no choice, or one that is not a choice among numbers or strings.
    """
    result: dict[str, dict[str, Any]] = {}
    for label, mutable in space.simplify().items():
        if not isinstance(mutable, Categorical):
            raise SpaceError(
                f"choice {label} is a {type(mutable).__name__}; only choices among fixed values can be searched"
            )
        for value in mutable.values:
            if not isinstance(value, (str, int, float)):
                raise SpaceError(f"choice {label} has the value {value!r}; only numbers and strings can be searched")
        if len(mutable.values) > 1:
            result[str(label)] = {"_type": "choice", "_value": list(mutable.values)}
    if not result:
        raise SpaceError(
            f"space {type(space).__name__} has no choice, so there is nothing to search; "
            "declare one with nni.choice, LayerChoice or InputChoice"
        )
    # NNI's labels are a subclass of str that YAML refuses; a round trip makes everything plain.
    return json.loads(json.dumps(result))  # type: ignore[no-any-return]


def decode(space: ModelSpace, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A sample for ``space.freeze`` from a tuner's parameters.

    Raises
    ------
    SpaceError
        If a choice is missing or unknown, or a value is not among its candidates; usually the space in
        ``proxy.yml`` was changed and ``search_space.json`` was not.
    """
    remedy = "write search_space.json anew with: nni-cssnas space proxy.yml"
    choices = search_space(space)
    for label in parameters:
        if label not in choices:
            raise SpaceError(f"the space has no choice {label!r}{nearest(label, choices)}; {remedy}")
    sample: dict[str, Any] = {}
    for label, mutable in space.simplify().items():
        label = str(label)
        if label not in choices:
            sample[label] = mutable.values[0]
        elif label not in parameters:
            raise SpaceError(f"choice {label!r} has no value in the parameters; {remedy}")
        elif parameters[label] not in mutable.values:
            raise SpaceError(
                f"choice {label} is {parameters[label]!r}{nearest(parameters[label], map(str, mutable.values))}; {remedy}"
            )
        else:
            sample[label] = parameters[label]
    return sample


def random_parameters(space: ModelSpace, rng: np.random.Generator) -> dict[str, Any]:
    """One uniformly random value for every choice, in the form of a tuner's parameters."""
    return {label: spec["_value"][rng.integers(len(spec["_value"]))] for label, spec in search_space(space).items()}
