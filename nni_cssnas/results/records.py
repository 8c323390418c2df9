"""What every trial leaves behind: one readable JSON file in its own folder.

The record is the truth about a trial: NNI's own tables may pair parameters and scores wrongly (see
:mod:`nni_cssnas.pairing`), and they need a running manager to be read.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nni_cssnas.errors import ExperimentError

__all__ = ["RECORD_NAME", "TrialRecord", "read_records", "write_atomically"]

RECORD_NAME = "record.json"


@dataclass
class TrialRecord:
    """One evaluation of one architecture.

    Attributes
    ----------
    experiment, trial, sequence
        NNI's ids; ``sequence`` is the trial's number in the portal, or -1 outside of NNI.
    parameter_id
        NNI's id of the parameters, or None.
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
    """

    experiment: str
    trial: str
    sequence: int
    parameter_id: int | None
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

    @classmethod
    def read(cls, path: Path) -> TrialRecord:
        """Read one record. Raises ExperimentError if it is damaged."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            known = {item.name for item in fields(cls)}
            return cls(**{key: value for key, value in data.items() if key in known})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ExperimentError(f"cannot read the record {path}: {error}") from None

    @property
    def finished(self) -> bool:
        """Whether the trial ended with a finite score."""
        return self.status == "succeeded" and self.score is not None and math.isfinite(self.score)


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
    yield from sorted(folder.rglob(RECORD_NAME))


def write_atomically(path: Path, text: str) -> None:
    """Write beside ``path``, then replace it: a reader sees the old text or the new, never half."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
