from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nni_cssnas.images.labelled import LabelledImages, load_labelled
from nni_cssnas.training.config import RetrainConfig

SMALL = {"channels": 2, "num_cells": 3, "epochs": 3, "batch_size": 16, "size": 16, "auxiliary_weight": 0, "cutout": 4}


def make_images(counts: tuple[int, ...], size: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a tint for each class: images that can be told apart by any network."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    tints = rng.integers(40, 215, (len(counts), 3))
    images = rng.normal(tints[labels][:, None, None, :], 40, (len(labels), size, size, 3)).clip(0, 255)
    order = rng.permutation(len(labels))
    return images.astype(np.uint8)[order], labels[order]


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    images, labels = make_images((30, 30, 30, 30))
    np.savez(tmp_path / "data.npz", images=images, labels=labels, classes=np.array(["a", "b", "c", "d"]))
    return tmp_path / "data.npz"


@pytest.fixture
def data(npz: Path) -> LabelledImages:
    return load_labelled(npz, 16, validation=0.25)


@pytest.fixture
def small() -> RetrainConfig:
    return RetrainConfig(**SMALL)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
