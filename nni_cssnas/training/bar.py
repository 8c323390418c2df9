"""Lightning's progress bar, which counts epochs from 0, counting them from 1 as everything else here does."""

from __future__ import annotations

from pytorch_lightning.callbacks import RichProgressBar

__all__ = ["EpochBar"]


class EpochBar(RichProgressBar):
    """``Epoch 1/1`` in the only epoch, where Lightning says ``Epoch 0/0``."""

    def _get_train_description(self, current_epoch: int) -> str:
        # As wide as "Validation", which takes its place, so that the bar does not jump.
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(len(self.validation_description))
