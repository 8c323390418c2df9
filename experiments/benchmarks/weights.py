#!/usr/bin/env python3
"""How were the weights of the default score chosen, and what do weights rank that never saw a table?

    python experiments/benchmarks/weights.py docs/measured/weights-*.csv.gz

Each file has a row for each architecture of a table: its ``accuracy``, its ``params``, and measures of it. The search goes
coordinate by coordinate over a grid of weights, from several starts, for the mean Spearman's correlation over the tables. It is
done once with all tables, and once without each of them; what is printed of a table is then judged by weights that never saw
it. ``--alone`` prints how each measure ranks each table alone.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from correlation import at_equal_params, spearman
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tables import open_csv

from nni_cssnas.errors import ConfigError, CssnasError
from nni_cssnas.measures import DEFAULT_WEIGHTS, find_measure

GRID = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
OTHERS = ("last_entropy", "progressivity")
"""Measures that may have a weight too, beside those that have one."""
COSTS_OF_A_WEIGHT = 0.002
"""A measure must add that much, so that those that add nothing have no weight."""
IMPORTANCE = {"darts_cifar10": 2.0, "nasbench201": 1.5, "transnas_micro": 1.5, "nds": 0.5}
"""Of tables whose names begin so, in the mean; 1 of others."""


@dataclass(frozen=True)
class Measured:
    """A table.

    Attributes
    ----------
    accuracy, params
        ``(architectures,)``.
    measures
        By name, as they are, ``(architectures,)``; NaN where one was not measured.
    """

    name: str
    accuracy: NDArray[np.float64]
    params: NDArray[np.float64]
    measures: Mapping[str, NDArray[np.float64]]

    def scaled(self, names: Sequence[str]) -> NDArray[np.float64]:
        """``(measures, architectures)``: the natural logarithms of counts, the others as they are."""
        logs = {name for name in DEFAULT_WEIGHTS if find_measure(name).scale == "log"}
        return np.stack([np.log(self.measures[name]) if name in logs else self.measures[name] for name in names])

    @property
    def importance(self) -> float:
        return next((value for start, value in IMPORTANCE.items() if self.name.startswith(start)), 1.0)


def read(path: Path) -> Measured:
    """Raises ConfigError if it is no such file."""
    try:
        with open_csv(path) as file:
            rows = list(csv.DictReader(file))
        columns = {
            name: np.array([float(row[name]) if row[name] else np.nan for row in rows])
            for name in rows[0]
            if name != "arch"
        }
        accuracy, params = columns.pop("accuracy"), columns["params"]
        missing = {*DEFAULT_WEIGHTS, *OTHERS} - set(columns)
        if missing:
            raise ConfigError(
                f"{path} has no column {min(missing)}; give files of measures, as docs/measured/weights-*.csv.gz"
            )
    except (OSError, EOFError, KeyError, ValueError, IndexError, UnicodeError) as error:
        raise ConfigError(f"{path} cannot be read as a CSV of measures ({error!r})") from None
    return Measured(path.name.removeprefix("weights-").split(".")[0], accuracy, params, columns)


def choose(tables: Sequence[Measured], names: Sequence[str], starts: int) -> NDArray[np.float64]:
    """The weights ``(measures,)`` with the best mean; that of the first is 0.5, since only ratios count."""
    scaled = [table.scaled(names) for table in tables]
    total = sum(table.importance for table in tables)

    def value(weights: NDArray[np.float64]) -> float:
        ranks = (
            table.importance * spearman(weights @ parts, table.accuracy)
            for table, parts in zip(tables, scaled, strict=True)
        )
        return sum(ranks) / total - COSTS_OF_A_WEIGHT * np.count_nonzero(weights)

    rng = np.random.default_rng(0)
    best: tuple[float, NDArray[np.float64]] = (-np.inf, np.zeros(len(names)))
    for _ in range(starts):
        weights = rng.choice(GRID, len(names))
        weights[0] = 0.5
        current, improved = value(weights), True
        while improved:
            improved = False
            for index in rng.permutation(np.arange(1, len(names))):
                for number in GRID:
                    other = weights.copy()
                    other[index] = number
                    reached = value(other)
                    if reached > current + 1e-6:
                        current, weights, improved = reached, other, True
        if current > best[0]:
            best = current, weights
    return best[1]


def rank(table: Measured, names: Sequence[str], weights: NDArray[np.float64]) -> tuple[float, float]:
    """Spearman, and at equal parameters."""
    score = weights @ table.scaled(names)
    return spearman(score, table.accuracy), at_equal_params(score, table.accuracy, table.params)


def run(tables: Sequence[Measured], starts: int, console: Console) -> dict[str, list[float]]:
    """Print both ranks of each table, and what was chosen; gives the weights by the name of the table that was left out."""
    names = (*DEFAULT_WEIGHTS, *OTHERS)
    whole = choose(tables, names, starts)
    shown = Table(title="Spearman, and at equal parameters")
    for column in ("table", "architectures", "weights chosen with all", "without it", "what they were"):
        shown.add_column(column, justify="left" if column in ("table", "what they were") else "right")
    chosen = {"": whole.tolist()}
    for table in track(tables, "leaving one out", console=console, transient=True):
        without = choose([other for other in tables if other is not table], names, starts)
        chosen[table.name] = without.tolist()
        cells = ["{:.3f} {:.3f}".format(*rank(table, names, weights)) for weights in (whole, without)]
        shown.add_row(table.name, str(len(table.accuracy)), *cells, " ".join(f"{weight:g}" for weight in without))
    console.print(shown)
    console.print("with all: " + ", ".join(f"{name} {weight:g}" for name, weight in zip(names, whole, strict=True)))
    return chosen


def alone(tables: Sequence[Measured], console: Console) -> None:
    """Print Spearman's correlation of every measure with the accuracy, a column for each table."""
    shown = Table(title="each measure alone")
    shown.add_column("measure")
    for table in tables:
        shown.add_column(table.name, justify="right")
    for name in dict.fromkeys(name for table in tables for name in table.measures):
        cells = []
        for table in tables:
            values = table.measures.get(name, np.full(len(table.accuracy), np.nan))
            there = ~np.isnan(values)
            number = "" if there.all() else f" ({there.sum()})"
            cells.append(f"{spearman(values[there], table.accuracy[there]):.2f}{number}" if there.sum() > 2 else "")
        shown.add_row(name, *cells)
    console.print(shown)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="a CSV of measures for each table, plain or .gz")
    parser.add_argument("--alone", action="store_true", help="each measure alone, and no search")
    parser.add_argument("--starts", type=int, default=5, help="of each search (default: 5)")
    args = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = 180
    try:
        tables = [read(path) for path in args.files]
        if args.alone:
            alone(tables, console)
        elif len(tables) < 2:
            raise ConfigError("one table was given; two are needed to leave one out")
        else:
            run(tables, args.starts, console)
    except CssnasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
