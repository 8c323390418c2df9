"""Contrastive training of the chosen network before any label is used (SimCLR, arXiv:2002.05709)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from nni_cssnas.base.device import derive_seed, resolve_device, seeded
from nni_cssnas.config import ContrastiveConfig
from nni_cssnas.errors import ConfigError
from nni_cssnas.images.pool import Images, Pool
from nni_cssnas.images.views import MEAN, STD, make_views
from nni_cssnas.scores.contrastive import check_images, train_contrastive
from nni_cssnas.spaces.architecture import Architecture
from nni_cssnas.spaces.backbone import Backbone
from nni_cssnas.training.config import RetrainConfig
from nni_cssnas.training.weights import NetworkShape, Weights

__all__ = ["contrastive_config", "features_network", "pretrain"]


def contrastive_config(config: RetrainConfig, num_images: int) -> ContrastiveConfig:
    """The recipe's training without labels, in batches of at most all images.

    Raises
    ------
    ConfigError
        If there are too few images for any batch.
    """
    available = num_images - round(config.contrastive.held_out * num_images)
    batch_size = max(2, min(config.contrastive.batch_size, available))
    fitted = config.contrastive.model_copy(update={"batch_size": batch_size})
    try:
        check_images(num_images, fitted)
    except ConfigError as error:
        raise ConfigError(f"pre-training (contrastive.*): {error}") from None
    return fitted


def features_network(architecture: Architecture, config: RetrainConfig) -> Weights:
    """The recipe's network without classifier, as drawn from the recipe's seed."""
    shape = NetworkShape(0, config.size, config.num_cells, config.channels, config.stem)
    with seeded(derive_seed(config.seed, "weights")):
        network = shape.build(architecture)
    return Weights(architecture, shape, network.state_dict(), MEAN, STD)


def pretrain(
    architecture: Architecture,
    config: RetrainConfig,
    images: Images,
    out: Path,
    *,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Weights:
    """The weights of ``out/pretrained.pt``; if there are none yet, train them first.

    A training that was stopped goes on after its last finished epoch.

    Parameters
    ----------
    images
        uint8, ``(N, 3, S, S)``, in memory or on disk.
    out
        Folder of the run.
    on_epoch
        Called with the epoch's number from 0 and its mean loss.

    Raises
    ------
    ConfigError
        If there are too few images.
    DivergenceError
        If the loss becomes NaN.
    CheckpointError
        If ``pretrained.pt`` is damaged.
    """
    path, state = out / "pretrained.pt", out / "pretraining.ckpt"
    if path.exists():
        return Weights.read(path)
    contrastive = contrastive_config(config, len(images))
    fresh = features_network(architecture, config)
    network = fresh.network()
    device = resolve_device(config.device)
    train_contrastive(
        Backbone(network, config.size, ""),
        Pool(images, device),
        contrastive,
        views=make_views(config.views, config.size),
        seed=derive_seed(config.seed, "pretraining"),
        data_seed=config.seed,
        device=device,
        on_epoch=on_epoch,
        checkpoint=state,
    )
    trained = dataclasses.replace(fresh, state=network.state_dict())
    trained.write(path)
    state.unlink(missing_ok=True)
    return trained
