from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nni_cssnas.errors import ImagesError
from nni_cssnas.images.labelled import Files, load_labelled, stratified

from .conftest import make_images


def write_folder(folder: Path, counts: dict[str, int], size: int = 20) -> Path:
    images, labels = make_images(tuple(counts.values()), size)
    for number, name in enumerate(counts):
        (folder / name).mkdir(parents=True)
        for index, image in enumerate(images[labels == number]):
            Image.fromarray(image).save(folder / name / f"{index}.png")
    return folder


def test_a_folder_of_classes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", {"cat": 20, "dog": 10, "emu": 5})
    data = load_labelled(folder, 16, validation=0.2)
    assert data.classes == ("cat", "dog", "emu")
    # A fifth of every class is held out.
    assert data.val.counts(3).tolist() == [4, 2, 1]
    assert data.train.counts(3).tolist() == [16, 8, 4]
    assert data.train.images.shape == (28, 3, 16, 16)
    assert data.key == load_labelled(folder, 16, validation=0.2).key
    streamed = load_labelled(folder, 16, validation=0.2, resident_gb=0)
    assert isinstance(streamed.train.images, Files)
    assert torch.equal(streamed.train.labels, data.train.labels)
    assert torch.equal(streamed.train.images.decoded(16)[torch.arange(28)], data.train.images)


def test_train_and_val_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "train", {"a": 6, "b": 4})
    write_folder(tmp_path / "set" / "val", {"a": 3, "b": 2})
    data = load_labelled(tmp_path / "set", 16)
    assert (len(data.train), len(data.val)) == (10, 5)
    write_folder(tmp_path / "other", {"a": 2, "c": 2})
    with pytest.raises(ImagesError, match=r"class 'c' is not one of the training images"):
        load_labelled(tmp_path / "set" / "train", 16, val=tmp_path / "other")


def test_an_npz(npz: Path) -> None:
    data = load_labelled(npz, 16, validation=0.25)
    assert data.classes == ("a", "b", "c", "d")
    saved = np.load(npz)
    everything = torch.cat([data.train.images, data.val.images]).permute(0, 2, 3, 1).numpy()
    assert sorted(map(bytes, everything)) == sorted(map(bytes, saved["images"]))
    mean, std = data.statistics
    pixels = data.train.images.numpy() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)))
    assert std == pytest.approx(pixels.std((0, 2, 3)))


def test_wrong_sources_are_named(tmp_path: Path, npz: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (9, 9)).save(flat / "a.png")
    with pytest.raises(ImagesError, match=r"has no class subfolders, so its images have no labels"):
        load_labelled(flat, 16)
    empty = write_folder(tmp_path / "holes", {"a": 3, "b": 3})
    (empty / "c").mkdir()
    with pytest.raises(ImagesError, match=r"1 class: c"):
        load_labelled(empty, 16)
    with pytest.raises(ImagesError, match=r"has one class, 'only'"):
        load_labelled(write_folder(tmp_path / "one", {"only": 3}), 16)
    np.savez(tmp_path / "bare.npz", images=np.load(npz)["images"])
    with pytest.raises(ImagesError, match="labels"):
        load_labelled(tmp_path / "bare.npz", 16)
    np.savez(tmp_path / "short.npz", images=np.load(npz)["images"], labels=np.zeros(3, dtype=np.int64))
    with pytest.raises(ImagesError, match=r"120.*3|3.*120"):
        load_labelled(tmp_path / "short.npz", 16)
    with pytest.raises(ImagesError, match=r"no such folder or file; did you mean 'cifar10'"):
        load_labelled("cifar", 16)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_a_part_of_every_class(fraction: float) -> None:
    labels = torch.tensor([0] * 70 + [1] * 25 + [2] * 5)[torch.randperm(100)]
    chosen = stratified(labels, 3, fraction, seed=1)
    counts = torch.bincount(labels[chosen], minlength=3)
    assert (counts >= 1).all()
    assert len(chosen) == max(3, round(100 * fraction))
    for count, total in zip(counts.tolist(), (70, 25, 5), strict=True):
        assert abs(count - fraction * total) <= 1
    assert torch.equal(chosen, stratified(labels, 3, fraction, seed=1))
    assert len(set(chosen.tolist())) == len(chosen)
