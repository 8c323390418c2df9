"""What `run` and `resume` show while an experiment runs, and how they end it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import typer

from nni_cssnas.base.signals import forget_alarm, raise_once
from nni_cssnas.cli.app import console, show_best

if TYPE_CHECKING:
    from nni_cssnas.bridge.launch import Progress, RunningExperiment

__all__ = ["announce", "follow"]

OFTEN, SELDOM = 10.0, 60.0
"""Seconds between two lines of a log: where something has changed, and where nothing has."""


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What ends a process: Ctrl-C, a batch system, a terminal that is closed (which Windows has no signal for)."""


class _Ended(KeyboardInterrupt):
    """A signal that asks the process to end."""

    def __init__(self, number: int) -> None:
        self.number = number


def follow(start: Callable[[], RunningExperiment], *, keep: bool, top: int) -> None:
    """Start an experiment, show how far it is and what is best, and end its manager whatever happens.

    Parameters
    ----------
    start
        Starts the experiment.
    keep
        Leave the manager running.
    top
        How many of the best trials are listed at the end.

    Raises
    ------
    typer.Exit
        With 130 after Ctrl-C, 143 after SIGTERM, 1 if the experiment failed or no trial succeeded.
    CssnasError
        If it cannot be started or its manager is gone.
    """
    from nni_cssnas.results.experiments import find_experiment

    experiment: RunningExperiment | None = None
    with _signals():
        try:
            with console.status("starting the NNI manager"):
                experiment = start()
            announce(experiment)
            state = _show_bar(experiment) if console.is_terminal else _show_lines(experiment)
            if state.errors:
                console.print("the NNI manager reports: " + "; ".join(state.errors), style="red", markup=False)
            folder = find_experiment(experiment.id)
            experiment.collect(folder)
            show_best(folder, top=top, output=None, force=False)
        except KeyboardInterrupt as end:
            go_on = f"; go on with: nni-cssnas resume {experiment.id}" if experiment else ""
            console.print(f"\ninterrupted; the trials that finished are kept{go_on}", soft_wrap=True, highlight=False)
            raise typer.Exit(128 + (end.number if isinstance(end, _Ended) else signal.SIGINT)) from None
        finally:
            if experiment is not None:
                _leave(experiment, keep)
    if state.status == "ERROR" or not state.succeeded:
        raise typer.Exit(1)


def announce(experiment: RunningExperiment) -> None:
    """Say where the portal is."""
    portal = experiment.portal
    console.print(f"experiment [bold]{experiment.id}[/], portal [link={portal}]{portal}[/]", soft_wrap=True)
    if experiment.public_portal:
        console.print(
            f"for other machines: {experiment.public_portal}\n"
            "whoever has this address can run programs as you: do not pass it on",
            soft_wrap=True,
            highlight=False,
        )


def _show_bar(experiment: RunningExperiment) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("trials"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("", total=experiment.max_trials())
        for state in experiment.watch():
            bar.update(task, completed=_completed(state), description=_description(state))
    return state


def _show_lines(experiment: RunningExperiment) -> Progress:
    """A line now and then, for a log, a pipe or a notebook."""
    total = experiment.max_trials()
    begun = told = time.monotonic()
    line = ""
    for state in experiment.watch():
        now = time.monotonic()
        new = f"{_completed(state)}{f'/{total}' if total else ''} trials, {_description(state)}"
        if not line or now - told >= (OFTEN if new != line else SELDOM):
            _tell(new, now - begun)
            line, told = new, now
    if new != line:
        _tell(new, time.monotonic() - begun)
    return state


def _tell(line: str, seconds: float) -> None:
    minutes, rest = divmod(int(seconds), 60)
    console.print(f"{minutes // 60}:{minutes % 60:02}:{rest:02} {line}", soft_wrap=True, highlight=False, markup=False)


def _completed(state: Progress) -> int:
    return state.succeeded + state.failed + state.stopped


def _description(state: Progress) -> str:
    parts = [f"{state.running} running"]
    parts += [f"{number} {name}" for number, name in ((state.failed, "failed"), (state.stopped, "stopped")) if number]
    if state.best is not None:
        parts.append(f"best score {state.best:.4f}")
    if state.silent >= OFTEN:
        parts.append(f"the manager has not answered for {state.silent:.0f} s")
    return ", ".join(parts)


def _leave(experiment: RunningExperiment, keep: bool) -> None:
    # From here on a Ctrl-C would leave the manager behind.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if keep:
        told = f"the portal stays at {experiment.portal}; stop it with: nnictl stop {experiment.id}"
    else:
        with console.status("stopping the manager and its trials"):
            experiment.stop()
        told = f"stopped; look at it again with: nni-cssnas view {experiment.id}"
    console.print(told, soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let what ends a process (a batch system's SIGTERM, a terminal that is closed) act as Ctrl-C does."""

    def end(number: int, frame: FrameType | None) -> None:
        # A second one, however soon, would leave the manager behind.
        raise_once(_Ended(number))

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] != signal.SIG_IGN:  # nohup
            signal.signal(number, end)
    try:
        yield
    finally:
        forget_alarm()
        for number, handler in before.items():
            signal.signal(number, handler)
