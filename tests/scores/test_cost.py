from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nni_cssnas.base.modules import evaluation_mode
from nni_cssnas.errors import ConfigError, SpaceError
from nni_cssnas.scores.cost import latency, multiply_adds, num_parameters


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        # positions x c_out x c_in / groups x k x k
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 10 * 12 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), (3, 9, 9), 5 * 5 * 8 * 3 * 9),
        (nn.Conv2d(8, 8, 5, padding=2, groups=8), (8, 6, 6), 6 * 6 * 8 * 1 * 25),
        (nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4), (8, 7, 7), 7 * 7 * 12 * 2 * 9),
        (nn.Conv2d(8, 4, 1), (8, 5, 5), 5 * 5 * 4 * 8),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), (3, 4, 4), 48 * 5),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)), (3, 4, 4), 0),
    ],
)
def test_multiply_adds_are_those_counted_by_hand(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert multiply_adds(layer, shape) == expected


class Attention(nn.Module):
    """Tokens from pixels, one attention layer."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(2).transpose(1, 2))


def test_multiply_adds_of_attention() -> None:
    n, d, hidden = 12, 16, 32
    projections = n * d * 3 * d + n * d * d
    products = 2 * n * n * d
    mlp = 2 * n * d * hidden
    model = Attention(fused=True).eval()
    assert multiply_adds(model, (16, 3, 4)) == projections + products + mlp
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert multiply_adds(model, (16, 3, 4)) == projections + products + mlp


def test_multiply_adds_agree_with_torch_and_scale_with_the_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 49, 4))
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, 15, 15))
    assert multiply_adds(model, (3, 15, 15)) == counter.get_total_flops() // 2
    assert multiply_adds(model, (4, 3, 15, 15)) == 4 * multiply_adds(model, (3, 15, 15))


def test_counting_leaves_the_network_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    multiply_adds(model, (3, 8, 8))
    latency(model, torch.randn(2, 3, 8, 8), repeats=2)
    assert [module.training for module in model] == [True, True, False]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_batch_statistics_leave_the_running_ones() -> None:
    norm = nn.BatchNorm2d(3)
    x = 5 + 2 * torch.randn(8, 3, 4, 4)
    with evaluation_mode(norm, batch_statistics=True):
        y = norm(x)
    assert y.mean().abs() < 1e-5
    assert norm.training
    assert norm.track_running_stats
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))


def test_parameters_count_shared_weights_once_and_frozen_ones_not() -> None:
    shared = nn.Linear(4, 4)
    frozen = nn.Linear(4, 2)
    frozen.requires_grad_(False)
    assert num_parameters(nn.Sequential(shared, shared, frozen, nn.BatchNorm1d(2))) == 4 * 4 + 4 + 2 * 2


def test_latency_is_positive_and_grows() -> None:
    small, large = nn.Conv2d(3, 4, 3), nn.Sequential(*(nn.Conv2d(64, 64, 3) for _ in range(4)))
    quick = latency(small, torch.randn(1, 3, 8, 8), repeats=5)
    slow = latency(large, torch.randn(8, 64, 32, 32), repeats=5)
    assert 0 < quick < slow


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"input_shape is \[3, 8\]"):
        multiply_adds(nn.Conv2d(3, 4, 3), (3, 8))
    with pytest.raises(SpaceError, match=r"fails on an input of shape \(1, 4, 8, 8\)"):
        multiply_adds(nn.Conv2d(3, 4, 3), (4, 8, 8))
    with pytest.raises(ConfigError, match="repeats is 0"):
        latency(nn.Identity(), torch.zeros(1, 3, 2, 2), repeats=0)
