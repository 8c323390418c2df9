"""The front of a search: a table, a file for each of its architectures, and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nni_cssnas.base.files import write_atomically
from nni_cssnas.errors import ExperimentError
from nni_cssnas.genotype import TARGET, Genotype

__all__ = ["FRONT", "Front", "FrontMember", "front_files", "write_front"]

FRONT = "front.csv"


class FrontMember(Protocol):
    """One architecture of a front; ``name`` is that of its file."""

    @property
    def name(self) -> str | None: ...
    @property
    def score(self) -> float: ...
    @property
    def costs(self) -> Mapping[str, float]: ...
    @property
    def choices(self) -> Mapping[str, Any]: ...
    @property
    def genotype(self) -> Genotype | None: ...


@dataclass(frozen=True)
class Front:
    """The best trade-offs of a search.

    Attributes
    ----------
    members
        By score from high to low.
    objectives
        What is small on it, beside the score.
    points
        The first objective and the score of everything that was scored.
    history
        The hypervolume after each of them.
    target
        The network of cells that the search is for, or None.
    """

    members: Sequence[FrontMember]
    objectives: Sequence[str]
    points: Sequence[tuple[float, float]] = ()
    history: Sequence[float] = ()
    target: Mapping[str, Any] | None = None

    def pictures(self) -> dict[str, Any]:
        """The figures ``front`` and ``hypervolume``; none where nothing is on the front."""
        if not self.members:
            return {}
        from nni_cssnas.results import pictures

        first = self.objectives[0]
        named = [(item.name or "", item.costs[first], item.score) for item in self.members]
        return {
            "front": pictures.front_picture(named, first, self.points),
            **({"hypervolume": pictures.hypervolume_curve(self.history)} if len(self.history) > 1 else {}),
        }


def front_files(folder: Path) -> list[Path]:
    """What :func:`write_front` has left in a folder, or would replace there."""
    pictures = [folder / f"{name}{ending}" for name in ("front", "hypervolume") for ending in (".svg", ".png")]
    found = [path for path in (folder / FRONT, *pictures) if path.exists()]
    return [*found, *sorted(folder.glob("front-*.json"))]


def write_front(front: Front, folder: Path, *, force: bool = True) -> list[Path]:
    """Write ``front.csv``, each member as ``NAME.json``, and the pictures ``front`` and ``hypervolume``.

    What an earlier front has left in the folder is replaced; members that are not on it any more are removed, as far as the
    earlier ``front.csv`` names them.

    Raises
    ------
    ExperimentError
        If another front lies there and ``force`` is false, or the folder cannot be written.
    """
    files = {folder / FRONT: _table(front)}
    for item in front.members:
        content = dict(item.choices)
        if item.genotype is not None:
            content = item.genotype.to_dict() | ({} if front.target is None else {TARGET: dict(front.target)})
        files[folder / f"{item.name}.json"] = json.dumps(content, indent=1) + "\n"
    try:
        if not force:
            for path in front_files(folder):
                if path.suffix in (".csv", ".json") and path.read_text(encoding="utf-8") != files.get(path):
                    raise ExperimentError(f"{path} is of another front; name another folder, or use --force")
        folder.mkdir(parents=True, exist_ok=True)
        for path in _named(folder) - files.keys():
            path.unlink(missing_ok=True)
        for path, text in files.items():
            write_atomically(path, text)
        return [*files, *_draw(front, folder)]
    except OSError as error:
        raise ExperimentError(f"cannot write in {folder}: {error.strerror or error}; name another folder") from None


def _table(front: Front) -> str:
    labels = sorted({label for item in front.members for label in item.choices})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "score", *front.objectives, *labels])
    for item in front.members:
        costs = [item.costs[name] for name in front.objectives]
        writer.writerow([item.name, item.score, *costs, *(item.choices.get(label, "") for label in labels)])
    return text.getvalue()


def _named(folder: Path) -> set[Path]:
    """The files of the members that an earlier table names."""
    try:
        with (folder / FRONT).open(encoding="utf-8", newline="") as file:
            names = {row.get("name") or "" for row in csv.DictReader(file)}
    except (OSError, ValueError, csv.Error):
        return set()
    return {folder / f"{name}.json" for name in names if name.startswith("front-") and name[6:].isdigit()}


def _draw(front: Front, folder: Path) -> list[Path]:
    from nni_cssnas.results import pictures

    paths: list[Path] = []
    for name, figure in front.pictures().items():
        pictures.save(figure, folder / name)
        paths += [folder / f"{name}.svg", folder / f"{name}.png"]
    return paths
