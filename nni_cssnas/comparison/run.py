"""Was the search worth it? What was found against random architectures and published cells, trained alike with labels.

Life cycle: :func:`contestants` draws and fits the widths before anything is trained; :func:`compare` trains each with every
seed in a folder of its own, where a run that was stopped goes on; :mod:`nni_cssnas.comparison.summary` says what came out.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nni_cssnas.base.files import write_atomically
from nni_cssnas.base.workers import end_with_parent
from nni_cssnas.comparison.summary import FOUND, RANDOM, Run, in_order, summarise, verdict
from nni_cssnas.errors import ConfigError, ImagesError, SpaceError
from nni_cssnas.genotype import Genotype
from nni_cssnas.images.labelled import LabelledImages
from nni_cssnas.scores.cost import num_parameters
from nni_cssnas.spaces import CellNetwork, CellSpace, decode, make_space, random_choices
from nni_cssnas.spaces.architecture import Architecture
from nni_cssnas.spaces.width import genotype_width
from nni_cssnas.training.changes import changes, listed_changes
from nni_cssnas.training.config import RetrainConfig
from nni_cssnas.training.run import ELSEWHERE, retrain

__all__ = [
    "Contestant",
    "check_folder",
    "compare",
    "contestants",
    "plot",
    "write_results",
]

DRAWS = 2000
"""So many random architectures are tried for one of the right size."""


@dataclass(frozen=True)
class Contestant:
    """An architecture of a group; ``channels`` is the width with which it has ``params`` parameters, ``search`` the search
    that found it (empty for what no search of the user's found)."""

    name: str
    group: str
    architecture: Architecture
    channels: int
    params: int
    search: str = ""


def contestants(
    found: Mapping[str, Architecture],
    config: RetrainConfig,
    num_classes: int,
    *,
    searches: Mapping[str, str] | None = None,
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
    searches
        Name to the search that found it; by default one search found all. Cells of one search are no independent draws.
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
        result.append(Contestant(name, FOUND, architecture, *fitted, search=(searches or {}).get(name, "1")))
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
            yield Architecture(space=like.space, choices=random_choices(space, rng))
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
        yield Architecture(cell_space.genotype_of(decode(cell_space, random_choices(cell_space, rng))))


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
    changed = _changed(there, identity)
    if changed:
        raise ConfigError(
            f"{out} holds another comparison: {listed_changes(changed)}; name another folder with --output"
        )


def _changed(there: Any, here: Mapping[str, Any]) -> list[str]:
    """In what two comparisons differ. Which search a cell is of changes no training, and is no part of it."""
    try:
        before = {name: (channels, architecture) for name, channels, architecture in there["contestants"]}
        changed = changes(there["recipe"], here["recipe"])
        if there["data"] != here["data"]:
            changed.append("the images or labels are others")
    except (KeyError, TypeError, ValueError):
        return ["its comparison.json is of another kind"]
    now = {name: (channels, architecture) for name, channels, architecture in here["contestants"]}
    for name in [*now, *(name for name in before if name not in now)]:
        if name not in before or name not in now:
            changed.append(f"{name} is only {'there' if name in before else 'here'}")
        elif before[name][1] != now[name][1]:
            changed.append(f"{name} is another architecture")
        elif before[name][0] != now[name][0]:
            changed.append(f"{name} has {before[name][0]} channels there and {now[name][0]} here")
    if not changed and list(before) != list(now):
        changed.append("the architectures are in another order")
    return changed


def compare(
    who: Sequence[Contestant],
    config: RetrainConfig,
    data: LabelledImages,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1),
    workers: int = 1,
    load: Callable[[], LabelledImages] | None = None,
) -> Iterator[Run]:
    """Train everyone with every seed; gives each training when it is done, and those of an earlier call at once.

    Parameters
    ----------
    who, config, data
        As for :func:`~nni_cssnas.training.run.retrain`; the recipe's width is replaced by that of each.
    out
        A folder for each training is made there.
    seeds
        Of the trainings; the same for everyone.
    workers
        Trainings at a time, each with its share of the threads.
    load
        Makes ``data`` anew; more than one worker needs it. It is pickled, and each worker process calls it once: images that
        were sent with every job would fill the shared memory, which is 64 MB in a container.

    Raises
    ------
    ConfigError
        If ``load`` is missing.
    CssnasError
        As for :func:`~nni_cssnas.training.run.retrain`.
    """
    jobs = [(one, seed) for seed in seeds for one in who]
    if workers == 1:
        for one, seed in jobs:
            yield _train(one, config, data, out, seed)
        return
    if load is None:
        raise ConfigError(
            f"workers is {workers}, but load is missing; give a function that makes the images, or workers=1"
        )
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_Worker.begin, initargs=(load, data.key, threads)
    ) as pool:
        waiting = [pool.submit(_Worker.train, one, config, out, seed) for one, seed in jobs]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Worker:
    """What a worker process keeps between its jobs."""

    load: Callable[[], LabelledImages]
    key: str
    data: LabelledImages | None = None

    @classmethod
    def begin(cls, load: Callable[[], LabelledImages], key: str, threads: int) -> None:
        end_with_parent()
        torch.set_num_threads(threads)
        cls.load, cls.key = staticmethod(load), key

    @classmethod
    def train(cls, one: Contestant, config: RetrainConfig, out: Path, seed: int) -> Run:
        if cls.data is None:
            # Not in begin: what an initialiser raises ends the pool without a word.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the first process has said it
                data = cls.load()
            if data.key != cls.key:
                raise ImagesError("the images or labels have changed since the comparison began; start it again")
            cls.data = data
        return _train(one, config, cls.data, out, seed)


def _train(one: Contestant, config: RetrainConfig, data: LabelledImages, out: Path, seed: int) -> Run:
    settings = config.model_copy(update={"channels": one.channels, "seed": seed})
    done = retrain(one.architecture, settings, data, out / f"{one.name}-seed{seed}", tensorboard=False)
    return Run(one.name, one.group, one.search, seed, one.params, done.final_top1, done.seconds)


# ---- what came out ----------------------------------------------------------------------------------


def write_results(runs: Sequence[Run], who: Sequence[Contestant], config: RetrainConfig, out: Path) -> list[Path]:
    """Write ``compare.csv`` (a row for each training), ``compare.json`` (groups, genotypes, recipe) and ``compare.png``."""
    ordered = in_order(runs)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Run.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(run) for run in ordered)
    groups = summarise(runs)
    content = {
        "groups": [asdict(group) for group in groups],
        "comparisons": [one.to_dict() for one in verdict(groups)],
        "contestants": [
            {"name": one.name, "group": one.group, "search": one.search, "channels": one.channels, "params": one.params}
            | one.architecture.to_dict()
            for one in who
        ],
        "recipe": config.model_dump(mode="json"),
    }
    paths = [out / "compare.csv", out / "compare.json", out / "compare.png"]
    write_atomically(paths[0], text.getvalue())
    write_atomically(paths[1], json.dumps(content, indent=1, allow_nan=False))
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
        axes.errorbar(
            position, 100 * group.mean, 100 * (group.error or 0), color="black", marker="_", markersize=36, capsize=5
        )
    labels = [f"{group.name}\n{group.architectures} architecture{'s' * (group.architectures != 1)}" for group in groups]
    axes.set_xticks(range(len(groups)), labels)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylabel("top-1 accuracy (%)")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=130)
