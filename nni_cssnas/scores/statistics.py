"""Statistics of an untrained network: functions of its features, gradients and activation codes alone.

Every one is to be maximised. What they are taken of is :mod:`nni_cssnas.scores.untrained`'s.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nni_cssnas.errors import ConfigError
from nni_cssnas.scores.losses import nt_xent

__all__ = [
    "contrastive_loss",
    "distinct_patterns",
    "entropy",
    "expressivity",
    "gradient_flow",
    "gram",
    "jacov",
    "naswot",
    "nonlinearity",
    "progressivity",
    "scatter",
    "similarity",
    "trainability",
    "zico",
]

TEMPERATURE = 0.2


def scatter(features: Tensor) -> Tensor:
    """The scatter matrix of features, (C, C): their covariance times the number of observations.

    Where there are fewer observations than channels it is their Gram matrix, which has the same non-zero eigenvalues.

    Parameters
    ----------
    features
        (batch, C, H, W), tokens (batch, N, C), or (batch, C). Every position is an observation.
    """
    if features.ndim == 4:
        features = features.movedim(1, -1)
    # rows: (observations, C)
    rows = features.detach().reshape(-1, features.shape[-1])
    rows = rows - rows.mean(0)
    return rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows


def entropy(scatter: Tensor) -> float:
    """Entropy of the normalised eigenvalues of a :func:`scatter` matrix: the log of the features' effective dimensions.

    Returns
    -------
    float
        From 0 (one direction, or constant features) to log(C).
    """
    # LAPACK's driver for one thread and many gives the same bits in float64 here; float32 would lose the small ones.
    values = torch.linalg.eigvalsh(_finite(scatter).double().cpu()).clamp(min=0)
    total = float(values.sum())
    if total <= 0:
        return 0.0
    shares = values / total
    return float(-(shares * torch.log(shares.clamp(min=1e-12))).sum())


def expressivity(entropies: Sequence[float]) -> float:
    """Sum of the stages' entropies (AZ-NAS, arXiv:2403.19232, equation 2)."""
    return math.fsum(entropies)


def progressivity(entropies: Sequence[float]) -> float:
    """Least gain of entropy from a stage to the next (AZ-NAS, arXiv:2403.19232, equation 3); 0 for one stage."""
    return min((after - before for before, after in itertools.pairwise(entropies)), default=0.0)


def jacov(gradients: Tensor, epsilon: float = 1e-5) -> float:
    """How differently the network reacts to different images (Mellor et al., arXiv:2006.04647, version 1).

    With v the eigenvalues of the correlation matrix of the rows, -sum(log(v + e) + 1 / (v + e)): largest
    (-n) where the rows are uncorrelated.

    Parameters
    ----------
    gradients
        Gradient of each image's summed features with respect to that image, (n, ...).
    epsilon
        e.
    """
    rows = gradients.detach().flatten(1).double().cpu()
    rows = rows - rows.mean(1, keepdim=True)
    norms = rows.norm(dim=1, keepdim=True)
    # An image that the network does not react to correlates with none but itself.
    rows = torch.where(norms > 0, rows / norms.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    correlation = (rows @ rows.T).fill_diagonal_(1.0)
    values = torch.linalg.eigvalsh(_finite(correlation)).abs() + epsilon
    return float(-(values.log() + 1 / values).sum())


def naswot(codes: Tensor, ridge: float = 1e-3) -> float:
    """Log-determinant of the agreement kernel of binary codes (NASWOT, arXiv:2006.04647).

    Parameters
    ----------
    codes
        bool, (n, activations): whether the activation is on (its input is above 0).
    ridge
        Added to the diagonal, which holds the number of activations: of no account but where two images
        have equal codes, whose determinant would be 0.
    """
    kernel = _agreement(codes) + ridge * torch.eye(codes.shape[0], dtype=torch.float64)
    return float(torch.linalg.slogdet(kernel)[1])


def distinct_patterns(codes: Tensor) -> int:
    """Number of distinct columns: sample-wise activation patterns (SWAP, arXiv:2403.04161).

    Parameters
    ----------
    codes
        bool, (n, activations), n at most 62.
    """
    n = codes.shape[0]
    if n > 62:
        raise ConfigError(f"patterns of {n} images were asked for; at most 62 fit an integer")
    # Distinct integers are sorted in a tenth of the time of distinct columns.
    weights = 2 ** torch.arange(n, device=codes.device)
    patterns = torch.zeros(codes.shape[1], dtype=torch.int64, device=codes.device)
    for row, weight in zip(codes, weights, strict=True):
        patterns += row * weight
    return int(torch.unique(patterns).numel())


def contrastive_loss(features0: Tensor, features1: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """NT-Xent (SimCLR, arXiv:2002.05709) of centred features, (n, C) each.

    Features after a ReLU all lie in one orthant, and the loss of an untrained network would tell
    little but that; centred ones spread over the sphere.
    """
    first, second = (features - features.mean(0) for features in (features0, features1))
    return nt_xent(first, second, temperature)


def gram(features: Tensor) -> Tensor:
    """Inner products of the images' features, centred over the batch: (n, ...) to (n, n)."""
    rows = features.detach().flatten(1)
    rows = rows - rows.mean(0)
    return rows @ rows.T


def similarity(first: Tensor, second: Tensor) -> float:
    """Linear CKA of two layers' :func:`gram` matrices (Kornblith et al., arXiv:1905.00414, section 3).

    From 0 to 1, where both arrange the images alike; 0 if a layer gives the same for all.
    """
    norms = float(first.double().norm() * second.double().norm())
    return float((first.double() * second.double()).sum()) / norms if norms > 0 else 0.0


def nonlinearity(mixed: Tensor, mixture: Tensor) -> float:
    """How far features of mixed images are from mixed features of images: 1 - their cosine, centred over the batch.

    0 for a network that is affine, whatever its scale (batch norm does not change it).

    Parameters
    ----------
    mixed
        Features of the means of pairs of images, (n, C).
    mixture
        Means of the features of the same pairs, (n, C).
    """
    a, b = ((rows - rows.mean(0)).detach().double().flatten() for rows in (mixed, mixture))
    norms = float(a.norm() * b.norm())
    return 1.0 - float(a @ b) / norms if norms > 0 else 0.0


def trainability(gradients: Tensor, signs: Tensor) -> float:
    """How near a block's Jacobian is to one that keeps lengths: 2 - s - 1 / s (AZ-NAS, arXiv:2403.19232).

    ``s`` is the largest singular value of the mean outer product of the gradients before and after the block.
    At most 0, which it is where s is 1; s counts as at least 1e-6.

    Parameters
    ----------
    gradients
        Before the block, ``(n, C, H, W)`` or ``(n, N, C)``.
    signs
        After it, random signs of which the former are the products with the block's Jacobian. Where positions do not
        correspond (a class token joins), the means over them are taken.
    """
    gradients = gradients.detach()
    if gradients.ndim == signs.ndim == 4 and gradients.shape[2:] != signs.shape[2:]:
        step = gradients.shape[2] // signs.shape[2]
        if step > 1 and (signs.shape[2] * step, signs.shape[3] * step) == tuple(gradients.shape[2:]):
            # As AZ-NAS does: the pixels that become one are channels of it.
            gradients = torch.nn.functional.pixel_unshuffle(gradients, step)
    before, after = (tensor.flatten(2).movedim(1, -1) if tensor.ndim == 4 else tensor for tensor in (gradients, signs))
    if before.shape[1] != after.shape[1]:
        before, after = before.mean(1, keepdim=True), after.mean(1, keepdim=True)
    before, after = before.flatten(0, 1).double(), after.flatten(0, 1).double()
    product = before.T @ after / len(before)
    largest = max(float(torch.linalg.matrix_norm(_finite(product).cpu(), 2)), 1e-6)
    return 2 - largest - 1 / largest


def gradient_flow(gradients: Sequence[Tensor]) -> float:
    """Sum over the layers of log(1 + norm of the gradient of its weights).

    The gradient norm of arXiv:2101.08134, section 3.1, of the contrastive loss, with a logarithm so that one
    layer with a large gradient cannot make up for others with none.
    """
    return math.fsum(math.log1p(float(gradient.norm())) for gradient in gradients)


def zico(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Sum over the layers of log(sum of mean / deviation of absolute gradients) (ZiCo, arXiv:2301.11300).

    Parameters
    ----------
    first, second
        Gradients of every layer's weight on two batches.
    """
    total = []
    for a, b in zip(first, second, strict=True):
        mean, deviation = (a.abs() + b.abs()) / 2, (a.abs() - b.abs()).abs() / 2
        value = float((mean / deviation.clamp(min=1e-8))[deviation > 0].double().sum())
        if value > 0:
            total.append(math.log(value))
    return math.fsum(total)


def _agreement(codes: Tensor) -> Tensor:
    """(n, n): in how many activations two images agree."""
    # With signs a matrix product counts what is on in both and what is off in both; float32 is exact up to 2^24.
    # In pieces that stay in the processor's cache: the signs of all activations are much larger than the codes.
    total = torch.zeros(codes.shape[0], codes.shape[0], dtype=torch.float64, device=codes.device)
    for piece in codes.split(2**14, dim=1):
        signs = piece.to(torch.float32).mul_(2).sub_(1)
        total += signs @ signs.T
    return ((codes.shape[1] + total) / 2).cpu()


def _finite(matrix: Tensor) -> Tensor:
    """LAPACK raises on NaN; a network that gives NaN is found dead by its features."""
    return torch.nan_to_num(matrix, nan=0.0, posinf=0.0, neginf=0.0)
