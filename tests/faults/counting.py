"""How injected faults are counted: each once, by what the oracle found after it."""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from nni_cssnas.errors import CssnasError

OUTCOMES = ("survived", "lost", "repeated", "wrong", "hung", "traceback", "unclear")
BAD = OUTCOMES[1:]
PATIENCE = 60
"""Seconds without progress that count as hung."""


class FindingError(AssertionError):
    """What the oracle found: one of :data:`BAD`, and what exactly."""

    def __init__(self, outcome: str, what: str) -> None:
        super().__init__(what)
        self.outcome = outcome


class NotInjectedError(Exception):
    """The fault could not be injected here; says why."""


class _Hung(BaseException):
    """Not an Exception: the package must not swallow it."""


@dataclass
class Heard:
    """What was said to the user: warnings, the tuner's log, and the error, if one ended the work."""

    lines: list[str] = field(default_factory=list)
    error: CssnasError | None = None

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def names(self, *words: str) -> None:
        """Find that what was said names these.

        Raises
        ------
        Finding
            ``unclear`` if it does not.
        """
        for word in words:
            if word not in self.text:
                raise FindingError("unclear", f"{word!r} is not named in {self.text!r}")

    def silent(self) -> None:
        """Find that nothing was said."""
        if self.lines:
            raise FindingError("unclear", f"said without a reason: {self.text!r}")


class Campaign:
    """Injects faults, and counts them by group and outcome.

    Parameters
    ----------
    folder
        Every fault gets a folder of its own in it.
    seed
        Of the faults.
    """

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.seed = seed
        self.say = say
        self.counts: dict[str, Counter[str]] = {}
        self.running: set[str] = set()
        self.findings: list[str] = []
        self.seconds: Counter[str] = Counter()

    def random(self, group: str, number: int) -> random.Random:
        """The draws of one fault: the same for a seed, whatever runs before."""
        return random.Random(f"{self.seed} {group} {number}")

    def repeat(self, group: str, number: int, inject: Callable[[random.Random, Path], str]) -> None:
        """Inject ``number`` faults in this process; ``inject`` says what it did, or raises what it found."""
        for index in range(number):
            folder = self.folder / group.replace(" ", "-") / str(index)
            folder.mkdir(parents=True)
            rng = self.random(group, index)
            self.one(group, lambda rng=rng, folder=folder: inject(rng, folder), name=f"number {index}")

    def one(self, group: str, inject: Callable[[], str], *, name: str = "", running: bool = False) -> None:
        """Inject one fault and count what came of it."""
        if running:
            self.running.add(group)
        begun = time.monotonic()
        outcome, what = "survived", ""
        try:
            # On running experiments what waits has a limit of its own.
            with _limit(0 if running else PATIENCE):
                inject()
        except NotInjectedError as reason:
            outcome, what = "not injected", str(reason)
        except FindingError as found:
            outcome, what = found.outcome, str(found)
        except _Hung:
            outcome, what = "hung", f"more than {PATIENCE} s"
        except Exception as error:
            trace = traceback.extract_tb(error.__traceback__)
            place = next((step for step in reversed(trace) if "nni_cssnas" in step.filename), trace[-1])
            outcome = "traceback"
            what = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        self.seconds[group] += time.monotonic() - begun
        self.count(group, outcome, f"{name}: {what}" if what else "")

    def count(self, group: str, outcome: str, what: str = "", number: int = 1) -> None:
        self.counts.setdefault(group, Counter())[outcome] += number
        if what:
            self.findings.append(f"{outcome}: {group}, {what}"[:1000])
            self.say(self.findings[-1])

    @property
    def bad(self) -> int:
        return sum(counts[name] for counts in self.counts.values() for name in BAD)

    @property
    def injected(self) -> int:
        return sum(counts[name] for counts in self.counts.values() for name in OUTCOMES)

    def table(self) -> str:
        """The counts, a row for each group, those on running experiments apart."""
        columns = (*OUTCOMES, "not injected")
        rows = [("group", "injected", *columns, "seconds")]
        for title, mine in (("in process", False), ("on running experiments", True)):
            groups = [group for group in self.counts if (group in self.running) == mine]
            total: Counter[str] = sum((self.counts[group] for group in groups), Counter())
            spent = sum(self.seconds[group] for group in groups)
            rows += [self._row(group, self.counts[group], columns, self.seconds[group]) for group in groups]
            rows.append(self._row(f"= {title}", total, columns, spent))
        total = sum(self.counts.values(), Counter())
        rows.append(self._row("= all", total, columns, sum(self.seconds.values())))
        widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                text.ljust(width) if index == 0 else text.rjust(width)
                for index, (text, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )

    def _row(self, group: str, counts: Counter[str], columns: tuple[str, ...], seconds: float) -> tuple[str, ...]:
        injected = sum(counts[name] for name in OUTCOMES)
        return (group, str(injected), *(str(counts[name]) for name in columns), f"{seconds:.0f}")


@contextmanager
def listening(*, expect: type[CssnasError] | None = None) -> Iterator[Heard]:
    """Hear what is said to the user inside.

    Parameters
    ----------
    expect
        An error of this class ends the work inside, in one line; it is heard.

    Raises
    ------
    FindingError
        ``unclear`` if the error has several lines, or none came.
    """
    heard = Heard()
    nni = logging.getLogger("nni")
    level = nni.level
    nni.setLevel(logging.WARNING)  # what NNI prints of itself
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("nni.tuner.cssnas")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield heard
            finally:
                heard.lines += [str(item.message) for item in caught if item.category is UserWarning]
    except CssnasError as error:
        if expect is None or not isinstance(error, expect):
            raise
        heard.error = error
        heard.lines.append(str(error))
        if len(str(error).splitlines()) != 1 or len(str(error)) > 1000:
            raise FindingError("unclear", f"not one line: {str(error)!r}") from None
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        nni.setLevel(level)
    if expect is not None and heard.error is None:
        raise FindingError("unclear", f"no {expect.__name__}; said: {heard.text!r}")


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes: a write stops at that byte, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    if not seconds:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(condition: Any, outcome: str, what: str) -> None:
    """Raise a :class:`FindingError` unless the condition holds."""
    if not condition:
        raise FindingError(outcome, what)


if __name__ == "__main__":
    sys.exit("this is a module of campaign.py")


FAULTS = int(os.environ.get("CSSNAS_FAULTS", "200"))
"""Of the campaign, about."""


def report(found: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the table, and fail if anything was lost, repeated, wrong, hung or unclear."""
    with capsys.disabled():
        print(f"\n{found.table()}", *found.findings, sep="\n")
    assert found.injected
    assert not found.bad, found.findings
