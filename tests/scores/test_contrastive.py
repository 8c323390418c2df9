from __future__ import annotations

import math
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import nn

from nni_cssnas.base.device import derive_seed, resolve_device, seeded
from nni_cssnas.config import ContrastiveConfig
from nni_cssnas.errors import ConfigError, DeviceError, DivergenceError, SpaceError
from nni_cssnas.scores.contrastive import _loss, alignment, check_images, train_contrastive, uniformity
from nni_cssnas.scores.losses import PretextInvariantLoss, nt_xent


def noisy_views(images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    clean = images.float() / 255 - 0.5
    first, second = (clean + 0.1 * torch.randn(clean.shape, generator=generator) for _ in range(2))
    return first, second


def images(count: int = 48, size: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def backbone(seed: int = 0) -> nn.Module:
    with seeded(seed):
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def config(**values: Any) -> ContrastiveConfig:
    defaults: dict[str, Any] = {"epochs": 2, "batch_size": 8, "projection_hidden": 16, "projection_dim": 8}
    return ContrastiveConfig(**(defaults | values))


def simclr_in_plain_loops(u: torch.Tensor, v: torch.Tensor, temperature: float) -> float:
    """Equation 1 of arXiv:2002.05709, term by term."""
    z = [row.tolist() for row in torch.cat([u, v])]

    def similarity(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    n, total = len(u), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        denominator = sum(math.exp(similarity(z[i], z[k]) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(similarity(z[i], z[j]) / temperature) / denominator)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent_is_lightlys(temperature: float) -> None:
    u, v = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    expected = NTXentLoss(temperature=temperature)(u, v)
    assert float(nt_xent(u, v, temperature)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_loss_trained_with_is_the_simclr_formula(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    loss = _loss(config(temperature=temperature), 48, generator, torch.device("cpu"))
    for _ in range(3):
        u, v = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
        assert float(loss(u, v)) == pytest.approx(simclr_in_plain_loops(u, v, temperature), rel=1e-9)


def test_memory_bank_gives_its_negatives() -> None:
    loss = _loss(config(memory_bank_size=32, projection_dim=5), 48, torch.Generator(), torch.device("cpu"))
    u, v = torch.randn(2, 4, 5)
    bank = loss.memory_bank.bank.clone()
    expected = []
    unit = torch.nn.functional.normalize
    for a, b in zip(unit(u, dim=1), unit(v, dim=1), strict=True):
        logits = torch.stack([a @ b, *(a @ negative for negative in bank)]) / 0.5
        expected.append(float(-torch.log_softmax(logits, 0)[0]))
    assert float(loss(u, v)) == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_pirl_is_the_papers_formula_in_plain_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    loss = PretextInvariantLoss(20, 6, temperature=0.3, weight=0.25, momentum=0.5, generator=generator)
    memory = loss.memory.clone()
    index = torch.tensor([3, 11, 0, 7])
    u, v = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(4))
    state = generator.get_state()
    value = float(loss(u, v, index))

    replay = torch.Generator()
    replay.set_state(state)
    drawn = torch.randint(20, (6,), generator=replay).tolist()  # 2 * (4 - 1)

    def nce(number: int, z: torch.Tensor) -> float:
        z = z / z.norm()
        positive = math.exp(float(memory[number] @ z) / 0.3)
        negatives = sum(math.exp(float(memory[other] @ z) / 0.3) for other in drawn if other != number)
        return -math.log(positive / (positive + negatives))

    pairs = list(zip(index.tolist(), u, v, strict=True))
    expected = sum(0.25 * nce(number, b) + 0.75 * nce(number, a) for number, a, b in pairs) / 4
    assert value == pytest.approx(expected, rel=1e-5)
    for number, a, _ in pairs:
        blend = 0.5 * memory[number] + 0.5 * a / a.norm()
        assert torch.allclose(loss.memory[number], blend / blend.norm(), atol=1e-6)
    untouched = [number for number in range(20) if number not in index]
    assert torch.equal(loss.memory[untouched], memory[untouched])


@pytest.mark.parametrize("loss", ["ntxent", "pirl"])
@pytest.mark.parametrize("view_pool", ["fresh", "fixed"])
def test_training_learns_and_reports_each_epoch(loss: str, view_pool: str) -> None:
    seen: list[tuple[int, float]] = []
    result = train_contrastive(
        backbone(),
        images(),
        config(epochs=6, loss=loss, view_pool=view_pool, lr=0.2),
        views=noisy_views,
        seed=0,
        on_epoch=lambda epoch, value: seen.append((epoch, value)),
    )
    assert [epoch for epoch, _ in seen] == list(range(6))
    assert [value for _, value in seen] == list(result.epoch_losses)
    assert result.drop == result.epoch_losses[0] - result.epoch_losses[-1] > 0
    assert result.steps == 6 * (43 // 8)
    assert result.held_out is not None
    assert result.score("loss") == -result.loss
    assert result.score("drop") == result.drop
    assert result.score("held_out") == -result.held_out


def test_same_seed_same_result_and_global_generator_untouched() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    a, b = (train_contrastive(backbone(), images(), config(), views=noisy_views, seed=5) for _ in range(2))
    assert a.epoch_losses == b.epoch_losses
    assert a.held_out == b.held_out
    assert torch.equal(torch.get_rng_state(), before)
    c = train_contrastive(backbone(), images(), config(), views=noisy_views, seed=6)
    assert c.epoch_losses != a.epoch_losses
    d = train_contrastive(backbone(), images(), config(), views=noisy_views, seed=5, data_seed=1)
    assert d.epoch_losses != a.epoch_losses


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_and_channels_last_take_the_same_path(amp: str) -> None:
    plain = train_contrastive(backbone(), images(), config(lr=0.01), views=noisy_views, seed=0)
    half = train_contrastive(
        backbone(), images(), config(lr=0.01, amp=amp, channels_last=True), views=noisy_views, seed=0
    )
    assert half.loss == pytest.approx(plain.loss, rel=0.02)


def test_narrow_strided_convolutions_do_not_damage_memory_in_channels_last() -> None:
    # oneDNN issue 6035; the damage ends the process, so this one is not it
    script = """
import torch
from torch import nn
from nni_cssnas.config import ContrastiveConfig
from nni_cssnas.scores.contrastive import train_contrastive
net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
config = ContrastiveConfig(batch_size=24, steps=200, epochs=1, lr=1e-4, projection_hidden=8, projection_dim=4, channels_last=True)
images = torch.randint(0, 256, (128, 3, 18, 18), dtype=torch.uint8)
views = lambda batch, generator: tuple(
    batch / 255 + torch.randn(batch.shape, generator=generator) for _ in range(2)
)
train_contrastive(net, images, config, views=views, seed=0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_is_the_same_training() -> None:
    plain = train_contrastive(backbone(), images(), config(), views=noisy_views, seed=0)
    compiled = train_contrastive(backbone(), images(), config(compile=True), views=noisy_views, seed=0)
    assert compiled.epoch_losses == pytest.approx(plain.epoch_losses, rel=1e-3)
    assert compiled.held_out == pytest.approx(plain.held_out, rel=1e-2)


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Spy)
        train_contrastive(
            backbone(), images(), config(epochs=4, warmup_epochs=1, lr=0.4, held_out=0), views=noisy_views, seed=0
        )
    steps = 48 // 8
    assert rates[:steps] == pytest.approx([0.4 * (step + 1) / steps for step in range(steps)])
    cosine = [0.4 * (1 + math.cos(math.pi * step / (3 * steps - 1))) / 2 for step in range(3 * steps)]
    assert rates[steps:] == pytest.approx(cosine, abs=1e-9)


def test_divergence_names_step_rate_and_remedy() -> None:
    def broken(batch: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = noisy_views(batch, generator)
        calls.append(len(batch))
        # the first call only finds the width, the next two are the first two steps
        return (first, second) if len(calls) < 4 else (first * float("nan"), second)

    calls: list[int] = []
    with pytest.raises(DivergenceError, match=r"loss is nan at step 3 \(lr 0\.\d+.*lower lr \(0\.1\)"):
        train_contrastive(backbone(), images(), config(held_out=0), views=broken, seed=0)


def test_too_few_images() -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 44 but there are only 43 images .*lower batch_size"):
        check_images(48, config(batch_size=44))
    with pytest.raises(ConfigError, match="leaves 1 held out"):
        check_images(10, config(batch_size=4))
    assert check_images(48, config(batch_size=43)) == 5


def test_a_backbone_must_give_vectors() -> None:
    with pytest.raises(SpaceError, match=r"gives \(32, 8, 6, 6\) for 32 images"):
        train_contrastive(nn.Conv2d(3, 8, 3), images(), config(), views=noisy_views, seed=0)


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        assert resolve_device("cuda").type == "cuda"
        return
    with pytest.raises(DeviceError, match=r"sees no CUDA device.*device: cpu"):
        resolve_device("cuda")
    assert resolve_device("auto").type == "cpu"


def test_seeds_depend_on_content() -> None:
    assert derive_seed(0, "a") == derive_seed(0, "a")
    assert len({derive_seed(seed, content) for seed in range(10) for content in "abc"}) == 30


def test_alignment_and_uniformity_in_plain_loops() -> None:
    first, second = torch.randn(2, 6, 4, dtype=torch.float64)
    unit = [[row / row.norm() for row in rows] for rows in (first, second)]
    expected = sum(float(((a - b) ** 2).sum()) for a, b in zip(*unit, strict=True)) / 6
    assert alignment(first, second) == pytest.approx(expected)
    pairs = [math.exp(-2 * float(((unit[0][i] - unit[0][j]) ** 2).sum())) for i in range(6) for j in range(i)]
    assert uniformity(first) == pytest.approx(math.log(sum(pairs) / 15))


def test_the_budget_may_be_given_in_steps() -> None:
    losses: list[float] = []
    result = train_contrastive(
        backbone(),
        images(),
        config(steps=13, held_out=0),
        views=noisy_views,
        seed=0,
        on_epoch=lambda _, loss: losses.append(loss),
    )
    assert result.steps == 13
    assert len(losses) == 3  # 6 steps an epoch: 6, 6, 1
    assert "held_out" not in result.components
    with pytest.raises(ConfigError, match="was not measured; measured: loss, drop"):
        result.score("alignment")


@pytest.mark.parametrize(("steps", "refused"), [(2, True), (4, True), (5, False), (None, False)])
def test_a_drop_within_one_epoch_is_refused(steps: int | None, refused: bool) -> None:
    config = ContrastiveConfig(criterion="drop", batch_size=128, held_out=0.1112, steps=steps)
    if not refused:
        assert check_images(576, config) == 64
        return
    with pytest.raises(ConfigError, match=f"steps is {steps} and one epoch has 4, .* set steps to 8 or more"):
        check_images(576, config)
