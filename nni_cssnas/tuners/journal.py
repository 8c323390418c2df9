"""What a tuner has proposed and learned, on disk: append-only, so that a kill at any byte loses at most one line.

One JSON object a line::

    {"proposed": 17, "session": 0, "parameters": {...}}
    {"judged": 17, "session": 0, "score": -1.25}         null: the trial failed
    {"imported": {...}, "session": 1, "score": -1.5}     told by NNI, not proposed by this tuner

A session is one life of the tuner's process; NNI may give the same number to different proposals of two sessions.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Entry", "Journal"]

NAME = "cssnas-journal.jsonl"

_logger = logging.getLogger("nni.tuner.cssnas")


@dataclass(frozen=True)
class Entry:
    """A proposal: ``judged`` says whether its trial ended, ``score`` is None if that failed."""

    parameters: dict[str, Any]
    judged: bool = False
    score: float | None = None


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
        self._cut = False
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

    def keep(self, entry: Entry) -> None:
        """Know of what another journal tells; it is not written."""
        key = _key(entry.parameters)
        if key not in self._found or (entry.judged and not self._found[key].judged):
            self._found[key] = entry

    def proposed(self, parameter_id: int, parameters: dict[str, Any]) -> None:
        """A trial will be made of these parameters."""
        self._tell({"proposed": parameter_id, "session": self.session, "parameters": parameters})

    def judged(self, parameter_id: int, score: float | None) -> None:
        """The trial of a proposal of this session ended; None if it failed."""
        self._tell({"judged": parameter_id, "session": self.session, "score": score})

    def imported(self, parameters: dict[str, Any], score: float | None) -> None:
        """NNI told of a finished trial that this session did not propose."""
        self._tell({"imported": parameters, "session": self.session, "score": score})

    def _tell(self, event: dict[str, Any]) -> None:
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
                self._found[key] = Entry(self._found[key].parameters, True, event["score"])
        elif "imported" in event:
            # Often a proposal of before, whose trial NNI ran again.
            self._found[_key(event["imported"])] = Entry(event["imported"], True, event["score"])

    def _write(self, event: dict[str, Any]) -> None:
        if self.path is None:
            return
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                # After a line that was cut (a full disk), this one must not be glued to it.
                file.write(b"\n" + line if self._cut else line)
            self._cut = False
        except OSError as error:
            # An exception in a tuner hangs the experiment; one that cannot be resumed is better.
            if not self._cut:
                _logger.error("%s cannot be written (%s): resuming will not know of what follows", self.path, error)
            self._cut = True

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            # The writer was killed within a line; what follows must not be glued to it.
            with path.open("r+b") as file:
                file.truncate(len(whole))
        for event in _events(whole):
            self._take(event)
            self.session = max(self.session, int(event.get("session", 0)) + 1)


def _key(parameters: dict[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # damaged by something else than a kill; the others are whole
        if isinstance(event, dict):
            yield event
