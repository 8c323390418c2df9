"""Contrastive losses: SimCLR's, and the paper's pretext-invariant one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["PretextInvariantLoss", "nt_xent"]


def nt_xent(u: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
    """SimCLR's loss (arXiv:2002.05709, equation 1) of the two views' embeddings, ``(batch_size, dim)`` each.

    As lightly's ``NTXentLoss`` without a memory bank, but with one matrix product where that takes four.
    """
    z = F.normalize(torch.cat([u, v]), dim=1)
    # similarities: (2 * batch_size, 2 * batch_size); the diagonal is no pair
    similarities = (z @ z.T / temperature).fill_diagonal_(-math.inf)
    positives = torch.arange(len(z), device=z.device).roll(len(u))
    return F.cross_entropy(similarities, positives)


class PretextInvariantLoss(nn.Module):
    """Pretext-invariant NCE with a memory of every image, in the two-term form of CSNAS.

    For image ``i`` with memory ``m_i`` and the embeddings ``u_i``, ``v_i`` of its two views::

        weight * nce(m_i, v_i) + (1 - weight) * nce(m_i, u_i)
        nce(m_i, z) = -log( exp(<m_i, z> / t) / (exp(<m_i, z> / t) + sum_n exp(<n, z> / t)) )

    with ``2 * (batch_size - 1)`` negatives ``n`` drawn from the memories of images outside the batch's own
    positives, once for the whole batch, so that a step is one matrix product (the reference draws them
    image by image in Python). The memory is the running mean of ``u``.

    Sources: Misra & van der Maaten, PIRL, arXiv:1912.01991, equation 5; Nguyen & Chang, arXiv:2102.10557.

    Parameters
    ----------
    num_images
        Images in the memory.
    dim
        Width of the embeddings.
    temperature
        The ``t`` above, above 0.
    weight
        The ``weight`` above, from 0 to 1.
    momentum
        Share of the old value when a memory is updated, in [0, 1).
    generator
        Draws the first memories and the negatives; on ``device``.
    """

    memory: torch.Tensor

    def __init__(
        self,
        num_images: int,
        dim: int,
        *,
        temperature: float = 0.07,
        weight: float = 0.5,
        momentum: float = 0.5,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.weight = weight
        self.momentum = momentum
        self.generator = generator
        first = torch.randn(num_images, dim, generator=generator, device=generator.device)
        self.register_buffer("memory", F.normalize(first, dim=1), persistent=False)

    def forward(self, u: torch.Tensor, v: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The loss of one batch; updates the memories of its images.

        Parameters
        ----------
        u, v
            Embeddings of the two views, ``(batch_size, dim)``; normalised here.
        index
            Number of each image in the memory, ``(batch_size,)``, distinct.
        """
        u, v = F.normalize(u, dim=1), F.normalize(v, dim=1)
        positives = self.memory[index]
        drawn = torch.randint(
            len(self.memory), (2 * (len(index) - 1),), generator=self.generator, device=self.generator.device
        )
        terms = []
        for z in (v, u):
            # positive: (batch_size, 1); negative: (batch_size, 2 * (batch_size - 1))
            positive = (positives * z).sum(1, keepdim=True)
            negative = z @ self.memory[drawn].T
            # An image is no negative of itself.
            negative = negative.masked_fill(drawn[None, :] == index[:, None], float("-inf"))
            logits = torch.cat([positive, negative], dim=1) / self.temperature
            terms.append(F.cross_entropy(logits, logits.new_zeros(len(index), dtype=torch.long)))
        with torch.no_grad():
            blend = self.momentum * positives + (1 - self.momentum) * u.float()
            self.memory[index] = F.normalize(blend, dim=1)
        return self.weight * terms[0] + (1 - self.weight) * terms[1]
