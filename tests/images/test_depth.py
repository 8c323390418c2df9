"""12-bit data in 16-bit files: the expected pixels are those of the same picture in 8 bits, by plain arithmetic."""

from __future__ import annotations

import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from nni_cssnas.config import ImagesConfig
from nni_cssnas.images import depth, read
from nni_cssnas.images.depth import common_depth
from nni_cssnas.images.pool import StreamedImages, fingerprint
from nni_cssnas.images.sources import load_images


def png16(samples: np.ndarray) -> bytes:
    """A PNG of 16 bits a sample, which Pillow does not write in colour: (height, width, 1, 3 or 4)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write(folder: Path, bits: int, channels: int = 1, count: int = 4, kind: str = "png") -> np.ndarray:
    """Random pictures whose largest value needs so many bits; gives what they must be in 8 bits, (count, H, W, C)."""
    folder.mkdir(exist_ok=True)
    samples = np.random.default_rng(bits).integers(0, 2**bits, (count, 16, 16, channels), dtype=np.uint16)
    samples[count // 2, 3, 3, 0] = 2**bits - 1
    for number, picture in enumerate(samples):
        path = folder / f"{number}.{kind}"
        if kind == "png":
            path.write_bytes(png16(picture))
        else:
            photometric = "rgb" if channels > 1 else "minisblack"
            tifffile.imwrite(path, picture.squeeze(), photometric=photometric, byteorder=kind_order(number))
    return np.rint(samples / (2**bits - 1) * 255)


def kind_order(number: int) -> str:
    return "<>"[number % 2]


def load(folder: Path, tmp_path: Path, **values: object) -> torch.Tensor | StreamedImages:
    return load_images(ImagesConfig(source=str(folder), size=16, **values), cache_dir=tmp_path / "cache")


def pixels(images: torch.Tensor | StreamedImages) -> np.ndarray:
    return images[torch.arange(len(images))].permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("bits", depth.DEPTHS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.filterwarnings("ignore:.*16-bit images hold")
def test_the_sets_own_range_is_scaled_to_8_bits(tmp_path: Path, bits: int, channels: int, kind: str) -> None:
    expected = write(tmp_path / "a", bits, channels, kind=kind)
    for limit in (1, 0):
        found = pixels(load(tmp_path / "a", tmp_path, resident_gb=limit))
        # Of 16 bits in colour Pillow gives the upper byte, which is at most a level off.
        assert np.abs(found - expected).max() <= (bits == 16 and channels == 3)


def test_it_is_the_sets_range_and_not_each_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for name, level in (("bright", 4095), ("dark", 1000)):
        (folder / f"{name}.png").write_bytes(png16(np.full((16, 16, 1), level, dtype=np.uint16)))
    Image.new("L", (16, 16), 77).save(folder / "z-8-bit.png")
    with pytest.warns(UserWarning, match="its 16-bit images hold values of 12 bits at most"):
        assert pixels(load(folder, tmp_path))[:, 0, 0, 0].tolist() == [255, 62, 77]


def test_it_is_said_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", 12)
    with pytest.warns(UserWarning, match="scaled from 12 bits") as caught:
        first = load(tmp_path / "a", tmp_path, resident_gb=0)
    assert len(caught) == 1
    monkeypatch.setattr(read, "needed_bits", lambda path: pytest.fail("looked at again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = load(tmp_path / "a", tmp_path, resident_gb=0)
        resident = load(tmp_path / "a", tmp_path)
    assert torch.equal(first[torch.arange(4)], second[torch.arange(4)])
    assert torch.equal(resident, second[torch.arange(4)])


def test_another_range_is_another_set(tmp_path: Path) -> None:
    """One picture of 14 bits more changes all the others, so the key must change."""
    write(tmp_path / "a", 12)
    with pytest.warns(UserWarning, match="12 bits"):
        before = load(tmp_path / "a", tmp_path, resident_gb=0)
    shallow = pixels(load(tmp_path / "a", tmp_path))
    (tmp_path / "a" / "z.png").write_bytes(png16(np.full((16, 16, 1), 2**14 - 1, dtype=np.uint16)))
    with pytest.warns(UserWarning, match="14 bits"):
        after = load(tmp_path / "a", tmp_path, resident_gb=0)
    assert fingerprint(after) != fingerprint(before)
    assert np.abs(pixels(load(tmp_path / "a", tmp_path))[:4] * 4.0 - shallow).max() <= 4


def test_ordinary_images_are_not_decoded_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for number in range(3):
        for ending in ("png", "jpg", "bmp"):
            Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.{ending}")
            names.append(f"{number}.{ending}")
    (tmp_path / "broken.png").write_bytes(b"x")
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **rest: opened.append(Path(path).name) or original(path, **rest))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert common_depth(tmp_path, [*names, "broken.png"], cache_dir=tmp_path / "cache") == 16
    assert sorted(opened) == ["0.png", "1.png", "2.png", "broken.png"]


def test_nothing_more_is_decoded_once_all_16_bits_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "BLOCK", 2)
    write(tmp_path / "a", 16, count=8)
    seen = []
    original = read.needed_bits
    monkeypatch.setattr(read, "needed_bits", lambda path: seen.append(path) or original(path))
    assert common_depth(tmp_path / "a", [f"{n}.png" for n in range(8)], cache_dir=tmp_path / "cache") == 16
    assert len(seen) == 2


def test_the_alpha_channel_does_not_count(tmp_path: Path) -> None:
    samples = np.full((16, 16, 4), 65535, dtype=np.uint16)
    samples[..., :3] = 2000
    (tmp_path / "a.png").write_bytes(png16(samples))
    assert read.needed_bits(tmp_path / "a.png") in (11, 12)
    assert (read.load(tmp_path / "a.png", 16, bits=12) == round(2000 / 4095 * 255)).all()


def test_formats_that_say_their_depth_are_scaled_by_pillow(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 4 4 4095\n" + np.full(16, 2048, ">u2").tobytes())
    assert read.needed_bits(tmp_path / "a.pgm") == 0
    assert (read.load(tmp_path / "a.pgm", 8, bits=12) == 128).all()
    # One that declares 16 is as a PNG.
    (tmp_path / "b.pgm").write_bytes(b"P5 4 4 65535\n" + np.full(16, 2048, ">u2").tobytes())
    assert read.can_be_deep("b.pgm")
    assert read.needed_bits(tmp_path / "b.pgm") == 12
    assert (read.load(tmp_path / "b.pgm", 8, bits=12) == 128).all()


def test_a_damaged_memory_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "a", 10)
    names = [f"{n}.png" for n in range(4)]
    for content in (b"", b"[]", b'{"bits": 11}', b"\xff"):
        with pytest.warns(UserWarning, match="10 bits"):
            assert common_depth(tmp_path / "a", names, cache_dir=tmp_path / "cache") == 10
        (kept,) = (tmp_path / "cache").iterdir()
        kept.write_bytes(content)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_large_pictures_are_made_small_before_they_take_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    picture = Image.new(mode, (640, 480))
    picture.paste(255 if mode != "RGB" else (255, 255, 255), (0, 240, 640, 480))
    picture.save(tmp_path / "a.png")
    exact = read.load(tmp_path / "a.png", 16)
    monkeypatch.setattr(read, "LARGE", 1000)
    biggest = []
    original = read.to_rgb
    monkeypatch.setattr(read, "to_rgb", lambda image, *rest: biggest.append(image.size) or original(image, *rest))
    assert np.abs(read.load(tmp_path / "a.png", 16).astype(int) - exact).max() <= 4
    assert max(biggest[0]) < 100


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of its memory in /proc")
def test_large_pictures_in_four_threads_take_the_memory_of_one(tmp_path: Path) -> None:
    for number in range(6):
        Image.new("1", (8000, 8000), number % 2).save(tmp_path / f"{number}.png")
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from nni_cssnas.images import read

def status(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) // 1024

files, threads = sorted(Path(sys.argv[1]).glob("*.png")), int(sys.argv[2])
read.formats()
before = status("VmRSS")
with ThreadPoolExecutor(threads) as pool:
    assert all(image.max() == image.min() for image in pool.map(lambda path: read.load(path, 32), files))
print(status("VmHWM") - before)
"""
    one, four = (
        int(subprocess.run([sys.executable, "-c", code, tmp_path, number], capture_output=True, check=True).stdout)
        for number in ("1", "4")
    )
    assert one > 64  # megabytes
    assert four < 1.3 * one
