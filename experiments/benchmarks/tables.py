"""Tables of architectures whose true accuracy is known: reading, and drawing from them."""

from __future__ import annotations

import csv
import gzip
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nni_cssnas.errors import ConfigError

__all__ = ["ACCURACY", "Entry", "default_table", "draw", "read_table"]

ACCURACY = "cifar10_test"
"""Column of the accuracy to predict."""


@dataclass(frozen=True)
class Entry:
    """An architecture of a table and its true accuracy in percent."""

    arch: str
    accuracy: float


def read_table(path: Path, check: Callable[[str], Any], column: str = ACCURACY) -> list[Entry]:
    """The architectures of a CSV file, plain or ``.gz``, with the columns ``arch`` and ``column``.

    Parameters
    ----------
    path
        The file.
    check
        Raises ValueError if a string is not an architecture of the benchmark.
    column
        The accuracy to predict.

    Raises
    ------
    ConfigError
        If the file cannot be read, a column is missing, an architecture is unknown or named twice, or
        an accuracy is not between 0 and 100. The message names the line.
    """
    entries: list[Entry] = []
    lines: dict[str, int] = {}
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            reader = csv.DictReader(file)
            fields = reader.fieldnames or []
            for name in ("arch", column):
                if name not in fields:
                    raise ConfigError(f"{path} has no column {name!r}; its columns are {', '.join(fields) or 'none'}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                arch = (row["arch"] or "").strip()
                try:
                    check(arch)
                except ValueError as error:
                    raise ConfigError(f"{where}: {error}") from None
                if arch in lines:
                    raise ConfigError(f"{where}: {arch!r} was already named in line {lines[arch]}")
                lines[arch] = reader.line_num
                try:
                    accuracy = float(row[column])
                except (TypeError, ValueError):
                    accuracy = math.nan
                if not 0 <= accuracy <= 100:
                    raise ConfigError(f"{where}: {column} is {row[column]!r}; it must be a percentage from 0 to 100")
                entries.append(Entry(arch, accuracy))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the table {path}: {error}") from None
    if not entries:
        raise ConfigError(f"{path} names no architecture")
    return entries


def draw(entries: Sequence[Entry], sample: int, seed: int, exclude: Sequence[tuple[int, int]] = ()) -> list[Entry]:
    """``sample`` architectures, drawn with ``seed`` among those that no (seed, sample) of ``exclude`` draws.

    Raises
    ------
    ConfigError
        If there are fewer.
    """

    def order(seed: int) -> NDArray[np.int64]:
        return np.random.default_rng(seed).permutation(len(entries))

    seen = {int(index) for seed_, sample_ in exclude for index in order(seed_)[:sample_]}
    chosen = [int(index) for index in order(seed) if int(index) not in seen]
    if not 3 <= sample <= len(chosen):
        raise ConfigError(
            f"sample is {sample}; it must be from 3 to {len(chosen)}, the architectures of the table"
            + (f" less {len(seen)} excluded ones" if seen else "")
        )
    return [entries[index] for index in chosen[:sample]]


def default_table(benchmark: str) -> Path:
    """The table in ``$CSSNAS_DATA``: its development half, or the whole as ``data.py`` writes it.

    Raises
    ------
    ConfigError
        If it is not there.
    """
    folder = os.environ.get("CSSNAS_DATA")
    if not folder:
        raise ConfigError("no table was given; write it with experiments/benchmarks/data.py, and name it with --table")
    names = (f"{benchmark}_dev.csv.gz", f"{benchmark}.csv.gz")
    for name in names:
        if (path := Path(folder) / name).exists():
            return path
    raise ConfigError(
        f"CSSNAS_DATA is {folder!r}, which holds neither {' nor '.join(names)}; "
        "write one with experiments/benchmarks/data.py, or name a table with --table"
    )
