"""The training of one network with labels, as Lightning wants it written."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from nni_cssnas.base.device import derive_seed
from nni_cssnas.base.modules import feature_tensor
from nni_cssnas.errors import DivergenceError
from nni_cssnas.spaces.network import CellNetwork
from nni_cssnas.training.augment import Augmentation
from nni_cssnas.training.config import RetrainConfig
from nni_cssnas.training.data import NO_LABEL

__all__ = ["Classifier", "class_weights"]

CHECKED = 100
"""After so many steps, and at the epoch's end, the device is waited for and the loss looked at."""


def class_weights(counts: Tensor) -> Tensor:
    """Weights of the classes in the loss, ``(num_classes,)``: N / (num_classes * images of the class)."""
    return counts.sum() / (len(counts) * counts.double())


class Classifier(pl.LightningModule):
    """A network that gives logits, trained as a recipe says.

    Life cycle: Lightning calls the steps; at the end of every epoch :attr:`row` holds its numbers. All randomness of a
    step, drop path included, comes from the recipe's seed, the epoch, the step and the device's rank.

    Parameters
    ----------
    network
        Normalised images ``(B, 3, S, S)`` to logits ``(B, num_classes)``; in training mode perhaps also those of an
        auxiliary head. A :class:`~nni_cssnas.spaces.network.CellNetwork` gets the drop path of the epoch.
    config
        The recipe.
    augmentation
        Makes the network's input of uint8 images.
    num_classes
        Of the logits.
    weights
        Of the classes in the training loss, ``(num_classes,)``, or None.

    Attributes
    ----------
    row : dict of str to float
        Numbers of the last epoch: ``epoch`` (from 1), ``lr``, ``drop_path``, ``train_loss`` (with auxiliary loss, smoothing and
        weights), ``train_top1``, ``val_loss`` (plain cross-entropy), ``val_top1``, ``val_top5`` (of more than 5 classes)
        and ``val_balanced``, the mean accuracy of the classes.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        config: RetrainConfig,
        augmentation: Augmentation,
        *,
        num_classes: int,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.augmentation = augmentation
        self.register_buffer("class_weights", None if weights is None else weights.float(), persistent=False)
        options: dict[str, Any] = {"num_classes": num_classes, "ignore_index": NO_LABEL, "validate_args": False}
        self.train_top1 = MulticlassAccuracy(average="micro", **options)
        self.val_top1 = MulticlassAccuracy(average="micro", **options)
        self.val_top5 = MulticlassAccuracy(average="micro", top_k=5, **options) if num_classes > 5 else None
        self.val_balanced = MulticlassAccuracy(average="macro", **options)
        # Checking every value for NaN would wait for the device at every step.
        self.train_loss, self.val_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.row: dict[str, float] = {}
        self._validated: dict[str, float] = {}
        self._begun: dict[str, float] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of normalised images."""
        return self._logits(images)[0]

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        output = self.network(images)
        if isinstance(self.network, CellNetwork) and isinstance(output, tuple):
            return output
        logits = feature_tensor(output)
        assert logits is not None
        return logits, None

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with the recipe's label smoothing and class weights."""
        return F.cross_entropy(
            logits.float(), labels, weight=self.class_weights, label_smoothing=self.config.label_smoothing
        )

    def configure_optimizers(self) -> Any:
        """SGD, and a schedule that moves once an epoch."""
        config = self.config
        optimizer = torch.optim.SGD(
            self.network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        schedules = torch.optim.lr_scheduler
        warmup = config.warmup_epochs
        schedule: Any
        if config.schedule == "cosine":
            schedule = schedules.CosineAnnealingLR(optimizer, config.epochs - warmup)
        else:
            schedule = schedules.StepLR(optimizer, config.decay_epochs, config.decay)
        if warmup:
            rise = schedules.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
            schedule = schedules.SequentialLR(optimizer, [rise, schedule], [warmup])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    # ---- training ---------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Set the epoch's drop path: from 0, linearly (arXiv:1707.07012, appendix)."""
        drop_path = 0.0
        if isinstance(self.network, CellNetwork):
            drop_path = self.network.drop_path = self.config.drop_path * self.current_epoch / self.config.epochs
        self._begun = {"lr": self.trainer.optimizers[0].param_groups[0]["lr"], "drop_path": drop_path}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Augment, and the loss of both heads."""
        images, labels = batch
        seed = derive_seed(self.config.seed, f"epoch {self.current_epoch} step {batch_idx} rank {self.global_rank}")
        # Drop path and dropout draw from the global generators.
        torch.manual_seed(seed)
        generator = torch.Generator(images.device).manual_seed(seed)
        logits, auxiliary = self._logits(self.augmentation.train(images, generator))
        loss = self.loss(logits, labels)
        if auxiliary is not None:
            loss = loss + self.config.auxiliary_weight * self.loss(auxiliary, labels)
        self.train_loss.update(loss.detach(), len(labels))
        self.train_top1.update(logits.detach(), labels)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop where the loss is no number any more.

        Raises
        ------
        DivergenceError
            With the epoch, the step, the learning rate and the remedy.
        """
        if (batch_idx + 1) % CHECKED and not self.trainer.is_last_batch:
            return
        total = self.train_loss.mean_value
        assert isinstance(total, Tensor)
        fine = math.isfinite(float(total))
        # One device that stops alone would leave the others waiting.
        if self.trainer.strategy.reduce_boolean_decision(fine, all=True):
            return
        config = self.config
        halves = "" if config.amp == "off" else f", or amp=off ({config.amp})"
        raise DivergenceError(
            f"the training loss became {float(total) if not fine else 'nan'} in epoch {self.current_epoch + 1}, by step "
            f"{batch_idx + 1} (lr {self._begun['lr']:g}); set a lower lr ({config.lr:g}), warmup_epochs ({config.warmup_epochs}) "
            f"or a lower gradient_clip ({config.gradient_clip:g}){halves}, and begin anew with --force or in another folder"
        )

    def on_train_epoch_end(self) -> None:
        """Sum the epoch up."""
        measured = {"train_loss": self.train_loss, "train_top1": self.train_top1}
        self.row = {"epoch": self.current_epoch + 1, **self._begun, **_computed(measured), **self._validated}
        self.log_dict(
            {name: self.row[name] for name in ("train_loss", "val_top1") if name in self.row},
            prog_bar=True,
            logger=False,
        )

    # ---- validation -------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracies of the images as they are."""
        images, labels = batch
        logits = self._logits(self.augmentation.evaluate(images))[0].float()
        counted = (labels != NO_LABEL).sum()
        total = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")
        self.val_loss.update(total / counted.clamp_min(1), counted)
        for metric in (self.val_top1, self.val_top5, self.val_balanced):
            if metric is not None:
                metric.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Sum the validation up."""
        metrics = {
            "val_loss": self.val_loss,
            "val_top1": self.val_top1,
            "val_top5": self.val_top5,
            "val_balanced": self.val_balanced,
        }
        self._validated = _computed({name: metric for name, metric in metrics.items() if metric is not None})


def _computed(metrics: dict[str, Any]) -> dict[str, float]:
    values = {name: float(metric.compute()) for name, metric in metrics.items()}
    for metric in metrics.values():
        metric.reset()
    return values
