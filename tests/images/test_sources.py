"""Every kind of source, made on the spot; expected pixels come from Pillow or numpy used directly."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from nni_cssnas.config import ImagesConfig
from nni_cssnas.errors import CssnasError, ImagesError
from nni_cssnas.images import read, sources, tiles
from nni_cssnas.images.sources import load_images


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NNI_CSSNAS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    return path


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def flat(path, level: int, size: tuple[int, int] = (16, 16)) -> None:
    """A picture of one colour, by which it is known again."""
    Image.new("RGB", size, (level, level, level)).save(path)


def levels(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def load(source, **values) -> torch.Tensor:
    min_images = values.pop("min_images", 1)
    return load_images(ImagesConfig(source=str(source), **{"size": 16, **values}), min_images=min_images)


def only(path, **values) -> np.ndarray:
    images = load(path, **values)
    assert images.shape[0] == 1
    return images[0].permute(1, 2, 0).numpy()


# ---- tiles


def test_tiles():
    images = load("tiles", size=32)
    assert images.dtype == torch.uint8
    assert images.shape[1:] == (3, 32, 32)
    assert images.is_contiguous()
    assert 2000 <= len(images) <= 20000
    values = images.float()
    assert values.std((1, 2, 3)).min() > 10
    assert values.mean((1, 2, 3)).min() > 15
    # Colour photographs: the channels differ.
    assert (values.amax(1) - values.amin(1)).mean() > 20
    # Real detail at the scale of a pixel, unlike enlarged pictures.
    assert (values[..., 1:] - values[..., :-1]).abs().mean() > 4
    assert len(np.unique(images.flatten(1).numpy(), axis=0)) == len(images)


def test_tiles_are_the_same_every_time(tmp_path):
    images = load("tiles", size=32)
    again = load_images(ImagesConfig(), cache_dir=tmp_path / "another")
    assert torch.equal(images, again)


def test_tiles_of_every_photograph_in_every_part():
    paths = tiles.photographs()
    assert len(paths) == 7
    assert all(path.is_file() for path in paths)
    first, second = load("tiles").float().mean((2, 3)).chunk(2)
    torch.testing.assert_close(first.mean(0), second.mean(0), atol=3, rtol=0)


@pytest.mark.parametrize(("size", "least"), [(48, 2000), (96, 2000), (224, 500), (400, 100)])
def test_tiles_of_other_sizes(size, least):
    count = sum(len(list(tiles._windows(*Image.open(path).size, size))) for path in tiles.photographs())
    assert count >= least


def test_missing_photographs(monkeypatch):
    monkeypatch.setattr(tiles, "PHOTOGRAPHS", {"skimage": ("astronaut.png", "gone.png")})
    with pytest.raises(ImagesError, match=r"needs .*gone\.png, which scikit-image"):
        load("tiles")
    monkeypatch.setattr(tiles, "PHOTOGRAPHS", {"no_such_module": ("a.png",)})
    monkeypatch.setattr(tiles, "FOLDERS", {"no_such_module": "x"})
    monkeypatch.setattr(tiles, "DISTRIBUTIONS", {"no_such_module": "no-such"})
    with pytest.raises(ImagesError, match="not installed; pip install no-such"):
        load("tiles")


# ---- CIFAR-10


def test_cifar10_that_is_not_there(tmp_path):
    with pytest.raises(ImagesError) as error:
        load("cifar10", root=tmp_path / "data")
    for part in (str(tmp_path / "data"), "download: true", "cifar-10-batches-py"):
        assert part in str(error.value)
    assert not (tmp_path / "data").exists()


def fake_cifar10(root, monkeypatch, per_batch: int = 3) -> np.ndarray:
    """CIFAR-10 in torchvision's form on disk, with its checksums put right."""
    from torchvision.datasets import CIFAR10

    base = root / CIFAR10.base_folder
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (6, per_batch, 3072), dtype=np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    sums = []
    for name, batch in zip(names, data, strict=True):
        content = pickle.dumps({"data": batch, "labels": [0] * per_batch})
        (base / name).write_bytes(content)
        sums.append([name, hashlib.md5(content).hexdigest()])
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    (base / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()})
    return data[:5].reshape(-1, 3, 32, 32)


def test_cifar10(tmp_path, monkeypatch):
    data = fake_cifar10(tmp_path / "data", monkeypatch)
    images = load("cifar10", root=tmp_path / "data", size=32)
    assert np.array_equal(images.numpy(), data)
    half = load("cifar10", root=tmp_path / "data", size=16)
    assert half.shape == (15, 3, 16, 16)
    expected = Image.fromarray(data[4].transpose(1, 2, 0)).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(half[4].permute(1, 2, 0).numpy(), np.asarray(expected))
    # The cached images are used without reading the data set again.
    monkeypatch.setattr("torchvision.datasets.CIFAR10.__init__", lambda *args, **kwargs: pytest.fail("read again"))
    assert torch.equal(load("cifar10", root=tmp_path / "data", size=32), images)


def test_cifar10_download(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    fetched = []

    def download(self) -> None:
        fetched.append(self.root)
        if not self._check_integrity():
            self.expected = fake_cifar10(tmp_path / "data", monkeypatch)

    monkeypatch.setattr(CIFAR10, "download", download)
    images = load("cifar10", root=tmp_path / "data", size=32, download=True)
    assert len(images) == 15
    assert len(fetched) == 1
    monkeypatch.setattr(CIFAR10, "download", lambda self: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(ImagesError, match=r"no network.*the download failed"):
        load("cifar10", root=tmp_path / "elsewhere", download=True)


# ---- folders


def test_folder_flat_nested_and_mixed(folder):
    flat(folder / "b.png", 20)
    flat(folder / "a.jpg", 10, (40, 20))
    assert sorted(levels(load(folder))) == [10, 20]
    (folder / "sub" / "deeper").mkdir(parents=True)
    (folder / "empty").mkdir()
    flat(folder / "sub" / "c.BMP", 30)
    flat(folder / "sub" / "deeper" / "d.webp", 40)
    (folder / "notes.txt").write_text("not an image")
    # lightly would demand PyAV, or take nothing but the video.
    (folder / "film.mp4").write_bytes(b"\0" * 100)
    with pytest.warns(UserWarning, match=r"passed over: 2 files of other kinds: 1 \.mp4, 1 \.txt$"):
        images = load(folder)
    assert images.shape == (4, 3, 16, 16)
    assert sorted(levels(images)) == [10, 20, 30, 40]


@pytest.mark.parametrize(("width", "height"), [(50, 20), (20, 50), (16, 16), (5, 9), (4000, 4)])
def test_folder_resizes_the_shorter_side_and_crops_the_centre(folder, width, height):
    picture = Image.fromarray(noise(height, width)).resize((width, height), Image.Resampling.BOX)
    picture.save(folder / "a.png")
    found = only(folder)
    scale = 16 / min(width, height)
    whole = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - 16) / 2, (whole.height - 16) / 2
    if left == int(left) and top == int(top) and (width * scale).is_integer() and (height * scale).is_integer():
        expected = np.asarray(whole.crop((int(left), int(top), int(left) + 16, int(top) + 16)), dtype=int)
        assert np.abs(found.astype(int) - expected).max() <= 1
    assert found.shape == (16, 16, 3)


def test_large_jpegs_are_decoded_small_and_right(folder):
    x, y = np.meshgrid(np.linspace(0, 255, 640), np.linspace(0, 255, 480))
    picture = Image.fromarray(np.stack([x, y, (x + y) / 2], 2).astype(np.uint8))
    picture.save(folder / "a.jpg", quality=95)
    exact = picture.resize((16, 16), Image.Resampling.BICUBIC, box=(80, 0, 560, 480))
    assert np.abs(only(folder).astype(int) - np.asarray(exact, dtype=int)).max() <= 4


def test_gray_and_16_bit(folder):
    gray = noise(16, 16, 1)
    Image.fromarray(gray).save(folder / "a.png")
    assert np.array_equal(only(folder), gray[..., None].repeat(3, 2))
    wide = np.random.default_rng(1).integers(0, 65536, (16, 16), dtype=np.uint16)
    expected = np.rint(wide / 257).astype(np.uint8)[..., None].repeat(3, 2)
    for name in ("a.png", "a.tif"):
        (folder / "a.png").unlink(missing_ok=True)
        Image.fromarray(wide).save(folder / name)
        assert np.array_equal(only(folder), expected)


def test_32_bit_integers_and_floats():
    values = np.array([[0, 65535], [257, 1000]], dtype=np.int32)
    assert np.asarray(read.to_rgb(Image.fromarray(values)))[..., 0].tolist() == [[0, 255], [1, 4]]
    values = np.array([[-10, 0], [90, 190]], dtype=np.int32)
    assert np.asarray(read.to_rgb(Image.fromarray(values)))[..., 1].tolist() == [[0, 13], [128, 255]]
    floats = np.array([[0, 1], [0.5, np.nan]], dtype=np.float32)
    assert np.asarray(read.to_rgb(Image.fromarray(floats)))[..., 2].tolist() == [[0, 255], [128, 0]]
    floats = np.array([[0, 255], [100, 7]], dtype=np.float32)
    assert np.asarray(read.to_rgb(Image.fromarray(floats)))[..., 2].tolist() == [[0, 255], [100, 7]]


def test_transparency_is_composited_on_white(folder):
    picture = noise(16, 16, 4)
    picture[:8, :, 3] = 0
    picture[8:, :, 3] = 255
    Image.fromarray(picture, "RGBA").save(folder / "a.png")
    found = only(folder)
    assert (found[:8] == 255).all()
    assert np.array_equal(found[8:], picture[8:, :, :3])


def test_palette_with_transparency(folder):
    picture = Image.new("P", (16, 16))
    picture.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    picture.paste(1, (0, 8, 16, 16))
    picture.save(folder / "a.png", transparency=0)
    found = only(folder)
    assert (found[:8] == 255).all()
    assert (found[8:] == [0, 0, 255]).all()
    picture.save(folder / "a.png")
    assert (only(folder)[:8] == [255, 0, 0]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr", "La", "RGBa", "RGBX", "HSV", "LAB", "PA"])
def test_other_modes(mode):
    if mode in ("La", "RGBa"):
        picture = Image.new(mode.upper(), (8, 8)).convert(mode)
    else:
        picture = Image.new("P" if mode == "PA" else mode, (8, 8))
        picture = picture.convert("PA") if mode == "PA" else picture
    assert read.to_rgb(picture).mode == "RGB"


def test_exif_rotation(folder):
    picture = noise(16, 16)
    picture[:8] = 0
    picture[8:] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(picture).save(folder / "a.jpg", exif=exif, quality=95)
    found = only(folder)
    assert found[:, :7].min() > 180
    assert found[:, 9:].max() < 20


def broken(folder) -> list[str]:
    """Files that cannot be decoded, of all sorts."""
    whole = folder / "whole.jpg"
    Image.fromarray(noise(64, 64)).save(whole)
    content = whole.read_bytes()
    whole.unlink()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "text.jpg").write_text("this is not a picture")
    (folder / "empty.png").touch()
    Image.fromarray(noise(64, 64)).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:3000])
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "header.gif.bmp").write_bytes(b"BM" + b"\0" * 10)
    return ["truncated.jpg", "text.jpg", "empty.png", "cut.png", "dangling.png", "header.gif.bmp"]


def test_unreadable_files_are_left_out_and_named_once(folder):
    flat(folder / "a.png", 10)
    flat(folder / "z.png", 20)
    names = broken(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = load(folder)
    assert levels(images) == [10, 20]
    assert len(caught) == 1
    text = str(caught[0].message)
    assert caught[0].category is UserWarning
    assert "6 files" in text
    assert "and 1 more" in text
    assert sum(name in text for name in names) == 5


def test_too_few_readable(folder):
    flat(folder / "a.png", 10)
    broken(folder)
    with pytest.raises(
        ImagesError,
        match=r"has 1 readable images, but at least 4 are needed \(batch_size\); 6 files: .*lower batch_size",
    ):
        load(folder, min_images=4)
    with pytest.raises(ImagesError, match=r"has 1 readable images, but images.num_images is 3"):
        load(folder, num_images=3)
    assert not list((folder.parent / "cache").glob("*.npy"))
    assert not list((folder.parent / "cache").glob(".*.tmp"))


def test_folder_without_images(folder, tmp_path):
    with pytest.raises(ImagesError, match=r"is empty; what counts are pictures that Pillow reads"):
        load(folder)
    (folder / "x").mkdir()
    for name in ("a.txt", "b.txt", "x/film.mp4"):
        (folder / name).write_text("x")
    with pytest.raises(
        ImagesError, match=r"no image in it; passed over: 3 files of other kinds: 2 \.txt, 1 \.mp4; what counts"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tile", "no such folder or file; did you mean 'tiles'"),
        ("/data/cifar-10", "did you mean 'cifar10'"),
        ("/no/such/folder", "known: 'cifar10', 'tiles'"),
        ("/no/such/file.npz", "no such folder or file"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(ImagesError, match=message) as error:
        load(source)
    assert source in str(error.value)
    assert isinstance(error.value, CssnasError)
    assert isinstance(error.value, ValueError)


def test_a_file_that_is_no_source(tmp_path):
    flat(tmp_path / "a.png", 1)
    with pytest.raises(ImagesError, match=r"a\.png', a file; it must be a folder of images or an \.npz"):
        load(tmp_path / "a.png")


# ---- .npz


def test_npz(tmp_path):
    images = np.stack([noise(16, 16, seed=i) for i in range(5)])
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(5))
    assert np.array_equal(load(tmp_path / "a.npz").permute(0, 2, 3, 1).numpy(), images)
    np.savez_compressed(tmp_path / "b.npz", images=images.transpose(0, 3, 1, 2))
    assert np.array_equal(load(tmp_path / "b.npz").permute(0, 2, 3, 1).numpy(), images)
    np.savez(tmp_path / "c.npz", images=images[..., 0])
    assert np.array_equal(load(tmp_path / "c.npz").numpy(), images[..., :1].repeat(3, 3).transpose(0, 3, 1, 2))
    np.savez(tmp_path / "d.npz", images=np.stack([noise(20, 30)] * 2))
    expected = Image.fromarray(noise(20, 30)).resize((16, 16), Image.Resampling.BICUBIC, box=(5, 0, 25, 20))
    assert np.array_equal(load(tmp_path / "d.npz")[1].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 8, 8, 3), np.uint8)}, r"no key 'images' \(keys: 'x'\); it must hold uint8 'images'"),
        ({"images": np.zeros((2, 8, 8, 3), np.float32)}, r"'images' is float32 of shape \(2, 8, 8, 3\).*astype"),
        ({"images": np.zeros((2, 8, 8, 4), np.uint8)}, r"uint8 of shape \(2, 8, 8, 4\); it must hold"),
        ({"images": np.zeros((8, 8), np.uint8)}, r"uint8 of shape \(8, 8\)"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, r"shape \(0, 8, 8, 3\)"),
        ({"images": np.array([{}], dtype=object)}, "cannot be read"),
    ],
)
def test_npz_that_does_not_fit(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ImagesError, match=message) as error:
        load(tmp_path / "a.npz")
    assert "numpy.savez" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 truncated", pickle.dumps([1])])
def test_npz_that_is_none(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ImagesError, match="cannot be read"):
        load(tmp_path / "a.npz")


def test_npz_that_is_one_array(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ImagesError, match="one array and not an archive"):
        load(tmp_path / "a.npz")


def test_npz_that_claims_more_than_it_holds(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 32, 32, 3)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"abc")
    with pytest.raises(ImagesError, match=r"claims uint8 of shape \(1000000000, 32, 32, 3\), but 3 bytes follow"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"not a zip", pickle.dumps([1]), "objects"])
def test_no_message_advises_to_load_what_may_run_code(tmp_path, content):
    if content == "objects":
        np.savez(tmp_path / "a.npz", images=np.array([{}], dtype=object))
    else:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ImagesError) as error:
        load(tmp_path / "a.npz")
    assert not [word for word in ("unsafe", "allow_pickle", "trust") if word in str(error.value)]


# ---- subsets


@pytest.fixture
def numbered(folder):
    for level in range(40):
        flat(folder / f"{level:02}.png", level)
    return folder


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_subsets(numbered, tmp_path, kind):
    source = numbered
    if kind == "npz":
        source = tmp_path / "a.npz"
        np.savez(source, images=np.arange(40, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 16, 16, 3), np.uint8))
    ten = levels(load(source, num_images=10))
    assert len(set(ten)) == 10
    assert ten == levels(load(source, num_images=10))
    assert ten == levels(load(source, num_images=20))[:10]
    assert ten != levels(load(source, num_images=10, seed=1))
    assert ten == levels(load(source, fraction=0.25))
    assert sorted(levels(load(source, fraction=1.0))) == list(range(40))
    assert levels(load(source)) == list(range(40))
    # torch's own generator is the oracle.
    assert ten == torch.randperm(40, generator=torch.Generator().manual_seed(0))[:10].tolist()
    with pytest.raises(ImagesError, match=r"num_images is 41, but images.source .* has only 40"):
        load(source, num_images=41)
    with pytest.raises(ImagesError, match=r"gives 4 images \(num_images 4\); at least 8 are needed"):
        load_images(ImagesConfig(source=str(source), num_images=4), min_images=8)
    with pytest.raises(ImagesError):
        load_images(ImagesConfig(source=str(source), fraction=0.05), min_images=8)


def test_only_the_drawn_files_are_decoded(numbered, monkeypatch):
    decoded = []
    original = read.load
    monkeypatch.setattr(read, "load", lambda path, *rest: decoded.append(path) or original(path, *rest))
    load(numbered, num_images=7)
    assert len(decoded) == 7


def test_unreadable_files_are_replaced_by_the_next_drawn(numbered):
    drawn = levels(load(numbered, num_images=12))
    for level in drawn[2:4]:
        (numbered / f"{level:02}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="2 files"):
        again = levels(load(numbered, num_images=10))
    assert again == drawn[:2] + drawn[4:]


def test_subset_of_tiles():
    everything = load("tiles", size=32)
    some = load("tiles", size=32, num_images=100, seed=3)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(3))[:100]
    assert torch.equal(some, everything[order])


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_cap_takes_fewer_or_a_part(numbered, tmp_path, kind):
    source = numbered
    if kind == "npz":
        source = tmp_path / "a.npz"
        np.savez(source, images=np.arange(40, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 16, 16, 3), np.uint8))
    assert levels(load(source, max_images=10)) == levels(load(source, num_images=10))
    with pytest.warns(UserWarning, match=r"has 40 images, fewer than images\.max_images 576: all are taken") as caught:
        assert levels(load(source, max_images=576)) == list(range(40))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert levels(load(source, max_images=40)) == list(range(40))
        # Of fraction and cap, the smaller.
        assert levels(load(source, max_images=10, fraction=0.5)) == levels(load(source, num_images=10))
        assert levels(load(source, max_images=30, fraction=0.5)) == levels(load(source, num_images=20))


def test_too_few_names_the_key_to_change(numbered):
    config = ImagesConfig(source=str(numbered), size=16, max_images=50)
    message = r"at least 64 are needed.*lower untrained\.batch_size"
    with pytest.raises(ImagesError, match=message):
        load_images(config, min_images=64, needed_by="untrained.batch_size")
    np.savez(numbered / "a.npz", images=np.zeros((4, 16, 16, 3), np.uint8))
    config = ImagesConfig(source=str(numbered / "a.npz"), size=16)
    with pytest.raises(ImagesError, match=message):
        load_images(config, min_images=64, needed_by="untrained.batch_size")


def test_hidden_copies_loops_and_pipes_do_not_count(numbered):
    for hidden in (".ipynb_checkpoints", "sub/@eaDir", "__MACOSX"):
        (numbered / hidden).mkdir(parents=True)
        flat(numbered / hidden / "copy.png", 200)
    (numbered / "loop").symlink_to(".")
    os.mkfifo(numbered / "pipe.png")
    with pytest.warns(UserWarning, match=r"1 repeated folder: loop is \.; 1 pipe, socket or device: pipe\.png"):
        assert levels(load(numbered)) == list(range(40))


# ---- cache, as seen from here (test_cache.py has the rest)


def test_decoded_once(numbered, monkeypatch):
    images = load(numbered)
    monkeypatch.setattr(read, "load", lambda *rest: pytest.fail("decoded again"))
    assert torch.equal(load(numbered), images)
    # Without a subset the seed makes no second copy.
    assert torch.equal(load(numbered, seed=5), images)


def test_a_changed_folder_is_noticed(numbered):
    assert len(load(numbered)) == 40
    flat(numbered / "more.png", 99)
    assert len(load(numbered)) == 41
    (numbered / "00.png").unlink()
    assert levels(load(numbered))[0] == 1
    flat(numbered / "01.png", 77)
    assert levels(load(numbered))[0] == 77
    shutil.copytree(numbered, numbered.parent / "copy")
    flat(numbered.parent / "copy" / "01.png", 55)
    assert levels(load(numbered.parent / "copy"))[0] == 55
    assert levels(load(numbered))[0] == 77


@pytest.mark.parametrize("change", ["gone", "changed", "replaced"])
def test_a_file_that_changes_while_the_folder_is_decoded_is_said(numbered, monkeypatch, change):
    real, calls = read.load, []

    def late(path, *rest):
        calls.append(path)
        if path.name == "07.png" and change == "gone":
            path.unlink()
        elif path.name == "07.png":
            flat(numbered / f"{change}.tmp.png", 200)
            (numbered / f"{change}.tmp.png").replace(path) if change == "replaced" else flat(path, 200)
        return real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(read, "load", late)
        with pytest.raises(ImagesError, match=r"07\.png (is gone|was changed) while the images are in use"):
            load(numbered)
    assert calls
    # Nothing of the mixture was kept.
    assert levels(load(numbered))[:6] == list(range(6))


def test_an_npz_that_is_replaced_while_it_is_read_is_said(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((3, 16, 16, 3), np.uint8))
    real = sources.read_npz

    def late(path):
        np.savez(path, images=np.ones((4, 16, 16, 3), np.uint8))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "read_npz", late)
        with pytest.raises(ImagesError, match=r"a\.npz was changed while the images are in use"):
            load(path)
    assert load(path).shape[0] == 4


def test_another_size_is_another_entry(numbered):
    assert load(numbered, size=16).shape[-1] == 16
    assert load(numbered, size=8).shape[-1] == 8


def test_a_changed_npz_is_noticed(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 16, 16, 3), np.uint8))
    assert load(tmp_path / "a.npz").max() == 0
    np.savez(tmp_path / "a.npz", images=np.ones((3, 16, 16, 3), np.uint8))
    assert load(tmp_path / "a.npz").max() == 1


def test_heavy_imports_come_late():
    code = (
        "import sys, nni_cssnas.images\n"
        "print(sorted({'nni', 'lightly', 'skimage', 'sklearn', 'torchvision', 'scipy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
