from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nni_cssnas.config import ContrastiveConfig, ImagesConfig
from nni_cssnas.errors import ConfigError, ImagesError
from nni_cssnas.images.pool import Pool, StreamedImages, fingerprint
from nni_cssnas.images.sources import load_images
from nni_cssnas.scores.contrastive import train_contrastive

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        pixels = rng.integers(0, 256, (20, 26, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02}.png")
    return tmp_path / "pictures"


def load(folder: Path, tmp_path: Path, **values: object) -> torch.Tensor | StreamedImages:
    return load_images(ImagesConfig(source=str(folder), size=16, **values), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("subset", [{}, {"num_images": 9, "seed": 3}])
def test_streamed_images_are_the_resident_ones(folder: Path, tmp_path: Path, subset: dict[str, int]) -> None:
    resident = load(folder, tmp_path, **subset)
    streamed = load(folder, tmp_path, resident_gb=0, **subset)
    assert isinstance(resident, torch.Tensor)
    assert isinstance(streamed, StreamedImages)
    assert len(streamed) == len(resident)
    index = torch.tensor([5, 0, 8, 5])
    assert torch.equal(streamed[index], resident[index])
    batches = [torch.tensor([i, 8 - i]) for i in range(7)]
    for images in (streamed, resident):
        pool = Pool(images, CPU)
        assert pool.is_resident == isinstance(images, torch.Tensor)
        assert torch.equal(pool.take(index), resident[index])
        found = list(pool.batches(batches))
        assert all(torch.equal(a, resident[b]) for a, b in zip(found, batches, strict=True))


def test_no_image_is_kept_of_what_is_streamed(folder: Path, tmp_path: Path) -> None:
    load(folder, tmp_path, resident_gb=0)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_the_limit_counts_decoded_bytes(folder: Path, tmp_path: Path) -> None:
    size = 24 * 3 * 16 * 16 / 2**30
    assert isinstance(load(folder, tmp_path, resident_gb=size), torch.Tensor)
    assert isinstance(load(folder, tmp_path, resident_gb=size * 0.99), StreamedImages)


def test_training_is_the_same_from_memory_and_from_disk(folder: Path, tmp_path: Path) -> None:
    def views(batch: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        clean = batch.float() / 255 - 0.5
        return clean + 0.1 * torch.randn(clean.shape, generator=generator), clean

    results = []
    for limit in (1, 0):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 8))
        config = ContrastiveConfig(epochs=3, batch_size=5, held_out=0.2)
        results.append(
            train_contrastive(
                network, Pool(load(folder, tmp_path, resident_gb=limit), CPU), config, views=views, seed=1
            )
        )
    assert results[0].epoch_losses == results[1].epoch_losses
    assert results[0].held_out == results[1].held_out


def test_a_fixed_pool_of_views_is_refused_before_it_fills_the_memory(folder: Path, tmp_path: Path) -> None:
    pool = Pool(load(folder, tmp_path, resident_gb=0), CPU)
    config = ContrastiveConfig(batch_size=5, view_pool="fixed")
    with pytest.raises(ConfigError, match=r"all 24 images in memory.*view_pool: fresh"):
        train_contrastive(torch.nn.Flatten(), pool, config, views=lambda batch, generator: (batch, batch), seed=0)


def test_unreadable_files_are_replaced_and_said_once(folder: Path, tmp_path: Path) -> None:
    (folder / "03.png").write_bytes(b"no picture")
    (folder / "07.png").write_bytes(b"neither")
    streamed = load(folder, tmp_path, resident_gb=0)
    with pytest.warns(UserWarning, match=r"0[37]\.png.*could not be read") as caught:
        images = streamed[torch.tensor([3, 4, 7])]
    assert len(caught) == 1
    assert torch.equal(images[0], images[1])
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    with (
        pytest.warns(UserWarning, match="could not"),
        pytest.raises(ImagesError, match="none of the 24 images can be read"),
    ):
        load(folder, tmp_path, resident_gb=0)[torch.tensor([0])]


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_images_that_change_while_they_are_streamed_are_said(folder: Path, tmp_path: Path, change: str) -> None:
    streamed = load(folder, tmp_path, resident_gb=0, num_images=9, seed=3)
    assert isinstance(streamed, StreamedImages)
    name = streamed.names[4]
    if change == "gone":
        (folder / name).unlink()
    else:
        Image.new("RGB", (21, 20)).save(folder / name)
    streamed[torch.tensor([3, 5])]
    with pytest.raises(ImagesError, match=rf"{name} (is gone|was changed) while the images are in use; start again"):
        streamed[torch.tensor([3, 4])]


def test_fingerprints_stand_for_content(folder: Path, tmp_path: Path) -> None:
    first = [fingerprint(load(folder, tmp_path, resident_gb=limit)) for limit in (1, 0)]
    assert [fingerprint(load(folder, tmp_path, resident_gb=limit)) for limit in (1, 0)] == first
    Image.new("RGB", (20, 20)).save(folder / "05.png")
    assert all(
        fingerprint(load(folder, tmp_path, resident_gb=limit)) != before
        for limit, before in zip((1, 0), first, strict=True)
    )


def test_reading_ahead_stops_with_its_user(folder: Path, tmp_path: Path) -> None:
    pool = Pool(load(folder, tmp_path, resident_gb=0), CPU)
    batches = pool.batches(torch.tensor([number]) for number in range(24))
    next(batches)
    batches.close()


def test_an_error_while_reading_ahead_is_raised(tmp_path: Path) -> None:
    def broken(position: int) -> np.ndarray:
        raise MemoryError("no room")

    pool = Pool(StreamedImages(["a", "b"], broken, "key", 1), CPU)
    with pytest.raises(MemoryError, match="no room"):
        list(pool.batches([torch.tensor([0])]))
