"""How a training ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nni_cssnas.training.weights import Weights

__all__ = ["RetrainResult"]


@dataclass(frozen=True)
class RetrainResult:
    """How a training ended. Accuracies are shares of the validation images.

    Attributes
    ----------
    best_top1, best_top5, best_balanced, best_epoch
        Of the epoch (from 1) with the highest top-1 accuracy, chosen on these same images. Top-5 is None for 5 classes or fewer.
    final_top1, final_top5, final_balanced
        Of the last epoch.
    epochs
        How many were trained.
    params, macs
        Trainable weights without the auxiliary head, and multiply-adds of one image.
    seconds
        Of training and validation, over all starts, without the pre-training.
    folder
        Where everything lies.
    """

    best_top1: float
    best_top5: float | None
    best_balanced: float
    best_epoch: int
    final_top1: float
    final_top5: float | None
    final_balanced: float
    epochs: int
    params: int
    macs: int
    seconds: float
    folder: Path

    def network(self, weights: str = "best.pt") -> nn.Module:
        """The trained network, in evaluation mode, on the CPU: normalised images to logits.

        Parameters
        ----------
        weights
            ``best.pt``, of the epoch with the highest validation accuracy, or ``final.pt``.
        """
        return Weights.read(self.folder / weights).network()
