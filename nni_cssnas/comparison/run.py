"""Was the search worth it? What was found against random architectures and published cells, trained alike with labels.

Life cycle: :func:`contestants` draws and fits the widths before anything is trained; :func:`compare` trains each with every
seed in a folder of its own, where a run that was stopped goes on; :mod:`nni_cssnas.comparison.summary` says what came out.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nni_cssnas.base.files import write_atomically
from nni_cssnas.base.workers import end_with_parent
from nni_cssnas.comparison.contestants import Contestant
from nni_cssnas.comparison.summary import Run, caveat, in_order, summarise, verdict
from nni_cssnas.errors import ConfigError, ImagesError
from nni_cssnas.images.labelled import LabelledImages
from nni_cssnas.training.changes import changes, listed_changes
from nni_cssnas.training.checks import ELSEWHERE
from nni_cssnas.training.config import RetrainConfig
from nni_cssnas.training.run import retrain

__all__ = ["check_folder", "compare", "plot", "write_results"]


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
        "caveat": caveat(config.epochs),
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
