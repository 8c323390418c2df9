"""Faults of images and of what is made of them: pictures, caches, and images that change under a trial."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from counting import Campaign, check, file_limit, listening
from numpy.typing import NDArray
from PIL import Image

from nni_cssnas.bridge.evaluator import ProxyEvaluator
from nni_cssnas.config import ImagesConfig, ProxyConfig
from nni_cssnas.errors import ImagesError
from nni_cssnas.images.cache import resident
from nni_cssnas.images.pool import StreamedImages
from nni_cssnas.images.sources import load_images
from nni_cssnas.results.records import read_records
from nni_cssnas.spaces import make_space, random_choices

NOISE = [
    b"",
    b"\x00" * 100,
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"<svg></svg>",
    b"text",
    b"\x93NUMPY\x01\x00x" * 9,
]


def inject_all(campaign: Campaign, scale: float) -> None:
    """Every group, ``scale`` times its size in the long campaign."""
    for group, number, inject in (
        ("pictures torn or none", 70, damage_pictures),
        ("npz damaged", 30, damage_npz),
        ("image cache damaged", 110, damage_cache),
        ("image cache on a full disk", 20, fill_disk_of_cache),
        ("images vanish or change", 40, change_images),
        ("images change under a trial", 8, change_under_a_trial),
    ):
        campaign.repeat(group, max(3, round(number * scale)), inject)


def pictures(rng: random.Random, folder: Path, number: int) -> dict[str, NDArray[np.uint8]]:
    """PNG files of 16 pixels, and what is in them."""
    folder.mkdir(exist_ok=True)
    made = {}
    for index in range(number):
        pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        made[f"{index}.png"] = pixels.transpose(2, 0, 1)
    return made


def config(folder: Path, **values: Any) -> ImagesConfig:
    return ImagesConfig(source=str(folder / "photos"), size=16, **values)


def load(folder: Path, **values: Any) -> torch.Tensor | StreamedImages:
    return load_images(config(folder, **values), cache_dir=folder / "cache")


def damage_pictures(rng: random.Random, folder: Path) -> str:
    """One or two of several pictures cannot be read: the others are taken, and those are named."""
    photos = folder / "photos"
    good = pictures(rng, photos, rng.randint(3, 7))
    named = []
    for number in range(rng.randint(1, 2)):
        path = photos / f"bad-{number}.png"
        content = io.BytesIO()
        Image.effect_noise((40, 40), 90).convert("RGB").save(content, rng.choice(["PNG", "JPEG", "TIFF", "BMP"]))
        data = content.getvalue()
        kind = rng.choice(["torn", "noise", "pipe", "loop", "dangling", "folder", "bomb"])
        if kind == "torn":
            path.write_bytes(data[: rng.randrange(len(data) * 3 // 4)])
        elif kind == "noise":
            path.write_bytes(rng.choice(NOISE))
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path)
        elif kind == "dangling":
            path.symlink_to("nowhere.png")
        elif kind == "folder":
            path.mkdir()
            (path / "loop").symlink_to("..")
            path = path / "loop"
        else:
            header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (10**6).to_bytes(4, "big") * 2
            path.write_bytes(header + b"\x08\x02\x00\x00\x00\x00\x00\x00\x00")
        named.append(str(path.relative_to(photos)))
    values: dict[str, Any] = {"resident_gb": 0.0} if rng.random() < 0.3 else {}
    with listening() as heard:
        images = load(folder, **values)
        found = images[torch.arange(len(images))]
    if values:
        # A picture that cannot be read is replaced by the next one; only the first is named.
        check(
            {image.numpy().tobytes() for image in found} == {image.tobytes() for image in good.values()},
            "wrong",
            "streamed",
        )
        check(any(name in heard.text for name in named), "unclear", f"none of {named} is named: {heard.text}")
        return "streamed"
    heard.names(*named)
    check(len(found) >= len(good), "lost", f"{len(found)} of {len(good)} pictures")
    check(np.array_equal(found.numpy(), np.stack(list(good.values()))), "wrong", "other pictures")
    return "resident"


def damage_npz(rng: random.Random, folder: Path) -> str:
    """An archive is torn, has a changed byte, or another array: one line, or the very same images."""
    path = folder / "images.npz"
    images = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    kind = rng.choice(["torn", "byte", "array", "noise"])
    np.savez(path, images=images)
    content = bytearray(path.read_bytes())
    if kind == "torn":
        path.write_bytes(content[: rng.randrange(len(content) - 1)])
    elif kind == "byte":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif kind == "noise":
        path.write_bytes(rng.choice(NOISE))
    else:
        other = rng.choice([images / 255, images.astype(object), images[..., 0, 0], images[:0], np.array("text")])
        np.savez(path, **{"images" if rng.random() < 0.8 else "pictures": other})
    source = ImagesConfig(source=str(path), size=16)
    try:
        with listening(expect=ImagesError) as heard:
            found = load_images(source, cache_dir=folder / "cache")
            check(kind == "byte", "wrong", f"{kind}: it was taken")
            check(isinstance(found, torch.Tensor), "wrong", "streamed")
            same = np.array_equal(found.numpy(), images.transpose(0, 3, 1, 2))  # type: ignore[union-attr]
            check(same, "wrong", "other images were taken")
            raise ImagesError(str(path))  # a byte that nobody reads
    finally:
        check(not list(folder.glob("cache/*.npy")) or kind == "byte", "wrong", "a cache was left")
    heard.names(str(path))
    return kind


def damage_cache(rng: random.Random, folder: Path) -> str:
    """The file of decoded images is torn, or any bit of it changed: said, and decoded again."""
    images = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (rng.randint(1, 9), 3, 8, 8), dtype=np.uint8)

    def get() -> torch.Tensor:
        return resident({"key": 1}, lambda: iter([images]), kind="test", size=8, cache_dir=folder)

    get()
    (path,) = folder.glob("*.npy")
    whole = path.read_bytes()
    content = bytearray(whole)
    kind = rng.choice(
        ["torn", "bit", "bit", "blank", "longer", "noise", "other", "pipe", "folder", "loop", "left over"]
    )
    if kind == "torn":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "bit":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif kind == "blank":
        start = rng.randrange(len(content))
        blank = content[:start] + b"\0" * len(content[start : start + 64]) + content[start + 64 :]
        path.write_bytes(blank)
    elif kind == "longer":
        path.write_bytes(content + bytes(rng.randint(1, 99)))
    elif kind == "noise":
        path.write_bytes(rng.choice(NOISE))
    elif kind == "other":
        np.save(path, rng.choice([images.astype(np.int16), images[..., :4], images[0], images.astype(object)]))
    elif kind == "left over":
        path.rename(path.with_name(f".{path.name}.123.tmp"))
    else:
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(path)
    same = kind not in ("pipe", "loop") and path.is_file() and path.read_bytes() == whole
    with listening() as heard:
        found = get()
    check(found.shape == images.shape, "lost", f"{kind}: {found.shape}")
    check(np.array_equal(found.numpy(), images), "wrong", f"{kind}: other images")
    if not same and kind not in ("left over", "folder", "loop"):
        heard.names(str(path), "damaged")
    elif kind in ("folder", "loop"):
        heard.names("cannot be kept")
    if kind not in ("folder", "loop"):
        with listening() as heard:
            get()
        heard.silent()
        check(not list(folder.glob(".*.tmp")), "wrong", "something was left behind")
    return kind


def fill_disk_of_cache(rng: random.Random, folder: Path) -> str:
    """Decoded images cannot be kept: said with the remedy, and the images are right; kept when there is space."""
    images = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (9, 3, 8, 8), dtype=np.uint8)

    def get() -> torch.Tensor:
        return resident({"key": 1}, lambda: iter([images[:4], images[4:]]), kind="test", size=8, cache_dir=folder)

    with listening() as heard, file_limit(rng.randrange(images.nbytes)):
        found = get()
    heard.names("cannot be kept", "NNI_CSSNAS_CACHE", str(folder))
    check(np.array_equal(found.numpy(), images), "wrong", "other images")
    check(not list(folder.glob("*.npy")) and not list(folder.glob(".*.tmp")), "wrong", "something was left behind")
    with listening() as heard:
        found = get()
    heard.silent()
    check(np.array_equal(found.numpy(), images) and list(folder.glob("*.npy")), "lost", "not kept after space was made")
    return "full"


def change_images(rng: random.Random, folder: Path) -> str:
    """Files vanish or change after they were listed: what is in use stays as it was, or it is said; never a mixture."""
    photos = folder / "photos"
    good = pictures(rng, photos, 8)
    streamed = rng.random() < 0.5
    victim = photos / rng.choice(sorted(good))
    kind = rng.choice(["gone", "changed", "replaced", "folder gone"])

    def harm() -> None:
        if kind == "gone":
            victim.unlink()
        elif kind == "folder gone":
            shutil.rmtree(photos)
        else:
            path = victim if kind == "changed" else victim.with_suffix(".new")
            Image.effect_noise((16, 16), 90).convert("RGB").save(path, "PNG")
            if kind == "replaced":
                os.replace(path, victim)

    if streamed:
        images = load(folder, resident_gb=0)
        images[torch.arange(len(images))]
        harm()
        with listening(expect=ImagesError) as heard:
            images[torch.arange(len(images))]
        heard.names("is gone" if "gone" in kind else "was changed", str(photos))
        return f"streamed, {kind}"
    if rng.random() < 0.5:
        images = load(folder)
        harm()
        check(
            np.array_equal(images.numpy(), np.stack(list(good.values()))), "wrong", f"{kind}: the images in use changed"
        )
        return f"resident, {kind}"
    # In the middle of the decoding.
    from nni_cssnas.images import read

    real, done = read.load, []

    def slow(*arguments: Any) -> NDArray[np.uint8]:
        if not done:
            done.append(1)
            harm()
        return real(*arguments)

    with mock.patch.object(read, "load", slow), listening(expect=ImagesError) as heard:
        found = load(folder)
        # Another thread may have been done with that picture before.
        check(np.array_equal(found.numpy(), np.stack(list(good.values()))), "wrong", f"{kind}: a mixture")
        raise ImagesError("is gone, was changed")
    heard.names("is gone" if "gone" in kind else "was changed")
    return f"decoding, {kind}"


TRIAL: dict[str, Any] = {
    "score": "contrastive",
    "threads": 1,
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 2}},
    "views": {"input_size": 16},
    "contrastive": {"epochs": 2, "batch_size": 8, "view_pool": "fresh"},
}


@cache
def candidate() -> tuple[Any, dict[str, Any]]:
    space = make_space(ProxyConfig(**TRIAL).space)
    return space, random_choices(space, np.random.default_rng(0))


def evaluate(folder: Path, settings: dict[str, Any], name: str) -> float:
    from nni_cssnas.spaces import decode

    space, parameters = candidate()
    with mock.patch.dict(
        os.environ, NNI_CSSNAS_CACHE=str(folder / "cache"), NNI_OUTPUT_DIR=str(folder / "trials" / name)
    ):
        evaluator = ProxyEvaluator(TRIAL | settings)
        return evaluator.run(lambda: space.freeze(decode(space, parameters)), parameters).score


def change_under_a_trial(rng: random.Random, folder: Path) -> str:
    """Images change while a trial trains on them, or between two trials of one experiment."""
    photos = folder / "photos"
    pictures(rng, photos, 24)
    between = rng.random() < 0.5
    streamed = not between or rng.random() < 0.5
    settings = {
        "images": {"source": str(photos), "size": 16, "max_images": 24, "resident_gb": 0.0 if streamed else 1.0}
    }
    torch.set_num_threads(1)
    if between:
        first = evaluate(folder, settings, "first")
        check(evaluate(folder, settings, "second") == first, "wrong", "not the same score for the same architecture")
    gone = rng.random() < 0.5
    victims = list(photos.iterdir()) if not between else [photos / f"{rng.randrange(24)}.png"]

    def harm(*_: Any) -> None:
        for victim in victims:
            if gone:
                victim.unlink(missing_ok=True)
            else:
                Image.effect_noise((16, 16), 50).convert("RGB").save(victim)

    if between:
        harm()
        with listening(expect=ImagesError) as heard:
            evaluate(folder, settings, "third")
        heard.names("are not those", str(photos))
    else:
        from nni_cssnas.bridge import evaluator

        real = evaluator._RecordWriter.note

        def note(self: Any, **values: Any) -> None:
            real(self, **values)
            if "epoch_losses" in values:
                harm()

        with mock.patch.object(evaluator._RecordWriter, "note", note), listening(expect=ImagesError) as heard:
            evaluate(folder, settings, "third")
        heard.names(str(photos), "is gone" if gone else "was changed")
    record = next(record for record in read_records(folder) if record.status == "failed")
    check(record.score is None and json.dumps(record.error), "wrong", "a score of a mixture")
    check(record.error is not None and "ImagesError" in record.error, "unclear", f"{record.error}")
    return "between" if between else "under"


if __name__ == "__main__":
    sys.exit("this is a module of campaign.py")
