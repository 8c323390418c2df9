"""Images that were carried to another machine: found by their section of proxy.yml, where their source is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nni_cssnas.config import ImagesConfig
from nni_cssnas.errors import ImagesError
from nni_cssnas.images.cache import empty_cache
from nni_cssnas.images.carried import carried_bytes, carried_length, carried_name, checksum
from nni_cssnas.images.sources import is_here, load_images


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine on which this process is a trial."""
    monkeypatch.setenv("NNI_PLATFORM", "remote")
    monkeypatch.setenv("NNI_CSSNAS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8))


def carry(config: ImagesConfig, folder: Path, images: torch.Tensor = IMAGES) -> Path:
    path = folder / carried_name(config)
    path.write_bytes(b"".join(carried_bytes(images)))
    assert path.stat().st_size == carried_length(images)
    return path


@pytest.mark.parametrize("source", ["/not/on/this/machine", "/not/on/this/machine.npz", "cifar10"])
def test_they_are_found_where_the_source_is_not(source: str, worker: Path) -> None:
    config = ImagesConfig(source=source, size=16)
    assert not is_here(config)
    with pytest.raises(ImagesError):
        load_images(config)
    path = carry(config, worker)
    assert torch.equal(load_images(config), IMAGES)
    # It ends as the cache's own files do, and is one of them.
    assert path.read_bytes().endswith(b"CRC-32: %08x\n" % checksum(IMAGES))
    assert np.array_equal(np.load(path), IMAGES.numpy())
    assert empty_cache() == carried_length(IMAGES)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"num_images": 4}, {"fraction": 0.5}, {"size": 8}, {"source": "/other"}]
)
def test_another_section_has_other_images(change: dict[str, object], worker: Path) -> None:
    config = ImagesConfig(source="/not/here", size=16)
    carry(config, worker)
    with pytest.raises(ImagesError, match="no such folder"):
        load_images(config.model_copy(update=change))


def test_what_says_nothing_of_the_images_is_not_compared() -> None:
    config = ImagesConfig(source="cifar10")
    assert carried_name(config) == carried_name(
        ImagesConfig(source="cifar10", root=Path("/data"), download=True, resident_gb=1.0)
    )


def test_the_source_goes_before(worker: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(photos / f"{number}.png")
    config = ImagesConfig(source=str(photos), size=16)
    carry(config, worker)
    assert load_images(config)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("platform", ["local", None])
def test_only_a_trial_of_another_machine_takes_them(
    platform: str | None, worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ImagesConfig(source="/not/here", size=16)
    carry(config, worker)
    monkeypatch.delenv("NNI_PLATFORM")
    if platform is not None:
        monkeypatch.setenv("NNI_PLATFORM", platform)
    with pytest.raises(ImagesError, match="no such folder"):
        load_images(config)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_damaged_ones_are_named_and_not_used(damage: str, worker: Path) -> None:
    config = ImagesConfig(source="/not/here", size=16)
    path = carry(config, worker)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-30], "bit": data, "empty": b""}[damage])
    with (
        pytest.warns(UserWarning, match=r"carried images .* cannot be used .*; nni-cssnas run carries them again"),
        pytest.raises(ImagesError, match="no such folder"),
    ):
        load_images(config)
