"""Experiments: run one, write one, prepare one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nni_cssnas.base.paths import make_importable
from nni_cssnas.cli.app import app, console, mapping, short, show_references

if TYPE_CHECKING:
    from nni_cssnas.config import ProxyConfig

Port = Annotated[int | None, typer.Option(help="Port of the portal; default: 8080 or the next free one.")]
Public = Annotated[
    bool, typer.Option("--public", help="Open the portal to other machines, at an address with a secret in it.")
]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the manager and the portal running at the end.")]
Top = Annotated[int, typer.Option("--top", "-k", min=1, help="How many of the best trials to list.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="NNI's id of an experiment that is not running.")]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The experiment.yml that nnictl shall run.")],
    port: Port = None,
    public: Public = False,
    keep: Keep = False,
    top: Top = 3,
) -> None:
    """Run an experiment with nnictl, wait for it with a progress bar, and show the best architecture."""
    from nni_cssnas.bridge import launch
    from nni_cssnas.bridge.experiment_file import check_experiment
    from nni_cssnas.cli.watching import follow

    checked = check_experiment(config)
    if checked.proxy is not None and checked.local:  # else device and images are another machine's
        _rehearse(checked.proxy, checked.code_directory)
    follow(lambda: launch.create(config, port=port, public=public), keep=keep, top=top)


def _rehearse(proxy: ProxyConfig, code_directory: Path) -> None:
    """Find what every trial would fail of, and score the reference architectures that all of them need."""
    make_importable(code_directory)  # a space of the user's own
    with console.status("looking at the space and the images"):
        from nni_cssnas.judge.proxy import Proxy, references_of
        from nni_cssnas.spaces import make_space

        judge = Proxy(proxy, references_of(make_space(proxy.space), proxy))
        judge.prepare()
        judge.try_one()
    console.print(f"{len(judge.images)} images, space {proxy.space.name}", highlight=False)
    show_references(judge)


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

    make_importable(Path.cwd())  # a space of the user's own
    scaffold = Scaffold(folder, settings, trials=trials, concurrency=concurrency)
    if not force:
        scaffold.refuse_to_overwrite()
    with console.status("looking at the space and the images"):
        judge = scaffold.judge
        judge.try_one()
    show_references(judge)
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
