"""The time of every layer of a space on one device, and what it says of networks that were never built there.

The layers of networks of cells are few (:mod:`nni_cssnas.spaces.pieces`), and on a device that computes one after the other
the time of a network is about their sum. The idea is that of the lookup tables of ProxylessNAS (arXiv:1812.00332) and FBNet
(arXiv:1812.03443). What the sum misses, as memory between layers, is a factor that a few whole networks tell.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nni_cssnas.base.files import write_atomically
from nni_cssnas.config import TargetConfig
from nni_cssnas.errors import CssnasError, ExperimentError
from nni_cssnas.genotype import Cell, Edge, Genotype
from nni_cssnas.spaces.cell import CellSpace
from nni_cssnas.spaces.pieces import Piece, pieces

__all__ = ["LatencyTable", "table_pieces"]

KIND = "nni_cssnas latency"


def table_pieces(space: CellSpace, target: TargetConfig) -> list[Piece]:
    """Every layer that a network of the space may have, as it is trained."""
    config = space.config
    states = tuple(range(2, 2 + config.num_nodes))
    concat = states[-4:] if config.output_nodes == "last4" else states
    found: set[Piece] = set()
    for operation in space.operations:
        if operation == "none":
            continue
        nodes = tuple(tuple(Edge(operation, source) for source in range(state)) for state in states)
        cell = Cell(nodes, concat)
        found |= pieces(Genotype(cell, cell), target).keys()
    return sorted(found)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one image.

    Attributes
    ----------
    device, runtime, threads
        Where and by what it was measured.
    target
        Depth, width, stem and image size of the networks.
    times
        Of each layer.
    empty
        Of a layer that does nothing: what a call costs. It is in each of ``times``.
    networks
        Whole networks, with their times.
    """

    device: str
    runtime: str
    threads: int
    target: TargetConfig
    times: Mapping[Piece, float]
    empty: float
    networks: Sequence[tuple[Genotype, float]]

    def predict(self, genotype: Genotype) -> float:
        """The latency of a genotype's network in milliseconds.

        Raises
        ------
        ExperimentError
            If a layer of it was not measured: the table is of another space.
        """
        return self.factor * self._sum(genotype)

    @cached_property
    def factor(self) -> float:
        """What the sum over layers is multiplied by: the median over the measured networks."""
        return statistics.median(self._factors) if self.networks else 1.0

    @property
    def error(self) -> float | None:
        """Median relative error on the measured networks, each with the factor of the others; None of fewer than three."""
        factors = self._factors
        if len(factors) < 3:
            return None
        others = [statistics.median(factors[:place] + factors[place + 1 :]) for place in range(len(factors))]
        return statistics.median(abs(other / own - 1) for other, own in zip(others, factors, strict=True))

    @cached_property
    def _factors(self) -> list[float]:
        return [ms / self._sum(genotype) for genotype, ms in self.networks]

    def _sum(self, genotype: Genotype) -> float:
        total = self.empty
        for piece, number in pieces(genotype, self.target).items():
            if piece not in self.times:
                raise ExperimentError(
                    f"the table of latencies has no {piece.kind} with {piece.c_in} channels at {piece.side} pixels: it is of "
                    "another space; measure this one with: nni-cssnas latency"
                )
            total += number * max(self.times[piece] - self.empty, 0.0)
        return total

    def check(self, target: TargetConfig, device: str, path: str) -> None:
        """Refuse a table of other networks, or of torch on another device than that of the search.

        Raises
        ------
        ExperimentError
            It names both, and the remedy.
        """
        if _shape(self.target) != _shape(target):
            raise ExperimentError(
                f"{path} is of {_words(self.target)}, and this search is for {_words(target)}; measure these with: "
                "nni-cssnas latency"
            )
        if self.runtime.startswith("torch") and self.device != device:
            raise ExperimentError(
                f"{path} was measured on {self.device!r}, and this search computes on {device!r}; measure here with: "
                "nni-cssnas latency, or for another machine with: nni-cssnas latency --script FOLDER"
            )

    def save(self, path: Path) -> None:
        """Write it as JSON.

        Raises
        ------
        ExperimentError
            If the file cannot be written.
        """
        content = {
            **plan(list(self.times), [genotype for genotype, _ in self.networks], self.target),
            "device": self.device,
            "runtime": self.runtime,
            "threads": self.threads,
        }
        content["empty"]["ms"] = self.empty
        for item, ms in zip(content["pieces"], self.times.values(), strict=True):
            item["ms"] = ms
        for item, (_, ms) in zip(content["networks"], self.networks, strict=True):
            item["ms"] = ms
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise ExperimentError(f"cannot write {path}: {error.strerror or error}; name another file") from None

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read what ``nni-cssnas latency`` or its script has written.

        Raises
        ------
        ExperimentError
            If the file cannot be read, or is something else.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict) or data.get("kind") != KIND:
                raise ValueError("it is no table of latencies")
            if "runtime" not in data:
                raise ValueError("nothing is measured in it yet; run measure.py beside it")
            names = ("kind", "c_in", "c_out", "stride", "side")
            return cls(
                str(data["device"]),
                str(data["runtime"]),
                int(data["threads"]),
                TargetConfig(**data["target"]),
                {Piece(**{name: item[name] for name in names}): _positive(item["ms"]) for item in data["pieces"]},
                _positive(data["empty"]["ms"]),
                [(Genotype.from_dict(item["genotype"]), _positive(item["ms"])) for item in data["networks"]],
            )
        except OSError as error:
            raise ExperimentError(f"cannot read {path}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, CssnasError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ExperimentError(f"{path}: {what}; make one with: nni-cssnas latency") from None


def plan(layers: Sequence[Piece], networks: Sequence[Genotype], target: TargetConfig) -> dict[str, Any]:
    """What is to be measured, as the file holds it."""
    return {
        "kind": KIND,
        "target": target.model_dump(mode="json"),
        "empty": {},
        "pieces": [asdict(piece) for piece in layers],
        "networks": [{"genotype": genotype.to_dict()} for genotype in networks],
    }


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < 1e9:
        raise ValueError(f"a time is {value!r}")
    return number


def _shape(target: TargetConfig) -> tuple[int, int, str, int]:
    size = target.size or (224 if target.stem == "imagenet" else 32)
    return target.num_cells, target.channels, target.stem, size


def _words(target: TargetConfig) -> str:
    cells, channels, stem, size = _shape(target)
    return f"{cells} cells of {channels} channels with stem {stem} at {size} pixels"
