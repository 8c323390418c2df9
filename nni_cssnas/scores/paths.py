"""How many activations lie between the images and the features: on the shortest way, and on the longest.

A deep network trains well where it also has short ways, along which gradients come through: residual networks behave like
ensembles of the shallow networks among them (Veit et al., arXiv:1605.06431).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["activations_on_paths"]

_ACTIVATIONS = (
    *("Relu", "LeakyRelu", "PreluKernel", "Rrelu", "RreluWithNoise", "Elu", "Celu", "Selu", "Gelu", "Silu", "Mish"),
    *("Hardswish", "Hardtanh", "Softplus", "Tanh", "Threshold"),
)
"""Names that autograd gives to what :mod:`nni_cssnas.scores.look` takes for activations, without ``Backward0``."""


def activations_on_paths(features: Tensor, images: Tensor) -> tuple[int, int] | None:
    """The fewest and the most activations between ``images`` and ``features``, from the graph that autograd has noted.

    What is multiplied by a zero (NNI's ``none`` in its hub spaces) is no way.

    Parameters
    ----------
    features
        With their graph.
    images
        A leaf of that graph.

    Returns
    -------
    (int, int) or None
        None where no way leads from the images to the features.
    """
    if features.grad_fn is None:
        return None
    found: dict[Any, tuple[int, int]] = {}
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(features.grad_fn, False)]
    while stack:
        node, is_left = stack.pop()
        following = [after for after, _ in node.next_functions if after is not None]
        if not is_left:
            if node in seen:
                continue
            seen.add(node)
            if getattr(node, "variable", None) is images:
                found[node] = (0, 0)
                continue
            stack.append((node, True))  # once all that it follows is known
            stack += [(after, False) for after in following if after not in seen]
            continue
        ways = [found[after] for after in following if after in found]
        if ways and not _is_by_zero(node):
            here = _name(node) in _ACTIVATIONS
            found[node] = (min(way[0] for way in ways) + here, max(way[1] for way in ways) + here)
    return found.get(features.grad_fn)


def _name(node: Any) -> str:
    return str(node.name()).partition("Backward")[0].rstrip("_")


def _is_by_zero(node: Any) -> bool:
    if _name(node) != "Mul":
        return False
    try:
        factor = node._saved_other  # None where the other factor needs no gradient of this one
    except RuntimeError:  # it was changed in place since
        return False
    # A weight that is 0 now may be another later.
    return isinstance(factor, Tensor) and factor.numel() == 1 and not factor.requires_grad and float(factor) == 0
