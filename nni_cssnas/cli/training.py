"""After the search: train with labels, probe features, compare with random cells."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nni_cssnas.base.paths import make_importable
from nni_cssnas.cli.app import app, architecture_of, console, mapping, short

if TYPE_CHECKING:
    from nni_cssnas.images.labelled import LabelledImages
    from nni_cssnas.spaces.architecture import Architecture
    from nni_cssnas.training.config import RetrainConfig

RECIPES = "(default: the recipe's)."

Genotype = Annotated[
    str | None,
    typer.Argument(
        help="A published name, the DARTS form, JSON, a file with it (a log, too), a folder of `best`, or an experiment's id."
    ),
]
Space = Annotated[str | None, typer.Option("--space", help="module:attribute of another NNI model space.")]
Arguments = Annotated[str, typer.Option(help="Arguments of the space, as YAML: '{width: 16}'.")]
Sample = Annotated[Path | None, typer.Option("--sample", help="Its choices: sample.json of `best`.")]
Recipe = Annotated[str, typer.Option("--recipe", "-r", help="cifar10, imagenet, isic, folder, or a file.yml.")]
Data = Annotated[
    str, typer.Option("--data", "-d", help="Labelled images: a folder of class folders, an .npz, or cifar10.")
]
Val = Annotated[str | None, typer.Option("--val", help="Images to validate with; by default a part is held out.")]
Root = Annotated[Path | None, typer.Option("--root", help="Where CIFAR-10 lies (default: in the cache).")]
Download = Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 if it is not there.")]
Epochs = Annotated[int | None, typer.Option(min=1, help=f"Passes through the training images {RECIPES}")]
Batch = Annotated[
    int | None, typer.Option("--batch-size", min=2, help=f"Images of a step, on all devices together {RECIPES}")
]
Channels = Annotated[int | None, typer.Option(min=1, help=f"Width of the first cells of a network of cells {RECIPES}")]
Cells = Annotated[int | None, typer.Option(min=3, help=f"Depth of a network of cells {RECIPES}")]
Size = Annotated[int | None, typer.Option(min=8, help=f"Edge of the images in pixels {RECIPES}")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any other number of the recipe, as lr=0.1; may be repeated.")
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Of the weights, the order of the images and what is held out (default: 0).")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda if there is one).")]
Force = Annotated[bool, typer.Option("--force", help="Remove another run that lies there.")]


@app.command()
def retrain(
    genotype: Genotype = None,
    recipe: Recipe = "cifar10",
    data: Data = "cifar10",
    val: Val = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run; the same command resumes it.")
    ] = Path("retrained"),
    space: Space = None,
    arguments: Arguments = "",
    sample: Sample = None,
    epochs: Epochs = None,
    batch_size: Batch = None,
    channels: Channels = None,
    cells: Cells = None,
    size: Size = None,
    lr: Annotated[float | None, typer.Option(help=f"Learning rate at the start {RECIPES}")] = None,
    label_fraction: Annotated[
        float | None, typer.Option(help="Part of the labels that is used: 0.01, 0.1 (default: 1).")
    ] = None,
    pretrain: Annotated[
        str | None, typer.Option(help="contrastive: train without labels first (default: none).")
    ] = None,
    pretrain_epochs: Annotated[
        int | None,
        typer.Option(
            "--pretrain-epochs",
            min=1,
            help="Epochs without labels, with --pretrain contrastive, which this implies (default: 100).",
        ),
    ] = None,
    unlabelled: Annotated[
        str | None, typer.Option(help="Images for that: a folder, an .npz, cifar10; default: those of --data.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="GPUs; several share the work by DDP (default: 1).")
    ] = None,
    amp: Annotated[str | None, typer.Option(help="off, bf16 or fp16 (default: off).")] = None,
    settings: Settings = None,
    seed: Seed = None,
    device: Device = None,
    root: Root = None,
    download: Download = False,
    force: Force = False,
) -> None:
    """Train an architecture with labels, as DARTS and the paper do; stopped, the same command goes on."""
    # Under DDP Lightning starts this command once for each device; one of them speaks.
    console.quiet = os.environ.get("LOCAL_RANK", "0") != "0"
    architecture = _architecture(genotype, space, arguments, sample)
    values = {
        "epochs": epochs,
        "batch_size": batch_size,
        "channels": channels,
        "num_cells": cells,
        "size": size,
        "lr": lr,
        "label_fraction": label_fraction,
        "pretrain": "contrastive" if pretrain is None and pretrain_epochs is not None else pretrain,
        "contrastive": None if pretrain_epochs is None else {"epochs": pretrain_epochs},
        "devices": devices,
        "strategy": "ddp" if devices is not None and devices > 1 else None,
        "amp": amp,
        "seed": seed,
        "device": device,
    }
    config = _config(recipe, values, settings)

    from nni_cssnas.errors import ConfigError
    from nni_cssnas.training.run import check_output, ignored

    if pretrain_epochs is not None and config.pretrain == "none":
        raise ConfigError(f"--pretrain-epochs is {pretrain_epochs}, but --pretrain is 'none'; leave one out")
    from nni_cssnas.training.run import retrain as train

    if unlabelled is not None and config.pretrain == "none":
        raise ConfigError(f"--unlabelled is {unlabelled!r}, which only --pretrain contrastive uses")
    check_output(output, architecture, config, force=force)
    note = ignored(architecture, config)
    if note:
        console.print(f"note: {note}", highlight=False)
    images = _labelled(data, val, config, root, download)
    others = None if unlabelled is None else _unlabelled(unlabelled, config, download)
    console.print(
        f"{len(images.train)} images to train on, {len(images.val)} to validate with, {len(images.classes)} classes"
    )
    status = console.status("timing a few batches")

    def say(plan: object) -> None:
        status.stop()  # before Lightning's bar begins
        console.print(str(plan), highlight=False, markup=False, soft_wrap=True)

    with _going_on(output), status:
        result = train(
            architecture,
            config,
            images,
            output,
            unlabelled=others,
            force=force,
            progress_bar=True,
            on_plan=None if console.quiet else say,
            on_pretrain_epoch=lambda epoch, loss: console.print(
                f"contrastive epoch {epoch + 1}/{config.contrastive.epochs}: loss {loss:.4f}", highlight=False
            ),
            on_epoch=lambda row: console.print(_line(row, config.epochs), highlight=False),
        )
    top5 = "" if result.final_top5 is None else f", top-5 {result.final_top5:.2%}"
    console.print(f"{short(result.params)} parameters, {short(result.macs)} multiply-adds", highlight=False)
    console.print(
        f"top-1 {result.final_top1:.2%}{top5} (best epoch: {result.best_epoch}, {result.best_top1:.2%})",
        highlight=False,
    )
    for name in ("summary.json", "history.csv", "final.pt", "best.pt"):
        console.print(f"  {output / name}", soft_wrap=True, highlight=False)


@app.command()
def probe(
    genotype: Genotype = None,
    recipe: Recipe = "cifar10",
    data: Data = "cifar10",
    val: Val = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path("probed"),
    weights: Annotated[
        Path | None, typer.Option("--weights", help="best.pt, final.pt or pretrained.pt of `retrain`.")
    ] = None,
    pretrain_epochs: Annotated[
        int, typer.Option("--pretrain-epochs", min=0, help="Without --weights: train so long without labels first.")
    ] = 0,
    neighbours: Annotated[int, typer.Option(min=1, help="Of the k-NN vote.")] = 200,
    space: Space = None,
    arguments: Arguments = "",
    sample: Sample = None,
    channels: Channels = None,
    cells: Cells = None,
    size: Size = None,
    settings: Settings = None,
    seed: Seed = None,
    device: Device = None,
    root: Root = None,
    download: Download = False,
    force: Force = False,
) -> None:
    """Tell how good frozen features are: k-NN and a linear classifier on them, and both on the untrained network."""
    from nni_cssnas.errors import ConfigError

    if (weights is None) == (genotype is None and space is None):
        raise ConfigError("give either --weights, or the architecture to probe")
    if weights is not None and pretrain_epochs:
        raise ConfigError(
            f"--pretrain-epochs is {pretrain_epochs}, but --weights {weights} are trained already; leave one out"
        )
    path = output / "probe.json"
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already; name another folder with --output, or use --force")
    architecture = None if weights is not None else _architecture(genotype, space, arguments, sample)

    from nni_cssnas.training.pretrain import features_network
    from nni_cssnas.training.pretrain import pretrain as train
    from nni_cssnas.training.probe import probe as measure
    from nni_cssnas.training.probe import untrained
    from nni_cssnas.training.weights import Weights

    loaded = None if weights is None else Weights.read(weights)
    values: dict[str, Any] = {"channels": channels, "num_cells": cells, "size": size, "seed": seed, "device": device}
    if loaded is not None:
        values["size"] = loaded.shape.size
    if pretrain_epochs:
        values |= {"pretrain": "contrastive", "contrastive": {"epochs": pretrain_epochs}}
    config = _config(recipe, values, settings)
    images = _labelled(data, val, config, root, download)
    if loaded is None:
        assert architecture is not None
        output.mkdir(parents=True, exist_ok=True)
        if pretrain_epochs:
            from rich.progress import Progress

            with Progress(console=console) as bar:
                task = bar.add_task("training without labels", total=pretrain_epochs)
                loaded = train(
                    architecture,
                    config,
                    images.unlabelled(),
                    output,
                    on_epoch=lambda epoch, loss: bar.update(task, completed=epoch + 1),
                )
        else:
            loaded = untrained(features_network(architecture, config), images, config)
    with console.status("probing"):
        results = {"features": measure(loaded, images, config, neighbours=neighbours)}
        if weights is not None or pretrain_epochs:
            results["untrained"] = measure(untrained(loaded, images, config), images, config, neighbours=neighbours)
    from nni_cssnas.base.files import write_atomically

    output.mkdir(parents=True, exist_ok=True)
    content = {name: result.to_dict() for name, result in results.items()}
    write_atomically(
        path, json.dumps({**content, "neighbours": neighbours, "architecture": loaded.architecture.to_dict()}, indent=1)
    )
    for name, result in results.items():
        console.print(f"{name}: k-NN {result.knn:.2%}, linear {result.linear:.2%}", highlight=False)
    console.print(f"  {path}", soft_wrap=True, highlight=False)


@app.command()
def compare(
    found: Annotated[
        list[str],
        typer.Argument(help="What was found: genotypes, files, folders of `best` or `screen`, experiments' ids."),
    ],
    recipe: Recipe = "cifar10",
    data: Data = "cifar10",
    val: Val = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; the same command goes on there.")] = Path(
        "compared"
    ),
    random: Annotated[
        int, typer.Option("--random", min=0, help="Random architectures of the same space and size.")
    ] = 6,
    baselines: Annotated[
        list[str] | None, typer.Option("--baseline", help="Published cells; default: DARTS_V2. May be repeated.")
    ] = None,
    searches: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            help="NAME=ITEM,ITEM: these (numbers from 1, or patterns) are of one search; may be repeated. Default: files of "
            "one folder are of one search.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="Trainings of each.")] = 2,
    params: Annotated[
        int | None, typer.Option(min=1, help="Parameters of all; default: those of the first found with --channels.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0.001, help="Largest relative difference in parameters.")] = 0.15,
    space: Annotated[
        str | None, typer.Option("--space", help="Take the arguments as samples of this NNI model space.")
    ] = None,
    arguments: Arguments = "",
    epochs: Epochs = None,
    batch_size: Batch = None,
    channels: Channels = None,
    cells: Cells = None,
    size: Size = None,
    settings: Settings = None,
    draw: Annotated[int, typer.Option("--draw", min=0, help="Seed of the random architectures.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time; default: one for each core, one GPU.")
    ] = None,
    device: Device = None,
    root: Root = None,
    download: Download = False,
) -> None:
    """Did the search help? Train what was found, random cells of the same size and DARTS_V2 alike, with labels."""
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from nni_cssnas.config import SpaceConfig

    make_importable(Path.cwd())  # a space of the user's own
    home = None if space is None else SpaceConfig(name=space, arguments=mapping(arguments))
    config = _config(
        recipe,
        {
            "epochs": epochs,
            "batch_size": batch_size,
            "channels": channels,
            "num_cells": cells,
            "size": size,
            "device": device,
        },
        settings,
    )

    import torch

    from nni_cssnas.base.device import resolve_device
    from nni_cssnas.comparison import run as comparison
    from nni_cssnas.comparison.searches import searches_of
    from nni_cssnas.comparison.summary import summarise, verdict
    from nni_cssnas.spaces.architecture import read_architecture

    # An experiment's id becomes its folder.
    items = [str(architecture_of(item)) if home is None else item for item in found]
    origins = {f"found-{n}": name for n, name in enumerate(searches_of(items, searches or ()), start=1)}
    named = {
        f"found-{n}": read_architecture(item) if home is None else read_architecture(space=home, sample=Path(item))
        for n, item in enumerate(items, start=1)
    }
    load = _labels(data, val, config, root, download)
    with console.status("reading the images"):
        images = load()
    names = ["DARTS_V2"] if baselines is None else baselines
    with console.status("fitting the widths"):
        who = comparison.contestants(
            named,
            config,
            len(images.classes),
            searches=origins,
            num_random=random,
            baselines=names,
            tolerance=tolerance,
            seed=draw,
            params=params,
        )
    comparison.check_folder(who, config, images, output)
    table = Table(title=f"{len(who)} architectures, {seeds} training{'s' * (seeds > 1)} each", title_justify="left")
    for column in ("name", "search", "channels", "parameters"):
        table.add_column(column, justify="left" if column in ("name", "search") else "right")
    for contestant in who:
        table.add_row(contestant.name, escape(contestant.search), str(contestant.channels), f"{contestant.params:,}")
    console.print(table)
    parallel = workers or (torch.get_num_threads() if resolve_device(config.device).type == "cpu" else 1)
    runs = []
    columns = (
        TextColumn("trainings"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with _going_on(output), Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(who) * seeds)
        for run in comparison.compare(who, config, images, output, seeds=range(seeds), workers=parallel, load=load):
            runs.append(run)
            bar.update(task, advance=1, description=f"{run.name}, seed {run.seed}: {run.top1:.2%}")
    paths = comparison.write_results(runs, who, config, output)
    table = Table(title="top-1 accuracy", title_justify="left")
    for column in ("group", "architectures", "mean", "standard error", "spread", "parameters"):
        table.add_column(column, justify="left" if column in ("group", "architectures") else "right")
    groups = summarise(runs)
    for group in groups:
        numbers = [
            "unknown" if value is None else f"{100 * value:.2f}" for value in (group.mean, group.error, group.spread)
        ]
        table.add_row(group.name, group.members, *numbers, f"{group.params:,.0f}")
    console.print(table)
    for one in verdict(groups):
        console.print(one.sentence, highlight=False, markup=False, soft_wrap=True)
    for path in paths:
        console.print(f"  {path}", soft_wrap=True, highlight=False)


@contextmanager
def _going_on(output: Path) -> Iterator[None]:
    """Say at Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(
            f"interrupted; the same command goes on after the last epoch that is finished in {output}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        raise typer.Exit(130) from None


def _architecture(genotype: str | None, space: str | None, arguments: str, sample: Path | None) -> Architecture:
    from nni_cssnas.config import SpaceConfig
    from nni_cssnas.spaces.architecture import read_architecture

    make_importable(Path.cwd())  # a space of the user's own
    home = None if space is None else SpaceConfig(name=space, arguments=mapping(arguments))
    return read_architecture(architecture_of(genotype), space=home, sample=sample)


def _config(recipe: str, values: dict[str, Any], settings: list[str] | None) -> RetrainConfig:
    from nni_cssnas.config import merge
    from nni_cssnas.training.config import RetrainConfig, parse_settings

    given = {name: value for name, value in values.items() if value is not None}
    return RetrainConfig.load(recipe, **merge(given, parse_settings(settings or ())))


def _labels(
    data: str, val: str | None, config: RetrainConfig, root: Path | None, download: bool
) -> Callable[[], LabelledImages]:
    """What reads the images; worker processes call it again."""
    from nni_cssnas.images.labelled import load_labelled

    return partial(
        load_labelled,
        data,
        config.size,
        val=val,
        validation=config.validation,
        seed=config.seed,
        resident_gb=config.resident_gb,
        root=root,
        download=download,
    )


def _labelled(data: str, val: str | None, config: RetrainConfig, root: Path | None, download: bool) -> LabelledImages:
    with console.status("reading the images"):
        return _labels(data, val, config, root, download)()


def _unlabelled(source: str, config: RetrainConfig, download: bool) -> Any:
    from nni_cssnas.config import ImagesConfig
    from nni_cssnas.images.sources import load_images

    images = ImagesConfig(source=source, size=config.size, num_images=None, download=download)
    return load_images(images)


def _line(row: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:.0f}/{epochs}: loss {row['train_loss']:.4f}, top-1 {row['train_top1']:.2%}, "
        f"validation top-1 {row['val_top1']:.2%}, {row['seconds']:.1f} s"
    )
