from __future__ import annotations

import torch

from nni_cssnas.images.views import MEAN, STD
from nni_cssnas.training.augment import Augmentation, cutout, random_crop
from nni_cssnas.training.config import RetrainConfig


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_crop_and_flip_against_a_loop() -> None:
    images = torch.randint(0, 256, (20, 3, 8, 6), dtype=torch.uint8)
    found = random_crop(images, 2, generator(), flip=True)
    again = generator()
    down, right = torch.randint(0, 5, (2, 20), generator=again)
    mirrored = torch.rand(20, generator=again) < 0.5
    assert 0 < mirrored.sum() < 20
    for index, image in enumerate(images):
        padded = torch.zeros(3, 12, 10, dtype=torch.uint8)
        padded[:, 2:10, 2:8] = image
        crop = padded[:, down[index] : down[index] + 8, right[index] : right[index] + 6]
        assert torch.equal(found[index], crop.flip(2) if mirrored[index] else crop)
    assert random_crop(images, 0, generator()) is images


def test_cutout_against_a_loop() -> None:
    images = torch.rand(30, 3, 9, 9) + 1
    found = cutout(images.clone(), 4, generator())
    again = generator()
    rows, columns = (torch.randint(0, 9, (30, 1), generator=again) for _ in range(2))
    for index, image in enumerate(images):
        y, x = int(rows[index]), int(columns[index])
        expected = image.clone()
        expected[:, max(0, y - 2) : y + 2, max(0, x - 2) : x + 2] = 0
        assert torch.equal(found[index], expected)


def test_normalisation_and_order() -> None:
    config = RetrainConfig(padding=2, cutout=4, size=8)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    augmentation = Augmentation(config, MEAN, STD)
    torch.testing.assert_close(augmentation.evaluate(images), (images / 255 - mean) / std)
    # Cutout comes last: what it blanks is the mean, not black.
    again = generator()
    expected = cutout((random_crop(images, 2, again, flip=True) / 255 - mean) / std, 4, again)
    torch.testing.assert_close(augmentation.train(images, generator()), expected)


def test_resized_crops_are_the_views_without_their_colours() -> None:
    config = RetrainConfig(crop="resized", cutout=0, size=16)
    images = torch.full((6, 3, 16, 16), 51, dtype=torch.uint8)  # a grey image stays what it is, however it is cropped
    found = Augmentation(config, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)).train(images, generator())
    for channel, (mean, std) in enumerate(zip((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), strict=True)):
        torch.testing.assert_close(found[:, channel], torch.full((6, 16, 16), (0.2 - mean) / std), atol=1e-4, rtol=0)
