"""Faults of files of text: journals, records, screening logs, genotypes, ``proxy.yml``."""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from counting import Campaign, check, file_limit, listening
from stub import CHOICES, key_of, score_of

from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError, ExperimentError, GenotypeError
from nni_cssnas.genotype import NAMED_GENOTYPES, Genotype
from nni_cssnas.results.best import rank
from nni_cssnas.results.records import RECORD_NAME, TrialRecord, read_records
from nni_cssnas.results.report import make_report
from nni_cssnas.results.screening_log import LOG_NAME, ScreeningLog
from nni_cssnas.tuners.journal import NAME
from nni_cssnas.tuners.tpe import Tpe

WRONG_TYPES: dict[str, list[Any]] = {
    "number": ["high", [], {}, True],
    "text": [3, [], {}, None],
    "mapping": ["x", [1], 3],
    "list": ["x", {}, 3],
}
NOISE = [
    b"",
    b"\x00" * 40,
    b"\xff\xfe\x00garbage",
    b"[" * 100_000,
    b"{}",
    b"null",
    b"[]",
    b'"text"',
    b"nan",
    b"\x1b[31m",
]


def inject_all(campaign: Campaign, scale: float) -> None:
    """Every group, ``scale`` times its size in the long campaign."""
    for group, number, inject in (
        ("journal torn or damaged", 120, damage_journal),
        ("journal on a full disk", 50, fill_disk_of_journal),
        ("records torn or mistyped", 130, damage_record),
        ("record on a full disk", 20, fill_disk_of_record),
        ("screening log damaged", 70, damage_screening_log),
        ("screening log on a full disk", 20, fill_disk_of_screening_log),
        ("genotypes damaged", 90, damage_genotype),
        ("proxy.yml damaged", 90, damage_proxy),
        ("clock jumps", 30, jump_clock),
    ):
        campaign.repeat(group, max(4, round(number * scale)), inject)


# ---- journal --------------------------------------------------------------------------------------


def tuner(folder: Path, seed: int = 0) -> Tpe:
    """A tuner whose journal is in ``folder``."""
    with mock.patch.dict(os.environ, NNI_CHECKPOINT_DIRECTORY=str(folder)):
        made = Tpe(seed=seed, tpe_args={"n_startup_jobs": 5})
        made.update_search_space(CHOICES)
    return made


def run(made: Tpe, first: int, number: int) -> dict[str, float | None]:
    """Trials one after the other, every fifth of which fails; gives their scores by parameters."""
    scores: dict[str, float | None] = {}
    for index in range(first, first + number):
        parameters = made.generate_parameters(index)
        failed = index % 5 == 4
        if not failed:
            made.receive_trial_result(index, parameters, {"default": score_of(parameters)})
        made.trial_end(index, not failed)
        scores[key_of(parameters)] = None if failed else score_of(parameters)
    return scores


def learned(made: Tpe) -> dict[str, float | None]:
    """What a tuner's estimator knows."""
    known = {}
    for params, loss in made._table.trials:
        parameters = {str(key[0]): f"v{int(value)}" for key, value in params.items()}
        known[key_of(parameters)] = None if math.isinf(loss) else -loss
    return known


def damage_journal(rng: random.Random, folder: Path) -> str:
    """Tear, blank, mistype, repeat or join lines; what is whole must be known, and nothing else."""
    run(tuner(folder, rng.randrange(100)), 0, rng.randint(3, 14))
    path = folder / NAME
    lines = path.read_bytes().splitlines(keepends=True)
    kind = rng.choice(["torn", "blank", "noise", "mistyped", "doubled", "crlf", "joined", "lost"])
    index = rng.randrange(len(lines))
    damaged = [*lines]
    if kind == "torn":
        damaged = [b"".join(lines)[: rng.randrange(len(b"".join(lines)))]]
    elif kind == "blank":
        start = rng.randrange(len(lines[index]) - 1)
        size = rng.randint(1, 30)
        body = bytearray(lines[index][:-1])
        body[start : start + size] = b"\0" * len(body[start : start + size])
        damaged[index] = bytes(body) + b"\n"
    elif kind == "noise":
        damaged.insert(index, rng.choice(NOISE) + b"\n")
    elif kind == "mistyped":
        damaged[index] = json.dumps(_mistyped(rng, json.loads(lines[index]))).encode() + b"\n"
    elif kind == "doubled":
        damaged.insert(index, lines[index])
    elif kind == "crlf":
        damaged = [line[:-1] + b"\r\n" for line in lines]
    elif kind == "joined":
        index = rng.randrange(len(lines) - 1)
        damaged[index] = lines[index][:-1]
    else:
        del damaged[index]
    path.write_bytes(b"".join(damaged))
    expected = _known(b"".join(damaged), set(lines))
    with listening() as heard:
        again = tuner(folder)
    finished = {key: score for key, (judged, score) in expected.items() if judged}
    found = learned(again)
    check(found.keys() >= finished.keys(), "lost", f"{kind}: {len(finished.keys() - found.keys())} are not known")
    check(found == finished, "wrong", f"{kind}: {found} instead of {finished}")
    if kind in ("blank", "mistyped", "joined"):
        heard.names(f"{path}, line {index + 1} is damaged and left out")
    elif kind in ("torn", "doubled", "crlf", "lost"):
        heard.silent()
    proposals = [key_of(again.generate_parameters(number)) for number in range(5)]
    check(not expected.keys() & set(proposals), "repeated", f"{kind}: {expected.keys() & set(proposals)}")
    return kind


def _mistyped(rng: random.Random, event: dict[str, Any]) -> dict[str, Any]:
    name = rng.choice(sorted(event))
    kind = {"parameters": "mapping"}.get(name, "number")
    wrong = WRONG_TYPES[kind] + ([1.5, None] if name in ("session", "proposed", "judged") else [])
    return event | {name: rng.choice(wrong)}


def _known(content: bytes, good: set[bytes]) -> dict[str, tuple[bool, float | None]]:
    """An independent reading: of a journal's lines those that are as they were written."""
    known: dict[str, tuple[bool, float | None]] = {}
    names = {}
    for line in content.replace(b"\r\n", b"\n").splitlines(keepends=True):
        if line not in good:
            continue
        event = json.loads(line)
        if "proposed" in event:
            names[event["session"], event["proposed"]] = key = key_of(event["parameters"])
            known.setdefault(key, (False, None))
        elif (key := names.get((event["session"], event["judged"]), "")) in known:
            known[key] = (True, event["score"])
    return known


def fill_disk_of_journal(rng: random.Random, folder: Path) -> str:
    """The disk is full for some trials, from any byte on; space is made, and the tuner lives on, or is restarted."""
    made = tuner(folder)
    known = run(made, 0, rng.randint(1, 6))
    path = folder / NAME
    size = path.stat().st_size
    whole = path.read_bytes()
    with listening() as heard, file_limit(size + rng.randint(0, 300)):
        known |= run(made, 20, rng.randint(3, 6))
    heard.names(str(path), "cannot be written")
    check(path.read_bytes().startswith(whole), "lost", "what was written before is damaged")
    if rng.random() < 0.3:
        # Restarted while the disk is full: only what was written can be known.
        restarted = tuner(folder)
        found = learned(restarted)
        check(found.items() <= known.items(), "wrong", f"{found} is not of {known}")
        return "restarted"
    known |= run(made, 40, rng.randint(1, 4))
    with listening() as heard:
        found = learned(tuner(folder))
    check(found.keys() >= known.keys(), "lost", f"{len(known.keys() - found.keys())} of {len(known)} are not known")
    check(found == known, "wrong", f"{found} instead of {known}")
    return "lived on"


# ---- records --------------------------------------------------------------------------------------


def write_records(rng: random.Random, folder: Path, number: int) -> list[TrialRecord]:
    """Records of finished trials with known scores."""
    records = []
    for index in range(number):
        parameters = {name: rng.choice(choice["_value"]) for name, choice in CHOICES.items()}
        record = TrialRecord(
            experiment="stub",
            trial=f"t{index}",
            sequence=index,
            parameter_id=index,
            parameters=parameters,
            genotype=NAMED_GENOTYPES["DARTS_V2"].to_dict(),
            status="succeeded",
            score=score_of(parameters),
            components={"params": 1e6, "macs": 1e8, "seconds": 2.0},
            epoch_losses=[4.0, 3.5],
            config={"score": "contrastive", "contrastive": {"criterion": "loss"}, "space": {"name": "x:y"}},
            started=1.7e9 + index,
            duration=2.0,
        )
        record.write(folder / "trials" / f"t{index}")
        records.append(record)
    return records


RECORD_KINDS = {
    "experiment": "text",
    "trial": "text",
    "sequence": "number",
    "parameter_id": "number",
    "parameters": "mapping",
    "genotype": "mapping",
    "status": "text",
    "score": "number",
    "components": "mapping",
    "epoch_losses": "list",
    "config": "mapping",
    "started": "number",
    "duration": "number",
}


def damage_record(rng: random.Random, folder: Path) -> str:
    """One record of several is torn, mistyped, or no file at all; the others and their best must be right."""
    records = write_records(rng, folder, rng.randint(2, 6))
    index = rng.randrange(len(records))
    path = folder / "trials" / f"t{index}" / RECORD_NAME
    content = path.read_bytes()
    kind = rng.choice(
        ["torn", "noise", "mistyped", "inner", "missing key", "pipe", "folder", "link to itself", "left over"]
    )
    if kind == "torn":
        path.write_bytes(content[: rng.randrange(len(content) - 2)])
    elif kind == "noise":
        path.write_bytes(rng.choice(NOISE))
    elif kind == "mistyped":
        name = rng.choice(sorted(RECORD_KINDS))
        path.write_text(json.dumps(asdict(records[index]) | {name: rng.choice(WRONG_TYPES[RECORD_KINDS[name]])}))
    elif kind == "inner":
        changed = rng.choice(
            [
                {"components": {"params": "many"}},
                {"epoch_losses": [4.0, "low"]},
                {"genotype": {"normal": 3}},
                {"genotype": NAMED_GENOTYPES["DARTS_V2"].to_dict() | {"normal_concat": [99]}},
                {"sequence": 1.5},
            ]
        )
        path.write_text(json.dumps(asdict(records[index]) | changed))
    elif kind == "missing key":
        data = asdict(records[index])
        del data[rng.choice(["experiment", "trial", "sequence", "parameter_id", "parameters"])]
        path.write_text(json.dumps(data))
    elif kind == "left over":
        path.with_name(f".{RECORD_NAME}.123").write_bytes(content[:50])
    else:
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(path)
    with listening() as heard:
        found = read_records(folder)
    expected = records if kind == "left over" else [record for record in records if record.sequence != index]
    if kind == "left over":
        heard.silent()
    else:
        heard.names(str(path))
        check(len(heard.lines) == 1, "unclear", f"several lines: {heard.lines}")
    check(len(found) >= len(expected), "lost", f"{kind}: {len(expected) - len(found)} whole records were left out")
    check(found == expected, "wrong", f"{kind}: a damaged record was taken")
    check(rank(found)[0].score == max(score_of(record.parameters) for record in expected), "wrong", "the best")
    if rng.random() < 0.04:
        check("<html" in make_report(folder, found), "lost", "no report")
    return kind


def fill_disk_of_record(rng: random.Random, folder: Path) -> str:
    """A record cannot be replaced: the old one stays, the reason is one line."""
    (record,) = write_records(rng, folder, 1)
    target = folder / "trials" / "t0"
    whole = (target / RECORD_NAME).read_bytes()
    record.components = {f"component {number}": float(number) for number in range(200)}
    with listening(expect=ExperimentError) as heard, file_limit(rng.randrange(2000)):
        record.write(target)
    heard.names(str(target / RECORD_NAME), "File too large")
    check((target / RECORD_NAME).read_bytes() == whole, "lost", "the old record is damaged")
    check([path.name for path in target.iterdir()] == [RECORD_NAME], "wrong", "something was left behind")
    record.write(target)
    check(read_records(folder) == [record], "lost", "cannot be written after space was made")
    return "full"


# ---- screening ------------------------------------------------------------------------------------

IDENTITY = {"seed": 0, "space": "x", "images": "y"}


def write_log(rng: random.Random, path: Path, number: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """A log of architectures with known scores; gives its rows by parameters."""
    log = ScreeningLog.open(path, IDENTITY)
    rows = {}
    for index in range(number):
        parameters = {name: rng.choice(choice["_value"]) for name, choice in CHOICES.items()}
        kind = "finalist" if index % 4 == 3 else "screen"
        values: dict[str, Any] = {"measured": {"score": score_of(parameters)}}
        if kind == "screen":
            genotype = NAMED_GENOTYPES["DARTS_V2"].to_dict()
            values = {"score": score_of(parameters), "components": {"params": 1.0}, "genotype": genotype}
        log.keep(kind, parameters, **values)
        rows[key_of(parameters)] = (kind, {kind: parameters, **values})
    return rows


def damage_screening_log(rng: random.Random, folder: Path) -> str:
    """Lines are torn, blanked or mistyped: they cost only themselves, and are named; what is whole is recalled."""
    from nni_cssnas.judge import screening

    path = folder / LOG_NAME
    rows = write_log(rng, path, rng.randint(3, 10))
    lines = path.read_bytes().splitlines(keepends=True)
    index = rng.randrange(1, len(lines))
    kind = rng.choice(["torn", "blank", "noise", "mistyped", "inner", "doubled"])
    damaged = [*lines]
    if kind == "torn":
        content = b"".join(lines)
        damaged = [content[: rng.randrange(len(lines[0]), len(content))]]
    elif kind == "blank":
        start = rng.randrange(len(lines[index]) - 1)
        damaged[index] = lines[index][:start] + b"\0" + lines[index][start + 1 :]
        damaged[index] = damaged[index][:-1] + b"\n"
    elif kind == "noise":
        damaged.insert(index, rng.choice(NOISE[1:]) + b"\n")
    elif kind in ("mistyped", "inner"):
        row = json.loads(lines[index])
        wrong: list[dict[str, Any]]
        if kind == "mistyped":
            wrong = [{"screen": 3}, {"score": "high"}, {"components": []}, {"genotype": "DARTS"}]
            wrong = [{"finalist": [1]}, {"measured": 3}] if "finalist" in row else wrong
        else:
            wrong = [{"components": {"params": "x"}}, {"genotype": {"normal": 3}}, {"score": True}]
            wrong = [{"measured": {"score": "x"}}] if "finalist" in row else wrong
        damaged[index] = json.dumps(row | rng.choice(wrong), separators=(",", ":")).encode() + b"\n"
    else:
        damaged.insert(index, lines[index])
    path.write_bytes(b"".join(damaged))
    with listening() as heard:
        log = ScreeningLog.open(path, IDENTITY)
    whole = {line for line in b"".join(damaged).splitlines(keepends=True) if line in lines}
    for key, (name, row) in rows.items():
        method: Callable[..., Any] = getattr(screening.Screener, name)
        remembered = screening.Memory(log).recalling(method, partial(_measure_again, name))
        result = remembered(json.loads(key))()
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        if line in whole:
            check(result != "measured", "lost", f"{kind}: a whole row was measured again")
        value = result["score"] if name == "finalist" else result.score
        check(value == score_of(json.loads(key)), "wrong", f"{kind}: {value} for {key}")
    if kind in ("blank", "noise", "mistyped", "inner"):
        heard.names(f"{path}, line {index + 1} is damaged and left out")
    return kind


def _measure_again(kind: str, item: dict[str, Any]) -> Callable[[], Any]:
    from nni_cssnas.judge.screening import Screened

    score = score_of(item)
    return lambda: {"score": score} if kind == "finalist" else Screened(item, score, {"params": 1.0})


def fill_disk_of_screening_log(rng: random.Random, folder: Path) -> str:
    """The disk is full from any byte on: whole lines stay, the reason is one line, and it goes on after."""
    path = folder / LOG_NAME
    rows = write_log(rng, path, 3)
    size = path.stat().st_size
    more: dict[str, Any] = {}
    with listening(expect=ExperimentError) as heard, file_limit(size + rng.randint(0, 1500)):
        for _ in range(30):
            more |= _one_more(rng, path)
    heard.names(str(path), "Make space, and the same command goes on")
    content = path.read_text()
    check(content.endswith("\n"), "lost", "a torn line stays")
    check(len(content.splitlines()) - 1 == len(rows) + len(more), "lost", "a row is missing")
    more |= _one_more(rng, path)
    log = ScreeningLog.open(path, IDENTITY)
    for key, (kind, row) in (rows | more).items():
        check(log.recall(kind, json.loads(key)) == row, "lost", "a row is not recalled")
    return "full"


def _one_more(rng: random.Random, path: Path) -> dict[str, Any]:
    log = ScreeningLog.open(path, IDENTITY)
    parameters = {name: rng.choice(choice["_value"]) for name, choice in CHOICES.items()}
    values: dict[str, Any] = {"score": score_of(parameters), "components": {}, "genotype": None}
    log.keep("screen", parameters, **values)
    return {key_of(parameters): ("screen", {"screen": parameters, **values})}


# ---- what a user writes ---------------------------------------------------------------------------


def damage_genotype(rng: random.Random, folder: Path) -> str:
    """A genotype's text is torn, or a part of it is something else: one line says what."""
    from nni_cssnas.spaces.architecture import read_architecture

    name = rng.choice(sorted(NAMED_GENOTYPES))
    genotype = NAMED_GENOTYPES[name]
    path = folder / "genotype.json"
    data = genotype.to_dict()
    kind = rng.choice(["torn", "noise", "operation", "source", "concat", "missing", "mistyped", "bytes"])
    field = rng.choice(["normal", "reduce"])
    text = genotype.to_json()
    if kind == "torn":
        form = text if rng.random() < 0.5 or len(data["normal"][0]) != 2 else genotype.to_darts()
        text = form[: rng.randrange(len(form) - 1)]
    elif kind == "noise":
        text = rng.choice(NOISE).decode("latin-1")
    elif kind == "bytes":
        place = rng.randrange(len(text))
        path.write_bytes(text[:place].encode() + b"\xff" + text[place:].encode())
    else:
        node = rng.choice(data[field])
        if kind == "operation":
            node[0][0] = rng.choice(["none", "sep_conv_9x9", "", 3, None, ["x"]])
        elif kind == "source":
            node[0][1] = rng.choice([99, -1, "0", None, 1.5, True, 10**30])
        elif kind == "concat":
            data[f"{field}_concat"] = rng.choice([[], [0], [2, 2], ["2"], 4, None, [99]])
        elif kind == "missing":
            del data[rng.choice(sorted(data))]
        else:
            data[field] = rng.choice([3, "sep_conv_3x3", None, {}, [[]] * 200, [[["skip_connect"]]]])
        text = json.dumps(data)
    if kind != "bytes":
        path.write_text(text)
    with listening(expect=GenotypeError) as heard:
        read_architecture(str(path))
    heard.names(str(path))
    if kind in ("operation", "source", "concat", "mistyped"):
        check(any(word in heard.text for word in (field, "concat")), "unclear", heard.text)
    check(Genotype.from_json(genotype.to_json()) == genotype, "wrong", "a known genotype")
    return kind


PROXY: dict[str, Any] = {
    "preset": "cpu",
    "score": "combined",
    "seed": 3,
    "threads": 1,
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "images": {"source": "tiles", "num_images": 96, "resident_gb": 2.0},
    "views": {"input_size": 16, "min_scale": 0.2, "gaussian_blur": 0.5},
    "contrastive": {"epochs": 3, "batch_size": 32, "lr": 0.1},
    "untrained": {"batch_size": 8},
}
BAD_NUMBERS = [-1, -(10**30), 10**30, "many", [], {}, None, float("nan"), float("inf"), 1e308, "2001-01-01"]


def damage_proxy(rng: random.Random, folder: Path) -> str:
    """A value of ``proxy.yml`` is none of its kind, a key is mistyped, or the file is damaged: one line names it."""
    path = folder / "proxy.yml"
    kind = rng.choice(["value", "value", "value", "key", "bytes", "yaml"])
    data = json.loads(json.dumps(PROXY))
    section = rng.choice(["images", "views", "contrastive", "untrained", ""])
    part = data[section] if section else data
    names = [name for name, value in part.items() if isinstance(value, (int, float))]
    name = rng.choice(names)
    words = [name]
    if kind == "value":
        part[name] = rng.choice(
            [value for value in BAD_NUMBERS if not (value is None and name in ("num_images", "input_size"))]
        )
    elif kind == "key":
        part[name + "x"] = part.pop(name)
        words = [name + "x"]
    text = yaml.safe_dump(data)
    place = rng.randrange(len(text))
    if kind == "bytes":
        path.write_bytes(text[:place].encode() + rng.choice([b"\xff\xfe", b"\x00", b"\x1b"]) + text[place:].encode())
        words = [str(path)]
    elif kind == "yaml":
        path.write_text(
            rng.choice(
                ["[" * 5000, "- a\n- b\n", "3", "a: b: c\n", "{", "? [a]\n: b\n", "a: !!python/name:os.system\n"]
            )
        )
        words = [str(path)]
    else:
        path.write_text(text)
    with listening(expect=ConfigError) as heard:
        ProxyConfig.load(path)
    heard.names(*words)
    return kind


# ---- the clock ------------------------------------------------------------------------------------


def jump_clock(rng: random.Random, folder: Path) -> str:
    """``time.time`` jumps between trials, by seconds or decades: pairs, order and the report stay right."""
    real = time.time
    offset = 0.0

    def jumped() -> float:
        return real() + offset

    known: dict[str, float | None] = {}
    with mock.patch("time.time", jumped), listening() as heard:
        made = tuner(folder)
        for index in range(6):
            offset = rng.choice([-1.7e9, -86400.0, -1.0, 1.0, 86400.0, 2.0e9, 1e11])
            known |= run(made, index * 10, 1)
            parameters = json.loads(list(known)[-1])
            record = TrialRecord("stub", f"t{index}", index, index, parameters, status="succeeded")
            record.score, record.started, record.duration = score_of(parameters), time.time(), 1.0
            record.write(folder / f"t{index}")
        again = tuner(folder)
        records = read_records(folder)
        text = make_report(folder, records) if rng.random() < 0.15 else ""
    heard.silent()
    check(learned(again) == known, "lost", "the tuner does not know all")
    check([record.sequence for record in records] == list(range(6)), "lost", "records are missing")
    check(rank(records)[0].score == max(record.score or 0 for record in records), "wrong", "the best")
    check(not text or "<html" in text, "lost", "no report")
    return "jumped"


if __name__ == "__main__":
    sys.exit("this is a module of campaign.py")
