#!/usr/bin/env python3
"""Is the front of a label-free score against a cost one of the accuracy, too?

    python experiments/benchmarks/rank_correlation.py --table darts_cifar10.csv.gz --images cifar10.npz --scores untrained params --out scored
    python experiments/benchmarks/fronts.py --table darts_cifar10.csv.gz --scores scored/scores.csv

draws pools of architectures from those of a table that were scored, takes of each pool the front of score against cost, and
measures the hypervolume of its members in accuracy against cost. Beside it stand that of as many random members of the pool,
of the front by a random score (which knows the cost as well), and of the true front, which is 100 %. All are measured from the
same point, a tenth of the range below the worst of the table.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tables import adapter, open_csv, read_table, recognise, truths_of

from nni_cssnas.base.pareto import hypervolume, pareto_front, reference_point
from nni_cssnas.errors import ConfigError, CssnasError
from nni_cssnas.measures import DEFAULT_WEIGHTS
from nni_cssnas.scores.combine import combine

Numbers = NDArray[np.float64]
RANDOM_SETS = 40
"""Random sets, and random scores, of which a pool's mean is taken."""


@dataclass(frozen=True)
class Draw:
    """Parts of the true front's hypervolume, in one pool: of the front by score, of as many random members, and of fronts by a
    random score; and how many members the first has."""

    by_score: float
    random_members: float
    random_score: float
    size: int


def read_scores(path: Path, cost: str) -> dict[str, tuple[float, float]]:
    """Default score and cost of each architecture of a ``scores.csv``.

    Raises
    ------
    ConfigError
        If the file cannot be read, or lacks a measure or the cost.
    """
    try:
        with open_csv(path) as file:
            rows = list(csv.DictReader(file))
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise ConfigError(f"--scores is {str(path)!r}: {error}") from None
    needed = ("arch", cost, *DEFAULT_WEIGHTS)
    for name in needed:
        if not rows or name not in rows[0]:
            raise ConfigError(f"--scores: {path} has no column {name!r}; measure it with rank_correlation.py")
    found = {}
    for row in rows:
        measured = {name: float(row[name]) for name in DEFAULT_WEIGHTS}
        found[row["arch"]] = (combine(measured, DEFAULT_WEIGHTS), float(row[cost]))
    return found


def judge(score: Numbers, truth: Numbers, cost: Numbers, reference: Numbers, rng: np.random.Generator) -> Draw:
    """One pool: score, accuracy and cost ``(N,)`` of its members."""

    def covered(members: NDArray[np.intp]) -> float:
        return hypervolume(np.column_stack([truth, -cost])[members], reference)

    def front(values: Numbers) -> NDArray[np.intp]:
        return pareto_front(np.column_stack([values, -cost]))

    best = covered(front(truth))
    chosen = front(score)
    members = [covered(rng.choice(len(score), len(chosen), replace=False)) for _ in range(RANDOM_SETS)]
    fronts = [covered(front(rng.random(len(score)))) for _ in range(RANDOM_SETS)]
    return Draw(covered(chosen) / best, float(np.mean(members)) / best, float(np.mean(fronts)) / best, len(chosen))


def measure(values: Numbers, pool: int, draws: int, seed: int) -> list[Draw]:
    """So many pools out of ``(N, 3)``: score, accuracy, cost."""
    rng = np.random.default_rng(seed)
    score, truth, cost = values.T
    reference = reference_point(np.column_stack([truth, -cost]))
    found = []
    for _ in range(draws):
        of = rng.choice(len(values), pool, replace=False)
        found.append(judge(score[of], truth[of], cost[of], reference, rng))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="architectures with their accuracies")
    parser.add_argument("--scores", type=Path, required=True, help="scores.csv of rank_correlation.py")
    parser.add_argument("--truth", help="column of the accuracy (default: the first)")
    parser.add_argument("--cost", default="params", choices=("params", "macs"))
    parser.add_argument("--pool", type=int, default=50)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        values = read_values(args)
        if not 2 <= args.pool <= len(values):
            raise ConfigError(
                f"--pool is {args.pool}; the table has {len(values)} scored architectures, and 2 are needed"
            )
        draws = measure(values, args.pool, args.draws, args.seed)
    except CssnasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(draws, args, len(values))
    return 0


def read_values(args: argparse.Namespace) -> Numbers:
    """Score, accuracy and cost of what is in both files."""
    scored = read_scores(args.scores, args.cost)
    benchmark = recognise(args.table)
    if benchmark is None:
        raise ConfigError(f"--table is {str(args.table)!r}, whose architectures are of no known benchmark")
    truth = args.truth or truths_of(args.table, benchmark)[0]
    known = adapter(benchmark)
    entries = read_table(args.table, known.to_sample, truth, getattr(known, "row_arch", None))
    accuracy = {entry.arch: entry.accuracy for entry in entries}
    both = [(*scored[arch], accuracy[arch]) for arch in scored if arch in accuracy]
    if len(both) < 3:
        raise ConfigError(f"{len(both)} architectures are both in {args.table} and in {args.scores}; 3 are needed")
    score, cost, truths = np.array(both).T
    return np.column_stack([score, truths, cost])


def show(draws: Sequence[Draw], args: argparse.Namespace, number: int) -> None:
    """Print the means, and how often the score's front is ahead."""
    console = Console()
    table = Table(title=f"{args.draws} pools of {args.pool} out of {number}: part of the true front's hypervolume (%)")
    for column in ("front by", "mean", "ahead of it in (%)"):
        table.add_column(column, justify="left" if column == "front by" else "right")
    ours = np.array([draw.by_score for draw in draws])
    table.add_row("score", f"{100 * ours.mean():.1f}", "")
    others = {"as many random members": "random_members", "a random score": "random_score"}
    for name, attribute in others.items():
        theirs = np.array([getattr(draw, attribute) for draw in draws])
        table.add_row(name, f"{100 * theirs.mean():.1f}", f"{100 * (ours > theirs).mean():.0f}")
    console.print(table)
    console.print(f"members of a front by score: {np.mean([draw.size for draw in draws]):.1f}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
