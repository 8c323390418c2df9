"""What a search found: list, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nni_cssnas.cli.app import answer, app, console, show_best, show_front
from nni_cssnas.cli.options import PATHS, Experiment, Json

Objective = Annotated[
    list[str] | None,
    typer.Option(
        "--objective",
        help="What is small on the front: params, macs or another number of the records; may be repeated "
        "(default: as the tuner's objectives say, else params).",
    ),
]


@app.command()
def best(
    experiment: Experiment,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many architectures to list.")] = 5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for genotype.json and the pictures.")
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="List and write the best trade-offs of score and cost instead.")
    ] = False,
    objective: Objective = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another architecture that lies there.")] = False,
    as_json: Json = False,
) -> None:
    """List the best architectures of an experiment, or its front; write the best one, or all of the front, and draw."""
    import nni_cssnas
    from nni_cssnas.errors import ConfigError
    from nni_cssnas.results.experiments import find_experiment
    from nni_cssnas.results.front import write_front

    if objective and not front:
        raise ConfigError(f"--objective is {objective[0]!r}, which only --front uses")
    with answer(as_json) as give:
        if front:
            result = nni_cssnas.best(experiment, objectives=objective or ())
            assert result.folder is not None
            rows = show_front(result)
            for path in write_front(
                result.front_view(), output or result.folder / "best", force=force or output is None
            ):
                console.print(f"  {path}", soft_wrap=True, highlight=False)
            give(rows)
            return
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
    objective: Objective = None,
    force: Annotated[bool, typer.Option("--force", help="Replace whatever lies there.", rich_help_panel=PATHS)] = False,
) -> None:
    """Write what an experiment found as one HTML file; also while it runs."""
    import nni_cssnas

    with console.status("drawing"):
        written = nni_cssnas.report(
            experiment, output, top=top, pictures=pictures, objectives=objective or (), force=force
        )
    for path in written:
        console.print(f"  {path}", soft_wrap=True, highlight=False)
