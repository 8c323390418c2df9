"""What the networks cost that will be trained with labels, which are not the narrow ones that are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from nni_cssnas.base.device import resolve_device
from nni_cssnas.config import ProxyConfig, TargetConfig
from nni_cssnas.genotype import Choices, Genotype
from nni_cssnas.scores.cost import cells_cost, latency, multiply_adds, num_parameters
from nni_cssnas.scores.latency_table import LatencyTable
from nni_cssnas.spaces.backbone import Backbone
from nni_cssnas.spaces.cell import CellSpace
from nni_cssnas.spaces.encoding import decode
from nni_cssnas.spaces.network import CellNetwork

__all__ = ["TARGET_COSTS", "Costs", "record_costs", "target_network", "target_size"]

TARGET_COSTS = ("params", "macs", "latency_ms")
"""Parameters and multiply-adds without classifier and auxiliary head, and the median time of one image's forward pass."""

REPEATS = 10
"""Passes of which the median is the latency."""


class Costs:
    """What networks of a space cost as they will be trained.

    A network of cells has the depth, width and stem of ``target`` (DARTS's for CIFAR-10 where ``proxy.yml`` names none), and
    its parameters and multiply-adds are counted without building it. Networks of other spaces have the size that their space
    gives them, and are built.

    Parameters
    ----------
    config
        All of ``proxy.yml``.
    space
        The space as it is scored.
    table
        Predicts latencies; without it each is measured.

    Attributes
    ----------
    on_measured
        Told every latency that is measured.
    """

    def __init__(self, config: ProxyConfig, space: Any, table: LatencyTable | None = None) -> None:
        self.config = config
        self.space = space
        self.target = config.target or TargetConfig()
        self.has_cells = isinstance(space, CellSpace)
        self.table = table
        self.on_measured: Callable[[Choices, float], None] | None = None
        self._measured: dict[str, tuple[Choices, float]] = {}

    def of(self, choices: Choices, names: Iterable[str] = TARGET_COSTS[:2]) -> dict[str, float]:
        """Some of :data:`TARGET_COSTS` of an architecture, by name; a latency is measured once.

        Raises
        ------
        SpaceError
            If the architecture is not one of the space, or cannot be run.
        """
        wanted = set(names)
        sample = decode(self.space, choices)
        found: dict[str, float] = {}
        model: nn.Module
        if self.has_cells:
            genotype = self.space.genotype_of(sample)
            if wanted & {"params", "macs"}:
                found = cells_cost(genotype, self.target)
            size = target_size(self.target)
        else:
            size = self.config.views.input_size or self.config.images.size
            model = Backbone(self.space.freeze(sample), size, self.config.space.classifier)
            if "params" in wanted:
                found["params"] = float(num_parameters(model))
            if "macs" in wanted:
                found["macs"] = float(multiply_adds(model, (3, size, size)))
        if "latency_ms" in wanted and self.table is not None:
            found["latency_ms"] = self.table.predict(genotype)
        elif "latency_ms" in wanted:
            key = repr(sorted(choices.items()))
            if key not in self._measured:
                if self.has_cells:
                    model = target_network(genotype, self.target)
                self.remember(choices, self._latency(model, size))
                if self.on_measured is not None:
                    self.on_measured(*self._measured[key])
            found["latency_ms"] = self._measured[key][1]
        return {name: found[name] for name in TARGET_COSTS if name in wanted}

    def beside(
        self, names: Iterable[str], choices: Choices, genotype: Genotype | None, measured: Mapping[str, float]
    ) -> dict[str, float]:
        """Parameters and multiply-adds of an architecture that was scored, and each of ``names``: a cost or a measure.

        What is no cost is taken from ``measured``, and a latency if it is there; what is neither is left out.

        Raises
        ------
        SpaceError
            If a latency is asked for, and the network that will be trained cannot be run.
        """
        found = {name: measured[name] for name in names if name in measured}
        found |= record_costs(genotype, self.config.target, measured)
        if "latency_ms" in names and "latency_ms" not in measured:
            found |= self.of(choices, ["latency_ms"])
        return found

    def remember(self, choices: Choices, latency_ms: float) -> None:
        """A latency that an earlier run has measured."""
        self._measured[repr(sorted(choices.items()))] = (dict(choices), latency_ms)

    @property
    def measured(self) -> list[tuple[Choices, float]]:
        """Every latency that was measured or is remembered, with its architecture."""
        return list(self._measured.values())

    @property
    def words(self) -> str:
        """Which network is counted, for messages."""
        if not self.has_cells:
            return "without classifier"
        return f"{self.target.num_cells} cells, {self.target.channels} channels, without classifier"

    def _latency(self, model: nn.Module, size: int) -> float:
        device = resolve_device(self.config.device)
        images = torch.zeros(1, 3, size, size, device=device)
        return latency(model.to(device), images, repeats=REPEATS, warmup=2)


def record_costs(
    genotype: Genotype | None, target: TargetConfig | None, measured: Mapping[str, float]
) -> dict[str, float]:
    """Parameters and multiply-adds of the network that will be trained, of an architecture in a record.

    Those of cells are counted at their target; the networks of another space are those that were ``measured``.
    """
    if genotype is not None:
        return cells_cost(genotype, target or TargetConfig())
    return {name: measured[name] for name in TARGET_COSTS[:2] if name in measured}


def target_size(target: TargetConfig) -> int:
    """Edge of the images of the network that will be trained."""
    return target.size or (224 if target.stem == "imagenet" else 32)


def target_network(genotype: Genotype, target: TargetConfig) -> CellNetwork:
    """The network that will be trained, without classifier."""
    return CellNetwork(genotype, target.num_cells, target.channels, stem=target.stem)
