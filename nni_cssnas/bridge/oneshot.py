"""One-shot search without labels: NNI's DARTS, GumbelDARTS and RandomOneShot on a contrastive loss.

NNI's one-shot strategies train a supernet through a *Lightning evaluator*. :func:`contrastive_evaluator` is one whose
loss is SimCLR's (arXiv:2002.05709) on views of unlabelled images. Loads pytorch-lightning.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nni
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn

from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError
from nni_cssnas.images.sources import load_images
from nni_cssnas.images.views import make_views
from nni_cssnas.scores.losses import nt_xent
from nni_cssnas.spaces.backbone import Backbone

__all__ = ["ContrastiveModule", "contrastive_evaluator"]


@nni.trace
class ContrastiveModule(LightningModule):  # type: ignore[misc]
    """SimCLR as NNI wants a training to be written: batches are uint8 images ``(B, 3, H, W)``.

    Life cycle: NNI gives the supernet to :meth:`set_model`; its classifier, if it has one, becomes an identity.

    Parameters
    ----------
    config
        Contents of a ``proxy.yml``; its ``views`` and ``contrastive`` sections are used.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        settings = ProxyConfig(**config)
        self.config = settings.contrastive
        self.size = settings.views.input_size or settings.images.size
        self.views = make_views(settings.views, self.size)
        self.seed = settings.seed
        self.loss = partial(nt_xent, temperature=self.config.temperature)
        self._generator: torch.Generator | None = None

    def set_model(self, model: nn.Module) -> None:
        """Take the network to train; find its features."""
        if getattr(self, "_model", None) is model:
            return
        super().set_model(model)
        from lightly.models.modules.heads import SimCLRProjectionHead

        sampled: dict[str, Any] = {}
        for module in model.modules():
            if isinstance(module, BaseSuperNetModule):  # one that samples has no path before its first sample
                sampled.update(module.resample(memo=sampled))
        self.backbone = Backbone(model, self.size)
        self.head = SimCLRProjectionHead(
            self.backbone.num_features, self.config.projection_hidden, self.config.projection_dim
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings ``(B, projection_dim)`` of normalised images."""
        return self.head(self.backbone(images))  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """NT-Xent of two views of a batch."""
        loss = self._loss(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The same on unseen images."""
        self.log("val_loss", self._loss(batch), prog_bar=True)

    def _loss(self, batch: Any) -> Tensor:
        images = batch[0] if isinstance(batch, (list, tuple)) else batch
        if self._generator is None or self._generator.device != images.device:
            self._generator = torch.Generator(images.device).manual_seed(self.seed)
        first, second = self.views(images, self._generator)
        return self.loss(*self(torch.cat([first, second])).float().chunk(2))

    def configure_optimizers(self) -> Any:
        """SGD as the contrastive proxy's, cosine to 0 by epochs."""
        config = self.config
        optimizer = torch.optim.SGD(
            self.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs or config.epochs)
        return [optimizer], [schedule]


def contrastive_evaluator(config: str | Path | Mapping[str, Any] | ProxyConfig, **trainer: Any) -> Any:
    """An NNI Lightning evaluator that trains without labels, as ``proxy.yml`` says.

    Half of the images trains the weights, the other half the architecture (as in DARTS).

    Parameters
    ----------
    config
        Path of a ``proxy.yml``, its contents, or a :class:`~nni_cssnas.config.ProxyConfig`.
    **trainer
        Further arguments of :class:`pytorch_lightning.Trainer`.

    Raises
    ------
    CssnasError
        If the settings are wrong, the images cannot be used, or half of them is less than one batch.

    Examples
    --------
    >>> from nni.nas.strategy import DARTS
    >>> space = CellSupernet(num_nodes=4, num_cells=5, channels=8)
    >>> experiment = NasExperiment(space, contrastive_evaluator("proxy.yml"), DARTS())
    >>> experiment.run()
    >>> genotype = space.genotype_of(experiment.export_top_models(1, formatter="dict")[0])
    """
    if isinstance(config, ProxyConfig):
        settings = config
    else:
        settings = ProxyConfig(**config) if isinstance(config, Mapping) else ProxyConfig.load(config)
    contrastive = settings.contrastive
    if contrastive.loss != "ntxent" or contrastive.memory_bank_size or contrastive.view_pool != "fresh":
        raise ConfigError(
            f"a one-shot search trains with loss 'ntxent' on fresh views, not loss {contrastive.loss!r}, "
            f"memory_bank_size {contrastive.memory_bank_size} and view_pool {contrastive.view_pool!r}; change contrastive"
        )
    images = load_images(settings.images, min_images=2 * contrastive.batch_size)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    pl.seed_everything(settings.seed, verbose=False)
    loaders = [
        DataLoader(
            torch.utils.data.Subset(images, half),  # type: ignore[arg-type]
            batch_size=contrastive.batch_size,
            shuffle=True,
            drop_last=True,
        )
        for half in halves
    ]
    options = {
        "max_epochs": contrastive.epochs,
        "accelerator": "cpu" if settings.device == "cpu" else "auto",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Lightning(
        ContrastiveModule(settings.model_dump(mode="json", exclude_unset=True)),
        Trainer(**(options | trainer)),
        train_dataloaders=loaders[0],
        val_dataloaders=loaders[1],
    )
