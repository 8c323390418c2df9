"""What a search found: list, report, screen, export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from nni_cssnas.base.paths import make_importable
from nni_cssnas.cli.app import app, architecture_of, console, mapping, short, show_best, show_references, steps


@app.command()
def best(
    experiment: Annotated[str, typer.Argument(help="NNI's id of the experiment, or a folder that holds its records.")],
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many architectures to list.")] = 5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for genotype.json and the pictures.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another architecture that lies there.")] = False,
) -> None:
    """List the best architectures of an experiment, write the best one and draw it."""
    from nni_cssnas.results.experiments import find_experiment

    show_best(find_experiment(experiment), top=top, output=output, force=force)


@app.command()
def report(
    experiment: Annotated[str, typer.Argument(help="NNI's id of the experiment, or a folder that holds its records.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many architectures to list.")] = 20,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Write the pictures into this folder too, as SVG and PNG.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace whatever lies there.")] = False,
) -> None:
    """Write what an experiment found as one HTML file; also while it runs."""
    from nni_cssnas.results.experiments import find_experiment
    from nni_cssnas.results.report import write_pictures, write_report

    folder = find_experiment(experiment)
    with console.status("drawing"):
        write_report(folder, output, top=top, force=force)
        written = [output, *(write_pictures(folder, pictures) if pictures else [])]
    for path in written:
        console.print(f"  {path}", soft_wrap=True, highlight=False)


@app.command()
def screen(
    config: Annotated[Path | None, typer.Argument(help="A proxy.yml; the options below replace what it says.")] = None,
    space: Annotated[str | None, typer.Option("--space", help="module:attribute of an NNI model space.")] = None,
    images: Annotated[str | None, typer.Option("--images", help="A folder, an .npz, cifar10 or tiles.")] = None,
    score: Annotated[
        str | None, typer.Option("--score", help="untrained (tenths of a second each), contrastive or combined.")
    ] = None,
    params: Annotated[
        int | None, typer.Option("--params", help="Give every network of cells the width with so many parameters.")
    ] = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="How many random architectures.")] = 1000,
    guided: Annotated[int, typer.Option("--guided", min=0, help="Then so many that TPE proposes.")] = 0,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Stop after this time.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draw, and of all that is scored.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (default: one for each core).")] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many of the best to write and draw.")] = 1,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path("screened"),
    force: Annotated[bool, typer.Option("--force", help="Replace results that lie there.")] = False,
) -> None:
    """Search without an experiment: random architectures, and those that TPE learns from them."""
    from nni_cssnas.config import ProxyConfig
    from nni_cssnas.errors import ConfigError

    values: dict[str, object] = {}
    if config is not None:
        values = ProxyConfig.load(config).model_dump(exclude_unset=True)
        make_importable(config.parent)
    make_importable(Path.cwd())  # a space of the user's own
    if space is not None:
        values["space"] = {"name": space}
    if images is not None:
        values["images"] = {**(values.get("images") or {}), "source": images}  # type: ignore[dict-item]
    if params is not None:
        chosen: dict[str, Any] = values.get("space") or {}  # type: ignore[assignment]
        values["space"] = {**chosen, "arguments": {**chosen.get("arguments", {}), "params": params}}
    if seed is not None:
        values["seed"] = seed
    if score is not None:
        values["score"] = score
    settings = ProxyConfig(**values)
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes is {minutes:g}; it must be more than 0 (leave it out for no limit)")

    from nni_cssnas.results.screened import refuse_to_overwrite, write_screened
    from nni_cssnas.results.screening_log import LOG_NAME

    if not force and not (output / LOG_NAME).exists():
        refuse_to_overwrite(output, top)

    from nni_cssnas.judge.screening import Screened, Screener
    from nni_cssnas.search.explore import by_score, choose, explore, open_log

    with console.status("reading the images"):
        screener = Screener(settings)
    log = open_log(screener, output, force=force)
    if log.screened:
        console.print(
            f"{log.path} holds {log.screened} architectures of this search; it goes on from there", soft_wrap=True
        )
    found: list[Screened] = []
    ranked: list[Screened] = []
    try:
        show_references(screener.proxy)
        with screener.spread(workers or screener.default_workers(num + guided), log) as spread:
            seconds = None if minutes is None else 60 * minutes
            drawn = explore(screener, spread, num, guided, seed=settings.seed, seconds=seconds)
            for item in steps(drawn, total=num + guided, description="screening"):
                found.append(item)

            def watched(method: Any, items: Any) -> Iterator[Any]:
                return steps(spread(method, items), total=len(items), description="looking at the best once more")

            ranked = choose(found, settings, watched)
    except KeyboardInterrupt:
        console.print(
            f"\ninterrupted; {log.screened} screened architectures are kept in {log.path}, and the same command goes on",
            soft_wrap=True,
        )
        if not found:
            raise typer.Exit(130) from None
    interrupted = not ranked
    ranked = ranked or by_score(found)
    if not ranked:
        raise ConfigError(
            f"nothing was screened in {minutes:g} minutes; the same command goes on from what was begun, or give it more --minutes"
        )
    paths = write_screened(ranked, output, top=top)
    looked = sum(item.second_look is not None for item in ranked)
    place = 1 + sum(item.score > ranked[0].score for item in ranked)
    by = (
        f"place {place} by score, and first of the {looked} best that were looked at once more"
        if looked
        else "by score alone"
    )
    console.print(
        f"best of {len(ranked)} architectures: score {ranked[0].score:.4f} ({by})", highlight=False, soft_wrap=True
    )
    for path in paths:
        console.print(f"  {path}", soft_wrap=True, highlight=False)
    if interrupted:
        raise typer.Exit(130)


@app.command()
def export(
    genotype: Annotated[
        str | None,
        typer.Argument(
            help="A published name, the DARTS form, JSON, a file with it (a log, too), a folder of `best`, or an experiment's id. "
            "Not needed with --weights of `retrain`."
        ),
    ] = None,
    format: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="python, onnx, torchscript or state-dict; may be repeated."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file; its ending is the format's if it has none.")
    ] = Path("network"),
    space: Annotated[str | None, typer.Option("--space", help="module:attribute of another NNI model space.")] = None,
    arguments: Annotated[str, typer.Option(help="Arguments of the space, as YAML: '{width: 16}'.")] = "",
    sample: Annotated[Path | None, typer.Option("--sample", help="Its choices: sample.json of `best`.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="Of `retrain`, whose file knows its network, or a state dict (default: freshly drawn).",
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(min=0, help="Logits; 0 for pooled features (default: those of the weights, else 10)."),
    ] = None,
    cells: Annotated[
        int | None, typer.Option(min=3, help="Depth of a network of cells (default: that of the weights, else 20).")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Width of its first cells (default: that of the weights, else 36).")
    ] = None,
    stem: Annotated[
        str | None, typer.Option(help="cifar or imagenet (default: that of the weights, else cifar).")
    ] = None,
    auxiliary: Annotated[bool, typer.Option("--auxiliary", help="With the head that helps training.")] = False,
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Edge of the images (default: that of the weights, else 32, or 224 for imagenet)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of fresh weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write the network of an architecture as files that need nothing of this package."""
    from nni_cssnas.errors import ConfigError, ExportError, nearest

    formats = format or ["python"]
    endings = {"python": ".py", "onnx": ".onnx", "torchscript": ".pt", "state-dict": ".pth"}
    for name in formats:
        if name not in endings:
            raise ConfigError(f"--format is {name!r}{nearest(name, endings)}")
    if output.suffix and len(formats) > 1:
        raise ConfigError(f"--output is {output} for {len(formats)} formats; leave the ending out")
    paths = {name: output if output.suffix else output.with_suffix(endings[name]) for name in formats}
    for path in paths.values():
        if path.exists() and not force:
            raise ExportError(f"{path} is there already; name another file with --output, or use --force")

    from dataclasses import asdict

    import torch

    from nni_cssnas import __version__
    from nni_cssnas.config import SpaceConfig
    from nni_cssnas.formats import export as write
    from nni_cssnas.formats import load_weights
    from nni_cssnas.scores.cost import multiply_adds, num_parameters
    from nni_cssnas.spaces.architecture import read_architecture
    from nni_cssnas.training.weights import Weights, own_weights

    make_importable(Path.cwd())  # a space of the user's own
    named = genotype is not None or space is not None or sample is not None
    known = None if weights is None else own_weights(weights) if named else Weights.read(weights)
    given = {"num_classes": classes, "num_cells": cells, "channels": channels, "stem": stem, "size": size}
    given = {name: value for name, value in given.items() if value is not None}
    home = None if space is None else SpaceConfig(name=space, arguments=mapping(arguments))
    trained: dict[str, Any] = {}
    if known is not None:
        asked = read_architecture(architecture_of(genotype), space=home, sample=sample) if named else None
        known.check(str(weights), asked, given)
        architecture = known.architecture
        shape = {**asdict(known.shape), "auxiliary": auxiliary}
        trained = {"class names": ", ".join(known.classes), "input mean": known.mean, "input std": known.std}
    else:
        architecture = read_architecture(architecture_of(genotype), space=home, sample=sample)
        default = {"num_classes": 10, "num_cells": 20, "channels": 36, "stem": "cifar"}
        default["size"] = 224 if stem == "imagenet" else 32
        shape = {**default, **given, "auxiliary": auxiliary}
    edge = shape["size"]
    torch.manual_seed(seed)
    network = architecture.build(**shape)
    if weights is not None:
        load_weights(network, weights)
    about = {
        "title": f"A network exported by nni-cssnas {__version__}.",
        **{name: json.dumps(value) for name, value in architecture.to_dict().items()},
        **({name: shape[name] for name in ("num_cells", "channels", "stem")} if architecture.genotype else {}),
        "classes": shape["num_classes"],
        "image size": edge,
        **trained,
        "parameters": num_parameters(network),
        "multiply-adds": multiply_adds(network, (3, edge, edge)),
        "weights": weights.name if weights else f"fresh, seed {seed}",
        "torch": torch.__version__,
    }
    cost = f"{short(about['parameters'])} parameters, {short(about['multiply-adds'])} multiply-adds"  # type: ignore[arg-type]
    console.print(cost, highlight=False)
    for name, path in paths.items():
        with console.status(f"writing {path}"):
            done = write(network, path, name, size=edge, about=about, force=force)
        agrees = f", differs from the network by {done.difference:.1g}" if done.difference is not None else ""
        console.print(f"  {path}: {done.size / 1e3:,.0f} kB{agrees}", soft_wrap=True, highlight=False)
