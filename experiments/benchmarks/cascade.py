#!/usr/bin/env python3
"""What does ``screen --cascade`` lose, and what does it save?

    python experiments/benchmarks/cascade.py --table nasbench201.csv.gz --scores docs/measured/score-nasbench201_dev.csv.gz

Of pools that are drawn from a table, only the part with the most multiply-adds is scored. Printed are how many of the ten best
by score are still found, and how much less accurate the ten that are found are on average, and the best one.

    python experiments/benchmarks/cascade.py --time

screens the default cells with and without a cascade in turn, and prints the ratio of their times.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tables import adapter, open_csv, read_table, recognise, truths_of

import nni_cssnas
from nni_cssnas.errors import ConfigError, CssnasError
from nni_cssnas.measures import DEFAULT_WEIGHTS
from nni_cssnas.scores.combine import combine

BEST = 10


@dataclass(frozen=True)
class Loss:
    """Of one pool: how many of the ten best are found, and what their mean accuracy and that of the best lose, in points."""

    found: int
    ten: float
    one: float


def read(table: Path, scores: Path) -> NDArray[np.float64]:
    """Score, multiply-adds and accuracy of what is in both files, ``(architectures, 3)``. Raises ConfigError."""
    benchmark = recognise(table)
    if benchmark is None:
        raise ConfigError(f"--table is {str(table)!r}, whose architectures are of no known benchmark")
    module = adapter(benchmark)
    entries = read_table(table, module.to_sample, truths_of(table, benchmark)[0], getattr(module, "row_arch", None))
    accuracy = {entry.arch: entry.accuracy for entry in entries}
    try:
        with open_csv(scores) as file:
            rows = [row for row in csv.DictReader(file) if row["arch"] in accuracy]
        values = [
            (combine({name: float(row[name]) for name in DEFAULT_WEIGHTS}, DEFAULT_WEIGHTS), float(row["macs"]))
            for row in rows
        ]
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise ConfigError(
            f"--scores is {str(scores)!r}, no scores.csv of rank_correlation.py with --scores untrained macs ({error!r})"
        ) from None
    return np.array([(*value, accuracy[row["arch"]]) for value, row in zip(values, rows, strict=True)])


def lose(values: NDArray[np.float64], pool: int, cascade: int, draws: int, seed: int) -> list[Loss]:
    """Of so many pools."""
    rng = np.random.default_rng(seed)
    losses = []
    for _ in range(draws):
        score, macs, accuracy = values[rng.choice(len(values), pool, replace=False)].T
        whole = np.argsort(-score, kind="stable")[:BEST]
        kept = np.sort(np.argsort(-macs, kind="stable")[: -(-pool // cascade)])
        part = kept[np.argsort(-score[kept], kind="stable")[:BEST]]
        gap = accuracy[whole].mean() - accuracy[part].mean()
        losses.append(Loss(len({*whole} & {*part}), float(gap), float(accuracy[whole[0]] - accuracy[part[0]])))
    return losses


def seconds(num: int, cascade: int) -> float:
    """Of a search among the default cells, in one process."""
    start = time.perf_counter()
    nni_cssnas.screen("tiles", num=num, cascade=cascade, workers=1)
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="architectures with their accuracies")
    parser.add_argument("--scores", type=Path, help="scores.csv of rank_correlation.py, plain or .gz")
    parser.add_argument("--pool", type=int, default=1000, help="at most two thirds of the table (default: 1000)")
    parser.add_argument("--cascades", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time", type=int, metavar="NUM", nargs="?", const=64, help="of searches among so many")
    args = parser.parse_args(arguments)
    console = Console()
    if args.time:
        whole, part = seconds(args.time, 1), seconds(args.time, args.cascades[-1])
        console.print(
            f"{args.time} architectures: {whole:.1f} s; with --cascade {args.cascades[-1]}: {part:.1f} s, "
            f"{part / whole:.2f} times as long",
            highlight=False,
        )
        return 0
    if args.table is None or args.scores is None:
        parser.error("give --table and --scores, or --time")
    try:
        values = read(args.table, args.scores)
        pool = min(args.pool, len(values) * 2 // 3)
        if pool < 2 * BEST:
            raise ConfigError(f"{len(values)} architectures are in both files; {3 * BEST} are needed")
    except CssnasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shown = Table(title=f"{args.draws} pools of {pool} out of {len(values)} ({args.table.name})")
    for column in ("cascade", f"of the {BEST} best", f"loss of the {BEST}", "loss of the best"):
        shown.add_column(column, justify="right")
    for cascade in args.cascades:
        losses = lose(values, pool, cascade, args.draws, args.seed)
        means = [float(np.mean([getattr(loss, name) for loss in losses])) for name in ("found", "ten", "one")]
        shown.add_row(str(cascade), f"{means[0]:.1f}", f"{means[1]:+.3f}", f"{means[2]:+.3f}")
    console.print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
