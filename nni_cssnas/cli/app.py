"""The command line itself, and what its commands share."""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from rich.console import Console
from rich.table import Table

from nni_cssnas.base.messages import warning_line
from nni_cssnas.base.threads import wait_politely
from nni_cssnas.errors import CssnasError

__all__ = ["Steps", "answer", "app", "console", "main", "mapping", "short", "show_best", "show_front"]

if TYPE_CHECKING:
    from nni_cssnas.search.result import SearchResult
    from nni_cssnas.search.screen import Step

LINE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""

app = typer.Typer(
    help="Label-free neural architecture search for NNI.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()


def _show_version(wanted: bool) -> None:
    if wanted:
        from nni_cssnas import __version__

        print(f"nni-cssnas {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    """Label-free neural architecture search for NNI."""


@contextmanager
def answer(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Give what prints a result as JSON; with ``--json`` nothing else goes to stdout inside, and without it nothing does."""

    def give(result: Any) -> None:
        if as_json:
            print(json.dumps(result, indent=1, allow_nan=False, default=str))

    before = console.stderr
    console.stderr = before or as_json
    try:
        yield give
    finally:
        console.stderr = before


def mapping(arguments: str) -> dict[str, Any]:
    """``--arguments`` as a mapping."""
    import yaml

    from nni_cssnas.errors import ConfigError

    try:
        given = yaml.safe_load(arguments) if arguments else {}
    except yaml.YAMLError as error:
        raise ConfigError(f"--arguments is not YAML: {error}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"--arguments is {arguments!r}; it must be a mapping, as '{{width: 16}}'")
    return given


def short(value: float | None) -> str:
    if value is None:
        return ""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.4g}"


def show_best(folder: Path, *, top: int, output: Path | None, force: bool) -> None:
    from nni_cssnas.results.best import export_best, rank
    from nni_cssnas.results.records import read_records

    records = read_records(folder)
    ranked = rank(records)
    measured = ranked[0].components
    # As many columns as a terminal of 80 characters has room for.
    last = "channels" if "channels" in measured else "seconds"
    names = [name for name in ("loss", "drop", "held_out", "params", "macs", last) if name in measured]
    table = Table(title=f"best of {len(ranked)} finished trials", title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column("score", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for record in ranked[:top]:
        values = [short(record.components.get(name)) for name in names]
        table.add_row(str(record.sequence), f"{record.score:.4f}", *values)
    console.print(table)
    files = export_best(ranked[0], output or folder / "best", force=force or output is None)
    console.print(f"best architecture: trial {ranked[0].sequence}, score {ranked[0].score:.4f}")
    for path in (files.architecture, *files.pictures):
        console.print(f"  {path}", soft_wrap=True, highlight=False)


def show_front(result: SearchResult) -> list[dict[str, Any]]:
    """Print the front of a search as a table; gives its rows."""
    front = result.front
    table = Table(title=f"front of score against {', '.join(result.objectives)}", title_justify="left")
    trials = any(item.trial is not None for item in front)
    for name in ("name", *(["trial"] if trials else []), "score", *result.objectives):
        table.add_column(name, justify="left" if name == "name" else "right")
    for item in front:
        trial = [str(item.trial)] if trials else []
        table.add_row(item.name, *trial, f"{item.score:.4f}", *(short(item.costs[name]) for name in result.objectives))
    console.print(table)
    if front:
        cells = front[0].genotype is not None
        console.print(
            "costs are those of the network that will be trained, without classifier"
            if cells
            else "costs are those of the networks without classifier",
            soft_wrap=True,
            highlight=False,
        )
    return [
        {
            "name": item.name,
            **({} if item.trial is None else {"trial": item.trial}),
            "score": item.score,
            **{name: item.costs[name] for name in result.objectives},
            **item.choices,
        }
        for item in front
    ]


class Steps:
    """Shows how far a search is: with a bar, or where there is no terminal with a line now and then.

    Used as a context, in which it may be called with each step.
    """

    WORDS: ClassVar[dict[str, str]] = {
        "images": "looking at the space and the images",
        "screening": "screening",
        "finalists": "looking at the best once more",
    }

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._status = console.status(self.WORDS["images"])
        self._told = -math.inf
        self._stage = ""

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()
        self._bar.stop()

    def __call__(self, step: Step) -> None:
        """Show it."""
        what = self.WORDS.get(step.stage)
        if step.stage == "images" or what is None:
            self._status.start() if what else self._status.stop()
            return
        self._status.stop()
        if step.stage != self._stage:
            self._stage = step.stage
            self._told = time.monotonic()
            self._bar.start()
            self._bar.add_task(what, total=step.total)
        self._bar.update(self._bar.task_ids[-1], completed=step.done)
        if not console.is_terminal and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            best = "" if step.best is None else f", best score {step.best:.4f}"
            console.print(f"{what}: {step.done} of {step.total}{best}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; an error of this package is one line on stderr and exit code 1, a warning one line."""
    warnings.formatwarning = warning_line
    wait_politely()
    try:
        app()
    except CssnasError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
