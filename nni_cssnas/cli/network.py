"""A network as a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_cssnas.cli.app import app, console, short
from nni_cssnas.cli.labels import one_architecture
from nni_cssnas.cli.options import ARCHITECTURE, PATHS, Arguments, Sample, Space

WEIGHTS = "(default: that of the weights, else"


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
        typer.Option(
            "--format", "-f", help="python, onnx, torchscript or state-dict; may be repeated (default: python)."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file; its ending is the format's if it has none.")
    ] = Path("network"),
    space: Space = None,
    arguments: Arguments = "",
    sample: Sample = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="Of `retrain`, whose file knows its network, or a state dict (default: freshly drawn).",
            rich_help_panel=ARCHITECTURE,
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Logits; 0 for pooled features (default: those of the weights, else 10).",
            rich_help_panel=ARCHITECTURE,
        ),
    ] = None,
    cells: Annotated[
        int | None,
        typer.Option(min=3, help=f"Depth of a network of cells {WEIGHTS} 20).", rich_help_panel=ARCHITECTURE),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(min=1, help=f"Width of its first cells {WEIGHTS} 36).", rich_help_panel=ARCHITECTURE),
    ] = None,
    stem: Annotated[
        str | None, typer.Option(help=f"cifar or imagenet {WEIGHTS} cifar).", rich_help_panel=ARCHITECTURE)
    ] = None,
    auxiliary: Annotated[
        bool, typer.Option("--auxiliary", help="With the head that helps training.", rich_help_panel=ARCHITECTURE)
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            min=8, help=f"Edge of the images {WEIGHTS} 32, or 224 for imagenet).", rich_help_panel=ARCHITECTURE
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of fresh weights.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that are there.", rich_help_panel=PATHS)
    ] = False,
) -> None:
    """Write the network of an architecture as files that need nothing of this package."""
    from nni_cssnas.errors import ConfigError, ExportError, nearest
    from nni_cssnas.formats.names import FORMATS

    formats = format or ["python"]
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--format is {name!r}{nearest(name, FORMATS)}")
    if output.suffix and len(formats) > 1:
        raise ConfigError(f"--output is {output} for {len(formats)} formats; leave the ending out")
    paths = {name: output if output.suffix else output.with_suffix(FORMATS[name]) for name in formats}
    for path in paths.values():
        if path.exists() and not force:
            raise ExportError(f"{path} is there already; name another file with --output, or use --force")

    import nni_cssnas

    network, home = one_architecture(genotype, space, arguments, sample)
    for number, (name, path) in enumerate(paths.items()):
        with console.status(f"writing {path}"):
            done = nni_cssnas.export(
                network,
                path,
                format=name,
                space=home,
                weights=weights,
                classes=classes,
                cells=cells,
                channels=channels,
                stem=stem,
                size=size,
                auxiliary=auxiliary,
                seed=seed,
                force=force,
            )
        if not number:
            console.print(f"{short(done.params)} parameters, {short(done.macs)} multiply-adds", highlight=False)
        agrees = f", differs from the network by {done.difference:.1g}" if done.difference is not None else ""
        console.print(f"  {path}: {done.size / 1e3:,.0f} kB{agrees}", soft_wrap=True, highlight=False)
