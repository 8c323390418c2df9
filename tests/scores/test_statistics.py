"""Each statistic against its formula in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor, nn

from nni_cssnas.errors import ConfigError
from nni_cssnas.scores.statistics import (
    contrastive_loss,
    distinct_patterns,
    entropy,
    expressivity,
    gradient_flow,
    gram,
    jacov,
    naswot,
    nonlinearity,
    progressivity,
    scatter,
    similarity,
    trainability,
    zico,
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(4, 5, 3, 3), (3, 7, 5), (30, 6), (4, 9)])
def test_entropy_is_that_of_the_eigenvalues_of_the_covariance(shape: tuple[int, ...]) -> None:
    features = rand(*shape)
    rows = []
    if len(shape) == 4:
        for image in features:
            for y in range(shape[2]):
                for x in range(shape[3]):
                    rows.append(image[:, y, x].numpy())
    elif len(shape) == 3:
        rows = [token.numpy() for image in features for token in image]
    else:
        rows = [row.numpy() for row in features]
    values = np.linalg.eigvals(np.cov(np.array(rows, dtype=np.float64), rowvar=False)).real
    shares = values / values.sum()
    expected = -sum(p * math.log(p) for p in shares if p > 1e-12)
    assert entropy(scatter(features)) == pytest.approx(expected, rel=1e-5)
    assert entropy(scatter(7 * features + 3)) == pytest.approx(expected, rel=1e-4)


def test_entropy_of_one_direction_and_of_nothing_is_zero() -> None:
    assert entropy(scatter(torch.ones(4, 3, 2, 2))) == 0
    line = rand(50, 1) * torch.tensor([[1.0, 2.0, -1.0]])
    assert entropy(scatter(line)) == pytest.approx(0, abs=1e-4)


def test_expressivity_and_progressivity() -> None:
    assert expressivity([1.0, 2.5, 2.0]) == 5.5
    assert progressivity([1.0, 2.5, 2.0, 2.1]) == -0.5
    assert progressivity([1.0]) == 0


def test_jacov_is_mellors_formula() -> None:
    gradients = rand(6, 3, 4, 4)
    values = np.linalg.eigvals(np.corrcoef(gradients.flatten(1).numpy())).real
    expected = -sum(math.log(v + 1e-5) + 1 / (v + 1e-5) for v in values)
    assert jacov(gradients) == pytest.approx(expected, rel=1e-6)


def test_jacov_is_largest_without_correlation_and_finite_for_equal_rows() -> None:
    alike = rand(1, 20).repeat(5, 1)
    assert jacov(torch.linalg.qr(rand(20, 5) - rand(20, 5).mean(0))[0].T) > jacov(rand(5, 20)) > jacov(alike)
    assert math.isfinite(jacov(alike))
    assert math.isfinite(jacov(torch.zeros(5, 20)))


def test_naswot_counts_agreements() -> None:
    codes = rand(7, 60) > 0
    kernel = [[sum(bool(p == q) for p, q in zip(a, b, strict=True)) for b in codes] for a in codes]
    assert naswot(codes) == pytest.approx(math.log(np.linalg.det(np.array(kernel, dtype=float))), rel=1e-4)
    assert naswot(torch.cat([codes, codes[:1]])) < naswot(codes)
    assert naswot(torch.zeros(3, 0, dtype=torch.bool)) == pytest.approx(3 * math.log(1e-3))


def test_distinct_patterns_are_distinct_columns() -> None:
    codes = rand(5, 200) > 0
    assert distinct_patterns(codes) == len({tuple(column) for column in codes.T.tolist()})
    with pytest.raises(ConfigError, match="at most 62"):
        distinct_patterns(torch.zeros(63, 4, dtype=torch.bool))


def test_similarity_is_linear_cka() -> None:
    a, b = rand(8, 3, 2, 2, seed=1), rand(8, 5, seed=2)
    x, y = (t.flatten(1).double().numpy() for t in (a, b))
    x, y = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert similarity(gram(a), gram(b)) == pytest.approx(expected, rel=1e-5)
    assert similarity(gram(a), gram(3 * a + 1)) == pytest.approx(1, rel=1e-5)
    assert similarity(gram(a), torch.zeros(8, 8)) == 0


def test_nonlinearity_of_an_affine_map_is_zero() -> None:
    images = rand(16, 10)
    layer = nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6))
    mixed = (images + images.roll(1, 0)) / 2
    features = layer(images)
    assert nonlinearity(layer(mixed), (features + features.roll(1, 0)) / 2) == pytest.approx(0, abs=0.05)
    linear = layer[0](images)
    assert nonlinearity(layer[0](mixed), (linear + linear.roll(1, 0)) / 2) == pytest.approx(0, abs=1e-6)
    bent = layer[0](images).relu()
    assert nonlinearity(layer[0](mixed).relu(), (bent + bent.roll(1, 0)) / 2) > 0.01


def test_contrastive_loss_is_lightlys_on_centred_features() -> None:
    a, b = rand(6, 5, seed=1), rand(6, 5, seed=2)
    expected = NTXentLoss(temperature=0.2)(a - a.mean(0), b - b.mean(0))
    assert float(contrastive_loss(a, b)) == pytest.approx(float(expected), rel=1e-5)


def test_gradient_flow_and_zico_in_plain_loops() -> None:
    first, second = [rand(3, 4), rand(5, seed=1)], [rand(3, 4, seed=2), rand(5, seed=3)]
    assert gradient_flow(first) == pytest.approx(
        sum(math.log(1 + math.sqrt(sum(float(v) ** 2 for v in g.flatten()))) for g in first), rel=1e-6
    )
    expected = 0.0
    for a, b in zip(first, second, strict=True):
        pairs = [np.abs([float(x), float(y)]) for x, y in zip(a.flatten(), b.flatten(), strict=True)]
        expected += math.log(sum(pair.mean() / pair.std() for pair in pairs))
    assert zico(first, second) == pytest.approx(expected, rel=1e-5)
    assert zico([torch.zeros(3)], [torch.zeros(3)]) == 0


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_trainability_of_a_linear_block_is_that_of_its_spectral_norm(scale: float) -> None:
    weight = torch.linalg.qr(rand(6, 6))[0] * scale  # every singular value is the scale
    signs = torch.randint(0, 2, (400, 6, 4, 4), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    gradients = torch.einsum("oi,nohw->nihw", weight, signs)  # the product with the Jacobian of a 1 x 1 convolution
    found = trainability(gradients, signs)
    assert found == pytest.approx(2 - scale - 1 / scale, abs=0.15 * max(scale, 1 / scale))
    tokens, after = (tensor.flatten(2).mT for tensor in (gradients, signs))
    assert trainability(tokens, after) == pytest.approx(found)
    assert found <= 1e-9


def test_trainability_where_nothing_arrives() -> None:
    signs = torch.ones(4, 3, 2, 2)
    assert trainability(torch.zeros(4, 5, 4, 4), signs) == pytest.approx(2 - 1e-6 - 1e6)
