"""The recipes' numbers, read from what they configure: optimiser, schedule, trainer, network, augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nni_cssnas.errors import ConfigError
from nni_cssnas.images.labelled import LabelledImages, Split
from nni_cssnas.spaces.architecture import read_architecture
from nni_cssnas.training.config import RECIPES, RetrainConfig, parse_settings
from nni_cssnas.training.run import make_module, make_trainer


def labelled(classes: int, size: int) -> LabelledImages:
    labels = torch.arange(classes).repeat(4)
    split = Split(torch.zeros(len(labels), 3, size, size, dtype=torch.uint8), labels)
    return LabelledImages(tuple(map(str, range(classes))), split, split, size)


def configured(recipe: str, classes: int, tmp_path: Path, **values: Any) -> tuple[Any, Any, Any, Any]:
    """The module, optimiser, schedule and trainer of a recipe; ``values`` only shrink what would not fit into memory."""
    config = RetrainConfig(recipe=recipe, **values)
    module = make_module(read_architecture("DARTS_V2"), config, labelled(classes, config.size))
    made = module.configure_optimizers()
    trainer = make_trainer(config, tmp_path, enable_progress_bar=False, enable_checkpointing=False)
    return module, made["optimizer"], made["lr_scheduler"], trainer


def rates(optimizer: Any, schedule: Any, epochs: list[int]) -> list[float]:
    found = []
    for epoch in range(max(epochs) + 1):
        if epoch in epochs:
            found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    return found


def params(network: Any) -> float:
    named = network.named_parameters()
    return sum(weight.numel() for name, weight in named if not name.startswith("auxiliary_head")) / 1e6


def test_cifar10(tmp_path: Path) -> None:
    module, optimizer, schedule, trainer = configured("cifar10", 10, tmp_path)
    network = module.network
    assert (network.channels, network.num_cells, network.stem_kind) == (36, 20, "cifar")
    assert params(network) == pytest.approx(3.35, abs=0.006)
    assert network.auxiliary_head is not None
    assert module.config.auxiliary_weight == 0.4
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.025, 0.9, 3e-4)
    assert schedule["interval"] == "epoch"
    cosine = [0.025 * (1 + np.cos(np.pi * epoch / 600)) / 2 for epoch in (0, 150, 300, 599)]
    assert rates(optimizer, schedule, [0, 150, 300, 599]) == pytest.approx(cosine)
    assert trainer.max_epochs == 600
    assert trainer.gradient_clip_val == 5
    assert trainer.gradient_clip_algorithm.value == "norm"
    assert module.config.batch_size == 96
    assert (module.augmentation.cutout, module.augmentation.padding, module.augmentation.flip) == (16, 4, True)
    logits, labels = torch.randn(8, 10), torch.arange(8)
    torch.testing.assert_close(module.loss(logits, labels), F.cross_entropy(logits, labels))
    # Drop path rises linearly to 0.2 at the end.
    found = []
    for epoch in (0, 300, 599):
        trainer.fit_loop.epoch_progress.current.completed = epoch  # what Lightning calls current_epoch
        trainer.strategy.optimizers = [optimizer]
        module.trainer = trainer
        module.on_train_epoch_start()
        found.append(network.drop_path)
    assert found == pytest.approx([0.0, 0.1, 0.2 * 599 / 600])


def test_imagenet(tmp_path: Path) -> None:
    module, optimizer, schedule, trainer = configured("imagenet", 1000, tmp_path)
    network = module.network
    assert (network.channels, network.num_cells, network.stem_kind) == (48, 14, "imagenet")
    assert params(network) == pytest.approx(4.72, abs=0.006)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 3e-5)
    assert rates(optimizer, schedule, [0, 1, 10]) == pytest.approx([0.1, 0.097, 0.1 * 0.97**10])
    assert trainer.max_epochs == 250
    assert trainer.gradient_clip_val == 5
    assert module.config.size == 224
    assert module.config.batch_size == 128
    assert module.augmentation.cutout == 0
    logits, labels = torch.randn(8, 1000), torch.arange(8)
    # The formula of label smoothing 0.1: nine tenths on the label, the rest on all.
    logs = logits.log_softmax(1)
    expected = -(0.9 * logs[range(8), labels] + 0.1 * logs.mean(1)).mean()
    torch.testing.assert_close(module.loss(logits, labels), expected)
    assert module.augmentation.mean == (0.485, 0.456, 0.406)


def test_isic_weighs_rare_classes(tmp_path: Path) -> None:
    # The network of 24 cells with 58 channels at 224 pixels, which METHOD.md names, would take seconds; its size is in the recipe.
    config = RetrainConfig(recipe="isic")
    assert (config.channels, config.num_cells, config.size, config.label_smoothing) == (58, 24, 224, 0.2)
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    split = Split(torch.zeros(10, 3, 64, 64, dtype=torch.uint8), labels)
    small = RetrainConfig(recipe="isic", size=64, channels=4, num_cells=3, label_smoothing=0, auxiliary_weight=0)
    module = make_module(read_architecture("DARTS_V2"), small, LabelledImages(("a", "b", "c"), split, split, 64))
    logits = torch.randn(10, 3)
    weights = [10 / (3 * 6), 10 / (3 * 3), 10 / 3]
    logs = logits.log_softmax(1)
    weighed = [weights[int(label)] for label in labels]
    expected = -sum(w * row[label] for w, row, label in zip(weighed, logs, labels, strict=True)) / sum(weighed)
    torch.testing.assert_close(module.loss(logits, labels), expected)


def test_a_file_and_single_values_over_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("recipe: imagenet\nepochs: 7\nviews: {cj_strength: 0.3}\n")
    config = RetrainConfig.load(path, lr=0.2, **parse_settings(["views.gaussian_blur=0.1"]))
    assert (config.epochs, config.lr, config.channels) == (7, 0.2, 48)
    assert (config.views.cj_strength, config.views.gaussian_blur) == (0.3, 0.1)
    assert set(RECIPES) == {"cifar10", "imagenet", "isic", "folder"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, r"unknown key 'epoch'; did you mean 'epochs'"),
        ({"recipe": "cifar"}, r"recipe is 'cifar'.*'cifar10'"),
        ({"batch_size": 1}, r"batch_size is 1"),
        ({"drop_path": 1.0}, r"drop_path is 1.0"),
        ({"warmup_epochs": 600}, r"warmup_epochs is 600 but epochs is 600"),
        ({"label_fraction": 0}, r"label_fraction is 0"),
        ({"batch_size": 96, "devices": 5}, r"batch_size is 96.*cannot be shared by 5"),
        ({"channels": 10**8}, r"channels is 100000000.*4096"),
        ({"num_cells": 10**6}, r"num_cells is 1000000.*200"),
        ({"size": 100_000}, r"size is 100000.*4096"),
        ({"epochs": 10**12}, r"epochs is 1000000000000.*100000"),
        ({"batch_size": 10**9}, r"batch_size is 1000000000.*65536"),
        ({"workers": 10**6}, r"workers is 1000000.*1024"),
        ({"devices": 10**6}, r"devices is 1000000.*64"),
        ({"padding": 10**6}, r"padding is 1000000.*4096"),
        ({"cutout": 10**6}, r"cutout is 1000000.*4096"),
        ({"seed": 2**64}, r"seed is 18446744073709551616"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        RetrainConfig(**values)
    assert "\n" not in str(caught.value)


def test_wrong_files_and_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe is 'cifar'; did you mean 'cifar10'"):
        RetrainConfig.load("cifar")
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.yml"):
        RetrainConfig.load(tmp_path / "absent.yml")
    for number, content in enumerate((b"- 1", b"a: [", b"\xff\xfe\x00", b"1: 2")):
        (tmp_path / f"{number}.yml").write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{number}\.yml") as caught:
            RetrainConfig.load(tmp_path / f"{number}.yml")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"--set 'lr=\[': the value is not YAML") as caught:
        parse_settings(["lr=["])
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"--set 'lr' is not of the form key=value"):
        parse_settings(["lr"])
