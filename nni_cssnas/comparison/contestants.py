"""Who takes part in a comparison: all of one size."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nni_cssnas.comparison.summary import FOUND, RANDOM
from nni_cssnas.errors import ConfigError, SpaceError
from nni_cssnas.genotype import Genotype
from nni_cssnas.scores.cost import num_parameters
from nni_cssnas.spaces import CellNetwork, CellSpace, decode, make_space, random_choices
from nni_cssnas.spaces.architecture import Architecture
from nni_cssnas.spaces.width import genotype_width
from nni_cssnas.training.config import RetrainConfig

__all__ = ["DRAWS", "Contestant", "contestants"]

DRAWS = 2000
"""So many random architectures are tried for one of the right size."""


@dataclass(frozen=True)
class Contestant:
    """An architecture of a group; ``channels`` is the width with which it has ``params`` parameters, ``search`` the search
    that found it (empty for what no search of the user's found)."""

    name: str
    group: str
    architecture: Architecture
    channels: int
    params: int
    search: str = ""


def contestants(
    found: Mapping[str, Architecture],
    config: RetrainConfig,
    num_classes: int,
    *,
    searches: Mapping[str, str] | None = None,
    num_random: int = 6,
    baselines: Sequence[str] = ("DARTS_V2",),
    tolerance: float = 0.15,
    seed: int = 0,
    params: int | None = None,
) -> list[Contestant]:
    """Who takes part, all of one size, within ``tolerance``.

    Networks of cells get the width that comes nearest. Architectures of another space have the width that they have:
    random ones of another size are drawn again, and there are no baselines.

    Parameters
    ----------
    found
        Name to architecture, all of one space.
    config
        The recipe.
    num_classes
        Of the labels.
    searches
        Name to the search that found it; by default one search found all. Cells of one search are no independent draws.
    num_random
        Random architectures of the same space.
    baselines
        Published genotypes (:data:`~nni_cssnas.genotype.NAMED_GENOTYPES`).
    tolerance
        Largest relative difference of the numbers of parameters.
    seed
        Of the random draw.
    params
        The size, classifier included; by default that of the first one found with the recipe's width.

    Raises
    ------
    ConfigError
        If nothing was found, or a width that fits does not exist.
    SpaceError
        If too few random architectures have the size.
    """
    if not found:
        raise ConfigError("compare needs at least one architecture that was found")
    size = _Size(config, num_classes)
    first = next(iter(found.values()))
    target = size.params(first) if params is None else params
    result = []
    for name, architecture in found.items():
        fitted = size.fit(architecture, target, tolerance)
        if fitted is None:
            raise ConfigError(
                f"{name} cannot have {target} parameters within {tolerance:.0%}; "
                "use a larger --channels, --params or --tolerance"
            )
        result.append(Contestant(name, FOUND, architecture, *fitted, search=(searches or {}).get(name, "1")))
    known = {json.dumps(architecture.to_dict(), sort_keys=True) for architecture in found.values()}
    drawn = _draw(first, seed)
    for number in range(num_random):
        for architecture in itertools.islice(drawn, DRAWS):
            key = json.dumps(architecture.to_dict(), sort_keys=True)
            fitted = None if key in known else size.fit(architecture, target, tolerance)
            if fitted is not None:
                known.add(key)
                result.append(Contestant(f"random-{number + 1}", RANDOM, architecture, *fitted))
                break
        else:
            raise SpaceError(
                f"none of {DRAWS} random architectures has {target} parameters within {tolerance:.0%}; "
                "raise --tolerance or lower --random"
            )
    for name in baselines if first.genotype is not None else ():
        architecture = Architecture(Genotype.parse(name))
        fitted = size.fit(architecture, target, tolerance)
        if fitted is None:
            raise ConfigError(f"{name} cannot have {target} parameters within {tolerance:.0%}; raise --tolerance")
        result.append(Contestant(name, name, architecture, *fitted))
    return result


class _Size:
    """Parameters of a network as it is used: without auxiliary head, with the classifier."""

    def __init__(self, config: RetrainConfig, num_classes: int) -> None:
        self.config = config
        self.num_classes = num_classes

    def params(self, architecture: Architecture) -> int:
        """With the recipe's width."""
        config = self.config
        with torch.random.fork_rng():
            network = architecture.build(
                self.num_classes,
                size=config.size,
                num_cells=config.num_cells,
                channels=config.channels,
                stem=config.stem,
            )
        # A network that looks at nothing is no contestant, whatever its size.
        return 0 if isinstance(network, CellNetwork) and not network.connected else num_parameters(network)

    def fit(self, architecture: Architecture, target: int, tolerance: float) -> tuple[int, int] | None:
        """The width nearest to ``target`` parameters and their number; None if it is not near enough."""
        config = self.config
        if architecture.genotype is None:
            channels, params = config.channels, self.params(architecture)
        else:
            channels, params = genotype_width(
                architecture.genotype, target, config.num_cells, stem=config.stem, num_classes=self.num_classes
            )
        return (channels, params) if abs(params - target) <= tolerance * target else None


def _draw(like: Architecture, seed: int) -> Iterator[Architecture]:
    """Random architectures of the space that one comes from."""
    rng = np.random.default_rng(seed)
    if like.genotype is None:
        assert like.space is not None
        space = make_space(like.space)
        while True:
            yield Architecture(space=like.space, choices=random_choices(space, rng))
    cells = (like.genotype.normal, like.genotype.reduce)
    nodes = len(cells[0].nodes)
    if nodes not in (4, 5) or len(cells[1].nodes) != nodes:
        raise SpaceError(f"a cell of {nodes} nodes is of no CellSpace, so no random ones can be drawn; use --random 0")
    two = all(len(edges) == 2 for cell in cells for edges in cell.nodes)
    cell_space = CellSpace(
        encoding="two-input" if two else "edge",
        num_nodes=nodes,
        output_nodes="all" if len(cells[0].concat) == nodes else "last4",
        num_cells=3,
        channels=1,
    )
    while True:
        yield Architecture(cell_space.genotype_of(decode(cell_space, random_choices(cell_space, rng))))
