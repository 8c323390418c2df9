"""The best architectures of an experiment, read from the trials' own records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nni_cssnas.base.files import write_atomically
from nni_cssnas.errors import ExperimentError
from nni_cssnas.genotype import TARGET, Genotype
from nni_cssnas.results.records import TrialRecord

__all__ = ["BestFiles", "export_best", "rank"]


def rank(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Finished trials, best score first; earlier trials first among equals.

    Raises
    ------
    ExperimentError
        If no trial finished; tells how many there are and what the failed ones said.
    """
    finished = [record for record in records if record.finished]
    if not finished:
        raise ExperimentError(_nothing(records))
    return sorted(finished, key=lambda record: (-(record.score or 0.0), record.sequence))


def _nothing(records: Sequence[TrialRecord]) -> str:
    """Why there is no best one: how many trials there are, and what most of the failed ones said."""
    failed = [(record.error or "no message").strip().splitlines()[0] for record in records if record.status == "failed"]
    stopped = sum(record.status == "stopped" for record in records)
    counts = f"{len(records)} started, {len(failed)} failed" + (f", {stopped} stopped" if stopped else "")
    if not failed:
        return f"no trial has finished yet ({counts})"
    (said, number), *others = Counter(failed).most_common()
    told = f"{number} of {len(failed)} failed" if others else f"{number} of {len(records)} failed"
    return f"no trial has finished yet ({counts}); {told}: {said}"


@dataclass(frozen=True)
class BestFiles:
    """What :func:`export_best` wrote: the architecture, and pictures where it has cells."""

    architecture: Path
    pictures: tuple[Path, ...]


def export_best(record: TrialRecord, folder: Path, *, force: bool = False) -> BestFiles:
    """Write ``genotype.json`` with ``genotype.svg`` and ``.png``; ``sample.json`` for a space without cells.

    Raises
    ------
    ExperimentError
        If the file is there with other contents and ``force`` is false, or cannot be written.
    """
    name = "genotype" if record.genotype else "sample"
    target = record.config.get(TARGET)
    architecture = record.parameters
    if record.genotype:
        architecture = record.genotype | ({} if target is None else {TARGET: target})
    text = json.dumps(architecture, indent=1) + "\n"
    path = folder / f"{name}.json"
    try:
        if path.exists() and not force and path.read_text(encoding="utf-8") != text:
            raise ExperimentError(f"{path} holds another architecture; name another folder, or use --force")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise ExperimentError(f"cannot write {path}: {error.strerror or error}; name another folder") from None
    pictures: list[Path] = []
    if record.genotype:
        from nni_cssnas.results.draw import draw_genotype

        title = f"Trial {record.sequence} of {record.experiment}: score {record.score:.4f}"
        pictures = draw_genotype(Genotype.from_dict(record.genotype), folder / "genotype", title=title)
    return BestFiles(path, tuple(pictures))
