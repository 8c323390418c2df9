"""What a search found: list, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_cssnas.cli.app import answer, app, console, show_best
from nni_cssnas.cli.options import PATHS, Experiment, Json


@app.command()
def best(
    experiment: Experiment,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many architectures to list.")] = 5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for genotype.json and the pictures.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another architecture that lies there.")] = False,
    as_json: Json = False,
) -> None:
    """List the best architectures of an experiment, write the best one and draw it."""
    import nni_cssnas
    from nni_cssnas.results.experiments import find_experiment

    with answer(as_json) as give:
        show_best(find_experiment(experiment), top=top, output=output, force=force)
        if as_json:
            give(nni_cssnas.best(experiment).table[:top])


@app.command()
def report(
    experiment: Experiment,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many architectures to list.")] = 20,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Write the pictures into this folder too, as SVG and PNG.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace whatever lies there.", rich_help_panel=PATHS)] = False,
) -> None:
    """Write what an experiment found as one HTML file; also while it runs."""
    import nni_cssnas

    with console.status("drawing"):
        written = nni_cssnas.report(experiment, output, top=top, pictures=pictures, force=force)
    for path in written:
        console.print(f"  {path}", soft_wrap=True, highlight=False)
