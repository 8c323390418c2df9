"""Experiments: prepare one, check it, run it, look at those that are there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nni_cssnas.base.paths import make_importable
from nni_cssnas.cli.app import Steps, answer, app, console, mapping, short
from nni_cssnas.cli.options import Json, Keep, LatencyFile, MaxLatency, MaxMacs, MaxParams, Port, Public

if TYPE_CHECKING:
    from nni_cssnas.bridge.rehearsal import Rehearsal

Top = Annotated[int, typer.Option("--top", "-k", min=1, help="How many of the best trials to list.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="NNI's id of an experiment that is not running.")]
Config = Annotated[Path, typer.Argument(help="The experiment.yml that nnictl shall run.")]


@app.command()
def run(config: Config, port: Port = None, public: Public = False, keep: Keep = False, top: Top = 3) -> None:
    """Run an experiment with nnictl, wait for it with a progress bar, and show the best architecture."""
    from nni_cssnas.bridge import launch
    from nni_cssnas.cli.watching import follow

    launch.check_reach(config, public=public)
    _rehearse(config, port)
    follow(lambda: launch.create(config, port=port, public=public), keep=keep, top=top)


@app.command()
def check(config: Config, port: Port = None) -> None:
    """Check experiment.yml, proxy.yml, the space, the images and other machines, and start nothing; run does this too."""
    found = _rehearse(config, port)
    number = "no limit of trials" if found.trials is None else f"{found.trials} trials"
    if found.space is None:
        number += "; its trials are not this package's or run elsewhere, so space and images were not looked at"
    console.print(f"{config} can be run: {number}", soft_wrap=True, highlight=False)


def _rehearse(config: Path, port: int | None) -> Rehearsal:
    from nni_cssnas.bridge.rehearsal import rehearse
    from nni_cssnas.search.screen import Step

    with Steps() as show:

        def tell(stage: str, done: int, total: int) -> None:
            show(Step(stage, done, total))
            if stage == "checked":
                console.print(f"{done} images; the space and the score can be used", highlight=False)

        def tell_machine(line: str) -> None:
            console.print(line, soft_wrap=True, highlight=False, markup=False)

        return rehearse(config, on_stage=tell, on_machine=tell_machine, port=port)


@app.command()
def resume(experiment: Id, port: Port = None, public: Public = False, keep: Keep = False, top: Top = 3) -> None:
    """Go on with an experiment that was stopped or killed, as run does."""
    from nni_cssnas.bridge import launch
    from nni_cssnas.cli.watching import follow

    follow(lambda: launch.resume(experiment, port=port, public=public), keep=keep, top=top)


@app.command()
def view(experiment: Id, port: Port = None, public: Public = False) -> None:
    """Open the portal of an experiment that is not running."""
    from nni_cssnas.bridge import launch
    from nni_cssnas.cli.watching import announce

    with console.status("starting the NNI manager"):
        started = launch.view(experiment, port=port, public=public)
    announce(started)
    console.print(f"stop it with: nnictl stop {started.id}", highlight=False)


@app.command("list")
def list_experiments(as_json: Json = False) -> None:
    """List the experiments of this machine, the newest first, and the size of the cache."""
    from nni_cssnas.bridge.stored import folder_size, stored_experiments
    from nni_cssnas.images.cache import cache_folder

    with answer(as_json) as give:
        with console.status("counting"):
            found = stored_experiments()
            cache = folder_size(cache_folder())
        if found:
            from rich.table import Table

            table = Table()
            for name in ("id", "name", "status", "begun", "trials", "best score", "size"):
                table.add_column(name, justify="right" if name in ("trials", "best score", "size") else "left")
            for item in found:
                begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.begun)) if item.begun else ""
                best = "" if item.best is None else f"{item.best:.4f}"
                table.add_row(item.id, item.name, item.status, begun, str(item.trials), best, f"{short(item.size)}B")
            console.print(table)
            for item in found:
                if item.portal is not None:
                    console.print(f"portal of {item.id}: {item.portal}", soft_wrap=True, highlight=False)
        else:
            console.print("nnictl of this Python environment knows no experiment")
        console.print(f"cache: {short(cache)}B in {cache_folder()}", soft_wrap=True, highlight=False)
        give({"experiments": [vars(item) for item in found], "cache": {"folder": cache_folder(), "size": cache}})


@app.command()
def clean(
    experiments: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Experiments to delete, with all that they found.")
    ] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Delete decoded images; they are made again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete experiments, or the cache, after a question."""
    from nni_cssnas.bridge.stored import folder_size, remove_experiment, stored_experiments
    from nni_cssnas.errors import ConfigError, ExperimentError, nearest
    from nni_cssnas.images.cache import cache_folder, empty_cache

    if not experiments and not cache:
        raise ConfigError("name experiments to delete (nni-cssnas list shows them), or give --cache")
    known = {item.id: item for item in stored_experiments()}
    for name in experiments or ():
        if name not in known:
            raise ExperimentError(f"there is no experiment {name!r}{nearest(name, known) if known else ''}")
        item = known[name]
        console.print(
            f"{item.folder}: {item.trials} finished trials, {short(item.size)}B", soft_wrap=True, highlight=False
        )
    if cache:
        console.print(f"{cache_folder()}: {short(folder_size(cache_folder()))}B", soft_wrap=True, highlight=False)
    if not yes and not typer.confirm("delete this for ever?"):
        raise typer.Exit(1)
    freed = sum(remove_experiment(name) for name in experiments or ())
    freed += empty_cache() if cache else 0
    console.print(f"{short(freed)}B are free again", highlight=False)


@app.command()
def env() -> None:
    """Print what protects plain nnictl too: eval "$(nni-cssnas env)"."""
    from nni_cssnas.bridge.guard import shell_line

    print(shell_line())


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the experiment; made if it is not there.")],
    space: Annotated[
        str, typer.Option("--space", help="module:attribute of an NNI model space.")
    ] = "nni_cssnas.spaces:CellSpace",
    images: Annotated[str, typer.Option("--images", help="A folder, an .npz, cifar10 or tiles.")] = "tiles",
    arguments: Annotated[str, typer.Option(help="Arguments of the space, as YAML: '{width: 16}'.")] = "",
    size: Annotated[int | None, typer.Option(min=8, help="Edge of the images in pixels.")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Layer that gives the logits, where it cannot be found; '' for none.")
    ] = None,
    score: Annotated[str, typer.Option(help="untrained, contrastive or combined.")] = "untrained",
    preset: Annotated[str, typer.Option(help="cpu, gpu or paper.")] = "cpu",
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="What the best cells will be trained by: cifar10, imagenet, isic, folder or a file.yml "
            "(default: folder for a folder of images, else cifar10).",
        ),
    ] = None,
    max_params: MaxParams = None,
    max_macs: MaxMacs = None,
    max_latency_ms: MaxLatency = None,
    latency: LatencyFile = None,
    trials: Annotated[int, typer.Option(min=1, help="Architectures to try.")] = 100,
    concurrency: Annotated[int, typer.Option(min=1, help="Trials at a time.")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace files that lie there.")] = False,
) -> None:
    """Write a ready experiment for any model space, after scoring one of its architectures."""
    settings: dict[str, object] = {"preset": preset, "score": score, "seed": seed}
    given = mapping(arguments)
    settings["space"] = {
        "name": space,
        **({"arguments": given} if given else {}),
        **({} if classifier is None else {"classifier": classifier}),
    }
    source = images if images in ("tiles", "cifar10") else str(Path(images).expanduser().resolve())
    settings["images"] = {"source": source, **({"size": size} if size else {})}
    if size is not None:
        # A preset's views are smaller than its images, which may be too small for the space.
        settings["views"] = {"input_size": size}

    from nni_cssnas.bridge.scaffold import Scaffold
    from nni_cssnas.config import CELL_SPACE, ConstraintsConfig
    from nni_cssnas.errors import ConfigError
    from nni_cssnas.search.screen import Step
    from nni_cssnas.training.config import target_of

    default = "cifar10" if space == CELL_SPACE and not Path(source).is_dir() else None
    if target := target_of(recipe or default, source, space):
        settings["target"] = target.model_dump()
    make_importable(Path.cwd())  # a space of the user's own
    if latency is not None and max_latency_ms is None:
        raise ConfigError(f"--latency is {str(latency)!r}, which only --max-latency-ms uses")
    limits = ConstraintsConfig(
        max_params=max_params,
        max_macs=max_macs,
        max_latency_ms=max_latency_ms,
        latency=None if latency is None else latency.resolve(),
    )
    scaffold = Scaffold(folder, settings, trials=trials, concurrency=concurrency, limits=limits)
    if not force:
        scaffold.refuse_to_overwrite()
    with Steps() as show:
        scaffold.judge.rehearse(lambda stage, done, total: show(Step(stage, done, total)), scaffold.candidate)
    with console.status("scoring one random architecture"):
        result = scaffold.check()
    cost = f"{short(result.components['params'])} parameters, {short(result.components['macs'])} multiply-adds"
    console.print(f"a random architecture of {space} was scored: {cost}", highlight=False)
    for path in scaffold.write():
        console.print(f"  {path}", soft_wrap=True, highlight=False)
    console.print(f"start the search with:\n  {scaffold.command}", soft_wrap=True, highlight=False)


@app.command()
def space(
    config: Annotated[Path, typer.Argument(help="The proxy.yml that names the space.")] = Path("proxy.yml"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: search_space.json beside the config.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file with other contents.")] = False,
) -> None:
    """Write search_space.json for an experiment."""
    from nni_cssnas.base.files import write_atomically
    from nni_cssnas.config import ProxyConfig
    from nni_cssnas.errors import ConfigError

    settings = ProxyConfig.load(config)
    from nni_cssnas.spaces import make_space, search_space

    make_importable(config.parent)  # a space of the user's own lies beside its experiment
    choices = search_space(make_space(settings.space))
    path = output or config.parent / "search_space.json"
    text = json.dumps(choices, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text and not force:
        raise ConfigError(f"{path} has other contents; use --force to replace it")
    write_atomically(path, text)
    console.print(f"{path}: {len(choices)} choices", soft_wrap=True)


@app.command()
def register() -> None:
    """Make the tuners known to nnictl by name: CssnasTPE and CssnasHyperopt."""
    from nni_cssnas.bridge import launch

    for line in launch.register_tuners():
        console.print(line, highlight=False)
