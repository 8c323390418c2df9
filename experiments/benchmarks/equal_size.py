#!/usr/bin/env python3
"""Which label-free number ranks networks of one size as training with labels does?

    python experiments/benchmarks/equal_size.py COMPARED --proxy experiments/equal-size/proxy.yml --images cifar10.npz

takes the architectures that ``nni-cssnas compare`` trained into the folder COMPARED (also of one that was stopped; several
folders of one budget may be named), at the widths that they had there, measures the untrained components and a short
contrastive training of each, and prints their Spearman correlation with the accuracy, with 95 % bootstrap intervals. A
number whose sign points the wrong way is negative: every one is turned so that larger should be better.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rank_correlation import bootstrap, correlate
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError, CssnasError
from nni_cssnas.genotype import Genotype
from nni_cssnas.judge.proxy import Candidate, Proxy
from nni_cssnas.measures import MEASURES
from nni_cssnas.spaces import CellNetwork

LOWER_IS_BETTER = {"loss", "held_out", "alignment", "uniformity"}
LEFT_OUT = {"params", "channels", "seconds", "images_per_second"}


def trained(folders: Sequence[Path]) -> list[tuple[Genotype, int, int, float]]:
    """Genotype, width, depth and accuracy, the mean over seeds, of every architecture with a finished training."""
    found = {}
    for folder in folders:
        try:
            content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder} is no folder of `nni-cssnas compare`: {error}") from None
        for name, channels, architecture in content["contestants"]:
            summaries = [json.loads(path.read_text()) for path in folder.glob(f"{name}-seed*/summary.json")]
            if summaries and "genotype" in architecture:
                accuracy = statistics.fmean(summary["final_top1"] for summary in summaries)
                key = json.dumps(architecture, sort_keys=True)
                genotype = Genotype.from_dict(architecture["genotype"])
                found[key] = (genotype, channels, content["recipe"]["num_cells"], 100 * accuracy)
    if len(found) < 3:
        raise ConfigError(f"{len(found)} architectures have been trained there; 3 or more are needed")
    return list(found.values())


def measure(genotype: Genotype, channels: int, num_cells: int, judges: Sequence[Proxy]) -> dict[str, float]:
    """Every number, the mean over the judges' seeds, turned so that larger should be better."""
    rows: list[dict[str, float]] = []
    for judge in judges:
        build = partial(CellNetwork, genotype, num_cells, channels)
        result = judge.judge(Candidate(build, judge.config.seed))
        criteria = {
            name: -value if name in LOWER_IS_BETTER else value
            for name, value in {**result.components, "loss": result.epoch_losses[-1]}.items()
            if name not in LEFT_OUT
        }
        rows.append({"width": float(channels), **judge.untrained(build(), tuple(MEASURES)), **criteria})
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of nni-cssnas compare")
    parser.add_argument("--proxy", type=Path, default=Path(__file__).parents[1] / "equal-size" / "proxy.yml")
    parser.add_argument("--images", help="in place of the proxy's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of weights, views and order")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args(arguments)
    console = Console()
    try:
        settings: dict[str, Any] = ProxyConfig.load(args.proxy).model_dump(exclude_unset=True)
        settings |= {"score": "contrastive", "threads": args.threads}
        if args.images:
            settings["images"] = {**settings.get("images", {}), "source": args.images}
        judges = [Proxy(ProxyConfig(**settings | {"seed": seed})) for seed in args.seeds]
        for judge in judges:
            judge.prepare()
        who = trained(args.folders)
        rows = [measure(*one[:3], judges) for one in track(who, "scoring", console=console)]
    except CssnasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    accuracies = np.array([one[3] for one in who])
    table = Table(title=f"{len(who)} networks, accuracy {accuracies.min():.1f} to {accuracies.max():.1f} %")
    for column in ("number", "Spearman", "95 %"):
        table.add_column(column, justify="left" if column == "number" else "right")
    lines = []
    for name in rows[0]:
        scores = np.array([row[name] for row in rows])
        low, high = bootstrap(scores, accuracies, 0.0, args.resamples)["spearman"]
        lines.append((correlate(scores, accuracies, 0.0).spearman, name, f"[{low:.2f}, {high:.2f}]"))
    for value, name, interval in sorted(lines, reverse=True):
        table.add_row(name, f"{value:.2f}", interval)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
