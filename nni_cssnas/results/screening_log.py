"""What a screening has measured, on disk as it comes: append-only, so that a kill at any byte loses at most one line.

One JSON object a line. The first says of what screening the file is; the others what was measured::

    {"screening": {"space": "...", "images": "...", ...}}
    {"screen": {...choices}, "score": -1.25, "components": {...}, "genotype": {...}}
    {"finalist": {...choices}, "measured": {...}}
    {"cost": {...choices}, "measured": {"latency_ms": 12.5}, "device": "cpu"}
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nni_cssnas.errors import ExperimentError
from nni_cssnas.genotype import FIELDS, Choices

__all__ = ["LOG_NAME", "ScreeningLog"]

LOG_NAME = "screening.jsonl"
KINDS = ("screen", "finalist", "cost")
HEAD = b'{"screening": {'
PLAIN = frozenset((str, int, float, bool, type(None)))
"""Values that are the same after JSON."""


class ScreeningLog:
    """The file of one screening.

    Life cycle: :meth:`open` finds or makes it, before anything is measured; :meth:`recall` gives what an earlier run has
    measured, :meth:`keep` adds to it.

    Attributes
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Where the row of an architecture begins: a hundredth of what the rows themselves would take.
        self._places: dict[str, dict[bytes, int]] = {kind: {} for kind in KINDS}
        self._file: BinaryIO | None = None

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any], *, force: bool = False) -> ScreeningLog:
        """The log of a screening, with what an interrupted run has left in it.

        Parameters
        ----------
        path
            The file; its folder is made.
        identity
            Everything that the numbers depend on, as JSON values.
        force
            Begin anew if another screening lies there.

        Raises
        ------
        ExperimentError
            If another screening lies there, or the file cannot be read or written.
        """
        log = cls(path)
        identity = json.loads(json.dumps(identity))
        try:
            found, whole = (None, 0) if force else log._read()
            if found is not None:
                changed = sorted(
                    name for name in identity.keys() | found.keys() if identity.get(name) != found.get(name)
                )
                if changed:
                    raise ExperimentError(
                        f"{path} is of another screening ({_difference(changed[0], found, identity)}"
                        f"{f', and {len(changed) - 1} more differences' if len(changed) > 1 else ''}); "
                        "name another folder with --output, or use --force to begin anew"
                    )
                if path.stat().st_size > whole:
                    # The writer was killed within a line; what follows must not be glued to it.
                    os.truncate(path, whole)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"screening": identity}) + "\n", encoding="utf-8")
        except OSError as error:
            raise ExperimentError(
                f"cannot write {path}: {error.strerror or error}; name another folder with --output"
            ) from None
        return log

    @property
    def screened(self) -> int:
        """How many architectures are in it."""
        return len(self._places["screen"])

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """All rows of a kind, in their order."""
        return [row for place in self._places[kind].values() if (row := self._row(place)) is not None]

    def recall(self, kind: str, choices: Choices) -> dict[str, Any] | None:
        """The row of an architecture, or None."""
        place = self._places[kind].get(_key(choices))
        return None if place is None else self._row(place)

    def _row(self, place: int) -> dict[str, Any] | None:
        """The row that begins there; None if it is no longer what it was."""
        try:
            if self._file is None:
                self._file = self.path.open("rb")
            self._file.seek(place)
            row = json.loads(self._file.readline())
        except (OSError, ValueError):
            return None
        return row if isinstance(row, dict) else None

    def keep(self, kind: str, choices: Choices, **values: Any) -> None:
        """Add a row.

        Raises
        ------
        ExperimentError
            If it cannot be written; what was written before stays whole.
        """
        row = {kind: dict(choices), **values}
        try:
            with self.path.open("ab", buffering=0) as file:
                start = file.tell()
                data = json.dumps(row, separators=(",", ":")).encode() + b"\n"
                try:
                    if file.write(data) != len(data):
                        raise OSError(28, "No space left on device")
                except OSError:
                    file.truncate(start)
                    raise
        except OSError as error:
            raise ExperimentError(
                f"cannot write {self.path}: {error.strerror or error}; the {self.screened} architectures in it are kept. "
                "Make space, and the same command goes on from there"
            ) from None
        self._places[kind][_key(choices)] = start

    def _read(self) -> tuple[dict[str, Any] | None, int]:
        """Of what screening the file is (None where it has no whole line), and the bytes of all whole lines."""
        try:
            with self.path.open("rb") as file:
                first = file.readline()
                if not first.endswith(b"\n") and HEAD.startswith(first[: len(HEAD)]):
                    return None, 0  # the writer was killed within it
                identity = _parsed(first)
                if identity is None or not isinstance(identity.get("screening"), dict):
                    raise ExperimentError(f"{self.path} is no log of a screening; name another folder, or use --force")
                place = len(first)
                for number, line in enumerate(file, start=2):
                    if not line.endswith(b"\n"):
                        break
                    row = _parsed(line)
                    if row is None:
                        warnings.warn(f"{self.path}, line {number} is damaged and left out", stacklevel=3)
                    else:
                        self._keep_place(row, place)
                    place += len(line)
        except FileNotFoundError:
            return None, 0
        return identity["screening"], place

    def _keep_place(self, row: Mapping[str, Any], place: int) -> None:
        for kind in KINDS:
            if kind in row:
                self._places[kind][_key(row[kind])] = place


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A row, or None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and _is_row(row) else None


def _is_row(row: Mapping[str, Any]) -> bool:
    if "screen" in row:
        return (
            isinstance(row["screen"], dict)
            and {"score", "genotype"} <= row.keys()
            and _are_numbers([row["score"]])
            and isinstance(row.get("components"), dict)
            and _are_numbers(row["components"].values())
            and _is_genotype(row["genotype"])
        )
    for kind in ("finalist", "cost"):
        if kind in row:
            measured = row.get("measured")
            return isinstance(row[kind], dict) and isinstance(measured, dict) and _are_numbers(measured.values())
    return isinstance(row.get("screening"), dict)


def _are_numbers(values: Iterable[Any]) -> bool:
    """Whether they are what :mod:`nni_cssnas.judge.screening` measures: numbers, and None for what is not finite."""
    return all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)


def _is_genotype(value: Any) -> bool:
    """Whether it looks like one. Each cell is read only when it is asked for, which takes longer than all else here."""
    return value is None or (
        isinstance(value, dict)
        and value.keys() == set(FIELDS)
        and all(isinstance(part, list) for part in value.values())
    )


def _difference(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    old, new = (json.dumps(values.get(name)) for values in (there, here))
    return f"{name} is {old} there and {new} here" if len(old) + len(new) < 200 else f"{name} differs"


def _key(choices: Choices) -> bytes:
    """Names an architecture; the same for choices that were read from a file."""
    items = sorted(choices.items())
    if not PLAIN.issuperset(map(type, choices.values())):
        items = [(name, value if type(value) in PLAIN else json.dumps(value)) for name, value in items]
    return hashlib.blake2b(repr(items).encode(), digest_size=16).digest()
