#!/usr/bin/env python3
"""Do tuners learn? A separable objective over many small choices, on which NNI's TPE turns into grid search.

    python experiments/benchmarks/toy.py --trials 100 --seeds 20

Every value of every choice has a worth, drawn once from a standard normal distribution; an architecture's score is the sum.
Prints the best score found, with 95 % intervals over the seeds, and how many proposals were repeated; then, by how much ours
is better than each of the others on the same objectives (paired differences). ``--out FILE`` writes a row for each search.
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nni.algorithms.hpo.random_tuner import RandomTuner
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from numpy.typing import NDArray
from peers import OptunaTuner
from rich.console import Console
from rich.progress import track
from rich.table import Table
from search import interval

from nni_cssnas.errors import CssnasError
from nni_cssnas.tuners.hyperopt import Hyperopt
from nni_cssnas.tuners.tpe import Tpe

SPACES = ((14, 8), (32, 7), (6, 5))
"""Number of choices, and of the values of each."""

TUNERS: dict[str, Callable[[int], Any]] = {
    "ours": lambda seed: Tpe(seed=seed),
    "hyperopt": lambda seed: Hyperopt(seed=seed),
    "nni-tpe": lambda seed: TpeTuner("maximize", seed=seed),
    "optuna": OptunaTuner,
    "random": lambda seed: RandomTuner(seed=seed),
}


def search(tuner: Any, count: int, size: int, trials: int, seed: int) -> tuple[float, int]:
    """The best score of so many trials one after the other, and how many were repetitions."""
    worth = np.random.default_rng([seed, count, size]).normal(size=(count, size))
    tuner.update_search_space({f"c{i}": {"_type": "choice", "_value": list(range(size))} for i in range(count)})
    best, seen, repeated = -math.inf, set(), 0
    for number in range(trials):
        parameters: Mapping[str, int] = tuner.generate_parameters(number)
        key = tuple(parameters[f"c{i}"] for i in range(count))
        repeated += key in seen
        seen.add(key)
        score = float(worth[np.arange(count), key].sum())
        best = max(best, score)
        tuner.receive_trial_result(number, parameters, score)
        tuner.trial_end(number, True)
    return best, repeated


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tuners", nargs="+", choices=TUNERS, default=list(TUNERS))
    parser.add_argument("--out", type=Path, help="CSV of every search")
    args = parser.parse_args(arguments)
    console = Console()
    last = args.first_seed + args.seeds - 1
    table = Table(
        title=f"best of {args.trials} trials, seeds {args.first_seed} to {last}; in parentheses: repeated proposals"
    )
    table.add_column("tuner")
    for count, size in SPACES:
        table.add_column(f"{count} choices of {size}", justify="right")
    results: dict[str, list[NDArray[np.float64]]] = {}
    rows: list[list[Any]] = []
    for name in args.tuners:
        cells = []
        results[name] = []
        for count, size in SPACES:
            numbers = range(args.first_seed, args.first_seed + args.seeds)
            seeds = track(numbers, f"{name}, {count} choices of {size}", console=console, transient=True)
            try:
                found = [search(TUNERS[name](seed), count, size, args.trials, seed) for seed in seeds]
            except CssnasError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            scores = np.array([score for score, _ in found])
            results[name].append(scores)
            rows += [[name, count, size, seed, *values] for seed, values in zip(numbers, found, strict=True)]
            repeated = sum(number for _, number in found) / len(found)
            cells.append(f"{_mean(scores)} ({repeated:.1f})")
        table.add_row(name, *cells)
    for name in results:
        if "ours" in results and name != "ours":
            differences = [ours - other for ours, other in zip(results["ours"], results[name], strict=True)]
            table.add_row(f"ours - {name}", *map(_mean, differences))
    console.print(table)
    if args.out:
        with args.out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["tuner", "choices", "values", "seed", "best", "repeated"], *rows])
    return 0


def _mean(values: NDArray[np.float64]) -> str:
    low, high = interval(values)
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())
