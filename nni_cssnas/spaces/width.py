"""The width with which a network of cells has the size that is asked for."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from nni_cssnas.genotype import Genotype
from nni_cssnas.spaces.network import CellNetwork

__all__ = ["genotype_width"]


@lru_cache(4096)
def genotype_width(
    genotype: Genotype, params: int, num_cells: int, *, stem: str = "cifar", num_classes: int = 0
) -> tuple[int, int]:
    """The width with which a genotype's network comes nearest to ``params`` parameters, and how many it then has.

    An auxiliary head is not counted. A network whose output does not depend on its input has width 1 and 0 parameters.
    """

    def size(width: int) -> int:
        with torch.device("meta"):  # nothing is allocated or initialised
            network = CellNetwork(genotype, num_cells, width, stem=stem, num_classes=num_classes)
        return sum(weight.numel() for weight in network.parameters()) if network.connected else 0

    # A stem with strides needs two channels.
    least = 1 if stem == "cifar" else 2
    widths = (2, 4, 6)
    sizes = [size(width) for width in widths]
    if not sizes[0]:
        return least, 0
    # Every weight belongs to a pair of widths, to one, or to none: a polynomial of the second degree.
    square, linear, constant = np.polyfit(widths, sizes, 2)
    root = linear**2 - 4 * square * (constant - params)
    guess = int((math.sqrt(max(root, 0.0)) - linear) / (2 * square))
    return min(
        ((width, size(width)) for width in (max(guess, least), max(guess + 1, least))),
        key=lambda found: abs(found[1] - params),
    )
