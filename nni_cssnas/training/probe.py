"""How good frozen features are: weighted nearest neighbours (arXiv:1805.01978) and a linear classifier on them."""

from __future__ import annotations

import copy
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_cssnas.base.device import resolve_device
from nni_cssnas.errors import ConfigError
from nni_cssnas.images.labelled import Files, LabelledImages, Split
from nni_cssnas.images.pool import Pool
from nni_cssnas.spaces.backbone import Backbone
from nni_cssnas.training.augment import Augmentation
from nni_cssnas.training.config import RetrainConfig
from nni_cssnas.training.weights import Weights

__all__ = ["ProbeResult", "features", "knn_accuracy", "linear_accuracy", "probe", "untrained"]

BATCH = 256
CALIBRATED = 2048
"""So many images set the batch norms of a network that was never trained."""


@dataclass(frozen=True)
class ProbeResult:
    """Shares of the validation images whose class was told from frozen features.

    Attributes
    ----------
    knn, linear
        By the nearest neighbours among the training images, and by logistic regression on these.
    num_features
        Width of the features.
    """

    knn: float
    linear: float
    num_features: int

    def to_dict(self) -> dict[str, Any]:
        """For records."""
        return asdict(self)


def probe(
    weights: Weights,
    data: LabelledImages,
    config: RetrainConfig,
    *,
    train: Split | None = None,
    neighbours: int = 200,
    temperature: float = 0.1,
) -> ProbeResult:
    """Both accuracies of the features that the network of ``weights`` gives.

    Parameters
    ----------
    weights
        Of features or of a classifier, whose last layer is taken off.
    data
        The images; ``train`` replaces the training images by a part of them.
    config
        Tells the device.
    neighbours, temperature
        See :func:`knn_accuracy`.

    Raises
    ------
    ConfigError
        If the network is for images of another size.
    """
    if weights.shape.size != data.size:
        raise ConfigError(
            f"the weights are of a network for images of {weights.shape.size} pixels, but size is {data.size}"
        )
    backbone = _backbone(weights)
    bank = data.train if train is None else train
    taken = [features(backbone, split, weights, config) for split in (bank, data.val)]
    (x, y), (queries, truth) = taken
    return ProbeResult(
        knn=knn_accuracy(x, y, queries, truth, len(data.classes), neighbours=neighbours, temperature=temperature),
        linear=linear_accuracy(x, y, queries, truth),
        num_features=x.shape[1],
    )


def untrained(weights: Weights, data: LabelledImages, config: RetrainConfig) -> Weights:
    """What to compare with: the same network as it was initialised.

    Its batch norms get the statistics of training images, without which features of deep networks vanish or explode.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = weights.shape.build(weights.architecture)
    device = resolve_device(config.device)
    network.to(device).train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # a plain mean over the batches
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:CALIBRATED]
    augmentation = Augmentation(config, weights.mean, weights.std, cropped=True)
    drop_path = getattr(network, "drop_path", None)
    if isinstance(drop_path, float):
        network.drop_path = 0.0  # type: ignore[assignment]
    with torch.no_grad():
        for batch in _pool(data.train, data.size, device).batches(_batches(chosen)):
            network(augmentation.evaluate(batch))
    return Weights(weights.architecture, weights.shape, network.cpu().state_dict(), weights.mean, weights.std)


def _batches(positions: Tensor) -> list[Tensor]:
    parts = list(positions.split(BATCH))
    # Batch norm needs 2 images.
    return parts[:-1] if len(parts) > 1 and len(parts[-1]) < 2 else parts


def _backbone(weights: Weights) -> Backbone:
    network = weights.network()
    space = weights.architecture.space
    named = "" if weights.shape.num_classes == 0 else space.classifier if space is not None else None
    return Backbone(network, weights.shape.size, named)


def _pool(split: Split, size: int, device: torch.device) -> Pool:
    images = split.images
    return Pool(images.decoded(size) if isinstance(images, Files) else images, device)


def features(backbone: nn.Module, split: Split, weights: Weights, config: RetrainConfig) -> tuple[Tensor, Tensor]:
    """Frozen features ``(N, D)`` of the images as they are, in float32 on the CPU, and their labels ``(N,)``."""
    device = resolve_device(config.device)
    backbone = copy.deepcopy(backbone).to(device).eval()
    augmentation = Augmentation(config, weights.mean, weights.std, cropped=True)
    pool = _pool(split, weights.shape.size, device)
    with torch.inference_mode():
        parts = [
            backbone(augmentation.evaluate(batch)).float().cpu()
            for batch in pool.batches(torch.arange(len(split)).split(BATCH))
        ]
    return torch.cat(parts), split.labels


def knn_accuracy(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    truth: Tensor,
    num_classes: int,
    *,
    neighbours: int = 200,
    temperature: float = 0.1,
) -> float:
    """Share of the queries whose class gets the largest vote of their nearest neighbours.

    A neighbour at cosine similarity ``s`` votes for its class with ``exp(s / temperature)`` (Wu et al., arXiv:1805.01978,
    equation 9; lightly's ``knn_predict``).

    Parameters
    ----------
    bank, labels
        ``(N, D)`` and ``(N,)``.
    queries, truth
        ``(M, D)`` and ``(M,)``.
    neighbours
        How many vote; at most all.
    """
    from lightly.utils.benchmarking import knn_predict

    bank = F.normalize(bank, dim=1).T.contiguous()
    right = 0
    for part, expected in zip(queries.split(BATCH), truth.split(BATCH), strict=True):
        found = knn_predict(
            F.normalize(part, dim=1), bank, labels, num_classes, knn_k=min(neighbours, len(labels)), knn_t=temperature
        )
        right += int((found[:, 0] == expected).sum())
    return right / len(truth)


def linear_accuracy(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> float:
    """Share of the queries that a logistic regression gets right, fitted to the bank's standardised features."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    with warnings.catch_warnings():
        # The accuracy has settled long before the weights.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(bank.numpy(), labels.numpy())
    return float(model.score(queries.numpy(), truth.numpy()))
