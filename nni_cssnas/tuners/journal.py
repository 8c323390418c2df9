"""What a tuner has proposed and learned, on disk: append-only, so that a kill at any byte loses at most one line.

One JSON object a line::

    {"proposed": 17, "session": 0, "parameters": {...}}
    {"judged": 17, "session": 0, "score": -1.25}         null: the trial failed
    {"imported": {...}, "session": 1, "score": -1.5}     told by NNI, not proposed by this tuner

A search with other objectives than the score has them beside it, as ``"objectives": {"default": -1.25, "params": 8e4}``;
``score`` is the first of them then.

A session is one life of the tuner's process; NNI may give the same number to different proposals of two sessions.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Entry", "Journal"]

NAME = "cssnas-journal.jsonl"

_logger = logging.getLogger("nni.tuner.cssnas")


@dataclass(frozen=True)
class Entry:
    """A proposal: ``judged`` says whether its trial ended, ``score`` is None if that failed; ``objectives`` are by name,
    None where the score is the only one."""

    parameters: dict[str, Any]
    judged: bool = False
    score: float | None = None
    objectives: dict[str, float] | None = None


class Journal:
    """The file of one experiment.

    Parameters
    ----------
    path
        The file; made when there is something to write. None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.session = 0
        self._waiting = b""  # lines that could not be written
        self._found: dict[str, Entry] = {}  # by their parameters
        self._names: dict[tuple[int, int], str] = {}  # session and id -> key of the parameters
        if path is not None and path.exists():
            self._read(path)

    @classmethod
    def of_experiment(cls) -> Journal:
        """That of the NNI experiment whose tuner this process is; one that keeps nothing outside of NNI."""
        folder = os.environ.get("NNI_CHECKPOINT_DIRECTORY")
        return cls(Path(folder) / NAME if folder else None)

    @property
    def entries(self) -> list[Entry]:
        """All that is known, in the order in which it was proposed."""
        return list(self._found.values())

    @property
    def unjudged(self) -> list[dict[str, Any]]:
        """The parameters of proposals whose trials' ends are not known."""
        return [entry.parameters for entry in self._found.values() if not entry.judged]

    def keep(self, entry: Entry) -> None:
        """Know of what another journal tells; it is not written."""
        key = _key(entry.parameters)
        if key not in self._found or (entry.judged and not self._found[key].judged):
            self._found[key] = entry

    def proposed(self, parameter_id: int, parameters: dict[str, Any]) -> None:
        """A trial will be made of these parameters."""
        self._tell({"proposed": parameter_id, "session": self.session, "parameters": parameters})

    def judged(self, parameter_id: int, score: float | None, objectives: dict[str, float] | None = None) -> None:
        """The trial of a proposal of this session ended; None if it failed."""
        self._tell({"judged": parameter_id, "session": self.session, "score": score}, objectives)

    def imported(
        self, parameters: dict[str, Any], score: float | None, objectives: dict[str, float] | None = None
    ) -> None:
        """NNI told of a finished trial that this session did not propose."""
        self._tell({"imported": parameters, "session": self.session, "score": score}, objectives)

    def _tell(self, event: dict[str, Any], objectives: dict[str, float] | None = None) -> None:
        if objectives is not None:
            event["objectives"] = objectives
        self._take(event)
        self._write(event)

    def _take(self, event: dict[str, Any]) -> None:
        session = int(event.get("session", 0))
        if "proposed" in event:
            key = self._names[session, event["proposed"]] = _key(event["parameters"])
            self._found.setdefault(key, Entry(event["parameters"]))
        elif "judged" in event:
            key = self._names.get((session, event["judged"]), "")
            if key in self._found:
                self._found[key] = Entry(self._found[key].parameters, True, event["score"], event.get("objectives"))
        elif "imported" in event:
            # Often a proposal of before, whose trial NNI ran again.
            self._found[_key(event["imported"])] = Entry(
                event["imported"], True, event["score"], event.get("objectives")
            )

    def _write(self, event: dict[str, Any]) -> None:
        if self.path is None:
            return
        is_first = not self._waiting
        self._waiting += json.dumps(event, separators=(",", ":")).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _append(self.path, self._waiting)
            self._waiting = b""
        except OSError as error:
            # An exception in a tuner hangs the experiment; one that cannot be resumed is better.
            if is_first:
                _logger.error(
                    "%s cannot be written (%s): what follows is written as soon as there is space; a tuner that is "
                    "restarted before that will not know of it",
                    self.path,
                    error,
                )

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            # The writer was killed within a line; what follows must not be glued to it.
            with path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            event = _event(line)
            if event is None:
                _logger.warning("%s, line %d is damaged and left out", path, number)
                continue
            self._take(event)
            self.session = max(self.session, event.get("session", 0) + 1)


def _append(path: Path, data: bytes) -> None:
    """All of the data or, where there is no space for it, nothing: no line is cut."""
    with path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                file.truncate(start)
            raise


def _key(parameters: dict[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)


def _event(line: bytes) -> dict[str, Any] | None:
    """An event as :class:`Journal` writes them, or None: what is damaged or mistyped must not end the tuner."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not _is_number(event.get("session", 0), int):
        return None
    score, objectives = event.get("score"), event.get("objectives")
    has_score = "score" in event and (score is None or _is_number(score, int, float))
    if objectives is not None:
        has_score &= isinstance(objectives, dict) and all(
            _is_number(value, int, float) for value in objectives.values()
        )
    if "proposed" in event:
        good = _is_number(event["proposed"], int) and isinstance(event.get("parameters"), dict)
    elif "judged" in event:
        good = _is_number(event["judged"], int) and has_score
    else:
        good = isinstance(event.get("imported"), dict) and has_score
    return event if good else None


def _is_number(value: Any, *kinds: type[int] | type[float]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
