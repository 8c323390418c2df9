"""Tables of architectures whose true accuracy is known: reading, and drawing from them.

Each table has a module here, from a row to the network that it is about. Such a module has

``to_sample(arch)``
    The choices of NNI's space, and a ValueError that says why ``arch`` is not in it.
``build(arch, **arguments)``
    The network that is scored.
``random_arch(rng, like=None)``
    An architecture of the space; of a family of spaces, of the one that ``like`` is in.
``TABLE_NETWORK``, ``TABLE_IMAGE``
    The ``arguments`` with which :func:`costs` are those of the network that was trained, and its image.
``TRAINED_NETWORK``
    The ``arguments`` of a network that is narrow enough for a contrastive training of seconds.
``TRUTHS``, ``CEILINGS``
    Columns that are worth predicting; those that a table has are predicted where nothing else is asked for. By column, how well
    the accuracies of one training can be predicted at all (Spearman), where that is known.

and, where they mean something, ``row_arch(row)`` (else the column ``arch`` is the architecture) and ``path(arch)``
(convolutions on the longest way through the cells).
"""

from __future__ import annotations

import csv
import gzip
import importlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from nni_cssnas.errors import ConfigError
from nni_cssnas.scores.cost import multiply_adds, num_parameters

__all__ = [
    "ACCURACY",
    "BENCHMARKS",
    "Entry",
    "adapter",
    "costs",
    "default_table",
    "draw",
    "longest_path",
    "open_csv",
    "read_table",
    "recognise",
    "truths_of",
]

BENCHMARKS = ("nasbench201", "nasbench_macro", "nasbench101", "nds", "darts", "transnas_micro", "transnas_macro")
"""The modules of this package. ``nds`` comes before ``darts``: its rows hold genotypes too."""

ACCURACY = "cifar10_test"
"""Column of the accuracy to predict."""

_PERCENT = re.compile(r".*_(test|val|valid|top1)")
"""Columns of accuracies, by the names that the tables use; what is called otherwise may be any number."""


@dataclass(frozen=True)
class Entry:
    """An architecture of a table and its true accuracy in percent."""

    arch: str
    accuracy: float


def adapter(benchmark: str) -> Any:
    """The module of a benchmark: see this package."""
    return importlib.import_module(f"tables.{benchmark}")


def read_table(
    path: Path,
    check: Callable[[str], Any],
    column: str = ACCURACY,
    row_arch: Callable[[Mapping[str, str]], str] | None = None,
) -> list[Entry]:
    """The architectures of a CSV file, plain or ``.gz``, with the columns ``arch`` and ``column``.

    Parameters
    ----------
    path
        The file.
    check
        Raises ValueError if a string is not an architecture of the benchmark.
    column
        The accuracy to predict.
    row_arch
        The architecture of a row, where it is more than the column ``arch``. Raises ValueError if the row has none.

    Raises
    ------
    ConfigError
        If the file cannot be read, a column is missing, an architecture is unknown or named twice, or
        an accuracy is not between 0 and 100 (of other columns: not a finite number). The message names the line.
    """
    entries: list[Entry] = []
    lines: dict[str, int] = {}
    percent = _PERCENT.fullmatch(column)
    for line, row in _rows(path, ("arch", column)):
        where = f"{path}, line {line}"
        try:
            arch = row_arch(row) if row_arch else (row["arch"] or "").strip()
            check(arch)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
        if arch in lines:
            raise ConfigError(f"{where}: {arch!r} was already named in line {lines[arch]}")
        lines[arch] = line
        try:
            accuracy = float(row[column])
        except (TypeError, ValueError):
            accuracy = math.nan
        if percent and not 0 <= accuracy <= 100:
            raise ConfigError(f"{where}: {column} is {row[column]!r}; it must be a percentage from 0 to 100")
        if not math.isfinite(accuracy):
            raise ConfigError(f"{where}: {column} is {row[column]!r}; it must be a finite number")
        entries.append(Entry(arch, accuracy))
    if not entries:
        raise ConfigError(f"{path} names no architecture")
    return entries


def truths_of(path: Path, benchmark: str) -> list[str]:
    """The columns to predict where none is asked for: those of ``TRUTHS`` that the table has.

    A table that has none of them (the same space on another data set) is asked for its columns of accuracies by their names'
    ends; the first one counts.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    fields = _fields(path)
    known: Sequence[str] = adapter(benchmark).TRUTHS
    others = [field for field in fields if _PERCENT.fullmatch(field)]
    return [name for name in known if name in fields] or others[:1] or [known[0]]


def recognise(path: Path) -> str | None:
    """The benchmark that a table is of, by its first row; None of what is no such table.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    for _, row in _rows(path, ()):
        return _benchmark_of(row)
    return None


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


def costs(benchmark: str, arch: str) -> dict[str, float]:
    """Parameters and multiply-adds of the network that was trained (where its module says so: of one that ranks alike)."""
    module = adapter(benchmark)
    # Shapes are enough to count, and those of 22 cells on 224 pixels take no time.
    with torch.device("meta"):
        network = module.build(arch, **module.TABLE_NETWORK)
    return {"params": float(num_parameters(network)), "macs": float(multiply_adds(network, module.TABLE_IMAGE))}


def longest_path(edges: Iterable[tuple[int, int, int]], inputs: Iterable[int], outputs: Iterable[int]) -> int:
    """The largest sum of lengths on a way from an input to an output, 0 if there is none.

    ``edges`` are (source, target, length), and a source's number is below its target's.
    """
    longest = dict.fromkeys(inputs, 0)
    for source, target, length in sorted(edges, key=lambda edge: edge[1]):
        if source in longest:
            longest[target] = max(longest.get(target, 0), longest[source] + length)
    return max((longest[state] for state in outputs if state in longest), default=0)


def open_csv(path: Path) -> TextIO:
    """A CSV file for reading, plain or ``.gz``."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", newline="", encoding="utf-8")  # type: ignore[return-value]
    return path.open(newline="", encoding="utf-8")


def _rows(path: Path, needed: Sequence[str]) -> Iterable[tuple[int, dict[str, str]]]:
    """Line and content of each row. Raises ConfigError if the file cannot be read or lacks a column."""
    try:
        with open_csv(path) as file:
            reader = csv.DictReader(file)
            fields = reader.fieldnames or []
            for name in needed:
                if name not in fields:
                    raise ConfigError(f"{path} has no column {name!r}; its columns are {', '.join(fields) or 'none'}")
            for row in reader:
                yield reader.line_num, row
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the table {path}: {error}") from None


def _fields(path: Path) -> list[str]:
    for _, row in _rows(path, ()):
        return [field for field in row if field]
    return []


def _benchmark_of(row: Mapping[str, str]) -> str | None:
    if "arch" not in row:
        return None
    for name in BENCHMARKS:
        module = adapter(name)
        try:
            module.to_sample(module.row_arch(row) if hasattr(module, "row_arch") else (row["arch"] or "").strip())
        except ValueError:
            continue
        return name
    return None
