"""Faults of trainings with labels: damaged checkpoints, weights and summaries; kills, stops and full disks."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counting import PATIENCE, Campaign, check, file_limit, listening
from stub import wait

from nni_cssnas.errors import CheckpointError, ConfigError, CssnasError
from nni_cssnas.images.labelled import LabelledImages, load_labelled
from nni_cssnas.spaces.architecture import read_architecture
from nni_cssnas.training.config import RetrainConfig
from nni_cssnas.training.epochs import newest_checkpoint
from nni_cssnas.training.result import RetrainResult
from nni_cssnas.training.run import retrain
from nni_cssnas.training.weights import Weights

DARTS = read_architecture("DARTS_V2")
EPOCHS = 8
RECIPE = RetrainConfig(
    channels=2, num_cells=3, epochs=EPOCHS, batch_size=16, size=16, auxiliary_weight=0, cutout=4, drop_path=0.3, ema=0.9
)


class StoppedError(Exception):
    """Ends a training after an epoch."""


def inject_all(campaign: Campaign, scale: float) -> None:
    """Every group, ``scale`` times its size in the long campaign."""
    torch.set_num_threads(1)
    folder = campaign.folder / "training"
    data = make_data(folder)
    whole = folder / "whole"
    train(data, whole)
    half = folder / "half"
    with suppress(StoppedError):
        train(data, half, on_epoch=_stop_after(4))
    campaign.repeat("weights and checkpoints damaged", max(4, round(70 * scale)), partial(damage_weights, half))
    campaign.repeat("summary and run.json damaged", max(4, round(30 * scale)), partial(damage_texts, whole, data))
    campaign.repeat(
        "retrain goes on after damage", max(1, round(6 * scale)), partial(damage_and_go_on, half, whole, data)
    )
    campaign.repeat("retrain on a full disk", max(1, round(6 * scale)), partial(fill_disk, half, whole, data))
    harm_runs(campaign, max(1, round(12 * scale)), data, whole)


def make_data(folder: Path) -> LabelledImages:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    tints = rng.integers(40, 215, (3, 3))
    images = rng.normal(tints[labels][:, None, None, :], 40, (60, 16, 16, 3)).clip(0, 255).astype(np.uint8)
    np.savez(folder / "data.npz", images=images, labels=labels, classes=np.array(["a", "b", "c"]))
    return load_labelled(folder / "data.npz", 16, validation=0.25)


def train(data: LabelledImages, out: Path, **options: Any) -> RetrainResult:
    return retrain(DARTS, RECIPE, data, out, tensorboard=False, **options)


def _stop_after(epoch: int) -> Callable[[dict[str, float]], None]:
    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == epoch:
            raise StoppedError

    return stop


def numbers(out: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((out / "history.csv").open()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def check_same(out: Path, whole: Path) -> None:
    """The numbers and weights are those of the run that nothing happened to."""
    check(len(numbers(out)) >= EPOCHS, "lost", f"{len(numbers(out))} of {EPOCHS} epochs")
    check(numbers(out) == numbers(whole), "wrong", "other numbers than without the fault")
    ours, theirs = (Weights.read(folder / "final.pt").state for folder in (out, whole))
    check(all(torch.equal(value, theirs[name]) for name, value in ours.items()), "wrong", "other weights")


def _damage(rng: random.Random, path: Path, kinds: list[str]) -> str:
    content = bytearray(path.read_bytes())
    kind = rng.choice(kinds)
    if kind == "torn":
        path.write_bytes(content[: rng.randrange(len(content) - 30)])
    elif kind == "blank":
        start = rng.randrange(len(content) - 400)
        path.write_bytes(content[:start] + b"\xaa" * 400 + content[start + 400 :])
    elif kind == "byte":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif kind == "noise":
        path.write_bytes(rng.choice([b"", b"PK\x03\x04", b"\x80\x02}q\x00.", bytes(999)]))
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
    return kind


def _same_tensors(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def damage_weights(half: Path, rng: random.Random, folder: Path) -> str:
    """A file of weights or a checkpoint is damaged: one line names it, or the tensors are the very same."""
    shutil.copytree(half, folder / "run")
    if rng.random() < 0.5:
        path = folder / "run" / "best.pt"
        right = Weights.read(path).state
        kind = _damage(rng, path, ["torn", "blank", "byte", "noise", "folder", "gone"])
        with listening(expect=CheckpointError) as heard:
            found = Weights.read(path)
            # A changed byte between the parts of the file, or of a time, is of no consequence.
            check(kind == "byte" and _same_tensors(found.state, right), "wrong", f"{kind}: damaged weights were taken")
            raise CheckpointError(str(path))
        heard.names(str(path))
        return f"weights {kind}"
    older, newer = sorted((folder / "run" / "checkpoints").glob("*.ckpt"))
    kind = _damage(rng, newer, ["torn", "blank", "byte", "noise", "gone"])
    with listening() as heard:
        found_path = newest_checkpoint(folder / "run" / "checkpoints")
    if found_path == newer:
        check(kind == "byte", "wrong", f"{kind}: a damaged checkpoint was taken")
    else:
        check(found_path == older, "lost", f"{found_path} instead of the one before")
        if kind != "gone":
            heard.names(newer.name, older.name)
    return f"checkpoint {kind}"


def damage_texts(whole: Path, data: LabelledImages, rng: random.Random, folder: Path) -> str:
    """``summary.json`` or ``run.json`` of a finished run is damaged: one line names it, and nothing is overwritten."""
    run = folder / "run"
    shutil.copytree(whole, run)
    path = run / rng.choice(["summary.json", "run.json"])
    content = path.read_text()
    choices = [
        content[: rng.randrange(len(content) - 2)],
        "",
        "null",
        "[]",
        "3",
        "[" * 100_000,
        '{"recipe": 3}',
        "\udcff",
    ]
    path.write_text(rng.choice(choices), errors="surrogateescape")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with listening(expect=CssnasError) as heard:
        train(data, run)
    check(isinstance(heard.error, CheckpointError | ConfigError), "unclear", str(heard.error))
    heard.names(str(path))
    after = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    check(after == before, "lost", "files of the run were changed")
    return path.name


def damage_and_go_on(half: Path, whole: Path, data: LabelledImages, rng: random.Random, folder: Path) -> str:
    """The newest checkpoint is damaged: the training goes on from the one before and ends with the same numbers."""
    run = folder / "run"
    shutil.copytree(half, run)
    newer = sorted((run / "checkpoints").glob("*.ckpt"))[-1]
    newer.write_bytes(newer.read_bytes()[: rng.randrange(newer.stat().st_size - 30)])
    with listening() as heard:
        train(data, run)
    heard.names(newer.name, "going on from")
    check_same(run, whole)
    return "torn"


def fill_disk(half: Path, whole: Path, data: LabelledImages, rng: random.Random, folder: Path) -> str:
    """No file can grow beyond some size: one line says so, and after space is made it ends with the same numbers."""
    run = folder / "run"
    shutil.copytree(half, run)
    size = max(path.stat().st_size for path in (run / "checkpoints").iterdir())
    with listening(expect=CssnasError) as heard, file_limit(rng.randrange(1000, size - 1000)):
        train(data, run)
    heard.names(str(run), "File too large", "goes on")
    train(data, run)
    check_same(run, whole)
    return "full"


# ---- runs of their own process --------------------------------------------------------------------


def _child(data: LabelledImages, out: Path) -> None:
    torch.set_num_threads(1)
    train(data, out)
    os._exit(0)


def harm_runs(campaign: Campaign, number: int, data: LabelledImages, whole: Path) -> None:
    """``number`` faults: trainings are killed at any moment, or stopped for a while; each ends with the same numbers."""
    context = multiprocessing.get_context("fork")  # everything is imported already
    done = 0
    while done < number:
        out = campaign.folder / "training" / f"killed-{done}"
        kinds = campaign.random("retrain killed or stopped", done)
        for _ in range(min(3, number - done)):
            done += 1
            kill = kinds.random() < 0.75
            child = context.Process(target=_child, args=(data, out))
            child.start()

            def harm(child: Any = child, kill: bool = kill, rng: random.Random = kinds, out: Path = out) -> str:
                before = len(numbers(out)) if (out / "history.csv").exists() else 0
                # From the first moment on; a start that finds little left to do may be over before.
                wait(
                    lambda: not child.is_alive() or ((out / "history.csv").exists() and len(numbers(out)) > before),
                    PATIENCE,
                    0.005,
                )
                time.sleep(rng.random() * 0.2)
                if not kill and child.is_alive():
                    os.kill(child.pid, signal.SIGSTOP)
                    time.sleep(0.5)
                    os.kill(child.pid, signal.SIGCONT)
                elif child.is_alive():
                    os.kill(child.pid, signal.SIGKILL)
                    child.join(PATIENCE)
                if (out / "history.csv").exists():
                    rows = numbers(out)
                    check(len(rows) >= before, "lost", f"{before} epochs were there, {len(rows)} are")
                    check(rows == numbers(whole)[: len(rows)], "wrong", "other numbers")
                return "killed" if kill else "stopped"

            campaign.one("retrain killed or stopped", harm, running=True, name=f"number {done}")
            if kill:
                continue
            child.join(PATIENCE)
            if child.is_alive():
                child.kill()
                campaign.count("retrain killed or stopped", "hung", "after SIGCONT")
        child = context.Process(target=_child, args=(data, out))
        child.start()
        child.join(PATIENCE)
        if child.is_alive() or not (out / "final.pt").exists():
            child.kill()
            campaign.count("retrain killed or stopped", "hung", "did not end after the last kill")
            continue
        try:
            check_same(out, whole)
        except AssertionError as error:
            campaign.count("retrain killed or stopped", getattr(error, "outcome", "wrong"), str(error))


if __name__ == "__main__":
    sys.exit("this is a module of campaign.py")
