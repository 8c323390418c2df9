#!/usr/bin/env python3
"""How well do label-free scores rank architectures whose accuracy is known?

    python experiments/benchmarks/rank_correlation.py --benchmark nasbench201 \\
        --table nasbench201.csv.gz --images cifar10.npz --sample 600 --seed 2 --exclude 1:600

draws architectures from a table, scores each untrained network on contrastive views, and prints for
every score Spearman and Kendall, Spearman among the best architectures, the mean accuracy of the top
10 % that it chooses, bootstrap intervals, and seconds per architecture. ``--out`` collects
``scores.csv`` (a row for each architecture; a run that was stopped goes on where it stopped),
``summary.csv`` and ``scatter.png``.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from scipy.stats import kendalltau, spearmanr
from tables import ACCURACY, Entry, default_table, draw, read_table

from nni_cssnas.base.files import replacing, write_atomically
from nni_cssnas.errors import ConfigError, CssnasError, ExperimentError, nearest
from nni_cssnas.measures import DEFAULT_WEIGHTS, MEASURES
from nni_cssnas.scores.combine import ReferenceSet

BENCHMARKS = ("nasbench201", "nasbench_macro")
COMPONENTS = tuple(MEASURES)
COSTS = ("params", "macs")
CRITERIA = ("loss", "drop", "held_out", "alignment", "uniformity")
"""What a short contrastive training shows; measured only where it is asked for."""
COMBINED = "untrained"
TABLE_NETWORK: dict[str, dict[str, Any]] = {
    # The table's network has 5 equal cells in each stage; one ranks alike in both costs, and is built 7 times faster.
    "nasbench201": {},
    "nasbench_macro": {"channels": 32},
}

TRAINED_NETWORK: dict[str, dict[str, Any]] = {
    # Narrow, for what is trained: a fourth of the multiply-adds.
    "nasbench201": {"stem_out_channels": 8},
    "nasbench_macro": {"channels": 8},
}


# ---- statistics ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correlation:
    """How a score orders architectures; ``top`` is Spearman above the threshold, NaN if fewer than 3 are."""

    spearman: float
    kendall: float
    top: float
    chosen: float


def correlate(scores: NDArray[np.float64], accuracies: NDArray[np.float64], threshold: float) -> Correlation:
    """The four numbers; ``chosen`` is the mean accuracy of the tenth of the architectures with the best scores."""
    above = accuracies >= threshold
    best = np.argsort(-scores, kind="stable")[: max(1, round(len(scores) / 10))]
    with warnings.catch_warnings():
        # A constant score has no correlation: nan.
        warnings.simplefilter("ignore")
        top = spearmanr(scores[above], accuracies[above])[0] if above.sum() > 2 else math.nan
        return Correlation(
            float(spearmanr(scores, accuracies)[0]),
            float(kendalltau(scores, accuracies)[0]),
            float(top),
            float(accuracies[best].mean()),
        )


def bootstrap(
    scores: NDArray[np.float64], accuracies: NDArray[np.float64], threshold: float, resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of each number of :class:`Correlation`, resampling architectures."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, len(scores), len(scores)) for _ in range(resamples)]
    results = [correlate(scores[index], accuracies[index], threshold) for index in drawn]
    intervals = {}
    for name in ("spearman", "kendall", "top", "chosen"):
        values = np.array([getattr(result, name) for result in results])
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (math.nan, math.nan)
        intervals[name] = (float(low), float(high))
    return intervals


# ---- scoring ------------------------------------------------------------------------------------------


def components_of(scores: Sequence[str]) -> tuple[str, ...]:
    """The components that must be measured for ``scores``; of nothing, all."""
    if not scores:
        return COMPONENTS
    needed = set(scores) | (set(DEFAULT_WEIGHTS) if COMBINED in scores else set())
    return tuple(name for name in COMPONENTS if name in needed)


class Scorer:
    """Builds and scores one architecture after the other; all share the weights' seed and the views.

    ``size`` and ``batch`` are those of the views, ``names`` the components to measure.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from nni_cssnas.config import ImagesConfig, ProxyConfig, ViewsConfig
        from nni_cssnas.images import load_images, make_views
        from nni_cssnas.scores.contrastive import check_images

        self.benchmark = importlib.import_module(args.benchmark)
        self.name: str = args.benchmark
        self.size: int = args.size
        self.seed: int = args.score_seed
        self.names: tuple[str, ...] = components_of(args.scores)
        source = args.images if args.images in ("tiles", "cifar10") else str(Path(args.images).expanduser())
        images = load_images(ImagesConfig(source=source, size=max(32, args.size)), min_images=args.batch)
        self.training = ProxyConfig(preset="cpu", contrastive=dict(args.contrastive)).contrastive
        self.criteria = tuple(name for name in CRITERIA if name in args.scores)
        generator = torch.Generator().manual_seed(self.seed)
        batch = images[torch.randperm(len(images), generator=generator)[: args.batch]]
        self.draw_views = make_views(ViewsConfig(cj_strength=0.5, gaussian_blur=0.0), args.size)
        self.views = self.draw_views(batch, generator)
        if self.criteria:
            self.train_images = images[torch.randperm(len(images), generator=generator)[: args.train_images]]
            check_images(len(self.train_images), self.training)

    def components(self, arch: str) -> dict[str, float]:
        """Every component of an architecture, and ``seconds``."""
        from nni_cssnas.scores.untrained import measure
        from nni_cssnas.spaces.backbone import inspect

        start = time.perf_counter()
        network = self.benchmark.build(arch)
        structure = inspect(network, self.size)
        stages = [stage.name for stage in structure.stages]
        result = measure(
            network, self.views, self.seed, stages=stages, classifier=structure.classifier, components=self.names
        )
        result["seconds"] = time.perf_counter() - start
        return result

    def trained(self, arch: str) -> dict[str, Any]:
        """The criteria after a short contrastive training, each to be maximised, every epoch's loss, and ``seconds``."""
        import torch

        from nni_cssnas.scores.contrastive import train_contrastive
        from nni_cssnas.spaces.backbone import Backbone

        start = time.perf_counter()
        torch.manual_seed(self.seed)
        found = train_contrastive(
            Backbone(self.benchmark.build(arch, **TRAINED_NETWORK[self.name]), self.size),
            self.train_images,
            self.training,
            views=self.draw_views,
            seed=self.seed,
            data_seed=self.seed,
        )
        result: dict[str, Any] = {name: found.score(name) for name in self.criteria}
        result["losses"] = ";".join(f"{loss:.5f}" for loss in found.epoch_losses)
        result["seconds"] = time.perf_counter() - start
        return result

    def costs(self, arch: str) -> dict[str, float]:
        """Parameters and multiply-adds at the table's width, on 32x32 images."""
        from nni_cssnas.scores.cost import multiply_adds, num_parameters

        network = self.benchmark.build(arch, **TABLE_NETWORK[self.name])
        return {"params": float(num_parameters(network)), "macs": float(multiply_adds(network, (3, 32, 32)))}


class Rows:
    """``scores.csv``: a row is written as soon as it is known, and a run goes on after the last whole one."""

    def __init__(self, folder: Path, fields: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.path = folder / "scores.csv"
        self.fields = list(fields)
        self.rows: dict[str, dict[str, str]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / "settings.json"
        text = json.dumps(settings, indent=1, sort_keys=True)
        if self.path.exists():
            before = note.read_text(encoding="utf-8") if note.exists() else "{}"
            if json.loads(before) != json.loads(text):
                raise ExperimentError(
                    f"{folder} holds scores of other settings: {_difference(json.loads(before), json.loads(text))}; "
                    "give another --out"
                )
            with self.path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    # The last row of a run that was killed may be cut.
                    if set(row) == set(self.fields) and all(row.values()):
                        self.rows[row["arch"]] = row
        write_atomically(note, text)
        lines = [",".join(self.fields)]
        lines += [
            ",".join(f'"{row[name]}"' if "," in row[name] else row[name] for name in self.fields)
            for row in self.rows.values()
        ]
        write_atomically(self.path, "\n".join(lines) + "\n")

    def add(self, row: Mapping[str, Any]) -> None:
        values = {name: str(row[name]) for name in self.fields}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.fields, lineterminator="\n").writerow(values)
        self.rows[values["arch"]] = values


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)


# ---- the command --------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="nasbench201")
    parser.add_argument(
        "--table",
        type=Path,
        help="CSV with the columns arch and cifar10_test, plain or .gz (default: that in $CSSNAS_DATA)",
    )
    parser.add_argument(
        "--accuracy", default=ACCURACY, metavar="COLUMN", help=f"accuracy to predict (default: {ACCURACY})"
    )
    parser.add_argument(
        "--images", default="tiles", help="tiles, cifar10, a folder of images, or an .npz (default: tiles)"
    )
    parser.add_argument("--sample", type=int, default=300, help="architectures to draw (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    parser.add_argument(
        "--exclude",
        type=_pair,
        action="append",
        default=[],
        metavar="SEED:N",
        help="leave out what --seed SEED --sample N draws; may be repeated",
    )
    parser.add_argument("--scores", nargs="+", default=[], metavar="NAME", help="what to print (default: everything)")
    parser.add_argument(
        "--contrastive",
        nargs="+",
        type=_setting,
        default=[],
        metavar="KEY=VALUE",
        help=f"training for the scores {', '.join(CRITERIA)}: proxy.yml's section contrastive, over the preset cpu",
    )
    parser.add_argument("--train-images", type=int, default=576, help="images of this training (default: 576)")
    parser.add_argument("--size", type=int, default=16, help="edge of the views in pixels (default: 16)")
    parser.add_argument("--batch", type=int, default=64, help="images (default: 64)")
    parser.add_argument("--score-seed", type=int, default=0, help="seed of weights, views and references (default: 0)")
    parser.add_argument(
        "--references", type=int, default=128, help="reference architectures drawn from the space (default: 128)"
    )
    parser.add_argument("--threshold", type=float, default=90.0, help="accuracy of the upper part (default: 90)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: runs/rank_correlation/BENCHMARK-SAMPLE-SEED)"
    )
    args = parser.parse_args(arguments)
    if args.out is None:
        args.out = Path("runs/rank_correlation") / f"{args.benchmark}-{args.sample}-{args.seed}"
    return args


def _pair(text: str) -> tuple[int, int]:
    seed, _, sample = text.partition(":")
    try:
        return int(seed), int(sample)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not SEED:N") from None


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, yaml.safe_load(value)


def run(args: argparse.Namespace, console: Console) -> None:
    """Draw, score, report.

    Raises
    ------
    CssnasError
        If the table, the images or the results of an earlier run cannot be used.
    """
    import torch

    torch.set_num_threads(args.threads)
    benchmark = importlib.import_module(args.benchmark)
    table = args.table or default_table(args.benchmark)
    entries = draw(read_table(table, benchmark.to_sample, args.accuracy), args.sample, args.seed, args.exclude)
    known = (COMBINED, *COMPONENTS, *CRITERIA, *COSTS)
    for name in args.scores:
        if name not in known:
            raise ConfigError(f"unknown score {name!r}{nearest(name, known)}")
    scorer = Scorer(args)
    settings = {
        "benchmark": args.benchmark,
        "images": str(args.images),
        "size": args.size,
        "batch": args.batch,
        "score_seed": args.score_seed,
    }
    if scorer.criteria:
        settings |= {"contrastive": scorer.training.model_dump(mode="json"), "train_images": args.train_images}
    trained = (*scorer.criteria, "losses") if scorer.criteria else ()
    fields = ("arch", *scorer.names, *trained, *COSTS, "seconds")
    rows = Rows(args.out, fields, settings)
    rng = np.random.default_rng(args.score_seed)
    combined = not args.scores or COMBINED in args.scores
    references = list(dict.fromkeys(benchmark.random_arch(rng) for _ in range(args.references if combined else 0)))
    todo = [arch for arch in dict.fromkeys([*references, *(entry.arch for entry in entries)]) if arch not in rows.rows]
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task(
            "scoring", total=len(entries) + len(references), completed=len(entries) + len(references) - len(todo)
        )
        for arch in todo:
            row = {"arch": arch, "seconds": 0.0, **scorer.costs(arch)}
            for part in ([scorer.components(arch)] if scorer.names else []) + (
                [scorer.trained(arch)] if scorer.criteria else []
            ):
                row |= part | {"seconds": row["seconds"] + part["seconds"]}
            rows.add(row)
            bar.advance(task)
    report(args, entries, references, rows.rows, console)


def report(
    args: argparse.Namespace,
    entries: Sequence[Entry],
    references: Sequence[str],
    rows: Mapping[str, Mapping[str, str]],
    console: Console,
) -> None:
    """Print the table; write ``summary.csv`` and ``scatter.png`` beside ``scores.csv``."""
    accuracies = np.array([entry.accuracy for entry in entries])
    names = args.scores or [COMBINED, *COMPONENTS, *COSTS]
    columns = {
        name: np.array([float(rows[entry.arch][name]) for entry in entries]) for name in names if name != COMBINED
    }
    if references:
        parts = [{name: float(rows[arch][name]) for name in DEFAULT_WEIGHTS} for arch in references]
        reference_set = ReferenceSet.from_scores(parts, weights=DEFAULT_WEIGHTS)
        values = [
            reference_set.score({name: float(rows[entry.arch][name]) for name in DEFAULT_WEIGHTS}) for entry in entries
        ]
        columns = {COMBINED: np.array(values)} | columns
    above = int((accuracies >= args.threshold).sum())
    seconds = statistics.mean(float(rows[entry.arch]["seconds"]) for entry in entries)
    table = Table(
        title=f"{args.benchmark}: {len(entries)} architectures (seed {args.seed}), {above} above {args.threshold:g} %, "
        f"{seconds:.2f} s each for all of these scores"
    )
    heads = ("Spearman", "Kendall", f"Spearman > {args.threshold:g} %", "top 10 % chosen")
    table.add_column("score", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    lines = []
    for name, scores in columns.items():
        found = correlate(scores, accuracies, args.threshold)
        intervals = bootstrap(scores, accuracies, args.threshold, args.resamples) if args.resamples else {}
        cells, line = [], {"score": name}
        for field, digits in (("spearman", 3), ("kendall", 3), ("top", 3), ("chosen", 2)):
            value = getattr(found, field)
            low, high = intervals.get(field, (math.nan, math.nan))
            cells.append(f"{value:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if intervals else ""))
            line |= {field: f"{value:.4f}", f"{field}_low": f"{low:.4f}", f"{field}_high": f"{high:.4f}"}
        table.add_row(name, *cells)
        lines.append(line | {"architectures": str(len(entries)), "seconds": f"{seconds:.4f}"})
    console.print(table)
    text = [",".join(lines[0]), *(",".join(line.values()) for line in lines)]
    write_atomically(args.out / "summary.csv", "\n".join(text) + "\n")
    scatter(columns, accuracies, args)
    console.print(f"scores.csv, summary.csv and scatter.png are in {args.out}")


def scatter(
    columns: Mapping[str, NDArray[np.float64]], accuracies: NDArray[np.float64], args: argparse.Namespace
) -> None:
    """Accuracy against the rank of every score."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from scipy.stats import rankdata

    wide = min(4, len(columns))
    high = math.ceil(len(columns) / wide)
    figure = Figure(figsize=(3.2 * wide, 2.6 * high), layout="constrained")
    FigureCanvasAgg(figure)
    floor = float(np.percentile(accuracies, 2))
    for index, (name, scores) in enumerate(columns.items(), start=1):
        axes = figure.add_subplot(high, wide, index)
        axes.scatter(rankdata(scores), accuracies.clip(min=floor), s=4, alpha=0.6, linewidths=0)
        axes.set_title(f"{name}: {correlate(scores, accuracies, args.threshold).spearman:.3f}", fontsize=9)
        axes.tick_params(labelsize=7)
    figure.supxlabel("rank of the score", fontsize=9)
    figure.supylabel("accuracy (%)", fontsize=9)
    with replacing(args.out / "scatter.png") as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def main(arguments: Sequence[str] | None = None) -> int:
    console = Console()
    if not console.is_terminal:
        console.width = 140
    try:
        run(parse(arguments), console)
    except CssnasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
