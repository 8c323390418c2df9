"""A search as one HTML file: from the records alone, readable without network, and on a phone."""

from __future__ import annotations

import base64
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from nni_cssnas.base.files import write_atomically
from nni_cssnas.config import TargetConfig
from nni_cssnas.errors import ExperimentError
from nni_cssnas.genotype import Genotype
from nni_cssnas.results import pictures
from nni_cssnas.results.draw import genotype_svg
from nni_cssnas.results.front import Front
from nni_cssnas.results.profile import num_random_trials, read_profile
from nni_cssnas.results.records import TrialRecord, read_records

__all__ = ["make_report", "write_pictures", "write_report"]

MARKER = "nni-cssnas-experiment"
LOGS = {
    "record": "record.json",
    "error": "error.txt",
    "log": "trial.log",
    "stderr": "trial.stderr",
    "stdout": "trial.stdout",
}
"""What a trial leaves in its folder; NNI makes the last three."""

DRAWN = 3
"""The cells of so many of the best are drawn."""


def write_report(folder: Path, path: Path, *, top: int = 20, force: bool = False, front: Front | None = None) -> None:
    """Write the report of the experiment in ``folder``, with its front if one is given.

    Raises
    ------
    ExperimentError
        If there is no record, ``path`` holds something else than a report of the same experiment and ``force`` is false,
        or it cannot be written.
    """
    records = _read(folder)
    experiment = records[0].experiment
    try:
        if path.exists() and not force:
            found = re.search(
                rf'<meta name="{MARKER}" content="([^"]*)"', path.read_text(encoding="utf-8", errors="replace")
            )
            if found is None or unescape(found[1]) != experiment:
                what = "is no report" if found is None else f"is the report of experiment {found[1]}"
                raise ExperimentError(f"{path} is there already and {what}; name another file with -o, or use --force")
        html = make_report(folder, records, top=top, front=front)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, html)
    except OSError as error:
        raise ExperimentError(f"cannot write {path}: {error.strerror or error}; name another file with -o") from None


def write_pictures(folder: Path, target: Path, front: Front | None = None) -> list[Path]:
    """Write the pictures of the search alone, and of its front if one is given, each as SVG and PNG.

    Raises
    ------
    ExperimentError
        If there is no record, or the folder cannot be written.
    """
    written = []
    try:
        for name, figure in _figures(_read(folder), read_profile(folder), front).items():
            pictures.save(figure, target / name)
            written += [target / f"{name}.svg", target / f"{name}.png"]
    except OSError as error:
        raise ExperimentError(f"cannot write in {target}: {error.strerror or error}; name another folder") from None
    return written


def make_report(folder: Path, records: Sequence[TrialRecord], *, top: int = 20, front: Front | None = None) -> str:
    """The HTML of a report; everything that a user or a trial wrote is escaped."""
    from jinja2 import Environment, PackageLoader

    profile = read_profile(folder)
    finished = [record for record in records if record.finished]
    ranked = sorted(finished, key=lambda record: (-(record.score or 0.0), record.sequence))
    names = [
        name
        for name in ("loss", "drop", "held_out", "alignment", "uniformity", "params", "macs", "seconds")
        if any(name in record.components for record in ranked)
    ]
    captions = {
        "search": "Score of every trial, and the best so far.",
        "front": "Score against what shall be small. To those on the front no other is better in all objectives.",
        "hypervolume": "How much the front covered after each trial.",
        "choices": "What the best trials choose more often, or less, than all.",
        "losses": "Contrastive loss of the best and the worst trials.",
    }
    figures = {
        name: (_image(pictures.save(figure)), captions[name])
        for name, figure in _figures(records, profile, front).items()
    }
    logs = _log_folders(folder)
    some = ranked[0] if ranked else records[-1]
    environment = Environment(
        loader=PackageLoader("nni_cssnas.results", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["short"] = _short
    return environment.get_template("report.html.j2").render(
        marker=MARKER,
        experiment=some.experiment,
        name=profile.get("experimentName") or "",
        made=time.strftime("%Y-%m-%d %H:%M"),
        started=time.strftime("%Y-%m-%d %H:%M", time.localtime(min(record.started for record in records))),
        seconds=_lasted(records),
        counts=_counts(records),
        wanted=profile.get("maxTrialNumber"),
        score=some.config.get("score", ""),
        criterion=(some.config.get("contrastive") or {}).get("criterion", "")
        if some.config.get("score") != "untrained"
        else "",
        space=(some.config.get("space") or {}).get("name", ""),
        best=ranked[0] if ranked else None,
        cells=[
            (
                record,
                _image(genotype_svg(Genotype.from_dict(record.genotype))),
                Genotype.from_dict(record.genotype).to_json(),
            )
            for record in ranked[:DRAWN]
            if record.genotype
        ],
        data=_training_data(some.config),
        choices=None if not ranked or ranked[0].genotype else ranked[0].parameters,
        figures=figures,
        front=front,
        target=_target_words(some.config),
        names=names,
        top=ranked[:top],
        records=records,
        links={record.trial: _links(logs.get(record.trial)) + _elsewhere(record.location) for record in records},
        errors=Counter(_first_line(record.error) for record in records if record.status == "failed").most_common(),
        config=yaml.safe_dump(some.config, sort_keys=False, allow_unicode=True),
        nni=yaml.safe_dump(_experiment_yml(profile), sort_keys=False, allow_unicode=True) if profile else "",
        versions=some.environment.get("versions", {}),
        machine={name: value for name, value in some.environment.items() if name != "versions"},
        several=_differences(records),
        folder=folder.resolve(),
    )


def _read(folder: Path) -> list[TrialRecord]:
    records = read_records(folder)
    if not records:
        raise ExperimentError(
            f"{folder} holds no trial's record yet; wait for the first trial, or name the folder of another experiment"
        )
    return records


def _figures(records: Sequence[TrialRecord], profile: Mapping[str, Any], front: Front | None) -> dict[str, Any]:
    found = {
        "search": pictures.search_curve(records, num_random_trials(dict(profile))),
        **({} if front is None else front.pictures()),
        "choices": pictures.operation_use(records),
        "losses": pictures.loss_curves(records),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _image(svg: str) -> str:
    """An SVG as an address: several in one page cannot mix up their ids."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _counts(records: Sequence[TrialRecord]) -> dict[str, int]:
    """By state; a trial that was killed outright cannot say so."""
    counts = {
        "finished": sum(record.finished for record in records),
        "failed": sum(record.status == "failed" for record in records),
        "stopped": sum(record.status == "stopped" for record in records),
    }
    counts["running or killed"] = len(records) - sum(counts.values())
    return counts


def _lasted(records: Sequence[TrialRecord]) -> float:
    return max(record.started + (record.duration or 0.0) for record in records) - min(r.started for r in records)


def _log_folders(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.glob("environments/*/trials/*") if path.is_dir()} or {
        path.parent.name: path.parent for path in folder.rglob("record.json")
    }


def _links(folder: Path | None) -> list[tuple[str, str]]:
    """Name and address of the files that a trial left."""
    if folder is None:
        return []
    return [(name, (folder / file).resolve().as_uri()) for name, file in LOGS.items() if (folder / file).is_file()]


def _elsewhere(location: str | None) -> list[tuple[str, str]]:
    """Name and address of another machine's folder of a trial; NNI gives it as ``host:~/path``."""
    if location is None:
        return []
    host, _, path = location.partition(":")
    return [(host, f"sftp://{host}/{quote(path.lstrip('/'), safe='/~')}")]


def _first_line(text: str | None) -> str:
    return (text or "no message").strip().splitlines()[0]


def _differences(records: Sequence[TrialRecord]) -> int:
    """How many configurations the trials ran under; more than one after proxy.yml was changed."""
    return len({yaml.safe_dump(record.config) for record in records if record.config})


def _experiment_yml(profile: Mapping[str, Any]) -> dict[str, Any]:
    """NNI's settings as a user writes them: without what NNI filled in."""
    names = (
        *("experimentName", "searchSpaceFile", "trialCommand", "trialCodeDirectory", "trialConcurrency"),
        *("maxTrialNumber", "maxExperimentDuration", "tuner", "assessor", "advisor"),
    )
    found = {name: profile[name] for name in names if profile.get(name) not in (None, "")}
    platform = (profile.get("trainingService") or {}).get("platform")
    return found | ({"trainingService": {"platform": platform}} if platform else {})


def _training_data(config: Mapping[str, Any]) -> str:
    """Options of ``retrain`` for the images that were searched on; labels of a folder of photographs lie elsewhere."""
    source = str((config.get("images") or {}).get("source", ""))
    return "--data cifar10 --recipe cifar10" if source == "cifar10" else "--data LABELLED_FOLDER --recipe folder"


def _target_words(config: Mapping[str, Any]) -> str:
    """The network of cells that the search is for; that of arXiv:1806.09055 where it does not say."""
    target = TargetConfig(**(config.get("target") or {}))
    return f"{target.num_cells} cells, {target.channels} channels"


def _short(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.4g}"
