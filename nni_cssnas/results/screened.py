"""What a screening found: a ranked table, the best architecture and its picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nni_cssnas.errors import ExperimentError
from nni_cssnas.genotype import Genotype
from nni_cssnas.results.records import write_atomically

__all__ = ["ScoredArchitecture", "write_screened"]


class ScoredArchitecture(Protocol):
    """What a row is made of."""

    @property
    def parameters(self) -> Mapping[str, Any]: ...
    @property
    def score(self) -> float: ...
    @property
    def components(self) -> Mapping[str, float]: ...
    @property
    def genotype(self) -> Genotype | None: ...


def write_screened(ranked: Sequence[ScoredArchitecture], folder: Path, *, force: bool = False) -> list[Path]:
    """Write ``screen.csv``, in the order given, and the first as ``genotype.json`` with pictures, or ``sample.json``.

    Raises
    ------
    ExperimentError
        If one of the files is there and ``force`` is false, or the folder cannot be written.
    """
    best = ranked[0]
    names = sorted({name for item in ranked for name in item.components})
    choices = sorted({name for item in ranked for name in item.parameters})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "score", *names, *choices])
    for rank, item in enumerate(ranked, start=1):
        parts = [item.components.get(name, "") for name in names]
        writer.writerow([rank, item.score, *parts, *(item.parameters.get(name, "") for name in choices)])
    architecture = best.genotype.to_dict() if best.genotype else dict(best.parameters)
    files = {
        folder / "screen.csv": text.getvalue(),
        folder / ("genotype.json" if best.genotype else "sample.json"): json.dumps(architecture, indent=1) + "\n",
    }
    try:
        for path in files:
            if path.exists() and not force:
                raise ExperimentError(f"{path} is there already; name another folder, or use --force")
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            write_atomically(path, content)
    except OSError as error:
        raise ExperimentError(f"cannot write in {folder}: {error.strerror or error}; name another folder") from None
    paths = list(files)
    if best.genotype:
        from nni_cssnas.results.draw import draw_genotype

        title = f"Best of {len(ranked)} screened: score {best.score:.4f}"
        paths += draw_genotype(best.genotype, folder / "genotype", title=title)
    return paths
