#!/usr/bin/env python3
"""From unlabelled images to an architecture, on a space where its true accuracy is known.

    python experiments/benchmarks/end_to_end.py --table nasbench201.csv.gz --images cifar10.npz

For each seed, what ``nni-cssnas screen --num R --guided G`` does: R architectures of NNI's ``NasBench201`` are drawn at random,
TPE learns from their untrained scores and proposes G more, and one is chosen (:mod:`nni_cssnas.search.explore`). Its CIFAR-10 accuracy
is then read from the table, for the first time. Architectures that the table does not hold are left out as if they were
forbidden. ``--small`` leaves only the half of them with the fewest parameters, a search within a budget. ``--out`` collects
``end_to_end.csv``; seeds in it are not run again.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from search import interval
from tables import default_table, nasbench201, read_table

from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import CssnasError
from nni_cssnas.judge.screening import Screener
from nni_cssnas.search.explore import choose, explore

FIELDS = ("seed", "arch", "score", "accuracy", "rank", "scored", "seconds")


def arch_of(parameters: Mapping[str, str]) -> str:
    """The table's string of NNI's choices; the inverse of ``nasbench201.to_sample``."""
    names = {theirs: ours for ours, theirs in nasbench201.OPERATIONS.items()}
    nodes = []
    for target in (1, 2, 3):
        edges = [f"{names[parameters[f'cell/{source}_{target}']]}~{source}" for source in range(target)]
        nodes.append(f"|{'|'.join(edges)}|")
    return "+".join(nodes)


def search(args: argparse.Namespace, truth: Mapping[str, float], seed: int, console: Console) -> dict[str, object]:
    """One search without labels; the truth is looked up when everything is chosen."""
    start = time.perf_counter()
    config = ProxyConfig(
        seed=seed,
        threads=1,
        space={
            "name": "nni.nas.hub.pytorch:NasBench201",
            "arguments": {"stem_out_channels": 16, "num_modules_per_stack": 1},
        },
        images={"source": args.images, "num_images": None},
        views={"input_size": args.size},
    )
    screener = Screener(config)
    with screener.spread(args.workers) as spread:
        explored = explore(
            screener,
            spread,
            args.random,
            args.guided,
            seed=seed,
            allowed=lambda parameters: arch_of(parameters) in truth,
        )
        found = list(track(explored, f"seed {seed}", args.random + args.guided, console=console, transient=True))
        ranked = choose(found, config, spread)
    chosen = arch_of(ranked[0].choices)
    seconds = time.perf_counter() - start
    better = sum(accuracy > truth[chosen] for accuracy in truth.values())
    return {
        "seed": seed,
        "arch": chosen,
        "score": f"{ranked[0].score:.4f}",
        "accuracy": truth[chosen],
        "rank": better + 1,
        "scored": len(found),
        "seconds": f"{seconds:.0f}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="CSV with the columns arch and cifar10_test, plain or .gz")
    parser.add_argument("--images", default="cifar10", help="images that are scored on: an .npz, a folder, cifar10")
    parser.add_argument("--size", type=int, default=16, help="edge of the views in pixels")
    parser.add_argument("--random", type=int, default=400, help="random architectures that are screened")
    parser.add_argument("--guided", type=int, default=200, help="proposals of TPE after them")
    parser.add_argument("--small", action="store_true", help="among the half of the table with the fewest parameters")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--out", type=Path, default=Path("runs/end_to_end"))
    args = parser.parse_args(arguments)
    console = Console()
    try:
        path = args.table or default_table("nasbench201")
        table = read_table(path, nasbench201.to_sample)
        truth = {entry.arch: entry.accuracy for entry in table}
        if args.small:
            params = {entry.arch: entry.accuracy for entry in read_table(path, nasbench201.to_sample, "params")}
            budget = np.median(list(params.values()))
            truth = {arch: accuracy for arch, accuracy in truth.items() if params[arch] <= budget}
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / "end_to_end.csv"
        rows: list[dict[str, object]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [dict(row) for row in csv.DictReader(file)]
        known = {str(row["seed"]) for row in rows}
        for seed in [seed for seed in args.seeds if str(seed) not in known]:
            rows.append(search(args, truth, seed, console))
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(rows)
            line = ", ".join(f"{name} {rows[-1][name]}" for name in FIELDS)
            console.print(line, highlight=False, soft_wrap=True)
    except CssnasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    accuracies = np.array([float(str(row["accuracy"])) for row in rows])
    shares = [100 * (1 - (int(str(row["rank"])) - 1) / len(truth)) for row in rows]
    low, high = interval(accuracies)
    console.print(
        f"{len(rows)} searches: true accuracy {accuracies.mean():.2f} [{low:.2f}, {high:.2f}], worst {accuracies.min():.2f}; "
        f"not worse than {np.mean(shares):.1f} % of {len(truth)}; "
        f"best in the table {max(truth.values()):.2f}, mean of all {np.mean(list(truth.values())):.2f}; "
        f"{np.mean([float(str(row['seconds'])) for row in rows]):.0f} s a search"
    )
    return 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())
