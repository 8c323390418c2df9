"""The measures of an untrained network that come with this package, each a function of what was seen of it.

All are to be maximised. Those of one view are the mean over the views. Their entries are in :mod:`nni_cssnas.measures`,
their formulas in :mod:`nni_cssnas.scores.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from nni_cssnas.scores import statistics
from nni_cssnas.scores.look import Look, View

__all__ = [
    "continuity",
    "decorrelation",
    "deep_continuity",
    "depth",
    "effective_macs",
    "expressivity",
    "gradient_flow",
    "jacov",
    "last_entropy",
    "macs",
    "naswot",
    "nonlinearity",
    "progressivity",
    "resolution_expressivity",
    "shortcuts",
    "swap",
    "trainability",
    "zico",
]

DEEP = 60.0
"""Activations on the longest way: a network of half as many is not deep, one of twice as many is. Plain networks of more than
some fifty layers train worse the deeper they are, residual ones do not (arXiv:1512.03385, figures 1 and 6)."""

SWAP_IMAGES = 16
"""The codes of more images are nearly all distinct: their number then only counts the activations."""


def macs(look: Look) -> float:
    """Multiply-adds of the whole network for one image."""
    return float(look.macs)


def effective_macs(look: Look) -> float:
    """Multiply-adds less those of layers that do not reach the features, or that see the same for every image."""
    return float(look.macs - look.views[0].idle_macs)


def expressivity(look: Look) -> float:
    """:func:`~nni_cssnas.scores.statistics.expressivity` of all stages."""
    return mean(statistics.expressivity(_entropies(view)) for view in look.views)


def resolution_expressivity(look: Look) -> float:
    """The same of the last stage of each resolution, so that a space's depth counts less than what comes out."""
    return mean(statistics.expressivity(_of_resolutions(view)) for view in look.views)


def progressivity(look: Look) -> float:
    """:func:`~nni_cssnas.scores.statistics.progressivity` of all stages."""
    return mean(statistics.progressivity(_entropies(view)) for view in look.views)


def continuity(look: Look) -> float:
    """The least :func:`~nni_cssnas.scores.statistics.similarity` of consecutive stages."""
    return mean(_continuity(view) for view in look.views)


def depth(look: Look) -> float:
    """One more than the activations on the longest way, at most :data:`DEEP`: beyond, more of them help no more."""
    return min(look.ways[1] + 1.0, DEEP)


def shortcuts(look: Look) -> float:
    """Minus the logarithm of the fewest activations on a way through a stage, over one half; 0 where these are at most one
    half on average, and towards 0 where the network is not :data:`DEEP`."""
    shortest, _ = look.ways
    return -_deep(look) * max(0.0, math.log(2 * (shortest + 1) / len(look.views[0].stages)))


def deep_continuity(look: Look) -> float:
    """:func:`continuity` less 0.8, and towards 0 where the network is not :data:`DEEP`."""
    return _deep(look) * (continuity(look) - 0.8)


def last_entropy(look: Look) -> float:
    """:func:`~nni_cssnas.scores.statistics.entropy` of the last stage: the effective dimensions that come out."""
    return mean(view.stages[-1].entropy for view in look.views)


def trainability(look: Look) -> float:
    """The mean of :func:`~nni_cssnas.scores.statistics.trainability` over the stages after the first."""
    found = [statistics.trainability(after, signs) for view in look.stage_gradients for signs, after in view]
    return mean(found) if found else 0.0


def nonlinearity(look: Look) -> float:
    """:func:`~nni_cssnas.scores.statistics.nonlinearity` between images and their mixtures."""
    images, features = look.images[0], look.views[0].features.detach()
    mixed = look.features_of((images + images.roll(1, 0)) / 2)
    return statistics.nonlinearity(mixed, (features + features.roll(1, 0)) / 2)


def jacov(look: Look) -> float:
    """:func:`~nni_cssnas.scores.statistics.jacov` of all views together."""
    return statistics.jacov(torch.cat([view.gradient for view in look.views if view.gradient is not None]))


def decorrelation(look: Look) -> float:
    """Minus the logarithm of how far :func:`~nni_cssnas.scores.statistics.jacov` is from its largest value, an image."""
    images = sum(view.gradient.shape[0] for view in look.views if view.gradient is not None)
    return -math.log(max(-jacov(look) / images - 1, 1e-6))


def naswot(look: Look) -> float:
    """:func:`~nni_cssnas.scores.statistics.naswot` of all views together."""
    return statistics.naswot(torch.cat([view.codes for view in look.views]))


def swap(look: Look) -> float:
    """:func:`~nni_cssnas.scores.statistics.distinct_patterns` of the first :data:`SWAP_IMAGES` images."""
    return float(statistics.distinct_patterns(look.views[0].codes[:SWAP_IMAGES]))


def gradient_flow(look: Look) -> float:
    """:func:`~nni_cssnas.scores.statistics.gradient_flow` of the mean over both halves of the batch."""
    return statistics.gradient_flow([(a + b) / 2 for a, b in zip(*look.weight_gradients, strict=True)])


def zico(look: Look) -> float:
    """:func:`~nni_cssnas.scores.statistics.zico` of both halves of the batch."""
    return statistics.zico(*look.weight_gradients)


def mean(values: Iterable[float]) -> float:
    """Of at least one number, summed without rounding in between."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _deep(look: Look) -> float:
    """From 0 (not :data:`DEEP`) to 1."""
    _, longest = look.ways
    return 1 / (1 + math.exp(-10 * math.log((longest + 1) / DEEP)))


def _entropies(item: View) -> list[float]:
    return [stage.entropy for stage in item.stages]


def _of_resolutions(item: View) -> list[float]:
    ends = zip(item.stages, [*item.stages[1:], None], strict=True)
    return [stage.entropy for stage, after in ends if after is None or after.resolution != stage.resolution]


def _continuity(item: View) -> float:
    pairs = zip(item.stages, item.stages[1:], strict=False)
    return min((statistics.similarity(before.gram, after.gram) for before, after in pairs), default=1.0)
