from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nni_cssnas.errors import ImagesError
from nni_cssnas.images.labelled import Files, load_labelled, stratified

from .conftest import make_images


def write_folder(folder: Path, counts: dict[str, int], size: int = 20, seed: int = 0) -> Path:
    images, labels = make_images(tuple(counts.values()), size, seed)
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
    write_folder(tmp_path / "set" / "val", {"a": 3, "b": 2}, seed=1)
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


@pytest.mark.parametrize("resident_gb", [4, 0])
def test_what_is_hidden_is_no_class_and_no_image(tmp_path: Path, resident_gb: float) -> None:
    folder = write_folder(tmp_path / "photos", {"cat": 8, "dog": 8})
    for place in ("cat/.ipynb_checkpoints", "dog/@eaDir", ".git", "__MACOSX"):
        shutil.copytree(folder / "cat", folder / place, ignore=shutil.ignore_patterns(".*"))
    shutil.copy(folder / "cat" / "0.png", folder / "beside.png")
    with pytest.warns(UserWarning, match=r"1 file: beside\.png in no class folder, left out"):
        data = load_labelled(folder, 16, validation=0.25, resident_gb=resident_gb)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val)) == (12, 4)


def test_a_picture_in_two_classes_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", {"cat": 8, "dog": 8})
    os.link(folder / "cat" / "3.png", folder / "dog" / "same.png")
    with pytest.warns(UserWarning, match=r"1 picture lies in two classes at once \(dog/same\.png is cat/3\.png\)"):
        assert len(load_labelled(folder, 16).train) == 14


def test_a_class_without_validation_image_is_named(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", {"cat": 8, "dog": 8, "emu": 4})
    val = write_folder(tmp_path / "val", {"cat": 8, "dog": 8}, seed=1)
    with pytest.warns(UserWarning, match=r"no validation image of 1 class: emu; the accuracies say nothing of it"):
        load_labelled(train, 16, val=val)
    # One image cannot be on both sides.
    with pytest.warns(UserWarning, match="no validation image of 1 class: c"):
        load_labelled(write_folder(tmp_path / "few", {"a": 8, "b": 8, "c": 1}), 16)


@pytest.mark.parametrize("resident_gb", [4, 0])
def test_copies_on_both_sides_are_named(tmp_path: Path, resident_gb: float) -> None:
    train = write_folder(tmp_path / "train", {"cat": 8, "dog": 8})
    val = write_folder(tmp_path / "val", {"cat": 4, "dog": 4}, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_labelled(train, 16, val=val, resident_gb=resident_gb)
    for number in range(3):
        shutil.copy(train / "cat" / f"{number}.png", val / "cat" / f"copy{number}.png")
    expected = (
        r"3 of 11 validation images are among the training images, too "
        r"\(cat/copy0\.png is cat/0\.png, cat/copy1\.png is cat/1\.png\)"
    )
    with pytest.warns(UserWarning, match=expected):
        load_labelled(train, 16, val=val, resident_gb=resident_gb)


def test_a_label_beyond_all_images_is_refused(tmp_path: Path) -> None:
    """Before a name is made for each of 10^12 classes."""
    path = tmp_path / "far.npz"
    np.savez(path, images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([0, 10**12]))
    with pytest.raises(ImagesError, match="has 2 images, but the label 1000000000000"):
        load_labelled(path, 8, cache_dir=tmp_path)


def test_copies_in_an_array_are_named(tmp_path: Path, npz: Path) -> None:
    saved = dict(np.load(npz))
    np.savez(tmp_path / "val.npz", images=saved["images"][5:9], labels=saved["labels"][5:9], classes=saved["classes"])
    with pytest.warns(UserWarning, match=r"4 of 4 .*\(val\.npz image 0 is data\.npz image 5, val\.npz image 1 is"):
        load_labelled(npz, 16, val=tmp_path / "val.npz")


def test_arrays_are_mapped_from_one_file(npz: Path, tmp_path: Path) -> None:
    first = load_labelled(npz, 16, val=npz, cache_dir=tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("npz-16px-*.npy")
    assert np.array_equal(np.load(file), first.train.images)
    before = file.stat().st_mtime_ns
    assert load_labelled(npz, 16, val=npz, cache_dir=tmp_path / "cache").key == first.key
    assert file.stat().st_mtime_ns == before


def test_a_class_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", {"cat": 8, "dog": 8})
    os.rename(folder / "cat", os.fsencode(folder) + b"/caf\xe9")
    val = write_folder(tmp_path / "val", {"cat": 4, "dog": 4}, seed=1)
    os.rename(val / "cat", os.fsencode(val) + b"/caf\xe9")
    for resident_gb in (4, 0):
        data = load_labelled(folder, 16, val=val, resident_gb=resident_gb)
        assert data.classes == (r"caf\xe9", "dog")
        assert data.train.counts(2).tolist() == [8, 8]
        assert data.val.counts(2).tolist() == [4, 4]


@pytest.mark.parametrize("resident_gb", [4, 0])
def test_pictures_of_12_bits_are_those_of_8(tmp_path: Path, resident_gb: float) -> None:
    rng = np.random.default_rng(0)
    for name, scale in (("eight", 1), ("twelve", 4095 / 255)):
        rng = np.random.default_rng(0)
        for half, number in (("train", 8), ("val", 4)):
            for kind in ("cat", "dog"):
                folder = tmp_path / name / half / kind
                folder.mkdir(parents=True)
                for index in range(number):
                    pixels = rng.integers(0, 256, (16, 16)) if half == "train" else rng.integers(0, 128, (16, 16))
                    image = (pixels * scale).round().astype(np.uint16 if scale > 1 else np.uint8)
                    Image.fromarray(image).save(folder / f"{index}.png")
    eight = load_labelled(tmp_path / "eight", 16, resident_gb=resident_gb)
    with pytest.warns(UserWarning, match="hold values of 12 bits at most"):
        twelve = load_labelled(tmp_path / "twelve", 16, resident_gb=resident_gb)
    # Dark validation images stay as dark as they are beside the training images.
    for ours, theirs in ((twelve.train, eight.train), (twelve.val, eight.val)):
        images = [
            half.images.decoded(16)[torch.arange(len(half))] if isinstance(half.images, Files) else half.images
            for half in (ours, theirs)
        ]
        assert (images[0].int() - images[1].int()).abs().max() <= 1
