"""Images with labels: a folder of class subfolders, an ``.npz``, or CIFAR-10; in memory, or read from disk as needed."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nni_cssnas.errors import ImagesError, nearest, printable
from nni_cssnas.images import read
from nni_cssnas.images.cache import cache_folder, resident
from nni_cssnas.images.depth import common_depth
from nni_cssnas.images.listing import image_files, is_hidden
from nni_cssnas.images.pool import Images, StreamedImages, fingerprint
from nni_cssnas.images.sources import BLOCK_BYTES, CIFAR10_FOLDER, listed, read_npz, stamp, threads

__all__ = ["Files", "LabelledImages", "Split", "load_labelled", "stratified"]

VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
# So many pictures of a folder that is not kept decoded tell its mean and deviation.
MEASURED = 1024


@dataclass(frozen=True)
class Files:
    """Pictures that stay on disk: ``names`` below ``folder``; 16-bit ones are scaled from the ``bits`` that their set holds."""

    folder: Path
    names: tuple[str, ...]
    bits: int = 16

    def __len__(self) -> int:
        return len(self.names)

    def path(self, position: int) -> Path:
        """Where a picture lies."""
        return self.folder / self.names[position]

    def decoded(self, size: int) -> StreamedImages:
        """The pictures, resized and cropped to ``size``, each decoded when it is asked for."""

        def load(position: int) -> NDArray[np.uint8] | str:
            return _try(partial(read.load, self.path(position), size, self.bits), self.names[position])

        return StreamedImages(self.names, load, self.key, threads())

    @property
    def key(self) -> str:
        """Names and sizes, which stand for the content."""
        content = json.dumps([[name, stamp(self.folder / name)[1]] for name in self.names])
        content += f" {self.bits} bits" if self.bits < 16 else ""
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Split:
    """Some labelled images.

    Attributes
    ----------
    images
        uint8, ``(N, 3, size, size)``, or the files.
    labels
        Numbers of the classes, int64, ``(N,)``.
    names
        Of the images, for messages: paths below ``folder``, if they come from one.
    bits
        From which 16-bit images of the folder were scaled.
    """

    images: Tensor | Files
    labels: Tensor
    names: tuple[str, ...] = ()
    folder: Path | None = None
    bits: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def files(self) -> Files | None:
        """The files that the images come from, whether they are in memory or not."""
        return None if self.folder is None else Files(self.folder, self.names)

    def take(self, index: Tensor) -> Split:
        """The images at these positions."""
        known = self.images.names if isinstance(self.images, Files) else self.names
        names = tuple(known[position] for position in index.tolist()) if known else ()
        images = self.images[index] if isinstance(self.images, Tensor) else replace(self.images, names=names)
        return replace(self, images=images, labels=self.labels[index], names=names)

    def counts(self, num_classes: int) -> Tensor:
        """Images of each class, ``(num_classes,)``."""
        return torch.bincount(self.labels, minlength=num_classes)


@dataclass(frozen=True)
class LabelledImages:
    """Images to train on, images to validate with, and the names of their classes.

    Attributes
    ----------
    size
        Edge of the images in pixels.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    size: int

    @cached_property
    def key(self) -> str:
        """Stands for all images and labels; the same in every process."""
        content = hashlib.sha256(json.dumps([self.size, *self.classes]).encode())
        for split in (self.train, self.val):
            images = split.images
            content.update((images.key if isinstance(images, Files) else fingerprint(images)).encode())
            content.update(split.labels.numpy().tobytes())
        return content.hexdigest()

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the training images, in [0, 1]; of large folders, of a part."""
        images = self.train.images
        if isinstance(images, Files):
            generator = torch.Generator().manual_seed(0)
            some = torch.randperm(len(images), generator=generator)[:MEASURED]
            images = images.decoded(self.size)[some]
        # Exact, and without a copy of all images as floats.
        histogram = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)]).double()
        levels = torch.arange(256, dtype=torch.float64) / 255
        share = histogram / histogram.sum(1, keepdim=True)
        mean = share @ levels
        std = (share @ levels.square() - mean.square()).clamp_min(0).sqrt()
        # Images of one grey level have no deviation to divide by.
        return tuple(mean.tolist()), tuple(max(value, 1 / 255) for value in std.tolist())

    def unlabelled(self) -> Images:
        """All training images without their labels."""
        images = self.train.images
        return images.decoded(self.size) if isinstance(images, Files) else images


def load_labelled(
    source: str | Path,
    size: int,
    *,
    val: str | Path | None = None,
    validation: float = 0.1,
    seed: int = 0,
    resident_gb: float = 4.0,
    root: Path | None = None,
    download: bool = False,
    cache_dir: Path | None = None,
) -> LabelledImages:
    """The labelled images that a user names.

    Parameters
    ----------
    source
        A folder with a subfolder for each class, or with such folders ``train`` and ``val`` (or ``valid``,
        ``validation``, ``test``); an ``.npz`` with uint8 ``images`` (N, H, W, 3), ``labels`` (N,) and, if they have names,
        ``classes``; or ``cifar10``, torchvision's, whose validation images are its test images.
    size
        Edge in pixels to which images are resized and cropped.
    val
        The validation images, in any of these forms (``cifar10`` excepted).
    validation, seed
        Otherwise so large a part of every class is held out, drawn with the seed.
    resident_gb
        A folder that would take more is not decoded now, but as it is read.
    root, download
        Where CIFAR-10 lies, and whether it may be fetched.
    cache_dir
        See :func:`~nni_cssnas.images.cache.cache_folder`.

    Raises
    ------
    ImagesError
        If a source does not exist or has no labels, a class has no image, or labels and classes do not fit.

    Warns
    -----
    UserWarning
        If files of a folder cannot be read or do not count, a class has no validation image, or validation images are
        among the training images, too.
    """
    read = partial(_read, size=size, resident_gb=resident_gb, cache_dir=cache_dir)
    train, classes, own = (
        _cifar10(size, root, download, cache_dir) if str(source) == "cifar10" else read(source, classes=None)
    )
    _check_classes(train, classes, str(source))
    if val is not None:
        held_out, _, _ = read(val, classes=classes, bits=train.bits)
    elif own is not None:
        held_out = own if isinstance(own, Split) else read(own, classes=classes, bits=train.bits)[0]
    else:
        chosen = stratified(train.labels, len(classes), validation, seed, leave=1)
        if not len(chosen):
            raise ImagesError(
                f"{source} has one image of each class; none can be held out. Give validation images with --val"
            )
        rest = torch.ones(len(train), dtype=torch.bool)
        rest[chosen] = False
        train, held_out = train.take(rest.nonzero().squeeze(1)), train.take(chosen)
    absent = [name for name, count in zip(classes, held_out.counts(len(classes)).tolist(), strict=True) if not count]
    if absent:
        warnings.warn(
            f"{source}: no validation image of {listed(absent, 'class', 'classes')}; the accuracies say nothing of "
            f"{'it' if len(absent) == 1 else 'them'}",
            stacklevel=2,
        )
    repeated = _repeated(train, held_out)
    if repeated:
        examples = ", ".join(f"{ours} is {theirs}" for ours, theirs in repeated[:2])
        warnings.warn(
            f"{source}: {len(repeated)} of {len(held_out)} validation images are among the training images, too ({examples}); "
            "the validation accuracy will be too high. Remove the copies",
            stacklevel=2,
        )
    return LabelledImages(classes, train, held_out, size)


def _repeated(train: Split, val: Split) -> list[tuple[str, str]]:
    """The validation images that equal a training image, with its name: equal pixels in memory, equal bytes of files."""
    if isinstance(train.images, Tensor) and isinstance(val.images, Tensor):
        return _pairs(
            {_digest(image): name for image, name in zip(train.images, train.names, strict=True)},
            [(_digest(image), name) for image, name in zip(val.images, val.names, strict=True)],
        )
    ours, theirs = val.files, train.files
    if ours is None or theirs is None:  # one side is an array, the other is files that are not decoded
        return []
    # Most files have a size of their own, and need not be read.
    sizes = {stamp(theirs.path(position))[1] for position in range(len(theirs))}
    candidates = [position for position in range(len(ours)) if stamp(ours.path(position))[1] in sizes]
    sizes = {stamp(ours.path(position))[1] for position in candidates}
    known = {
        content: theirs.names[position]
        for position in range(len(theirs))
        if stamp(theirs.path(position))[1] in sizes and (content := _content(theirs.path(position)))
    }
    return _pairs(known, [(_content(ours.path(position)), ours.names[position]) for position in candidates])


def _pairs(known: Mapping[bytes, str], ours: Iterable[tuple[bytes, str]]) -> list[tuple[str, str]]:
    return [(name, known[digest]) for digest, name in ours if digest in known]


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest()


def _content(path: Path) -> bytes:
    """Stands for a file's content; empty if it cannot be read, which others say."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except OSError:
        return b""


def stratified(labels: Tensor, num_classes: int, fraction: float, seed: int, *, leave: int = 0) -> Tensor:
    """A random part of every class, as positions in ascending order.

    The part is ``round(fraction * N)`` images, shared among the classes by their sizes (largest remainders), but at
    least one of each class and at most all but ``leave``.

    Parameters
    ----------
    labels
        ``(N,)``.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    most = (counts - leave).clamp_min(0)
    exact = counts.double() * fraction
    shares = torch.minimum(exact.floor().long().clamp_min(1), most)
    total = round(fraction * len(labels))
    remainder = exact - shares
    while int(shares.sum()) != total:
        step = 1 if int(shares.sum()) < total else -1
        possible = shares < most if step > 0 else shares > 1
        if not bool(possible.any()):
            break
        # The class that is furthest from its exact share gives or takes one.
        chosen = int(torch.where(possible, step * remainder, -torch.inf).argmax())
        shares[chosen] += step
        remainder[chosen] -= step
    generator = torch.Generator().manual_seed(seed % 2**63)
    parts = []
    for number, share in enumerate(shares.tolist()):
        members = (labels == number).nonzero().squeeze(1)
        parts.append(members[torch.randperm(len(members), generator=generator)[:share]])
    return torch.cat(parts).sort().values


def _check_classes(split: Split, classes: Sequence[str], source: str) -> None:
    if len(classes) < 2:
        raise ImagesError(
            f"{source} has one class, {classes[0]!r}; there is nothing to tell apart" if classes else source
        )
    empty = [name for name, count in zip(classes, split.counts(len(classes)).tolist(), strict=True) if not count]
    if empty:
        raise ImagesError(f"{source}: no image of {listed(empty, 'class', 'classes')}; add some, or remove the class")


def _read(
    source: str | Path,
    *,
    size: int,
    classes: tuple[str, ...] | None,
    resident_gb: float,
    cache_dir: Path | None,
    bits: int | None = None,
) -> tuple[Split, tuple[str, ...], Path | None]:
    """Images, classes, and the folder of the validation images if there is one beside them."""
    path = Path(source).expanduser()
    if path.is_dir():
        folder, own = (path, None) if classes is not None else _halves(path)
        split, names = _folder(folder, classes, size, resident_gb, cache_dir, bits)
        return split, names, own
    if path.is_file() and path.suffix.lower() == ".npz":
        split, names = _npz(path, classes, size, cache_dir)
        return split, names, None
    if path.exists():
        raise ImagesError(f"data is {str(source)!r}, a file; it must be a folder of class subfolders or an .npz file")
    hint = nearest(path.name, ["cifar10"]) if path.name == str(source) else ""
    raise ImagesError(f"data is {str(source)!r}; no such folder or file{hint}")


# ---- folders --------------------------------------------------------------------------------------


def _halves(folder: Path) -> tuple[Path, Path | None]:
    """The folder of the training images and that of the validation images."""
    train = folder / "train"
    # Without subfolders of its own, ``train`` is the class of the railway.
    if not train.is_dir() or not _subfolders(train):
        return folder, None
    return train, next((folder / name for name in VALIDATION_FOLDERS if (folder / name).is_dir()), None)


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))


def _folder(
    folder: Path,
    classes: tuple[str, ...] | None,
    size: int,
    resident_gb: float,
    cache_dir: Path | None,
    bits: int | None,
) -> tuple[Split, tuple[str, ...]]:
    # Names on disk are any bytes; a class's name is also written into files of UTF-8.
    found = {printable(name): name for name in _subfolders(folder)}
    if not found:
        raise ImagesError(
            f"{folder} has no class subfolders, so its images have no labels; put the images of each class into a subfolder "
            "of its name, or give an .npz with images and labels"
        )
    names = tuple(found) if classes is None else classes
    unknown = [name for name in found if name not in names]
    if unknown:
        raise ImagesError(
            f"{folder}: class {unknown[0]!r} is not one of the training images{nearest(unknown[0], names)}"
        )
    numbers = {found[name]: number for number, name in enumerate(names) if name in found}
    listing = image_files(folder)
    listing.warn(stacklevel=5)
    chosen = tuple(name for name in listing.names if _first(name) in numbers)
    if len(chosen) < len(listing.names):
        beside = [name for name in listing.names if _first(name) not in numbers]
        warnings.warn(f"{folder}: {listed(beside)} in no class folder, left out", stacklevel=5)
    twice = [pair for pair in listing.repeated if _first(pair[0]) != _first(pair[1])]
    if twice:
        left, kept = twice[0]
        warnings.warn(
            f"{folder}: {len(twice)} picture{'s lie' if len(twice) > 1 else ' lies'} in two classes at once ({left} is {kept}); only the second counts",
            stacklevel=5,
        )
    labels = torch.tensor([numbers[_first(name)] for name in chosen], dtype=torch.long)
    seen = set(labels.tolist())
    empty = [name for name in found if numbers[found[name]] not in seen]
    if empty:
        raise ImagesError(f"{folder}: no image of {listed(empty, 'class', 'classes')}; add some, or remove the folder")
    # Validation images are scaled as the training images are.
    depth = common_depth(folder, chosen, cache_dir=cache_dir) if bits is None else bits
    split = Split(Files(folder, chosen, depth), labels, chosen, folder, depth)
    if len(chosen) * 3 * size**2 > resident_gb * 2**30:
        return split, names
    return _decoded(split, size, cache_dir), names


def _first(name: str) -> str:
    return name.split(os.sep)[0] if os.sep in name else ""


def _decoded(split: Split, size: int, cache_dir: Path | None) -> Split:
    """The same in memory, by way of the cache; without the files that cannot be read."""
    files = split.images
    assert isinstance(files, Files)

    def one(position: int) -> NDArray[np.uint8] | str:
        return _try(partial(read.load, files.path(position), size, files.bits), files.names[position])

    def make() -> Iterator[NDArray[np.uint8]]:
        block = max(16, BLOCK_BYTES // (3 * size**2))
        black = np.zeros((3, size, size), dtype=np.uint8)
        with ThreadPoolExecutor(threads()) as pool, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            for start in range(0, len(files), block):
                decoded = pool.map(one, range(start, min(start + block, len(files))))
                yield np.stack([black if isinstance(image, str) else image for image in decoded])

    key = {"source": "labelled", "folder": str(files.folder.resolve())}
    stamps = [(name, *stamp(files.folder / name)[1:]) for name in files.names]
    images = resident(
        key | {"files": stamps, "bits": files.bits}, make, kind="labelled", size=size, cache_dir=cache_dir
    )
    # A file that cannot be read was put down as a black image; among these it is found again.
    black = (images.flatten(1).amax(1) == 0).nonzero().squeeze(1).tolist()
    bad = {position: reason for position in black if isinstance(reason := one(position), str)}
    decoded = replace(split, images=images)
    if not bad:
        return decoded
    warnings.warn(f"{files.folder}: {listed(list(bad.values()))} could not be read, left out", stacklevel=2)
    return decoded.take(torch.tensor([n for n in range(len(images)) if n not in bad], dtype=torch.long))


def _try(load: Callable[[], NDArray[np.uint8]], name: str) -> NDArray[np.uint8] | str:
    try:
        return load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        return f"{name} ({str(error) or type(error).__name__})"


# ---- arrays ---------------------------------------------------------------------------------------


def _npz(
    path: Path, classes: tuple[str, ...] | None, size: int, cache_dir: Path | None
) -> tuple[Split, tuple[str, ...]]:
    def make() -> Iterator[NDArray[np.uint8]]:
        yield _fitted(read_npz(path), size)

    # Several processes that train on them map one file.
    images = resident(
        {"source": "labelled-npz", "file": stamp(path.resolve())}, make, kind="npz", size=size, cache_dir=cache_dir
    )
    with np.load(path, allow_pickle=False) as archive:
        if "labels" not in archive.files:
            raise ImagesError(
                f"{path} has no key 'labels' (keys: {', '.join(map(repr, archive.files))}); retraining needs a class number "
                "for each image, as numpy.savez(path, images=images, labels=labels) writes it"
            )
        try:
            labels = archive["labels"]
            named = archive["classes"] if "classes" in archive.files else None
        except ValueError as error:
            raise ImagesError(f"{path}: labels must be integers and classes texts ({error})") from None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ImagesError(
            f"{path}: 'labels' is {labels.dtype} of shape {labels.shape}; it must be integers, one for each image"
        )
    if len(labels) != len(images):
        raise ImagesError(f"{path} has {len(images)} images but {len(labels)} labels; each image needs one")
    names: tuple[str, ...]
    if named is None and classes is None and labels.max() >= len(labels):  # before so many names are made
        raise ImagesError(
            f"{path} has {len(labels)} images, but the label {labels.max()}; number the classes from 0, without gaps"
        )
    if named is not None:
        names = tuple(str(name) for name in np.atleast_1d(named).tolist())
    elif classes is not None:
        names = classes
    else:
        names = tuple(str(number) for number in range(int(labels.max()) + 1)) if labels.min() >= 0 else ()
    wrong = labels[(labels < 0) | (labels >= len(names))]
    if len(wrong):
        known = f"there are {len(names)} classes, numbered from 0" if names else "numbers start from 0"
        raise ImagesError(f"{path}: label {int(wrong[0])} has no class; {known}")
    if classes is not None and names != classes:
        raise ImagesError(f"{path} has the classes {list(names)}, but the training images have {list(classes)}")
    numbered = tuple(f"{path.name} image {number}" for number in range(len(images)))
    return Split(images, torch.from_numpy(labels.astype(np.int64)), numbered), names


def _cifar10(
    size: int, root: Path | None, download: bool, cache_dir: Path | None
) -> tuple[Split, tuple[str, ...], Split]:
    from torchvision.datasets import CIFAR10

    folder = cache_folder(cache_dir) / "datasets" if root is None else root.expanduser()
    try:
        sets = [CIFAR10(folder, train=train, download=download) for train in (True, False)]
    except Exception as error:  # RuntimeError, URLError, OSError, UnpicklingError, ...
        remedy = "the download failed: put them there by hand" if download else "give --root, or --download to fetch it"
        raise ImagesError(
            f"data is 'cifar10', but CIFAR-10 is not in {folder} ({error}); its files must be in {folder / CIFAR10_FOLDER}: {remedy}"
        ) from None
    stamps = [stamp(path) for path in sorted((folder / CIFAR10_FOLDER).iterdir())]

    def split(half: Any, name: str) -> Split:
        def make() -> Iterator[NDArray[np.uint8]]:
            yield _fitted(np.asarray(half.data), size)

        key = {"source": "labelled-cifar10", "half": name, "files": stamps}
        images = resident(key, make, kind=f"cifar10-{name}", size=size, cache_dir=cache_dir)
        return Split(images, torch.tensor(half.targets), tuple(f"{name} image {n}" for n in range(len(images))))

    return split(sets[0], "train"), tuple(sets[0].classes), split(sets[1], "test")


def _fitted(array: NDArray[Any], size: int) -> NDArray[np.uint8]:
    """(N, height, width, 3) to (N, 3, size, size)."""
    if array.shape[1:3] == (size, size):
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    with ThreadPoolExecutor(threads()) as pool:
        fitted = pool.map(lambda image: read.fit(Image.fromarray(np.ascontiguousarray(image)), size), array)
        return np.stack(list(fitted))
