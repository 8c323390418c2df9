"""Which files of a folder are images: one answer for searching, pretraining and training with labels."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from nni_cssnas.images import read

__all__ = ["Listing", "image_files", "is_hidden"]

# Folders and files that systems and programs leave beside pictures, with copies of these in them, besides what begins
# with a dot: macOS archives, Synology and QNAP stations, Windows.
HIDDEN = frozenset(
    (
        "__macosx",
        "@eadir",
        "#recycle",
        "@recycle",
        "$recycle.bin",
        "system volume information",
        "thumbs.db",
        "lost+found",
    )
)
# Endings that are told apart in a message, and names given of each kind.
NAMED = 5
JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Listing:
    """The images below a folder, and what was passed over.

    Attributes
    ----------
    folder
        The folder.
    names
        Paths of the images below it, folder by folder, each in order of names. A dangling link is among them: it is a
        picture that cannot be read.
    repeated
        ``(left out, kept)`` for every further name of one and the same file (a link, a hard link).
    repeated_folders
        ``(left out, kept)`` for every further name of one folder, as a link to a folder above it.
    special
        Pipes, sockets and devices with the ending of an image. Opening one may wait for ever.
    closed
        Folders that may not be read.
    others
        Number of files of every other ending (lower case, with its dot; ``""`` for none).
    """

    folder: Path
    names: tuple[str, ...]
    repeated: tuple[tuple[str, str], ...] = ()
    repeated_folders: tuple[tuple[str, str], ...] = ()
    special: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    others: Counter[str] = field(default_factory=Counter)

    def passed_over(self) -> str:
        """One line of all that does not count, or ``""``."""
        parts = []
        if total := self.others.total():
            heif = " (to read .heic: pip install pillow-heif)" if set(self.others) & set(read.HEIF_ENDINGS) else ""
            parts.append(f"{total} file{'s' * (total != 1)} of other kinds: {_kinds(self.others)}{heif}")
        for items, one in ((self.repeated, "repeated file"), (self.repeated_folders, "repeated folder")):
            if items:
                parts.append(_some([f"{left} is {kept}" for left, kept in items], one))
        if self.special:
            parts.append(_some(self.special, "pipe, socket or device", "pipes, sockets or devices"))
        if self.closed:
            parts.append(_some(self.closed, "folder that may not be read", "folders that may not be read"))
        return "; ".join(parts)

    def warn(self, stacklevel: int = 2) -> None:
        """Say once what was passed over, if anything was."""
        if text := self.passed_over():
            warnings.warn(f"{self.folder}: passed over: {text}", stacklevel=stacklevel + 1)

    def endings(self) -> str:
        """The endings of the files that are no images, commonest first, for a message."""
        return _kinds(self.others)


class _Entry(NamedTuple):
    linked: bool
    folder: str
    name: str

    @property
    def path(self) -> str:
        return os.path.join(self.folder, self.name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name never counts."""
    return name.startswith(".") or name.casefold() in HIDDEN


def image_files(folder: str | Path) -> Listing:
    """The images below a folder, at any depth, each file once.

    Links are followed. Of several names of one file the first counts that is no link, and of several names of one
    folder likewise. What :func:`is_hidden` says never counts. A file is an image by its ending (what this Pillow reads,
    see :func:`nni_cssnas.images.read.endings`).

    Raises
    ------
    OSError
        If the folder itself cannot be read.
    """
    root = Path(folder)
    os.scandir(root).close()
    walk = _Walk(root)
    images: dict[tuple[int, int], _Entry] = {}
    broken: list[_Entry] = []
    repeated: list[tuple[_Entry, tuple[int, int]]] = []
    special: list[str] = []
    others: Counter[str] = Counter()
    for entry in sorted(walk.files()):
        path = root / entry.path
        ending = os.path.splitext(entry.name)[1].lower()
        try:
            status = path.stat()
        except OSError:
            status = None
        if not _is_image(path, ending, status):
            if status is None or stat.S_ISREG(status.st_mode):
                others[ending] += 1
            continue
        if status is None:
            broken.append(entry)
        elif not stat.S_ISREG(status.st_mode):
            special.append(entry.path)
        else:
            # Some network drives number no files.
            key = (status.st_dev, status.st_ino or -1 - len(images))
            if key in images:
                repeated.append((entry, key))
            else:
                images[key] = entry
    kept = sorted([*images.values(), *broken], key=lambda entry: entry[1:])
    return Listing(
        root,
        tuple(entry.path for entry in kept),
        tuple(sorted((entry.path, images[key].path) for entry, key in repeated)),
        tuple(walk.repeated),
        tuple(special),
        tuple(walk.closed),
        others,
    )


class _Walk:
    """Every file below a folder that is not hidden; no folder twice, and links to folders last."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repeated: list[tuple[str, str]] = []
        self.closed: list[str] = []
        self._seen: dict[tuple[int, int], str] = {}

    def files(self) -> Iterator[_Entry]:
        waiting: list[str] = [""]
        links: list[str] = []
        while waiting or links:
            # All real folders before the first link, so that a folder is known by its own name.
            linked = not waiting
            folder = waiting.pop() if waiting else links.pop(0)
            if not self._is_new(folder):
                continue
            try:
                entries = sorted(os.scandir(self.root / folder), key=lambda entry: entry.name)
            except OSError:
                self.closed.append(folder)
                continue
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                path = os.path.join(folder, entry.name)
                if not _is_folder(entry):
                    yield _Entry(linked or entry.is_symlink(), folder, entry.name)
                elif entry.is_symlink():
                    links.append(path)
                else:
                    waiting.append(path)

    def _is_new(self, folder: str) -> bool:
        try:
            status = (self.root / folder).stat()
        except OSError:
            self.closed.append(folder)
            return False
        if not status.st_ino:
            return True
        key = (status.st_dev, status.st_ino)
        if key in self._seen:
            self.repeated.append((folder, self._seen[key] or "."))
            return False
        self._seen[key] = folder
        return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file that cannot be read
        return False


def _is_image(path: Path, ending: str, status: os.stat_result | None) -> bool:
    if ending in _endings():
        return True
    # Telephones and converters give JPEG files the ending of HEIF.
    if ending in read.HEIF_ENDINGS and status is not None and stat.S_ISREG(status.st_mode):
        try:
            with path.open("rb") as file:
                return file.read(len(JPEG)) == JPEG
        except OSError:
            return False
    return False


@cache
def _endings() -> frozenset[str]:
    return frozenset(read.endings())


def _kinds(others: Counter[str]) -> str:
    kinds = [f"{count} {ending or 'without ending'}" for ending, count in others.most_common(NAMED)]
    more = len(others) - NAMED
    return ", ".join(kinds) + (f" and {more} more ending{'s' * (more != 1)}" if more > 0 else "")


def _some(items: tuple[str, ...] | list[str], one: str, many: str = "") -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return f"{len(items)} {one if len(items) == 1 else many or one + 's'}: {', '.join(items[:NAMED])}{more}"
