"""What a screening has measured, on disk as it comes: append-only, so that a kill at any byte loses at most one line.

One JSON object a line. The first says of what screening the file is; the others what was measured::

    {"screening": {"space": "...", "images": "...", ...}}
    {"screen": {...choices}, "score": -1.25, "components": {...}, "genotype": {...}}
    {"finalist": {...choices}, "measured": {...}}
    {"cost": {...choices}, "measured": {"latency_ms": 12.5}, "device": "cpu"}
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nni_cssnas.errors import ExperimentError, GenotypeError
from nni_cssnas.genotype import Choices, Genotype

__all__ = ["LOG_NAME", "ScreeningLog"]

LOG_NAME = "screening.jsonl"
KINDS = ("screen", "finalist", "cost")
HEAD = b'{"screening": {'


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
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

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
            lines, whole = ([], 0) if force else log._read()
            if lines:
                found = lines[0]["screening"]
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
                log._rows = {(kind, _key(row[kind])): row for row in lines[1:] for kind in KINDS if kind in row}
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
        return sum(kind == "screen" for kind, _ in self._rows)

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """All rows of a kind, in their order."""
        return [row for (found, _), row in self._rows.items() if found == kind]

    def recall(self, kind: str, choices: Choices) -> dict[str, Any] | None:
        """The row of an architecture, or None."""
        return self._rows.get((kind, _key(choices)))

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
        self._rows[kind, _key(choices)] = row

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """The rows, the first of which says of what screening they are, and the bytes of all whole lines."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return [], 0
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and HEAD.startswith(data[: len(HEAD)]):
            return [], 0  # the writer was killed within the first line
        rows = []
        for number, line in enumerate(whole.splitlines() or [b""], start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if number == 1 and not (isinstance(row, dict) and isinstance(row.get("screening"), dict)):
                raise ExperimentError(f"{self.path} is no log of a screening; name another folder, or use --force")
            if isinstance(row, dict) and _is_row(row):
                rows.append(row)
            else:
                warnings.warn(f"{self.path}, line {number} is damaged and left out", stacklevel=3)
        return rows, len(whole)


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
    try:
        return value is None or bool(Genotype.from_dict(value))
    except GenotypeError:
        return False


def _difference(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    old, new = (json.dumps(values.get(name)) for values in (there, here))
    return f"{name} is {old} there and {new} here" if len(old) + len(new) < 200 else f"{name} differs"


def _key(choices: Choices) -> str:
    return json.dumps(dict(choices), sort_keys=True)
