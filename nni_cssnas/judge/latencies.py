"""Measuring a table of latencies: on a device of this machine by torch, or elsewhere by files for ONNX runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nni_cssnas.base.device import resolve_device
from nni_cssnas.config import ProxyConfig, TargetConfig
from nni_cssnas.errors import ConfigError
from nni_cssnas.genotype import Genotype
from nni_cssnas.judge.costs import target_network, target_size
from nni_cssnas.scores.latency_table import LatencyTable, table_pieces
from nni_cssnas.scores.onnx_latency import in_turn, processor
from nni_cssnas.spaces.cell import CellSpace
from nni_cssnas.spaces.encoding import decode, random_choices
from nni_cssnas.spaces.factory import make_space

__all__ = ["NETWORKS", "cell_space", "device_name", "measure_table", "random_genotypes", "read_table"]

NETWORKS = 8
"""Whole networks that tell what the sum over layers misses."""

ROUNDS = 20
"""Passes of each layer and each network."""


def cell_space(config: ProxyConfig) -> CellSpace:
    """The space of cells of a ``proxy.yml``.

    Raises
    ------
    ConfigError
        If it is another.
    """
    space = make_space(config.scored_space)
    if not isinstance(space, CellSpace):
        raise ConfigError(
            f"space is {config.space.name!r}; a table of latencies is of networks of cells. Networks of other spaces are "
            "measured one by one: --max-latency-ms, --objective latency_ms"
        )
    return space


def device_name(config: ProxyConfig) -> str:
    """The device on which a search computes, as a table of latencies names it."""
    device = resolve_device(config.device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def measure_table(config: ProxyConfig, *, seed: int = 0, held_out: int = 0) -> tuple[LatencyTable, list[float]]:
    """Measure the layers of a space on the configured device, in about half a minute.

    Parameters
    ----------
    config
        All of ``proxy.yml``.
    seed
        Of the networks, and of the order.
    held_out
        So many random networks more are measured, of which the table does not learn.

    Returns
    -------
    table, errors
        The relative error of the table on each network that was held out.

    Raises
    ------
    CssnasError
        If the space has no cells, or there is no such device.
    """
    space, target = cell_space(config), config.target or TargetConfig()
    device = resolve_device(config.device)
    layers = table_pieces(space, target)
    runs = [_run(nn.Identity(), (1, 3, 1, 1), device)]
    runs += [_run(piece.build(), (1, piece.c_in, piece.side, piece.side), device) for piece in layers]
    genotypes = random_genotypes(space, NETWORKS + held_out, seed)
    # All in turn: what disturbs the machine for a while disturbs layers and networks alike.
    runs += _runs(genotypes, target, device)
    with torch.inference_mode():
        empty, *times = in_turn(runs, ROUNDS, seed)
    networks = list(zip(genotypes, times[len(layers) :], strict=True))
    table = LatencyTable(
        device_name(config),
        f"torch {torch.__version__}",
        torch.get_num_threads(),
        target,
        dict(zip(layers, times[: len(layers)], strict=True)),
        empty,
        networks[:NETWORKS],
    )
    return table, [table.predict(genotype) / ms - 1 for genotype, ms in networks[NETWORKS:]]


def read_table(path: Path, config: ProxyConfig) -> LatencyTable:
    """A table of latencies from a file, if it is of what a search is for.

    Raises
    ------
    CssnasError
        If it cannot be read, or is of another space, other networks or another device.
    """
    space = cell_space(config)
    table = LatencyTable.load(path)
    table.check(config.target or TargetConfig(), device_name(config), str(path))
    for genotype in random_genotypes(space, 3, 0):
        table.predict(genotype)
    return table


def random_genotypes(space: CellSpace, number: int, seed: int) -> list[Genotype]:
    """So many random cells of a space."""
    rng = np.random.default_rng(seed)
    return [space.genotype_of(decode(space, random_choices(space, rng))) for _ in range(number)]


def _runs(genotypes: Sequence[Genotype], target: TargetConfig, device: torch.device) -> list[Callable[[], object]]:
    size = target_size(target)
    return [_run(target_network(genotype, target), (1, 3, size, size), device) for genotype in genotypes]


def _run(layer: nn.Module, shape: tuple[int, ...], device: torch.device) -> Callable[[], object]:
    layer = layer.eval().to(device)
    images = torch.randn(shape, device=device)
    if device.type == "cuda":

        def run() -> None:
            layer(images)
            torch.cuda.synchronize(device)

        return run
    return lambda: layer(images)
