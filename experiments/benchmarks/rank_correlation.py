#!/usr/bin/env python3
"""How well do label-free scores rank architectures whose accuracy is known?

    python experiments/benchmarks/rank_correlation.py --benchmark nasbench201 \\
        --table nasbench201.csv.gz --images cifar10.npz --sample 600 --seed 2 --exclude 1:600

draws architectures from a table, scores each untrained network on contrastive views, and prints for every score Spearman and
Kendall, Spearman among the best architectures and at equal parameters, the mean accuracy of the top 10 % that it chooses, how
much worse than the best its first choice is, bootstrap intervals, and seconds per architecture. ``--out`` collects
``scores.csv`` (a row for each architecture; a run that was stopped goes on where it stopped), ``summary.csv`` and
``scatter.png``.

    python experiments/benchmarks/rank_correlation.py --all FOLDER --images cifar10.npz

does that with every table of a folder, whatever its name, and writes ``summary.md``, one row for each table and accuracy.
``experiments/benchmarks/tables`` has the spaces.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from correlation import Correlation, bootstrap, correlate, rank_sum
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tables import (
    BENCHMARKS,
    Entry,
    adapter,
    costs,
    default_table,
    draw,
    read_table,
    recognise,
    truths_of,
)

from nni_cssnas.base.files import replacing, write_atomically
from nni_cssnas.base.paths import make_importable
from nni_cssnas.errors import ConfigError, CssnasError, ExperimentError, SpaceError, nearest
from nni_cssnas.measures import DEFAULT_WEIGHTS, MEASURES, find_measure
from nni_cssnas.scores.combine import combine

COSTS = ("params", "macs")
COMPONENTS = tuple(name for name in MEASURES if name not in COSTS)  # the costs are those of the table's network
CRITERIA = ("loss", "drop", "held_out", "alignment", "uniformity")
"""What a short contrastive training shows; measured only where it is asked for."""
COMBINED = "untrained"
PATH = "params+path"
"""Of cells: the ranks of the parameters and of the longest way through the network, in convolutions."""
SAMPLE = 300


# ---- scoring ------------------------------------------------------------------------------------------


def components_of(scores: Sequence[str]) -> tuple[str, ...]:
    """The components that must be measured for ``scores``; of nothing, all."""
    if not scores:
        return COMPONENTS
    needed = set(scores) | (set(DEFAULT_WEIGHTS) if COMBINED in scores else set())
    return (*(name for name in COMPONENTS if name in needed), *(name for name in dict.fromkeys(scores) if ":" in name))


def check_scores(scores: Sequence[str]) -> None:
    """Refuse what cannot be measured.

    Raises
    ------
    ConfigError
        With the nearest name, or why a measure of the user's own cannot be imported.
    """
    known = (COMBINED, *COMPONENTS, *CRITERIA, *COSTS, PATH)
    for name in scores:
        if ":" in name:
            find_measure(name)
        elif name not in known:
            raise ConfigError(f"unknown score {name!r}{nearest(name, known)}, or module:function of your own")


class Scorer:
    """Builds and scores one architecture after the other; all share the weights' seed and the views.

    ``size`` and ``batch`` are those of the views, ``names`` the components to measure, ``arguments`` those of the network.
    """

    def __init__(self, args: argparse.Namespace, benchmark: str) -> None:
        import torch

        from nni_cssnas.config import ImagesConfig, ProxyConfig, ViewsConfig
        from nni_cssnas.images import load_images, make_views
        from nni_cssnas.scores.contrastive import check_images

        self.benchmark = adapter(benchmark)
        self.name = benchmark
        self.arguments = network_arguments(args, benchmark)
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
        network = self.benchmark.build(arch, **self.arguments)
        structure = inspect(network, self.size)
        stages = [stage.name for stage in structure.stages]
        result = measure(
            network, self.views, self.seed, stages=stages, classifier=structure.classifier, components=self.names
        )
        result["seconds"] = time.perf_counter() - start
        return result

    def row(self, arch: str) -> dict[str, Any]:
        """Everything that ``scores.csv`` holds of an architecture."""
        row: dict[str, Any] = {"arch": arch, "seconds": 0.0, **costs(self.name, arch)}
        try:
            parts = [self.components(arch)] if self.names else []
            parts += [self.trained(arch)] if self.criteria else []
        except SpaceError as error:
            raise SpaceError(f"{arch:.100} cannot be scored: {error}") from None
        for part in parts:
            row |= part | {"seconds": row["seconds"] + part["seconds"]}
        return row

    def trained(self, arch: str) -> dict[str, Any]:
        """The criteria after a short contrastive training, each to be maximised, every epoch's loss, and ``seconds``."""
        import torch

        from nni_cssnas.scores.contrastive import train_contrastive
        from nni_cssnas.spaces.backbone import Backbone

        start = time.perf_counter()
        torch.manual_seed(self.seed)
        found = train_contrastive(
            Backbone(self.benchmark.build(arch, **self.benchmark.TRAINED_NETWORK | self.arguments), self.size),
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


def network_arguments(args: argparse.Namespace, benchmark: str) -> dict[str, int]:
    """What ``--depth`` and ``--width`` change in the network that is scored."""
    named = {"num_cells": args.depth, "channels": args.width}
    return {name: value for name, value in named.items() if value is not None and benchmark == "darts"}


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
                reader = csv.DictReader(file)
                if set(reader.fieldnames or self.fields) != set(self.fields):
                    raise ExperimentError(
                        f"{folder} holds other scores: {', '.join(reader.fieldnames or [])}; give another --out"
                    )
                for row in reader:
                    # The last row of a run that was killed may be cut.
                    if set(row) == set(self.fields) and all(row.values()):
                        self.rows[row["arch"]] = row
        write_atomically(note, text)
        text_of_rows = io.StringIO()
        writer = csv.DictWriter(text_of_rows, self.fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows.values())
        write_atomically(self.path, text_of_rows.getvalue())

    def add(self, row: Mapping[str, Any]) -> None:
        values = {name: str(row[name]) for name in self.fields}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.fields, lineterminator="\n").writerow(values)
        self.rows[values["arch"]] = values


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)


# ---- the command --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A table to score: its benchmark, the columns to predict, and the folder of its results."""

    benchmark: str
    table: Path
    truths: tuple[str, ...]
    out: Path


@dataclass(frozen=True)
class Drawn:
    """The architectures that were drawn from a table, and by each column their accuracies."""

    entries: Sequence[Entry]
    accuracies: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Line:
    """How one score predicts one column of a table."""

    truth: str
    score: str
    found: Correlation
    intervals: Mapping[str, tuple[float, float]]
    architectures: int
    ceiling: float | None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", choices=BENCHMARKS, help="space of the table (default: that of its first row)")
    parser.add_argument(
        "--table",
        type=Path,
        help="CSV with the column arch and those of accuracies, plain or .gz (default: that in $CSSNAS_DATA)",
    )
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="every table of a folder, known by its first row")
    parser.add_argument(
        "--truth",
        "--accuracy",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="accuracy to predict (default: what the benchmark's tables have, as cifar10_test)",
    )
    parser.add_argument(
        "--images", default="tiles", help="tiles, cifar10, a folder of images, or an .npz (default: tiles)"
    )
    parser.add_argument(
        "--sample", type=int, help=f"architectures to draw (default: {SAMPLE}, or all of a smaller table)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    parser.add_argument(
        "--exclude",
        type=_pair,
        action="append",
        default=[],
        metavar="SEED:N",
        help="leave out what --seed SEED --sample N draws; may be repeated",
    )
    parser.add_argument(
        "--scores",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what to print, also module:function of your own (default: everything)",
    )
    parser.add_argument(
        "--contrastive",
        nargs="+",
        type=_setting,
        default=[],
        metavar="KEY=VALUE",
        help=f"training for the scores {', '.join(CRITERIA)}: proxy.yml's section contrastive, over the preset cpu",
    )
    parser.add_argument("--train-images", type=int, default=576, help="images of this training (default: 576)")
    parser.add_argument(
        "--depth",
        type=int,
        metavar="N",
        help="darts: cells of the network that is scored (default: 20; 8 where both cells are equal)",
    )
    parser.add_argument("--width", type=int, metavar="N", help="darts: its channels (default: 6)")
    parser.add_argument("--size", type=int, default=16, help="edge of the views in pixels (default: 16)")
    parser.add_argument("--batch", type=int, default=32, help="images (default: 32)")
    parser.add_argument("--score-seed", type=int, default=0, help="seed of weights and views (default: 0)")
    parser.add_argument(
        "--threshold", type=float, help="accuracy of the upper part (default: 90 in NAS-Bench, else the median)"
    )
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: runs/rank_correlation/TABLE-SAMPLE-SEED)"
    )
    return parser.parse_args(arguments)


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


def run(args: argparse.Namespace, console: Console) -> int:
    """Draw, score, report; the number of tables that could not be used.

    Raises
    ------
    CssnasError
        If the table, the images or the results of an earlier run cannot be used.
    """
    import torch

    torch.set_num_threads(args.threads)
    check_arguments(args)
    if args.all is not None:
        return run_all(args, console)
    job = the_job(args)
    report(args, job, *score(args, job, console), console)
    return 0


def run_all(args: argparse.Namespace, console: Console) -> int:
    """Every table of a folder; the number of those that could not be used. Raises CssnasError as :func:`run`."""
    out = args.out or _default_out("all")
    found: dict[str, list[Line]] = {}
    problems = 0
    for path in tables_in(args.all):
        try:
            benchmark = recognise(path)
            if benchmark is None:
                print(f"passed over: the first row of {path} is of none of {', '.join(BENCHMARKS)}", file=sys.stderr)
                continue
            job = Job(benchmark, path, tuple(truths_of(path, benchmark)), out / _stem(path))
            found[_stem(path)] = report(args, job, *score(args, job, console), console)
        except ConfigError as error:
            problems += 1
            print(f"error: {error}", file=sys.stderr)
    if not found:
        raise ConfigError(f"{args.all} holds no table that can be used; experiments/benchmarks/tables has the spaces")
    write_atomically(out / "summary.md", markdown(found))
    console.print(f"all tables: {out / 'summary.md'}")
    return problems


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before a table is read. Raises ConfigError."""
    if args.all is not None and (args.table is not None or args.benchmark is not None or args.truth):
        raise ConfigError("--all takes every table of its folder; leave out --table, --benchmark and --truth")
    if args.depth is not None and args.depth < 3:
        raise ConfigError(f"--depth is {args.depth}; a network has at least 3 cells")
    if args.width is not None and (args.width < 2 or args.width % 2):
        raise ConfigError(f"--width is {args.width}; it must be even, at least 2")
    check_scores(args.scores)


def the_job(args: argparse.Namespace) -> Job:
    """The table that ``--benchmark``, ``--table`` and ``--truth`` name.

    Raises
    ------
    ConfigError
        If the table is of another benchmark, or an argument is not for this one.
    """
    table = args.table or default_table(args.benchmark or "nasbench201")
    found = recognise(table)
    benchmark = args.benchmark or found or "nasbench201"
    if found not in (None, benchmark):
        raise ConfigError(f"{table} is a table of {found}, and --benchmark is {benchmark}; use --benchmark {found}")
    for name, value in (("--depth", args.depth), ("--width", args.width)):
        if value is not None and benchmark != "darts":
            raise ConfigError(f"{name} is for darts; {benchmark} has one size, or names it in each row")
    if PATH in args.scores and not hasattr(adapter(benchmark), "path"):
        raise ConfigError(f"score {PATH!r} is for cells, and {benchmark} has none")
    truths = tuple(dict.fromkeys(args.truth or truths_of(table, benchmark)))
    depth = f"-{args.depth}cells" if args.depth else ""
    name = f"{_stem(table) if args.table else benchmark}-{args.sample or SAMPLE}-{args.seed}{depth}"
    return Job(benchmark, table, truths, args.out or _default_out(name))


def tables_in(folder: Path) -> list[Path]:
    """The CSV files of a folder. Raises ConfigError if it is none."""
    if not folder.is_dir():
        raise ConfigError(f"--all is {str(folder)!r}, which is no folder")
    return sorted(path for path in folder.iterdir() if path.name.endswith((".csv", ".csv.gz")))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".csv")


def _default_out(name: str) -> Path:
    return Path("runs/rank_correlation") / name


def drawn_from(args: argparse.Namespace, job: Job) -> Drawn:
    """The architectures to score. Raises ConfigError as ``read_table`` and ``draw`` do."""
    module = adapter(job.benchmark)
    entries: list[Entry] = []
    accuracies = {}
    for truth in job.truths:
        table = read_table(job.table, module.to_sample, truth, getattr(module, "row_arch", None))
        sample = args.sample
        if sample is None or args.all is not None:
            # A table that is smaller than the number gives all that is not excluded.
            sample = min(sample or SAMPLE, len(table) - _excluded(args, len(table)))
        entries = draw(table, sample, args.seed, args.exclude)
        accuracies[truth] = np.array([entry.accuracy for entry in entries])
    return Drawn(entries, accuracies)


def _excluded(args: argparse.Namespace, rows: int) -> int:
    return len({index for seed, size in args.exclude for index in np.random.default_rng(seed).permutation(rows)[:size]})


def score(args: argparse.Namespace, job: Job, console: Console) -> tuple[Drawn, Mapping[str, Mapping[str, str]]]:
    """What was drawn, and the row of ``scores.csv`` of each. Raises CssnasError as :func:`run`."""
    drawn = drawn_from(args, job)
    scorer = Scorer(args, job.benchmark)
    settings = {
        "benchmark": job.benchmark,
        "images": str(args.images),
        "size": args.size,
        "batch": args.batch,
        "score_seed": args.score_seed,
        **scorer.arguments,
    }
    if scorer.criteria:
        settings |= {"contrastive": scorer.training.model_dump(mode="json"), "train_images": args.train_images}
    trained = (*scorer.criteria, "losses") if scorer.criteria else ()
    rows = Rows(job.out, ("arch", *scorer.names, *trained, *COSTS, "seconds"), settings)
    wanted = list(dict.fromkeys(entry.arch for entry in drawn.entries))
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task(f"scoring {_stem(job.table)}", total=len(wanted))
        for arch in wanted:
            if arch not in rows.rows:
                rows.add(scorer.row(arch))
            bar.advance(task)
    return drawn, rows.rows


def columns_of(
    args: argparse.Namespace,
    job: Job,
    entries: Sequence[Entry],
    rows: Mapping[str, Mapping[str, str]],
) -> dict[str, NDArray[np.float64]]:
    """By score, one number for each architecture, in the order in which they are printed."""
    module = adapter(job.benchmark)

    def column(name: str) -> NDArray[np.float64]:
        return np.array([float(rows[entry.arch][name]) for entry in entries])

    columns = {}
    for name in args.scores or [COMBINED, *COMPONENTS, *COSTS, PATH]:
        if name == PATH and not hasattr(module, "path"):
            continue
        if name == COMBINED:
            parts = [{part: float(rows[entry.arch][part]) for part in DEFAULT_WEIGHTS} for entry in entries]
            columns[name] = np.array([combine(one, DEFAULT_WEIGHTS) for one in parts])
        elif name == PATH:
            columns[name] = rank_sum(column("params"), np.array([float(module.path(entry.arch)) for entry in entries]))
        else:
            columns[name] = column(name)
    return columns


# ---- what is found ------------------------------------------------------------------------------------


def report(
    args: argparse.Namespace,
    job: Job,
    drawn: Drawn,
    rows: Mapping[str, Mapping[str, str]],
    console: Console,
) -> list[Line]:
    """Print a table for each column; write ``summary.csv`` and ``scatter.png`` beside ``scores.csv``."""
    columns = columns_of(args, job, drawn.entries, rows)
    params = np.array([float(rows[entry.arch]["params"]) for entry in drawn.entries])
    seconds = statistics.mean(float(rows[entry.arch]["seconds"]) for entry in drawn.entries)
    lines = []
    for number, (truth, accuracies) in enumerate(drawn.accuracies.items()):
        threshold = _threshold(args, job, accuracies)
        ceiling = adapter(job.benchmark).CEILINGS.get(truth)
        some = []
        for name, scores in columns.items():
            found = correlate(scores, accuracies, threshold, params)
            intervals = (
                bootstrap(scores, accuracies, threshold, args.resamples, params=params) if args.resamples else {}
            )
            some.append(Line(truth, name, found, intervals, len(drawn.entries), ceiling))
        above = int((accuracies >= threshold).sum())
        title = (
            f"{job.benchmark}: {len(drawn.entries)} architectures (seed {args.seed}), {truth}, {above} above "
            f"{threshold:.4g}, {seconds:.2f} s each for all of these scores"
            + (f"; noise ceiling {ceiling:g}" if ceiling else "")
        )
        console.print(table_of(some, title, threshold))
        scatter(columns, accuracies, threshold, job.out / (f"scatter-{truth}.png" if number else "scatter.png"))
        lines += some
    write_summary(job.out / "summary.csv", lines, seconds)
    console.print(f"scores.csv, summary.csv and scatter.png are in {job.out}")
    return lines


def _threshold(args: argparse.Namespace, job: Job, accuracies: NDArray[np.float64]) -> float:
    if args.threshold is not None:
        return float(args.threshold)
    return 90.0 if job.benchmark.startswith("nasbench") else float(np.median(accuracies))


def table_of(lines: Sequence[Line], title: str, threshold: float) -> Table:
    """One row for each score."""
    heads = {
        "spearman": "Spearman",
        "kendall": "Kendall",
        "top": f"Spearman > {threshold:.4g}",
        "at_equal_params": "at equal params",
        "chosen": "top 10 % chosen",
        "regret": "regret",
    }
    table = Table(title=title)
    table.add_column("score", no_wrap=True)
    for head in heads.values():
        table.add_column(head, justify="right", no_wrap=True)
    small = all(abs(line.found.chosen) < 2 for line in lines)  # a loss, or a similarity
    for line in lines:
        cells = []
        for field in heads:
            digits = 3 if small or field not in ("chosen", "regret") else 2
            text = f"{getattr(line.found, field):.{digits}f}"
            if line.intervals and field != "regret":
                low, high = line.intervals[field]
                text += f" [{low:.{digits}f}, {high:.{digits}f}]"
            cells.append(text)
        table.add_row(line.score, *cells)
    return table


def write_summary(path: Path, lines: Sequence[Line], seconds: float) -> None:
    """One row for each column of accuracies and score."""
    rows = []
    for line in lines:
        row = {"score": line.score}
        for fields in (("spearman", "kendall", "top", "chosen"), ("at_equal_params", "regret")):
            for field in fields:
                low, high = line.intervals.get(field, (math.nan, math.nan))
                value = getattr(line.found, field)
                row |= {field: f"{value:.4f}", f"{field}_low": f"{low:.4f}", f"{field}_high": f"{high:.4f}"}
            row |= {"architectures": str(line.architectures), "seconds": f"{seconds:.4f}"}
        ceiling = "" if line.ceiling is None else f"{line.ceiling:g}"
        rows.append(row | {"truth": line.truth, "noise_ceiling": ceiling})
    text = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    write_atomically(path, "\n".join(text) + "\n")


def markdown(found: Mapping[str, Sequence[Line]]) -> str:
    """One row for each table and column, one column for each score."""
    scores = list(dict.fromkeys(line.score for lines in found.values() for line in lines))
    heads = ["table", "accuracy", "architectures", "noise ceiling", *scores]
    text = [
        "Spearman [95 % interval]; partial rank correlation at equal parameters.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
    ]
    for name, lines in found.items():
        for truth in dict.fromkeys(line.truth for line in lines):
            by_score = {line.score: line for line in lines if line.truth == truth}
            first = next(iter(by_score.values()))
            ceiling = "" if first.ceiling is None else f"{first.ceiling:g}"
            cells = [_cell(by_score[score]) if score in by_score else "" for score in scores]
            text.append(f"| {' | '.join([name, truth, str(first.architectures), ceiling, *cells])} |")
    return "\n".join(text) + "\n"


def _cell(line: Line) -> str:
    text = f"{line.found.spearman:.3f}"
    if line.intervals:
        low, high = line.intervals["spearman"]
        text += f" [{low:.2f}, {high:.2f}]"
    return f"{text}; {line.found.at_equal_params:.3f}"


def scatter(
    columns: Mapping[str, NDArray[np.float64]], accuracies: NDArray[np.float64], threshold: float, path: Path
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
        axes.set_title(f"{name}: {correlate(scores, accuracies, threshold).spearman:.3f}", fontsize=9)
        axes.tick_params(labelsize=7)
    figure.supxlabel("rank of the score", fontsize=9)
    figure.supylabel("accuracy (%)", fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def main(arguments: Sequence[str] | None = None) -> int:
    console = Console()
    if not console.is_terminal:
        console.width = 170
    args = parse(arguments)
    make_importable(Path.cwd(), first=False)  # where a measure of the user's own lies
    try:
        return 2 if run(args, console) else 0
    except CssnasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
