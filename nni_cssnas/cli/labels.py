"""After the search: train with labels, probe features, compare with random cells."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nni_cssnas.cli.app import answer, app, console, mapping, short
from nni_cssnas.cli.options import (
    PATHS,
    RECIPE,
    RECIPES,
    Arguments,
    Batch,
    Cells,
    Channels,
    Data,
    Device,
    Download,
    Epochs,
    ForceRun,
    Genotype,
    Json,
    Recipe,
    Root,
    Sample,
    Seed,
    Settings,
    Size,
    Space,
    Val,
    Workers,
)

if TYPE_CHECKING:
    from nni_cssnas.comparison.contestants import Contestant
    from nni_cssnas.comparison.summary import Group, Run
    from nni_cssnas.config import SpaceConfig
    from nni_cssnas.images.labelled import LabelledImages

WITHOUT = "Training without labels first"


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
    lr: Annotated[
        float | None, typer.Option(help=f"Learning rate at the start {RECIPES}", rich_help_panel=RECIPE)
    ] = None,
    label_fraction: Annotated[
        float | None,
        typer.Option(help="Part of the labels that is used: 0.01, 0.1 (default: 1).", rich_help_panel=RECIPE),
    ] = None,
    pretrain: Annotated[
        str | None,
        typer.Option(help="contrastive: train without labels first (default: none).", rich_help_panel=WITHOUT),
    ] = None,
    pretrain_epochs: Annotated[
        int | None,
        typer.Option(
            "--pretrain-epochs",
            min=1,
            help="Epochs without labels, with --pretrain contrastive, which this implies (default: 100).",
            rich_help_panel=WITHOUT,
        ),
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(
            help="Images for that: a folder, an .npz, cifar10 (default: those of --data).", rich_help_panel=WITHOUT
        ),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="GPUs; several share the work by DDP (default: 1).", rich_help_panel=PATHS)
    ] = None,
    amp: Annotated[str | None, typer.Option(help="off, bf16 or fp16 (default: off).", rich_help_panel=PATHS)] = None,
    settings: Settings = None,
    seed: Seed = None,
    device: Device = None,
    root: Root = None,
    download: Download = False,
    force: ForceRun = False,
) -> None:
    """Train an architecture with labels, as DARTS and the paper do; stopped, the same command goes on."""
    # Under DDP Lightning starts this command once for each device; one of them speaks.
    console.quiet = os.environ.get("LOCAL_RANK", "0") != "0"
    from nni_cssnas.errors import ConfigError

    implied = pretrain is None and pretrain_epochs is not None
    if pretrain == "none" and pretrain_epochs is not None:
        raise ConfigError(f"--pretrain-epochs is {pretrain_epochs}, but --pretrain is 'none'; leave one out")
    values = {
        "epochs": epochs,
        "batch_size": batch_size,
        "channels": channels,
        "num_cells": cells,
        "size": size,
        "lr": lr,
        "label_fraction": label_fraction,
        "pretrain": "contrastive" if implied else pretrain,
        "contrastive": None if pretrain_epochs is None else {"epochs": pretrain_epochs},
        "devices": devices,
        "strategy": "ddp" if devices is not None and devices > 1 else None,
        "amp": amp,
        "seed": seed,
        "device": device,
    }
    import nni_cssnas
    from nni_cssnas.verbs import recipe_of

    architecture, home = one_architecture(genotype, space, arguments, sample)
    status = console.status("reading the images")

    def counted(images: LabelledImages) -> None:
        console.print(
            f"{len(images.train)} images to train on, {len(images.val)} to validate with, {len(images.classes)} classes"
        )
        status.update("timing a few batches")

    def say(plan: object) -> None:
        status.stop()  # before Lightning's bar begins
        console.print(str(plan), highlight=False, markup=False, soft_wrap=True)

    given = _settings(values, settings)
    total = recipe_of(recipe, given)  # for the numbers of epochs alone
    with _going_on(output), status:
        result = nni_cssnas.retrain(
            architecture,
            data,
            recipe=recipe,
            val=val,
            output=output,
            space=home,
            unlabelled=unlabelled,
            root=root,
            download=download,
            force=force,
            progress_bar=True,
            on_note=lambda note: console.print(f"note: {note}", highlight=False),
            on_images=counted,
            on_plan=None if console.quiet else say,
            on_pretrain_epoch=lambda epoch, loss: console.print(
                f"contrastive epoch {epoch + 1}/{total.contrastive.epochs}: loss {loss:.4f}", highlight=False
            ),
            on_epoch=lambda row: console.print(_line(row, total.epochs), highlight=False),
            **given,
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
    force: ForceRun = False,
    as_json: Json = False,
) -> None:
    """Tell how good frozen features are: k-NN and a linear classifier on them, and both on the untrained network."""
    import nni_cssnas

    values = {"channels": channels, "num_cells": cells, "size": size, "seed": seed, "device": device}
    architecture, home = (None, None) if weights is not None else one_architecture(genotype, space, arguments, sample)
    if weights is not None and (genotype is not None or space is not None):
        architecture = genotype or space  # refused below
    with answer(as_json) as give, _bar("training without labels", pretrain_epochs) as advance:
        result = nni_cssnas.probe(
            architecture,
            data,
            weights=weights,
            pretrain_epochs=pretrain_epochs,
            neighbours=neighbours,
            recipe=recipe,
            val=val,
            output=output,
            space=home,
            root=root,
            download=download,
            force=force,
            on_pretrain_epoch=lambda epoch, loss: advance(f"loss {loss:.4f}"),
            **_settings(values, settings),
        )
        for name in ("features", "untrained"):
            one = getattr(result, name)
            if one is not None:
                console.print(f"{name}: k-NN {one.knn:.2%}, linear {one.linear:.2%}", highlight=False)
        console.print(f"  {result.path}", soft_wrap=True, highlight=False)
        give(dataclasses.asdict(result))


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
    random_seed: Annotated[
        int, typer.Option("--random-seed", min=0, help="Seed of the draw of the random architectures.")
    ] = 0,
    workers: Workers = None,
    device: Device = None,
    root: Root = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Did the search help? Train what was found, random cells of the same size and DARTS_V2 alike, with labels."""
    import nni_cssnas

    values = {
        "epochs": epochs,
        "batch_size": batch_size,
        "channels": channels,
        "num_cells": cells,
        "size": size,
        "device": device,
    }
    home = None if space is None else {"name": space, "arguments": mapping(arguments)}
    with (
        answer(as_json) as give,
        _going_on(output),
        console.status("reading the images and fitting the widths") as status,
        _bar("trainings", None) as advance,
    ):

        def told(who: Sequence[Contestant]) -> None:
            status.stop()
            _show_contestants(who, seeds)
            advance("", total=len(who) * seeds, step=0)

        def trained(run: Run) -> None:
            advance(f"{run.name}, seed {run.seed}: {run.top1:.2%}")

        result = nni_cssnas.compare(
            found,
            data,
            recipe=recipe,
            val=val,
            output=output,
            random=random,
            baselines=("DARTS_V2",) if baselines is None else baselines,
            searches=searches or (),
            seeds=seeds,
            params=params,
            tolerance=tolerance,
            space=home,
            random_seed=random_seed,
            workers=workers,
            root=root,
            download=download,
            on_contestants=told,
            on_training=trained,
            **_settings(values, settings),
        )
    with answer(as_json) as give:
        _show_groups(result.groups)
        for one in result.verdicts:
            console.print(one.sentence, highlight=False, markup=False, soft_wrap=True)
        if result.caveat:
            console.print(f"note: {result.caveat}", highlight=False, markup=False, soft_wrap=True)
        for path in result.files:
            console.print(f"  {path}", soft_wrap=True, highlight=False)
        give(dataclasses.asdict(result))


def _show_contestants(who: Sequence[Contestant], seeds: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{len(who)} architectures, {seeds} training{'s' * (seeds > 1)} each", title_justify="left")
    for column in ("name", "search", "channels", "parameters"):
        table.add_column(column, justify="left" if column in ("name", "search") else "right")
    for contestant in who:
        table.add_row(contestant.name, escape(contestant.search), str(contestant.channels), f"{contestant.params:,}")
    console.print(table)


def _show_groups(groups: Sequence[Group]) -> None:
    from rich.table import Table

    table = Table(title="top-1 accuracy", title_justify="left")
    for column in ("group", "architectures", "mean", "standard error", "spread", "parameters"):
        table.add_column(column, justify="left" if column in ("group", "architectures") else "right")
    for group in groups:
        numbers = [
            "unknown" if value is None else f"{100 * value:.2f}" for value in (group.mean, group.error, group.spread)
        ]
        table.add_row(group.name, group.members, *numbers, f"{group.params:,.0f}")
    console.print(table)


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


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar, and what moves it on; it appears with the first move. Without a terminal, a line for each move."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, visible=False)
        done = 0

        def advance(said: str, *, total: int | None = total, step: int = 1) -> None:
            nonlocal done
            done += step
            bar.update(
                task,
                description=said,
                completed=done,
                visible=True,
                total=bar.tasks[0].total if total is None else total,
            )
            if said and not console.is_terminal:
                console.print(f"{what}: {done} done; {said}", highlight=False, soft_wrap=True)

        yield advance


def one_architecture(
    genotype: str | None, space: str | None, arguments: str, sample: Path | None
) -> tuple[str | Path | None, SpaceConfig | None]:
    """What the verbs take, from the options of a command: an architecture, and its space where it has no cells.

    Raises
    ------
    GenotypeError
        If not exactly one of both ways is gone.
    """
    from nni_cssnas.config import SpaceConfig
    from nni_cssnas.errors import GenotypeError

    if (space is None) != (sample is None) or (genotype is not None and space is not None):
        raise GenotypeError("name either a genotype, or --space module:attribute with --sample FILE")
    if space is None:
        return genotype, None
    return sample, SpaceConfig(name=space, arguments=mapping(arguments))


def _settings(values: dict[str, Any], settings: list[str] | None) -> dict[str, Any]:
    """What was given of the recipe, by options and by ``--set``."""
    from nni_cssnas.config import merge
    from nni_cssnas.training.config import parse_settings

    given = {name: value for name, value in values.items() if value is not None}
    return merge(given, parse_settings(settings or ()))


def _line(row: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:.0f}/{epochs}: loss {row['train_loss']:.4f}, top-1 {row['train_top1']:.2%}, "
        f"validation top-1 {row['val_top1']:.2%}, {row['seconds']:.1f} s"
    )
