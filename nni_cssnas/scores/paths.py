"""How many activations lie between the images and the features: on the shortest way, and on the longest.

A deep network trains well where it also has short ways, along which gradients come through: residual networks behave like
ensembles of the shallow networks among them (Veit et al., arXiv:1605.06431).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

__all__ = ["activations_on_paths", "are_all_products"]

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


_PRODUCTS = re.compile(r"(Addmm|Mm|Bmm|Baddbmm|Addbmm|Mv|Addmv|Dot|Linear)$|Convolution|Attention")
"""In the names that autograd gives to what :func:`~nni_cssnas.scores.cost.multiply_adds` counts."""


def are_all_products(features: Tensor, layers: Iterable[Any]) -> bool:
    """Whether every convolution and matrix product on the way to ``features`` belongs to one of ``layers``.

    Parameters
    ----------
    features
        With their graph.
    layers
        The ``grad_fn`` of the outputs of layers that compute one product each.

    Returns
    -------
    bool
        False also where a function of the user's hides what it computes.
    """
    known = {product for layer in layers for product in _first_products(layer)}
    return all(
        node in known for node in _graph(features.grad_fn) if _is_product(node) or isinstance(node, BackwardCFunction)
    )


def _first_products(node: Any, steps: int = 3) -> Iterator[Any]:
    """The products that a layer's output is a view of, or a sum with its bias."""
    if node is None or steps == 0:
        return
    if _is_product(node):
        yield node
        return
    for after, _ in node.next_functions:
        yield from _first_products(after, steps - 1)


def _is_product(node: Any) -> bool:
    return _is_name_of_product(node.name())


@cache
def _is_name_of_product(name: str) -> bool:
    return _PRODUCTS.search(_plain(name)) is not None


def _graph(node: Any) -> Iterator[Any]:
    seen = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack += [after for after, _ in node.next_functions]


def _name(node: Any) -> str:
    return _plain(node.name())


@cache
def _plain(name: str) -> str:
    return name.partition("Backward")[0].rstrip("_")


def _is_by_zero(node: Any) -> bool:
    if _name(node) != "Mul":
        return False
    try:
        factor = node._saved_other  # None where the other factor needs no gradient of this one
    except RuntimeError:  # it was changed in place since
        return False
    # A weight that is 0 now may be another later.
    return isinstance(factor, Tensor) and factor.numel() == 1 and not factor.requires_grad and float(factor) == 0
