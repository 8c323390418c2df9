"""The command line itself, and what its commands share."""

from __future__ import annotations

import math
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from nni_cssnas.base.messages import warning_line
from nni_cssnas.base.threads import wait_politely
from nni_cssnas.errors import CssnasError

__all__ = ["app", "architecture_of", "console", "main", "mapping", "short", "show_best", "show_references", "steps"]

if TYPE_CHECKING:
    from nni_cssnas.judge.proxy import Proxy

T = TypeVar("T")

LINE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""

app = typer.Typer(
    help="Label-free neural architecture search for NNI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()


@app.callback()
def _root() -> None:
    """Label-free neural architecture search for NNI."""


def architecture_of(genotype: str | None) -> str | None:
    """A genotype as the user names it; the id of an experiment becomes its folder, with the cell that `run` left there."""
    from nni_cssnas.genotype import NAMED_GENOTYPES

    if (
        genotype is None
        or not re.fullmatch("[A-Za-z0-9]{8}", genotype)
        or genotype in NAMED_GENOTYPES
        or Path(genotype).exists()
    ):
        return genotype
    from nni_cssnas.results.experiments import find_experiment

    return str(find_experiment(genotype))


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


def steps(items: Iterable[T], *, total: int, description: str) -> Iterator[T]:
    """Pass items on with a progress bar; where there is no terminal, with a line now and then."""
    if console.is_terminal:
        from rich.progress import track

        yield from track(items, total=total, description=description, console=console)
        return
    told = time.monotonic()
    for number, item in enumerate(items, start=1):
        if time.monotonic() - told >= LINE_SECONDS:
            told = time.monotonic()
            console.print(f"{description}: {number} of {total}", highlight=False)
        yield item


def show_references(proxy: Proxy) -> None:
    """Score the reference architectures of an untrained score, if they are not kept from before, with a progress bar."""
    if proxy.config.score == "contrastive":
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    told = -math.inf
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)

        def on_references(done: int, total: int) -> None:
            nonlocal told
            what = (
                "scoring reference architectures, once"
                if done >= 0
                else "another process scores the references; waiting"
            )
            bar.update(task, visible=True, total=total, completed=max(done, 0), description=what)
            if not console.is_terminal and time.monotonic() - told >= LINE_SECONDS:
                told = time.monotonic()
                console.print(f"{what}: {max(done, 0)} of {total}", highlight=False)

        proxy.on_references = on_references
        _ = proxy.reference_set


def main() -> None:
    """Run the command line; an error of this package is one line on stderr and exit code 1, a warning one line."""
    warnings.formatwarning = warning_line
    wait_politely()
    try:
        app()
    except CssnasError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
