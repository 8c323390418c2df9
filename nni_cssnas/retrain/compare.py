"""Was the search worth it? What was found against random architectures and published cells, trained alike with labels.

Life cycle: :func:`contestants` draws and fits the widths before anything is trained; :func:`compare` trains each with every
seed in a folder of its own, where a run that was stopped goes on; :func:`summarise` says what came out.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import multiprocessing
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nni_cssnas.errors import ConfigError, SpaceError
from nni_cssnas.genotype import Genotype
from nni_cssnas.images.labelled import LabelledImages
from nni_cssnas.results.records import write_atomically
from nni_cssnas.retrain.config import RetrainConfig
from nni_cssnas.retrain.run import ELSEWHERE, retrain
from nni_cssnas.scores.cost import num_parameters
from nni_cssnas.spaces import CellNetwork, CellSpace, decode, make_space, random_parameters
from nni_cssnas.spaces.architecture import Architecture
from nni_cssnas.spaces.width import genotype_width
from nni_cssnas.workers import end_with_parent

__all__ = [
    "Contestant",
    "Group",
    "Run",
    "check_folder",
    "compare",
    "contestants",
    "plot",
    "summarise",
    "verdict",
    "write_results",
]

FOUND, RANDOM = "found", "random"
DRAWS = 2000
"""So many random architectures are tried for one of the right size."""


@dataclass(frozen=True)
class Contestant:
    """An architecture of a group; ``channels`` is the width with which it has ``params`` parameters."""

    name: str
    group: str
    architecture: Architecture
    channels: int
    params: int


@dataclass(frozen=True)
class Run:
    """One training: ``top1`` is the accuracy of its last epoch on the validation images."""

    name: str
    group: str
    seed: int
    params: int
    top1: float
    seconds: float


@dataclass(frozen=True)
class Group:
    """Architectures of one kind. ``mean`` is over their accuracies, each the mean over seeds; ``error`` its standard error
    (over the architectures; of a single one, over its seeds), NaN where one number is all there is."""

    name: str
    architectures: int
    mean: float
    error: float
    spread: float
    params: float


def contestants(
    found: Mapping[str, Architecture],
    config: RetrainConfig,
    num_classes: int,
    *,
    num_random: int = 6,
    baselines: Sequence[str] = ("DARTS_V2",),
    tolerance: float = 0.15,
    seed: int = 0,
    params: int | None = None,
) -> list[Contestant]:
    """Who takes part, all of one size, within ``tolerance``.

    Networks of cells get the width that comes nearest. Architectures of another space have the width that they have:
    random ones of another size are drawn again, and there are no baselines.

    Parameters
    ----------
    found
        Name to architecture, all of one space.
    config
        The recipe.
    num_classes
        Of the labels.
    num_random
        Random architectures of the same space.
    baselines
        Published genotypes (:data:`~nni_cssnas.genotype.NAMED_GENOTYPES`).
    tolerance
        Largest relative difference of the numbers of parameters.
    seed
        Of the random draw.
    params
        The size, classifier included; by default that of the first one found with the recipe's width.

    Raises
    ------
    ConfigError
        If nothing was found, or a width that fits does not exist.
    SpaceError
        If too few random architectures have the size.
    """
    if not found:
        raise ConfigError("compare needs at least one architecture that was found")
    size = _Size(config, num_classes)
    first = next(iter(found.values()))
    target = size.params(first) if params is None else params
    result = []
    for name, architecture in found.items():
        fitted = size.fit(architecture, target, tolerance)
        if fitted is None:
            raise ConfigError(
                f"{name} cannot have {target} parameters within {tolerance:.0%}; "
                "use a larger --channels, --params or --tolerance"
            )
        result.append(Contestant(name, FOUND, architecture, *fitted))
    known = {json.dumps(architecture.to_dict(), sort_keys=True) for architecture in found.values()}
    drawn = _draw(first, seed)
    for number in range(num_random):
        for architecture in itertools.islice(drawn, DRAWS):
            key = json.dumps(architecture.to_dict(), sort_keys=True)
            fitted = None if key in known else size.fit(architecture, target, tolerance)
            if fitted is not None:
                known.add(key)
                result.append(Contestant(f"random-{number + 1}", RANDOM, architecture, *fitted))
                break
        else:
            raise SpaceError(
                f"none of {DRAWS} random architectures has {target} parameters within {tolerance:.0%}; "
                "raise --tolerance or lower --random"
            )
    for name in baselines if first.genotype is not None else ():
        architecture = Architecture(Genotype.parse(name))
        fitted = size.fit(architecture, target, tolerance)
        if fitted is None:
            raise ConfigError(f"{name} cannot have {target} parameters within {tolerance:.0%}; raise --tolerance")
        result.append(Contestant(name, name, architecture, *fitted))
    return result


class _Size:
    """Parameters of a network as it is used: without auxiliary head, with the classifier."""

    def __init__(self, config: RetrainConfig, num_classes: int) -> None:
        self.config = config
        self.num_classes = num_classes

    def params(self, architecture: Architecture) -> int:
        """With the recipe's width."""
        config = self.config
        with torch.random.fork_rng():
            network = architecture.build(
                self.num_classes,
                size=config.size,
                num_cells=config.num_cells,
                channels=config.channels,
                stem=config.stem,
            )
        # A network that looks at nothing is no contestant, whatever its size.
        return 0 if isinstance(network, CellNetwork) and not network.connected else num_parameters(network)

    def fit(self, architecture: Architecture, target: int, tolerance: float) -> tuple[int, int] | None:
        """The width nearest to ``target`` parameters and their number; None if it is not near enough."""
        config = self.config
        if architecture.genotype is None:
            channels, params = config.channels, self.params(architecture)
        else:
            channels, params = genotype_width(
                architecture.genotype, target, config.num_cells, stem=config.stem, num_classes=self.num_classes
            )
        return (channels, params) if abs(params - target) <= tolerance * target else None


def _draw(like: Architecture, seed: int) -> Iterator[Architecture]:
    """Random architectures of the space that one comes from."""
    rng = np.random.default_rng(seed)
    if like.genotype is None:
        assert like.space is not None
        space = make_space(like.space)
        while True:
            yield Architecture(space=like.space, parameters=random_parameters(space, rng))
    cells = (like.genotype.normal, like.genotype.reduce)
    nodes = len(cells[0].nodes)
    if nodes not in (4, 5) or len(cells[1].nodes) != nodes:
        raise SpaceError(f"a cell of {nodes} nodes is of no CellSpace, so no random ones can be drawn; use --random 0")
    two = all(len(edges) == 2 for cell in cells for edges in cell.nodes)
    cell_space = CellSpace(
        encoding="two-input" if two else "edge",
        num_nodes=nodes,
        output_nodes="all" if len(cells[0].concat) == nodes else "last4",
        num_cells=3,
        channels=1,
    )
    while True:
        yield Architecture(cell_space.genotype_of(decode(cell_space, random_parameters(cell_space, rng))))


def check_folder(who: Sequence[Contestant], config: RetrainConfig, data: LabelledImages, out: Path) -> None:
    """Make ``out`` the folder of this comparison, or find that it is.

    Raises
    ------
    ConfigError
        If another comparison lies there.
    """
    identity = {
        "contestants": [[one.name, one.channels, one.architecture.to_dict()] for one in who],
        "recipe": config.model_dump(mode="json", exclude=ELSEWHERE),
        "data": data.key,
    }
    identity = json.loads(json.dumps(identity))
    path = out / "comparison.json"
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(identity, indent=1))
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); name another folder with --output") from None
    changed = [name for name in identity if there.get(name) != identity[name]]
    if changed:
        raise ConfigError(
            f"{out} holds another comparison ({', '.join(changed)} differ); name another folder with --output"
        )


def compare(
    who: Sequence[Contestant],
    config: RetrainConfig,
    data: LabelledImages,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1),
    workers: int = 1,
) -> Iterator[Run]:
    """Train everyone with every seed; gives each training when it is done, and those of an earlier call at once.

    Parameters
    ----------
    who, config, data
        As for :func:`~nni_cssnas.retrain.run.retrain`; the recipe's width is replaced by that of each.
    out
        A folder for each training is made there.
    seeds
        Of the trainings; the same for everyone.
    workers
        Trainings at a time, each with its share of the threads.

    Raises
    ------
    CssnasError
        As for :func:`~nni_cssnas.retrain.run.retrain`.
    """
    jobs = [(one, seed) for seed in seeds for one in who]
    threads = max(1, torch.get_num_threads() // workers)
    if workers == 1:
        for one, seed in jobs:
            yield _train(one, config, data, out, seed, None)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent) as pool:
        waiting = [pool.submit(_train, one, config, data, out, seed, threads) for one, seed in jobs]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _train(
    one: Contestant, config: RetrainConfig, data: LabelledImages, out: Path, seed: int, threads: int | None
) -> Run:
    if threads:
        torch.set_num_threads(threads)
    settings = config.model_copy(update={"channels": one.channels, "seed": seed})
    done = retrain(one.architecture, settings, data, out / f"{one.name}-seed{seed}", tensorboard=False)
    return Run(one.name, one.group, seed, one.params, done.final_top1, done.seconds)


# ---- what came out ----------------------------------------------------------------------------------


def summarise(runs: Sequence[Run]) -> list[Group]:
    """The groups in the order in which they appear: found, random, and each baseline."""
    groups = []
    for name in dict.fromkeys(run.group for run in sorted(runs, key=_order)):
        members: dict[str, list[Run]] = {}
        for run in runs:
            if run.group == name:
                members.setdefault(run.name, []).append(run)
        means = [statistics.fmean(run.top1 for run in some) for some in members.values()]
        values = means if len(means) > 1 else [run.top1 for some in members.values() for run in some]
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        groups.append(
            Group(
                name,
                len(members),
                statistics.fmean(means),
                spread / math.sqrt(len(values)),
                spread,
                statistics.fmean(some[0].params for some in members.values()),
            )
        )
    return groups


def _order(run: Run) -> tuple[int, str, int]:
    return ({FOUND: 0, RANDOM: 1}.get(run.group, 2), run.name, run.seed)


def verdict(groups: Sequence[Group]) -> str:
    """One sentence for each group that the found ones are compared with: the difference and its standard error."""
    found, *others = groups
    lines = []
    for other in others:
        difference = found.mean - other.mean
        error = math.hypot(found.error, other.error)
        if math.isnan(error):
            judged = "train with more seeds to know whether this is more than chance"
        elif difference > error:
            judged = "better by more than the standard error"
        else:
            judged = (
                "worse by more than the standard error"
                if difference < -error
                else "no difference beyond the standard error"
            )
        lines.append(
            f"found - {other.name}: {100 * difference:+.2f} points, standard error {100 * error:.2f}: {judged}"
        )
    return "\n".join(lines)


def write_results(runs: Sequence[Run], who: Sequence[Contestant], config: RetrainConfig, out: Path) -> list[Path]:
    """Write ``compare.csv`` (a row for each training), ``compare.json`` (groups, genotypes, recipe) and ``compare.png``."""
    ordered = sorted(runs, key=_order)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Run.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(run) for run in ordered)
    groups = summarise(runs)
    content = {
        "groups": [asdict(group) for group in groups],
        "verdict": verdict(groups).splitlines(),
        "contestants": [
            {"name": one.name, "group": one.group, "channels": one.channels, "params": one.params}
            | one.architecture.to_dict()
            for one in who
        ],
        "recipe": config.model_dump(mode="json"),
    }
    paths = [out / "compare.csv", out / "compare.json", out / "compare.png"]
    write_atomically(paths[0], text.getvalue())
    write_atomically(paths[1], json.dumps(content, indent=1))
    plot(ordered, paths[2])
    return paths


def plot(runs: Sequence[Run], path: Path) -> None:
    """A dot for each training, a bar for the mean of each group."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = summarise(runs)
    figure = Figure(figsize=(1.6 + 1.5 * len(groups), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    rng = np.random.default_rng(0)
    for position, group in enumerate(groups):
        values = [100 * run.top1 for run in runs if run.group == group.name]
        axes.scatter(position + rng.uniform(-0.16, 0.16, len(values)), values, s=22, alpha=0.7, color=f"C{position}")
        error = 0 if math.isnan(group.error) else 100 * group.error
        axes.errorbar(position, 100 * group.mean, error, color="black", marker="_", markersize=36, capsize=5)
    labels = [f"{group.name}\n{group.architectures} architecture{'s' * (group.architectures != 1)}" for group in groups]
    axes.set_xticks(range(len(groups)), labels)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylabel("top-1 accuracy (%)")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=130)
