"""What the command line does, from Python: each verb checks, works and returns a result; none of them prints.

They are the functions of the package itself: ``nni_cssnas.screen(...)``. Whatever is wrong with an argument raises a
:class:`~nni_cssnas.errors.CssnasError` of one line before the work begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from nni_cssnas.base.files import write_atomically
from nni_cssnas.base.paths import make_importable
from nni_cssnas.config import CELL_SPACE, ConstraintsConfig, ProxyConfig, SpaceConfig, merge
from nni_cssnas.errors import ConfigError, ExportError, nearest
from nni_cssnas.genotype import Genotype

if TYPE_CHECKING:
    from nni_cssnas.bridge.launch import Progress, RunningExperiment
    from nni_cssnas.comparison.contestants import Contestant
    from nni_cssnas.comparison.summary import Comparison, Group, Run
    from nni_cssnas.images.labelled import LabelledImages
    from nni_cssnas.judge.on_ray import Cluster
    from nni_cssnas.search.result import Found, SearchResult
    from nni_cssnas.search.screen import OnStep, Step
    from nni_cssnas.spaces.architecture import Architecture
    from nni_cssnas.training.config import RetrainConfig
    from nni_cssnas.training.plan import Plan
    from nni_cssnas.training.probe import ProbeResult
    from nni_cssnas.training.result import RetrainResult

__all__ = [
    "CompareResult",
    "ExportResult",
    "ProbeResults",
    "best",
    "compare",
    "export",
    "probe",
    "report",
    "retrain",
    "run",
    "screen",
]

ArchitectureLike = Union["Architecture", "Found", Genotype, str, Path]
"""An architecture: what a search found, a genotype, a published name, a text or file that holds one, a folder of ``best``
or ``screen``, or an experiment's id. The choices of a space without cells are a file and need the ``space`` beside them."""

SpaceLike = SpaceConfig | Mapping[str, Any] | str
"""A model space: ``module:attribute``, or a mapping with ``name``, ``arguments`` and ``classifier``."""


# ---- searching ------------------------------------------------------------------------------------


def screen(
    images: str | Path | None = None,
    *,
    space: SpaceLike | None = None,
    config: ProxyConfig | Mapping[str, Any] | str | Path | None = None,
    score: str | None = None,
    params: int | None = None,
    recipe: str | None = None,
    num: int = 1000,
    guided: int = 0,
    cascade: int = 1,
    minutes: float | None = None,
    seed: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_worker: float | None = None,
    output: str | Path | None = None,
    top: int = 1,
    force: bool = False,
    objectives: Sequence[str] = (),
    max_params: int | None = None,
    max_macs: int | None = None,
    max_latency_ms: float | None = None,
    latency: str | Path | None = None,
    start: ArchitectureLike | None = None,
    on_step: OnStep | None = None,
) -> SearchResult:
    """Search without an experiment: score random architectures, then so many that are proposed from what was learned.

    Whatever an architecture costs (``objectives`` and limits) is counted on the network that will be trained (``target`` of
    ``config`` or ``recipe``; 20 cells of 36 channels where neither says), without classifier and auxiliary head.

    Parameters
    ----------
    images
        Unlabelled ones: a folder, an ``.npz``, ``cifar10`` or ``tiles``.
    space
        By default the cells of :class:`~nni_cssnas.spaces.cell.CellSpace`.
    config
        A ``proxy.yml``, or what it holds; the arguments here replace what it says.
    score
        ``untrained`` (the default), ``contrastive`` or ``combined``.
    params
        Give every network of cells the width with so many parameters.
    recipe
        By what the best cells will be trained (``cifar10``, ``imagenet``, ``isic``, ``folder``, a YAML file): networks of
        its depth are scored. By default as ``config`` says, else ``folder`` where ``images`` is a folder.
    num, guided
        Random architectures, and those that are proposed after them: by TPE, or for several ``objectives`` and around ``start``
        by an evolution (:mod:`nni_cssnas.search.evolve`).
    cascade
        With 4, only a quarter of these architectures are scored: those with the most multiply-adds, which are counted first.
    minutes
        Stop after about that time.
    seed
        Of the draw, and of all that is scored.
    workers
        Processes; by default one for each core if there is enough to do. Scripts need ``if __name__ == "__main__":``
        around the call, as always with processes.
    ray
        Score on a cluster of Ray, by default with as many workers as it has room for: ``auto`` for the one of which this
        machine is a node, or ``host:port`` of its head node. The result is the same.
    gpus_per_worker
        With ``ray``: the part of a GPU that each worker takes; by default 1 where there are GPUs.
    output
        A folder for the table, the ``top`` architectures and their pictures, in which every score is kept as it comes:
        the same call goes on after an interruption. None writes nothing.
    force
        Replace what lies in ``output``.
    objectives
        What shall be small, beside a large score: ``params``, ``macs``, ``latency_ms`` (measured on the configured device), or
        a measure of the score. The result's ``front`` holds the best trade-offs; in ``output`` they are ``front.csv`` and
        ``front-1.json`` and so on.
    max_params, max_macs, max_latency_ms
        What costs more is not scored.
    latency
        A file of ``nni-cssnas latency``, by which latencies are predicted; by default each network is measured.
    start
        Search around this architecture: mutations of it take the place of random ones, and nothing that is worse than it in
        every objective is among the results.
    on_step
        Told how far it is; see :class:`~nni_cssnas.search.screen.Step`.

    Returns
    -------
    result
        After Ctrl-C what was scored until then, and ``interrupted`` is true.

    Raises
    ------
    ConfigError
        If an argument cannot be used, nothing was scored in ``minutes``, or no network of the space keeps a limit, as far as a
        bounded search tells; the smallest that it found is named.
    ImagesError
        If the images cannot be read, or are too few.
    SpaceError
        If the space cannot be made, its networks do not fit the images, or ``start`` is not in it.
    ExperimentError
        If ``output`` holds another search, or cannot be written; with ``ray`` if nothing answers at the address, or a node
        cannot be used.
    KeyboardInterrupt
        If it is interrupted before the first score.
    """
    values: dict[str, Any] = {}
    if isinstance(config, (str, Path)):
        values = ProxyConfig.load(config).model_dump(exclude_unset=True)
        make_importable(Path(config).parent)  # a space of the user's own lies beside it
    elif isinstance(config, ProxyConfig):
        values = config.model_dump(exclude_unset=True)
    elif config is not None:
        values = dict(config)
    make_importable(Path.cwd())  # a space of the user's own
    if space is not None:
        values["space"] = _space(space).model_dump(exclude_unset=True)
    if images is not None:
        values["images"] = {**(values.get("images") or {}), "source": str(images)}
    if params is not None:
        chosen = values.get("space") or {}
        values["space"] = {**chosen, "arguments": {**chosen.get("arguments", {}), "params": params}}
    values |= {name: value for name, value in (("seed", seed), ("score", score)) if value is not None}
    if recipe is not None or not values.get("target"):
        from nni_cssnas.training.config import target_of

        settings = ProxyConfig(**values | {"target": None})
        if target := target_of(recipe, settings.images.source, settings.space.name):
            values["target"] = target.model_dump()
    settings = ProxyConfig(**values)
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes is {minutes:g}; it must be more than 0 (leave it out for no limit)")

    if latency is not None and max_latency_ms is None and "latency_ms" not in objectives:
        raise ConfigError(f"--latency is {str(latency)!r}, which only --max-latency-ms and --objective latency_ms use")
    limits = ConstraintsConfig(
        max_params=max_params,
        max_macs=max_macs,
        max_latency_ms=max_latency_ms,
        latency=None if latency is None else Path(latency),
    )
    origin = None if start is None else _choices_of(start, settings)

    with _cluster(ray, gpus_per_worker) as cluster:
        from nni_cssnas.search.screen import screen as work

        return work(
            settings,
            num=num,
            guided=guided,
            seconds=None if minutes is None else 60 * minutes,
            workers=workers,
            output=None if output is None else Path(output),
            top=top,
            force=force,
            objectives=objectives,
            limits=limits,
            origin=origin,
            cascade=cascade,
            cluster=cluster,
            on_step=on_step or _nothing,
        )


def run(
    experiment: str | Path,
    *,
    port: int | None = None,
    public: bool = False,
    keep: bool = False,
    on_step: OnStep | None = None,
    on_start: Callable[[RunningExperiment], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Run an ``experiment.yml`` with ``nnictl``, wait for its end, and give what it found.

    Parameters
    ----------
    experiment
        The file. It, its ``proxy.yml``, space and images are checked before anything starts.
    port
        Of the portal; by default 8080, or the next one that is free.
    public
        Open the portal to other machines, at an address with a secret in it.
    keep
        Leave the manager and the portal running at the end.
    on_step
        Told of what comes before the start (stages ``images`` and ``checked``).
    on_start
        Told the experiment, with its id and the portal's address.
    on_progress
        Told about once a second how many trials ran and the best score.

    Raises
    ------
    ConfigError
        If a setting cannot be used.
    ExperimentError
        If the manager cannot be started or is gone, or no trial finished.
    KeyboardInterrupt
        At Ctrl-C; the manager is ended, and what finished is kept (:func:`best`).
    """
    from nni_cssnas.bridge import launch
    from nni_cssnas.bridge.rehearsal import rehearse
    from nni_cssnas.results.experiments import find_experiment

    launch.check_reach(Path(experiment), public=public)
    rehearse(Path(experiment), on_stage=None if on_step is None else partial(_stage, on_step), port=port)
    started = launch.create(Path(experiment), port=port, public=public)
    try:
        if on_start is not None:
            on_start(started)
        for state in started.watch():
            if on_progress is not None:
                on_progress(state)
        started.collect(find_experiment(started.id))
    finally:
        if not keep:
            started.stop()
    return best(started.id)


def best(experiment: str | Path, *, objectives: Sequence[str] = ()) -> SearchResult:
    """What an experiment of NNI has found so far, best first, read from its trials' own records.

    Parameters
    ----------
    experiment
        NNI's id of it, or a folder that holds its records. It may be running.
    objectives
        What is small on the ``front`` of the result, beside the score: ``params`` and ``macs`` of the network that will be
        trained, or another number of the records. By default what the tuner's ``objectives`` say, else ``params``.

    Raises
    ------
    ExperimentError
        If there is no such experiment, or none of its trials has finished.
    ConfigError
        If no trial has reported an objective.
    """
    from dataclasses import replace

    from nni_cssnas.results.experiments import find_experiment
    from nni_cssnas.results.profile import objectives_of, read_profile
    from nni_cssnas.results.records import read_records
    from nni_cssnas.search.result import SearchResult

    folder = find_experiment(str(experiment))
    result = SearchResult.of_records(read_records(folder), folder=folder)
    names = tuple(objectives) or objectives_of(read_profile(folder)) or result.objectives
    known = {name for item in result.found for name in item.costs}
    for name in names:
        if known and name not in known:
            raise ConfigError(f"no trial has reported the objective {name!r}{nearest(name, known)}")
    return replace(result, objectives=names)


def report(
    experiment: str | Path,
    output: str | Path = "report.html",
    *,
    top: int = 20,
    pictures: str | Path | None = None,
    objectives: Sequence[str] = (),
    force: bool = False,
) -> list[Path]:
    """Write what an experiment found as one HTML file; also while it runs.

    Parameters
    ----------
    experiment
        NNI's id of it, or a folder that holds its records.
    output
        The file.
    top
        How many architectures are listed.
    pictures
        A folder for the pictures as SVG and PNG, too.
    objectives
        What is small on the front that it shows; see :func:`best`.
    force
        Replace whatever lies there.

    Returns
    -------
    paths
        Of all that was written.

    Raises
    ------
    ExperimentError
        If there is no such experiment, no trial has finished, or a file is there already or cannot be written.
    ConfigError
        If no trial has reported an objective.
    """
    from nni_cssnas.results.experiments import find_experiment
    from nni_cssnas.results.records import read_records
    from nni_cssnas.results.report import write_pictures, write_report

    folder = find_experiment(str(experiment))
    front = None
    if any(record.finished for record in read_records(folder)):
        front = best(experiment, objectives=objectives).front_view()
    write_report(folder, Path(output), top=top, force=force, front=front)
    return [Path(output), *(write_pictures(folder, Path(pictures), front) if pictures is not None else [])]


# ---- with labels ----------------------------------------------------------------------------------


def retrain(
    architecture: ArchitectureLike | None,
    data: str | Path = "cifar10",
    *,
    recipe: str = "cifar10",
    val: str | Path | None = None,
    output: str | Path = "retrained",
    space: SpaceLike | None = None,
    unlabelled: str | Path | None = None,
    root: str | Path | None = None,
    download: bool = False,
    force: bool = False,
    progress_bar: bool = False,
    on_note: Callable[[str], None] | None = None,
    on_images: Callable[[LabelledImages], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    on_pretrain_epoch: Callable[[int, float], None] | None = None,
    **settings: Any,
) -> RetrainResult:
    """Train an architecture with labels, as DARTS and the paper do; stopped, the same call goes on.

    Parameters
    ----------
    architecture
        See :data:`ArchitectureLike`.
    data
        Labelled images: a folder of class folders, an ``.npz``, or ``cifar10``.
    recipe
        ``cifar10``, ``imagenet``, ``isic``, ``folder``, or a YAML file.
    val
        Images to validate with; by default a part of ``data`` is held out.
    output
        Folder of the run.
    space
        Where ``architecture`` is a file with the choices of another space.
    unlabelled
        Images for ``pretrain="contrastive"``; by default those of ``data``.
    root, download
        Where CIFAR-10 lies, and whether it is fetched if it is not there.
    force
        Remove another run that lies in ``output``.
    progress_bar
        Show Lightning's.
    on_note, on_images, on_plan, on_epoch, on_pretrain_epoch
        Told what of the settings is not used; the images; what will be done and how long it takes; the row of every
        epoch; number (from 0) and loss of every epoch without labels.
    settings
        Any value of the recipe: ``epochs``, ``batch_size``, ``channels``, ``num_cells``, ``size``, ``lr``, ``seed``,
        ``device`` ...; see :class:`~nni_cssnas.training.config.RetrainConfig`.

    Returns
    -------
    result
        ``.final_top1`` and the other accuracies, and ``.network()`` with the trained weights.

    Raises
    ------
    CssnasError
        As for :func:`nni_cssnas.training.run.retrain`.
    """
    chosen = _architecture(architecture, space)
    config = recipe_of(recipe, settings, chosen)

    from nni_cssnas.training.checks import check_hardware, check_output, ignored
    from nni_cssnas.training.run import retrain as train

    if unlabelled is not None and config.pretrain == "none":
        raise ConfigError(f"--unlabelled is {str(unlabelled)!r}, which only --pretrain contrastive uses")
    check_hardware(config)
    check_output(Path(output), chosen, config, force=force)
    note = ignored(chosen, config)
    if note and on_note is not None:
        on_note(note)
    images = _labelled(data, val, config, root, download)
    if on_images is not None:
        on_images(images)
    return train(
        chosen,
        config,
        images,
        Path(output),
        unlabelled=None if unlabelled is None else _unlabelled(unlabelled, config, download),
        force=force,
        progress_bar=progress_bar,
        on_plan=on_plan,
        on_epoch=on_epoch,
        on_pretrain_epoch=on_pretrain_epoch,
    )


@dataclass(frozen=True)
class ProbeResults:
    """How good frozen features are.

    Attributes
    ----------
    features
        Of the network that was asked for.
    untrained
        Of the same network as it was initialised, to compare with; None if that is what was asked for.
    path
        ``probe.json``, or None.
    """

    features: ProbeResult
    untrained: ProbeResult | None
    path: Path | None


def probe(
    architecture: ArchitectureLike | None = None,
    data: str | Path = "cifar10",
    *,
    weights: str | Path | None = None,
    pretrain_epochs: int = 0,
    neighbours: int = 200,
    recipe: str = "cifar10",
    val: str | Path | None = None,
    output: str | Path | None = None,
    space: SpaceLike | None = None,
    root: str | Path | None = None,
    download: bool = False,
    force: bool = False,
    on_pretrain_epoch: Callable[[int, float], None] | None = None,
    **settings: Any,
) -> ProbeResults:
    """Tell how good frozen features are: k-NN and a linear classifier on them, and both on the untrained network.

    Parameters
    ----------
    architecture
        What to probe, if there are no ``weights``; see :data:`ArchitectureLike`.
    data, recipe, val, space, root, download, settings
        As for :func:`retrain`.
    weights
        ``best.pt``, ``final.pt`` or ``pretrained.pt`` of :func:`retrain`.
    pretrain_epochs
        Without weights: train so long without labels first.
    neighbours
        Of the k-NN vote.
    output
        A folder for ``probe.json``; it is needed to train without labels.
    force
        Replace a ``probe.json`` that lies there.
    on_pretrain_epoch
        Told number (from 0) and loss of every epoch without labels.

    Raises
    ------
    CssnasError
        If an argument cannot be used; for example both ``architecture`` and ``weights`` are given.
    """
    if (weights is None) == (architecture is None and space is None):
        raise ConfigError("give either --weights, or the architecture to probe")
    if weights is not None and pretrain_epochs:
        raise ConfigError(
            f"--pretrain-epochs is {pretrain_epochs}, but --weights {weights} are trained already; leave one out"
        )
    if pretrain_epochs and output is None:
        raise ConfigError(f"pretrain_epochs is {pretrain_epochs}; name a folder for that training as output")
    path = None if output is None else Path(output) / "probe.json"
    if path is not None and path.exists() and not force:
        raise ConfigError(f"{path} is there already; name another folder with --output, or use --force")
    chosen = None if architecture is None and space is None else _architecture(architecture, space)

    from nni_cssnas.training.checks import check_hardware
    from nni_cssnas.training.pretrain import features_network, pretrain
    from nni_cssnas.training.probe import probe as measure
    from nni_cssnas.training.probe import untrained
    from nni_cssnas.training.weights import Weights

    loaded = None if weights is None else Weights.read(Path(weights))
    if loaded is not None:
        settings["size"] = loaded.shape.size
    if pretrain_epochs:
        settings = merge(settings, {"pretrain": "contrastive", "contrastive": {"epochs": pretrain_epochs}})
    config = recipe_of(recipe, settings, chosen)
    check_hardware(config)
    images = _labelled(data, val, config, root, download)
    if loaded is None:
        assert chosen is not None
        if pretrain_epochs:
            assert path is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            loaded = pretrain(chosen, config, images.unlabelled(), path.parent, on_epoch=on_pretrain_epoch)
        else:
            loaded = untrained(features_network(chosen, config), images, config)
    features = measure(loaded, images, config, neighbours=neighbours)
    fresh = None
    if weights is not None or pretrain_epochs:
        fresh = measure(untrained(loaded, images, config), images, config, neighbours=neighbours)
    if path is not None:
        content: dict[str, Any] = {
            "features": features.to_dict(),
            **({} if fresh is None else {"untrained": fresh.to_dict()}),
        }
        content |= {"neighbours": neighbours, "architecture": loaded.architecture.to_dict()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1))
    return ProbeResults(features, fresh, path)


@dataclass(frozen=True)
class CompareResult:
    """Whether a search helped.

    Attributes
    ----------
    runs
        Every training.
    groups
        What was found, random ones, and each baseline: means and errors.
    verdicts
        What was found against each other group: difference, interval, p; ``.sentence`` says it in words.
    caveat
        What so short a training does not tell, or None.
    files
        Table, numbers and picture.
    """

    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    verdicts: tuple[Comparison, ...]
    caveat: str | None
    files: tuple[Path, ...]


def compare(
    found: Sequence[ArchitectureLike],
    data: str | Path = "cifar10",
    *,
    recipe: str = "cifar10",
    val: str | Path | None = None,
    output: str | Path = "compared",
    random: int = 6,
    baselines: Sequence[str] = ("DARTS_V2",),
    searches: Sequence[str] = (),
    seeds: int = 2,
    params: int | None = None,
    tolerance: float = 0.15,
    space: SpaceLike | None = None,
    random_seed: int = 0,
    workers: int | None = None,
    root: str | Path | None = None,
    download: bool = False,
    on_contestants: Callable[[Sequence[Contestant]], None] | None = None,
    on_training: Callable[[Run], None] | None = None,
    **settings: Any,
) -> CompareResult:
    """Did the search help? Train what was found, random cells of the same size and published ones alike, with labels.

    Parameters
    ----------
    found
        What was found; see :data:`ArchitectureLike`.
    data, recipe, val, root, download, settings
        As for :func:`retrain`.
    output
        Folder; the same call goes on there.
    random, random_seed
        How many random architectures of the same space and size, and the seed of their draw.
    baselines
        Published cells.
    searches
        ``NAME=ITEM,ITEM``: these (numbers from 1, or patterns) are of one search. By default files of one folder are.
    seeds
        Trainings of each.
    params, tolerance
        Parameters of all (by default those of the first), and their largest relative difference.
    space
        Where ``found`` are files with choices of another space.
    workers
        Trainings at a time; by default one for each core, and one GPU.
    on_contestants, on_training
        Told who takes part, and every training that is done.

    Raises
    ------
    CssnasError
        If an argument cannot be used, or a training fails; see :func:`nni_cssnas.training.run.retrain`.
    """
    if not found:
        raise ConfigError("compare needs at least one architecture that was found")
    named = {f"found-{n}": _architecture(item, space) for n, item in enumerate(found, start=1)}
    targets = [one.target for one in named.values()]
    if any(target != targets[0] for target in targets):
        raise ConfigError(
            "what was found is of searches for different networks (key 'target' in their files); compare them one by one, "
            "or name --cells and --channels and take the key out of the files"
        )
    config = recipe_of(recipe, settings, next(iter(named.values())))

    import torch

    from nni_cssnas.base.device import resolve_device
    from nni_cssnas.comparison import run as comparison
    from nni_cssnas.comparison.contestants import contestants
    from nni_cssnas.comparison.searches import searches_of
    from nni_cssnas.comparison.summary import caveat, summarise, verdict
    from nni_cssnas.training.checks import check_hardware

    check_hardware(config)
    # An experiment's id becomes its folder.
    texts = [
        _named(item) if space is None else str(item) if isinstance(item, (str, Path)) else f"found-{number}"
        for number, item in enumerate(found, start=1)
    ]
    origins = {f"found-{n}": name for n, name in enumerate(searches_of(texts, searches), start=1)}
    load = _labels(data, val, config, root, download)
    images = load()
    who = contestants(
        named,
        config,
        len(images.classes),
        searches=origins,
        num_random=random,
        baselines=baselines,
        tolerance=tolerance,
        seed=random_seed,
        params=params,
    )
    comparison.check_folder(who, config, images, Path(output))
    if on_contestants is not None:
        on_contestants(who)
    parallel = workers or (torch.get_num_threads() if resolve_device(config.device).type == "cpu" else 1)
    runs = []
    for one in comparison.compare(who, config, images, Path(output), seeds=range(seeds), workers=parallel, load=load):
        runs.append(one)
        if on_training is not None:
            on_training(one)
    files = comparison.write_results(runs, who, config, Path(output))
    groups = summarise(runs)
    return CompareResult(tuple(runs), tuple(groups), tuple(verdict(groups)), caveat(config.epochs), tuple(files))


@dataclass(frozen=True)
class ExportResult:
    """A network as a file.

    Attributes
    ----------
    path, size
        The file, and its size in bytes.
    difference
        The largest of a logit between the file and the network; None where the file computes nothing.
    params, macs
        Weights, and multiply-adds of one image.
    """

    path: Path
    size: int
    difference: float | None
    params: int
    macs: int


def export(
    network: ArchitectureLike | RetrainResult | None,
    path: str | Path,
    *,
    format: str | None = None,
    space: SpaceLike | None = None,
    weights: str | Path | None = None,
    classes: int | None = None,
    cells: int | None = None,
    channels: int | None = None,
    stem: str | None = None,
    size: int | None = None,
    auxiliary: bool = False,
    seed: int = 0,
    force: bool = False,
) -> ExportResult:
    """Write a network as a file that needs nothing of this package.

    Parameters
    ----------
    network
        The result of :func:`retrain`, whose best weights are taken; an architecture (see :data:`ArchitectureLike`), with
        fresh weights or those of ``weights``; or None for the network that ``weights`` are of.
    path
        The file.
    format
        ``python``, ``onnx``, ``torchscript`` or ``state-dict``; by default what the ending says.
    space
        Where ``network`` is a file with the choices of another space.
    weights
        A file of :func:`retrain`, which knows its network, or a state dict.
    classes, cells, channels, stem, size
        Logits (0: pooled features), depth, width, ``cifar`` or ``imagenet``, edge of the images; by default those of
        the weights, else of the search's target, else 10, 20, 36, ``cifar`` and 32 (224 for ``imagenet``).
    auxiliary
        With the head that helps training.
    seed
        Of fresh weights.
    force
        Replace a file that is there.

    Returns
    -------
    exported
        The file, how well it agrees with the network, and what the network costs.

    Raises
    ------
    CssnasError
        If an argument cannot be used, the file is there, or it computes something else than the network.
    """
    from nni_cssnas.formats.names import FORMATS

    path = Path(path)
    if format is None:
        known = {ending: name for name, ending in FORMATS.items()}
        if path.suffix not in known:
            raise ConfigError(f"path is {str(path)!r}; give it one of the endings {', '.join(known)}, or a format")
        format = known[path.suffix]
    if format not in FORMATS:
        raise ConfigError(f"--format is {format!r}{nearest(format, FORMATS)}")
    if path.exists() and not force:
        raise ExportError(f"{path} is there already; name another file with --output, or use --force")

    import torch

    from nni_cssnas import __version__
    from nni_cssnas.formats.write import export as write
    from nni_cssnas.formats.write import load_weights
    from nni_cssnas.scores.cost import multiply_adds, num_parameters
    from nni_cssnas.training.result import RetrainResult
    from nni_cssnas.training.weights import Weights, own_weights

    if isinstance(network, RetrainResult):
        if weights is not None:
            raise ConfigError("weights are given for the result of a training, which has its own; leave them out")
        weights = network.folder / "best.pt"
        network = None
    named = network is not None or space is not None
    if not named and weights is None:
        raise ConfigError("give what to export: an architecture, or weights")
    file = None if weights is None else Path(weights)
    known_weights = None if file is None else own_weights(file) if named else Weights.read(file)
    given: dict[str, Any] = {
        "num_classes": classes,
        "num_cells": cells,
        "channels": channels,
        "stem": stem,
        "size": size,
    }
    given = {name: value for name, value in given.items() if value is not None}
    trained: dict[str, Any] = {}
    asked = _architecture(network, space) if named else None
    if known_weights is not None:
        known_weights.check(str(weights), asked, given)
        architecture = known_weights.architecture
        shape = {**asdict(known_weights.shape), "auxiliary": auxiliary}
        trained = {
            "class names": ", ".join(known_weights.classes),
            "input mean": known_weights.mean,
            "input std": known_weights.std,
        }
    else:
        assert asked is not None
        architecture = asked
        default: dict[str, Any] = {"num_classes": 10, "num_cells": 20, "channels": 36, "stem": "cifar"}
        default |= _of_target(asked)
        default.setdefault("size", 224 if given.get("stem", default["stem"]) == "imagenet" else 32)
        shape = {**default, **given, "auxiliary": auxiliary}
    edge = shape["size"]
    torch.manual_seed(seed)
    made = architecture.build(**shape)
    if file is not None:
        load_weights(made, file)
    params, macs = num_parameters(made), multiply_adds(made, (3, edge, edge))
    about = {
        "title": f"A network exported by nni-cssnas {__version__}.",
        **{name: json.dumps(value) for name, value in architecture.to_dict().items()},
        **({name: shape[name] for name in ("num_cells", "channels", "stem")} if architecture.genotype else {}),
        "classes": shape["num_classes"],
        "image size": edge,
        **trained,
        "parameters": params,
        "multiply-adds": macs,
        "weights": file.name if file else f"fresh, seed {seed}",
        "torch": torch.__version__,
    }
    return ExportResult(
        **vars(write(made, path, format, size=edge, about=about, force=force)), params=params, macs=macs
    )


# ---- what they share ------------------------------------------------------------------------------


def _nothing(step: Step) -> None:
    pass


def _cluster(ray: str | None, gpus_per_worker: float | None) -> AbstractContextManager[Cluster | None]:
    """The connection to Ray, or what does nothing where none is asked for."""
    if ray is None:
        if gpus_per_worker is not None:
            raise ConfigError(f"--gpus-per-worker is {gpus_per_worker:g}, which only --ray uses")
        return nullcontext()
    from nni_cssnas.judge.on_ray import connected

    return connected(ray, gpus_per_worker)


def _stage(on_step: OnStep, stage: str, done: int, total: int) -> None:
    from nni_cssnas.search.screen import Step

    on_step(Step(stage, done, total))


def _space(space: SpaceLike) -> SpaceConfig:
    if isinstance(space, SpaceConfig):
        return space
    return SpaceConfig(name=space) if isinstance(space, str) else SpaceConfig(**space)


def _named(item: object) -> str:
    """What the user calls an architecture; the id of an experiment is its folder, with the cell that ``run`` left there, and
    ``ID/front-2`` an entry of the front that ``best --front`` left there."""
    import re

    from nni_cssnas.genotype import NAMED_GENOTYPES

    text = str(item) if isinstance(item, (str, Path)) else "given"
    found = re.fullmatch("([A-Za-z0-9]{8})(/front-[0-9]+)?", text)
    if found is None or text in NAMED_GENOTYPES or Path(found[1]).exists():
        return text
    from nni_cssnas.results.experiments import find_experiment

    folder = find_experiment(found[1])
    return str(folder if found[2] is None else folder / "best" / found[2][1:])


def _architecture(item: object, space: SpaceLike | None) -> Architecture:
    from nni_cssnas.search.result import Found
    from nni_cssnas.spaces.architecture import Architecture, read_architecture

    make_importable(Path.cwd())  # a space of the user's own
    if isinstance(item, Found):
        return item.architecture
    if isinstance(item, Architecture):
        return item
    if isinstance(item, Genotype):
        return Architecture(genotype=item)
    if isinstance(item, Mapping) and space is not None:
        return Architecture(space=_space(space), choices=dict(item))
    if item is not None and not isinstance(item, (str, Path)):
        raise ConfigError(
            f"an architecture is given as {type(item).__name__}; give what a search found, a genotype, or a file"
        )
    if space is not None:
        return read_architecture(space=_space(space), sample=None if item is None else Path(item))
    return read_architecture(None if item is None else _named(item))


def _choices_of(item: object, settings: ProxyConfig) -> dict[str, Any]:
    """The choices with which the space of a search holds an architecture. Raises SpaceError if it does not."""
    from nni_cssnas.spaces.encoding import encode
    from nni_cssnas.spaces.factory import make_space

    space = make_space(settings.scored_space)
    if settings.space.name == CELL_SPACE:
        genotype = _architecture(item, None).genotype
        assert genotype is not None
        return encode(space, space.sample_of(genotype))
    choices = _architecture(item, settings.space).choices
    return dict(choices or {})


def recipe_of(recipe: str, settings: Mapping[str, Any], architecture: Architecture | None = None) -> RetrainConfig:
    """A recipe, the target of the search that found the architecture in its place, and settings in place of both.

    Settings that are None do not count. Raises ConfigError.
    """
    from nni_cssnas.training.config import RetrainConfig

    given = {name: value for name, value in settings.items() if value is not None}
    return RetrainConfig.load(recipe, **{**_of_target(architecture), **given})


def _of_target(architecture: Architecture | None) -> dict[str, Any]:
    """The shape of the network that the search was for: nothing where it did not say, or has no cells."""
    target = None if architecture is None else architecture.target
    return {} if target is None else target.model_dump(exclude_none=True)


def _labels(
    data: str | Path, val: str | Path | None, config: RetrainConfig, root: str | Path | None, download: bool
) -> Callable[[], LabelledImages]:
    """What reads the images; worker processes call it again."""
    from nni_cssnas.images.labelled import load_labelled

    return partial(
        load_labelled,
        str(data),
        config.size,
        val=None if val is None else str(val),
        validation=config.validation,
        seed=config.seed,
        resident_gb=config.resident_gb,
        root=None if root is None else Path(root),
        download=download,
    )


def _labelled(
    data: str | Path, val: str | Path | None, config: RetrainConfig, root: str | Path | None, download: bool
) -> LabelledImages:
    return _labels(data, val, config, root, download)()


def _unlabelled(source: str | Path, config: RetrainConfig, download: bool) -> Any:
    from nni_cssnas.config import ImagesConfig
    from nni_cssnas.images.sources import load_images

    return load_images(ImagesConfig(source=str(source), size=config.size, num_images=None, download=download))
