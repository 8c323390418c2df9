"""What a screening found: a ranked table, the best architecture and its picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nni_cssnas.base.files import write_atomically
from nni_cssnas.errors import ExperimentError
from nni_cssnas.genotype import TARGET, Genotype
from nni_cssnas.results.front import front_files

__all__ = ["ScoredArchitecture", "refuse_to_overwrite", "write_screened"]


class ScoredArchitecture(Protocol):
    """What a row is made of."""

    @property
    def choices(self) -> Mapping[str, Any]: ...
    @property
    def score(self) -> float: ...
    @property
    def components(self) -> Mapping[str, float]: ...
    @property
    def genotype(self) -> Genotype | None: ...
    @property
    def second_look(self) -> float | None: ...


def refuse_to_overwrite(folder: Path, top: int = 1) -> None:
    """Find before the work what :func:`write_screened` would replace.

    Raises
    ------
    ExperimentError
        If one of the files is there.
    """
    stems = [name + (f"-{rank}" if rank > 1 else "") for rank in range(1, top + 1) for name in ("genotype", "sample")]
    names = ("screen.csv", *(stem + ending for stem in stems for ending in (".json", ".svg", ".png")))
    for path in (*(folder / name for name in names), *front_files(folder)):
        if path.exists():
            raise ExperimentError(f"{path} is there already; name another folder with --output, or use --force")


def write_screened(
    ranked: Sequence[ScoredArchitecture], folder: Path, *, top: int = 1, target: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write ``screen.csv``, in the order given, and the first as ``genotype.json`` with pictures, or ``sample.json``.

    The others of the first ``top`` become ``genotype-2.json`` and so on. Beside the cells stands the ``target``, if the
    search has one. What is there is replaced.

    Raises
    ------
    ExperimentError
        If the folder cannot be written.
    """
    names = sorted({name for item in ranked for name in item.components})
    labels = sorted({name for item in ranked for name in item.choices})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "second_look", "score", *names, *labels])
    for rank, item in enumerate(ranked, start=1):
        parts = [item.components.get(name, "") for name in names]
        look = "" if item.second_look is None else item.second_look
        writer.writerow([rank, look, item.score, *parts, *(item.choices.get(name, "") for name in labels)])
    files = {folder / "screen.csv": text.getvalue()}
    pictures: dict[Path, tuple[Genotype, str]] = {}
    for rank, item in enumerate(ranked[:top], start=1):
        stem = folder / (("genotype" if item.genotype else "sample") + (f"-{rank}" if rank > 1 else ""))
        architecture = dict(item.choices)
        if item.genotype:
            architecture = item.genotype.to_dict() | ({} if target is None else {TARGET: dict(target)})
        files[stem.with_suffix(".json")] = json.dumps(architecture, indent=1) + "\n"
        if item.genotype:
            place = "Best" if rank == 1 else f"Number {rank}"
            pictures[stem] = (item.genotype, f"{place} of {len(ranked)} screened: score {item.score:.4f}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            write_atomically(path, content)
    except OSError as error:
        raise ExperimentError(f"cannot write in {folder}: {error.strerror or error}; name another folder") from None
    paths = list(files)
    if pictures:
        from nni_cssnas.results.draw import draw_genotype

        for stem, (genotype, title) in pictures.items():
            paths += draw_genotype(genotype, stem, title=title)
    return paths
