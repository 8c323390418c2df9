"""What another machine needs to measure a table of latencies: ONNX files, and a script with no other needs."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from nni_cssnas.base.files import write_atomically
from nni_cssnas.config import ProxyConfig, TargetConfig
from nni_cssnas.errors import ExportError
from nni_cssnas.judge.costs import target_network, target_size
from nni_cssnas.judge.latencies import cell_space, random_genotypes
from nni_cssnas.scores import onnx_latency
from nni_cssnas.scores.latency_table import plan, table_pieces

__all__ = ["write_kit"]

CARRIED = 5
"""Whole networks in a folder: at 36 channels each takes 13 MB."""


class _Scaled(nn.Module):
    """As little as a file can hold that computes anything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def write_kit(
    config: ProxyConfig, folder: Path, *, seed: int = 0, on_file: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Write ``measure.py``, ``plan.json`` and a file for each layer and some networks; gives the script's path.

    Raises
    ------
    CssnasError
        If the space has no cells, the folder is not empty, or it cannot be written.
    """
    space, target = cell_space(config), config.target or TargetConfig()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is there already; name a new folder")
    layers, genotypes = table_pieces(space, target), random_genotypes(space, CARRIED, seed)
    content = plan(layers, genotypes, target)
    size = target_size(target)
    jobs: list[tuple[dict[str, str], str, nn.Module, tuple[int, ...]]] = [
        (content["empty"], "empty", _Scaled(), (1, 3, 1, 1))
    ]
    for number, (item, piece) in enumerate(zip(content["pieces"], layers, strict=True)):
        jobs.append((item, f"layer-{number}", piece.build(), (1, piece.c_in, piece.side, piece.side)))
    for number, (item, genotype) in enumerate(zip(content["networks"], genotypes, strict=True)):
        jobs.append((item, f"network-{number}", target_network(genotype, target), (1, 3, size, size)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for done, (item, name, layer, shape) in enumerate(jobs, start=1):
            item["file"] = f"{name}.onnx"
            _export(layer, shape, folder / item["file"])
            on_file(done, len(jobs))
        shutil.copy(onnx_latency.__file__, folder / "measure.py")
        write_atomically(folder / "plan.json", json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ExportError(f"cannot write in {folder}: {error.strerror or error}; name another folder") from None
    return folder / "measure.py"


def _export(layer: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The older exporter: it takes a tenth of the other's time for each of sixty small files, whose shapes are fixed.
        torch.onnx.export(layer.eval(), (torch.zeros(shape),), str(path), dynamo=False, opset_version=17)
