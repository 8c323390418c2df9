"""What a training leaves behind after every epoch: its state to resume from, the best weights, a table of its numbers."""

from __future__ import annotations

import csv
import io
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from nni_cssnas.base.files import replacing, write_atomically
from nni_cssnas.errors import CheckpointError
from nni_cssnas.training.weights import Weights, check_file

__all__ = ["EpochLog", "checkpoint_epoch", "newest_checkpoint"]

KEPT = 2
"""Checkpoints that are kept: the newest, and the one before in case it is damaged."""


class EpochLog(Checkpoint):
    """Keeps ``history.csv``, ``best.pt``, ``final.pt`` and the last checkpoints of a training, each replaced atomically.

    Lightning's own logger of CSV files begins a new file at every start. Here the rows are part of the checkpoint, so
    that a resumed training goes on with exactly those that belong to it.

    Parameters
    ----------
    folder
        Of the run.
    weights
        What the saved weights are of; its ``state`` is replaced.
    on_epoch
        Called with each epoch's row, on the first device.

    Attributes
    ----------
    rows : list of dict
        One for each epoch that is finished: :attr:`~nni_cssnas.training.module.Classifier.row` and its ``seconds``.
    """

    def __init__(
        self, folder: Path, weights: Weights, on_epoch: Callable[[dict[str, float]], None] | None = None
    ) -> None:
        super().__init__()
        self.folder = folder
        self.weights = weights
        self.on_epoch = on_epoch
        self.rows: list[dict[str, float]] = []
        self._begun = 0.0

    @property
    def best(self) -> dict[str, float]:
        """The row of the highest validation accuracy; of several, the first."""
        return max(self.rows, key=lambda row: row["val_top1"])

    def state_dict(self) -> dict[str, Any]:
        """The rows; Lightning puts them into the checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The rows of the checkpoint that is resumed from."""
        self.rows = state_dict["rows"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write everything down; Lightning calls this one after all others."""
        row = dict(pl_module.row)  # type: ignore[arg-type]
        self.rows.append({**row, "seconds": time.perf_counter() - self._begun})  # type: ignore[dict-item]
        if trainer.is_global_zero:
            write_atomically(self.folder / "history.csv", _table(self.rows))
            if trainer.logger is not None:
                numbers = {name: value for name, value in self.rows[-1].items() if name != "epoch"}
                trainer.logger.log_metrics(numbers, step=len(self.rows))
        folder = self.folder / "checkpoints"
        path = folder / f"epoch-{len(self.rows):05d}.ckpt"
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path)  # takes part, and writes nothing
        else:
            with replacing(path) as temporary:
                trainer.save_checkpoint(temporary)
            for old in _checkpoints(folder)[:-KEPT]:
                old.unlink(missing_ok=True)
            if self.on_epoch is not None:
                self.on_epoch(self.rows[-1])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the weights out of the checkpoint: these are the averaged ones, where weights are averaged."""
        if not trainer.is_global_zero:
            return
        state = {
            name.removeprefix("network."): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith("network.")
        }
        weights = replace(self.weights, state=state)
        # Before the checkpoint: an epoch that is run again writes the same.
        if self.best is self.rows[-1]:
            weights.write(self.folder / "best.pt")
        if len(self.rows) == trainer.max_epochs:
            weights.write(self.folder / "final.pt")


def _table(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.ckpt"))


def checkpoint_epoch(path: Path) -> int:
    """Of how many epochs a checkpoint is."""
    return int(path.stem.split("-")[1])


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; None if there never was one. Damaged ones that are newer are removed.

    Raises
    ------
    CheckpointError
        If there are checkpoints but none is whole.

    Warns
    -----
    UserWarning
        If one is damaged.
    """
    damaged: list[str] = []
    paths = _checkpoints(folder)
    for path in reversed(paths):
        try:
            check_file(path)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(f"{'; '.join(damaged)}; going on from {path.name}, the one before", stacklevel=2)
            for newer in paths[paths.index(path) + 1 :]:
                newer.unlink(missing_ok=True)
        return path
    if damaged:
        raise CheckpointError(f"{'; '.join(damaged)}; no whole checkpoint is left, begin anew with --force")
    return None
