"""What every trial leaves behind: one readable JSON file in its own folder.

The record is the truth about a trial: NNI's own tables may pair parameters and scores wrongly (see
:mod:`nni_cssnas.bridge.pairing`), and they need a running manager to be read.
"""

from __future__ import annotations

import json
import math
import os
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nni_cssnas.base.files import write_atomically
from nni_cssnas.errors import CssnasError, ExperimentError
from nni_cssnas.genotype import Genotype

__all__ = ["ERROR_NAME", "RECORD_NAME", "TrialRecord", "read_records"]

RECORD_NAME = "record.json"
ERROR_NAME = "error.txt"


@dataclass
class TrialRecord:
    """One evaluation of one architecture.

    Attributes
    ----------
    experiment, trial, sequence
        NNI's ids; ``sequence`` is the trial's number in the portal, or -1 outside of NNI.
    parameter_id
        NNI's id of the parameters (a text where Hyperband or BOHB gives it), or None.
    parameters
        The choices, as the tuner proposed them.
    genotype
        :meth:`nni_cssnas.genotype.Genotype.to_dict`, or None for a space without cells.
    seed
        Of the candidate's weights; derived from the experiment's seed and the architecture.
    status
        ``running``, ``succeeded``, ``failed``, or ``stopped`` before the end (by an assessor, ``nnictl stop``, Ctrl-C).
        A trial that was killed outright (SIGKILL, out of memory) stays ``running``.
    score
        What is maximised, or None.
    components
        Every number measured (losses, parameters, multiply-adds, seconds, images/s), by name.
    epoch_losses
        Mean training loss of each epoch so far.
    error
        What went wrong, or None.
    config
        The whole proxy configuration.
    environment
        Device, threads, host's platform, versions of Python and the libraries.
    started, duration
        Seconds since 1970, and seconds from start to end.
    location
        Where the trial's files lie, as ``host:path``, if that is another machine; else None.
    """

    experiment: str
    trial: str
    sequence: int
    parameter_id: int | str | None
    parameters: dict[str, Any]
    genotype: dict[str, Any] | None = None
    seed: int | None = None
    status: str = "running"
    score: float | None = None
    components: dict[str, float] = field(default_factory=dict)
    epoch_losses: list[float] = field(default_factory=list)
    error: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    duration: float | None = None
    location: str | None = None

    def write(self, folder: Path) -> Path:
        """Replace the record in ``folder``, atomically.

        Raises
        ------
        ExperimentError
            If the folder cannot be written.
        """
        path = folder / RECORD_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(asdict(self), indent=1))
        except OSError as error:
            raise ExperimentError(
                f"cannot write the trial's record {path}: {error.strerror or error}; "
                "make the folder writable, or choose another experimentWorkingDirectory"
            ) from None
        return path

    def write_error(self, folder: Path, error: BaseException) -> None:
        """Write ``error.txt``: what went wrong, with which architecture, and where in the code."""
        story = "".join(traceback.format_exception(error))
        text = f"{self.error}\n\narchitecture: {json.dumps(self.parameters)}\n\n{story}"
        write_atomically(folder / ERROR_NAME, text)

    @classmethod
    def read(cls, path: Path) -> TrialRecord:
        """Read one record; keys of a later version are left out.

        Raises
        ------
        ExperimentError
            If the file is damaged, or a value has another type than a trial writes.
        """
        try:
            if not path.is_file():  # opening a pipe would wait for ever
                raise ValueError("it is no file")
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ExperimentError(f"cannot read the record {path}: {error}") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, origin: str) -> TrialRecord:
        """A record from its JSON, as :meth:`read`; ``origin`` is what the message says of where it comes from."""
        try:
            data = json.loads(text)
            known = {item.name for item in fields(cls)}
            text = json.dumps({key: data[key] for key in data if key in known})
            record = _adapter().validate_json(text, strict=True)
            if record.genotype is not None:
                Genotype.from_dict(record.genotype)
            return record
        except ValidationError as error:
            first = error.errors()[0]
            value = f"{first['input']!r:.60}"
            problem = (
                f"{'.'.join(map(str, first['loc'])) or 'it'} is {value}: {first['msg'][0].lower()}{first['msg'][1:]}"
            )
        except (ValueError, TypeError, RecursionError, CssnasError) as error:
            problem = str(error)
        raise ExperimentError(f"cannot read the record {origin}: {problem}")

    @classmethod
    def finished_before(cls, folder: Path, parameters: dict[str, Any], config: dict[str, Any]) -> TrialRecord | None:
        """The record with which this very trial has finished already; None if it has not.

        NNI runs a trial again, in the same folder, where its manager was killed before it knew of the trial's end.
        """
        try:
            record = cls.read(folder / RECORD_NAME)
        except ExperimentError:
            return None
        return record if record.finished and (record.parameters, record.config) == (parameters, config) else None

    @property
    def finished(self) -> bool:
        """Whether the trial ended with a finite score."""
        return self.status == "succeeded" and self.score is not None and math.isfinite(self.score)


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[TrialRecord]:
    return TypeAdapter(TrialRecord)


def read_records(folder: Path) -> list[TrialRecord]:
    """All records below ``folder``, by sequence number; a damaged one is left out with a warning."""
    records = []
    for path in _find(folder):
        try:
            records.append(TrialRecord.read(path))
        except ExperimentError as error:
            warnings.warn(str(error), UserWarning, stacklevel=2)
    return sorted(records, key=lambda record: (record.sequence, record.started))


def _find(folder: Path) -> Iterator[Path]:
    # Path.rglob passes over links that lead nowhere.
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if RECORD_NAME in files or RECORD_NAME in folders:
            yield Path(parent, RECORD_NAME)
