#!/usr/bin/env python3
"""Which tuner finds good architectures with few evaluations?

    python experiments/benchmarks/search.py --table nasbench201.csv.gz --seeds 50 --evaluations 150

searches NAS-Bench-201 with every tuner and many seeds, looking a candidate's score up in the table instead of training it,
and prints the true accuracy of the best candidate found, with 95 % intervals over the seeds. ``--score FILE`` takes the score
from a ``scores.csv`` of ``rank_correlation.py`` instead of the true accuracy: then what is chosen without labels is judged
by its true accuracy. Candidates that the table (or the file) does not hold are refused to every tuner alike, and cost nothing.

``--prior FILE`` adds the tuner ``screened``: ours, which of 32 proposals has the one judged whose untrained score in such a
file is best. Then only the architectures of that file are searched.

    python experiments/benchmarks/search.py --table nasbench201.csv.gz --front

searches for the front between accuracy and number of parameters, and prints the hypervolume of what was found as a share of
that of the table's front. It is measured from a tenth of the front's range beyond its worst accuracy and its most parameters.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from numpy.typing import NDArray
from peers import OptunaTuner
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tables import default_table, nasbench201, open_csv, read_table

from nni_cssnas.base.selection import marginal_volumes, non_dominated
from nni_cssnas.errors import ConfigError, CssnasError
from nni_cssnas.judge.screening import Screened
from nni_cssnas.measures import DEFAULT_WEIGHTS
from nni_cssnas.scores.combine import DEAD, combine
from nni_cssnas.tuners.tpe import Tpe

EDGES = tuple((source, target) for target in (1, 2, 3) for source in range(target))
OPERATIONS = tuple(nasbench201.OPERATIONS)
SPACE = {f"{source}_{target}": {"_type": "choice", "_value": list(OPERATIONS)} for source, target in EDGES}

OBJECTIVES = {"default": "maximize", "params": "minimize"}
"""Of ``--front``."""

Metric = float | dict[str, float]
"""What a trial reports: its score, or with ``--front`` all of :data:`OBJECTIVES`."""

Ask = Callable[[str], Metric | None]
"""The metric of an architecture; None: refused."""

Search = Callable[[Ask, int, int], None]
"""Asks for architectures until it was given so many metrics; the last argument is the seed."""


def arch_of(parameters: Mapping[str, str]) -> str:
    """The table's string of one choice for each edge."""
    nodes = []
    for target in (1, 2, 3):
        nodes.append("|" + "|".join(f"{parameters[f'{source}_{target}']}~{source}" for source in range(target)) + "|")
    return "+".join(nodes)


def draw(rng: np.random.Generator) -> dict[str, str]:
    return {name: OPERATIONS[rng.integers(len(OPERATIONS))] for name in SPACE}


def with_tuner(make: Callable[[int], Any]) -> Search:
    """A search by an NNI tuner, one trial after the other."""

    def search(ask: Ask, evaluations: int, seed: int) -> None:
        tuner = make(seed)
        tuner.update_search_space(SPACE)
        number = done = 0
        while done < evaluations:
            parameters = tuner.generate_parameters(number)
            score = ask(arch_of(parameters))
            if score is not None:
                tuner.receive_trial_result(number, parameters, score)
                done += 1
            tuner.trial_end(number, score is not None)
            number += 1

    return search


def random_search(ask: Ask, evaluations: int, seed: int) -> None:
    """Uniform, without repetition."""
    rng = np.random.default_rng(seed)
    seen: set[str] = set()
    done = 0
    while done < evaluations:
        arch = arch_of(draw(rng))
        if arch not in seen:
            seen.add(arch)
            done += ask(arch) is not None


def evolution(ask: Ask, evaluations: int, seed: int) -> None:
    """Regularised evolution (Real et al., arXiv:1802.01548) with the population and sample of NAS-Bench-201, 10 and 10/3."""
    rng = np.random.default_rng(seed)
    population: deque[tuple[Any, dict[str, str]]] = deque(maxlen=10)
    done = 0
    while done < evaluations:
        if len(population) < 10:
            child = draw(rng)
        else:
            some = [population[index] for index in rng.choice(10, 3, replace=False)]
            child = dict(max(some, key=lambda item: item[0])[1])
            edge = list(SPACE)[rng.integers(len(SPACE))]
            others = [name for name in OPERATIONS if name != child[edge]]
            child[edge] = others[rng.integers(len(others))]
        score = ask(arch_of(child))
        if score is not None:
            population.append((score, child))
            done += 1


def hyperopt_search(ask: Ask, evaluations: int, seed: int) -> None:
    """hyperopt's TPE with the paper's defaults; a refused candidate is a failed one."""
    from hyperopt import STATUS_FAIL, STATUS_OK, Trials, fmin, hp, tpe

    done = 0

    def objective(parameters: Mapping[str, str]) -> dict[str, Any]:
        nonlocal done
        score = ask(arch_of(parameters))
        done += score is not None
        return {"status": STATUS_OK, "loss": -score} if isinstance(score, float) else {"status": STATUS_FAIL}

    fmin(
        objective,
        {name: hp.choice(name, list(OPERATIONS)) for name in SPACE},
        tpe.suggest,
        max_evals=20 * evaluations,
        rstate=np.random.default_rng(seed),
        show_progressbar=False,
        trials=Trials(),
        early_stop_fn=lambda trials, *args: (done >= evaluations, args),
    )


SEARCHES: dict[str, Search] = {
    "ours": with_tuner(lambda seed: Tpe(seed=seed)),
    "nni-tpe": with_tuner(lambda seed: TpeTuner("maximize", seed=seed)),
    "hyperopt": hyperopt_search,
    "optuna": with_tuner(OptunaTuner),
    "random": random_search,
    "evolution": evolution,
}


FRONT_SEARCHES: dict[str, Search] = {
    "ours": with_tuner(lambda seed: Tpe(seed=seed, objectives=OBJECTIVES)),
    "optuna": with_tuner(lambda seed: OptunaTuner(seed, objectives=OBJECTIVES)),
    "nsga2": with_tuner(lambda seed: OptunaTuner(seed, "NSGAIISampler", OBJECTIVES)),
    "random": random_search,
}
"""Of ``--front``: ``optuna`` is Optuna's multi-objective TPE, ``nsga2`` its NSGA-II."""


class Known:
    """In the place of a screener: untrained scores that were computed before."""

    def __init__(self, scores: Mapping[str, float]) -> None:
        self.scores = scores

    def screen(self, parameters: Mapping[str, str]) -> Screened:
        return Screened(dict(parameters), self.scores.get(arch_of(parameters), DEAD), {})


def screened(scores: Mapping[str, float], folder: Path) -> Search:
    """Our TPE with ``screen: {candidates: 32}``, on scores that are known."""
    (folder / "proxy.yml").write_text("images: {source: random}\n", encoding="utf-8")

    def make(seed: int) -> Tpe:
        tuner = Tpe(seed=seed, screen={"candidates": 32, "proxy": str(folder / "proxy.yml")})
        tuner._screener = Known(scores)
        return tuner

    return with_tuner(make)


class Oracle:
    """Answers a search from the table, and remembers after each evaluation how good its best candidate truly is."""

    def __init__(self, scores: Mapping[str, float], truth: Mapping[str, float]) -> None:
        self.scores = scores
        self.truth = truth
        self.curve: list[float] = []
        self._best = -np.inf

    def ask(self, arch: str) -> float | None:
        if arch not in self.scores:
            return None
        if self.scores[arch] > self._best:
            self._best = self.scores[arch]
            self._chosen = self.truth[arch]
        self.curve.append(self._chosen)
        return self.scores[arch]


class FrontOracle:
    """Answers a search from the table, and remembers after each evaluation what share of the hypervolume was found."""

    def __init__(self, truth: Mapping[str, float], params: Mapping[str, float]) -> None:
        self.values = {arch: (truth[arch], -params[arch]) for arch in truth}
        table = np.array(list(self.values.values()))
        front = table[non_dominated(table)]
        self._reference = front.min(axis=0) - 0.1 * (front.max(axis=0) - front.min(axis=0))
        self._whole = marginal_volumes(front, self._reference).sum()
        self._found: list[tuple[float, float]] = []

    def ask(self, arch: str) -> dict[str, float] | None:
        if arch not in self.values:
            return None
        self._found.append(self.values[arch])
        accuracy, minus_params = self.values[arch]
        return {"default": accuracy, "params": -minus_params}

    @property
    def curve(self) -> list[float]:
        volumes = marginal_volumes(np.array(self._found), self._reference)
        return list(100 * volumes.cumsum() / self._whole)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def label_free(path: Path) -> dict[str, float]:
    """The default untrained score of every row of a ``scores.csv``, from its measures."""
    try:
        with open_csv(path) as file:
            rows = list(csv.DictReader(file))
        parts = [{name: float(row[name]) for name in DEFAULT_WEIGHTS} for row in rows]
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path} is no scores.csv of rank_correlation.py with --scores untrained ({error!r}); write it anew"
        ) from None
    return {row["arch"]: combine(part, DEFAULT_WEIGHTS) for row, part in zip(rows, parts, strict=True)}


def plot(curves: Mapping[str, NDArray[np.float64]], path: Path, label: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, values in curves.items():
        x = np.arange(1, values.shape[1] + 1)
        mean, error = values.mean(0), 1.96 * values.std(0) / np.sqrt(len(values))
        axes.plot(x, mean, label=name)
        axes.fill_between(x, mean - error, mean + error, alpha=0.2, linewidth=0)
    axes.set_xlabel("evaluations")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=float(min(values.mean(0)[min(9, values.shape[1] - 1)] for values in curves.values())))
    axes.legend()
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="CSV with the columns arch and cifar10_test, plain or .gz")
    parser.add_argument("--score", type=Path, help="scores.csv of rank_correlation.py (default: the true accuracy)")
    parser.add_argument("--front", action="store_true", help="accuracy against params, by hypervolume")
    parser.add_argument("--prior", type=Path, help="scores.csv of rank_correlation.py, by which proposals are screened")
    parser.add_argument("--tuners", nargs="+", choices=[*SEARCHES, "nsga2", "screened"], help="default: all that can")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    args = parser.parse_args(arguments)
    console = Console()
    searches = dict(FRONT_SEARCHES if args.front else SEARCHES)
    if args.prior and (args.front or args.score):
        parser.error("--prior screens a search by the true accuracy; leave out --front and --score")
    if args.prior:
        searches["screened"] = random_search  # until its scores are read
    elif "screened" in (args.tuners or ()):
        parser.error("--tuners screened needs --prior")
    for name in args.tuners or ():
        if name not in searches:
            parser.error(f"--tuners {name} {'does not search' if args.front else 'searches only'} with --front")
    if args.front and args.score:
        parser.error("--front searches by the true accuracy; leave out --score")
    try:
        path = args.table or default_table("nasbench201")
        table = read_table(path, nasbench201.to_sample)
        truth = {entry.arch: entry.accuracy for entry in table}
        scores = truth if args.score is None else label_free(args.score)
        if args.prior:
            args.out.mkdir(parents=True, exist_ok=True)
            prior = label_free(args.prior)
            searches["screened"] = screened(prior, args.out.resolve())
            scores = {arch: truth[arch] for arch in prior if arch in truth}
        scores = {arch: score for arch, score in scores.items() if arch in truth}
        if len(scores) < args.evaluations:
            raise ConfigError(f"evaluations is {args.evaluations}, but only {len(scores)} architectures have a score")
        params = {}
        if args.front:
            params = {entry.arch: entry.accuracy for entry in read_table(path, nasbench201.to_sample, "params")}
        curves: dict[str, NDArray[np.float64]] = {}
        for name in args.tuners or searches:
            found = []
            seeds = range(args.first_seed, args.first_seed + args.seeds)
            for seed in track(seeds, description=name, console=console, transient=True):
                oracle = FrontOracle(truth, params) if args.front else Oracle(scores, truth)
                searches[name](oracle.ask, args.evaluations, seed)
                found.append(oracle.curve[: args.evaluations])
            curves[name] = np.array(found)
    except CssnasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    steps = [number for number in (25, 50, 100, args.evaluations) if number <= args.evaluations]
    if args.front:
        what, label = "share of the table's hypervolume, accuracy against params", "share of the hypervolume (%)"
    else:
        by = "accuracy" if args.score is None else "the label-free score"
        what, label = f"true accuracy of the best by {by}", "true accuracy of the best found (%)"
    best = "" if args.front else f", best {max(truth[arch] for arch in scores):.2f}"
    report = Table(
        title=f"{what}, seeds {args.first_seed} to {args.first_seed + args.seeds - 1}, {len(scores)} architectures{best}"
    )
    report.add_column("tuner")
    for number in dict.fromkeys(steps):
        report.add_column(f"{number} evaluations", justify="right")
    lines = {}
    rows: list[list[Any]] = []
    for name, values in curves.items():
        for seed, curve in enumerate(values, args.first_seed):
            rows.append([name, seed, *(f"{curve[number - 1]:.4f}" for number in dict.fromkeys(steps))])
        cells = []
        for number in dict.fromkeys(steps):
            at = values[:, number - 1]
            low, high = interval(at)
            cells.append(f"{at.mean():.3f} [{low:.3f}, {high:.3f}]")
            lines[f"{name}-{number}"] = [float(at.mean()), low, high]
        report.add_row(name, *cells)
    console.print(report)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "search.json").write_text(json.dumps(lines, indent=1))
    with (args.out / "search.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["tuner", "seed", *dict.fromkeys(steps)], *rows])
    plot(curves, args.out / "search.png", label)
    console.print(f"search.csv (a row for each seed), search.json and search.png are in {args.out}")
    return 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())
