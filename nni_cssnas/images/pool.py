"""Batches of images on the device: from memory where they fit, from disk where they do not."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nni_cssnas.errors import ImagesError

__all__ = ["Images", "Pool", "SomeImages", "StreamedImages", "fingerprint"]

AHEAD = 2
"""Batches that are read while one is worked on."""


class StreamedImages:
    """Images too large to keep: each is decoded anew whenever it is asked for, by several threads.

    Indexed as a uint8 tensor ``(N, 3, size, size)`` is by a tensor of positions. A file that cannot be read is
    replaced by the next one that can, with a warning.

    Parameters
    ----------
    names
        Of the images, for messages.
    load
        Decodes the image of a position: uint8, ``(3, size, size)``; or says why it cannot.
    key
        What identifies names and contents.
    threads
        How many decode at a time.
    """

    def __init__(
        self, names: Sequence[str], load: Callable[[int], NDArray[np.uint8] | str], key: str, threads: int
    ) -> None:
        self.names = names
        self.key = key
        self._load = load
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._warned = False

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Tensor) -> Tensor:
        return torch.from_numpy(np.stack(list(self._threads.map(self._one, index.tolist()))))

    def _one(self, position: int) -> NDArray[np.uint8]:
        for offset in range(len(self)):
            found = self._load((position + offset) % len(self))
            if not isinstance(found, str):
                return found
            if not self._warned:
                self._warned = True
                warnings.warn(f"{found} could not be read; such files are replaced by the next one", stacklevel=2)
        raise ImagesError(f"none of the {len(self)} images can be read, the first is {self.names[0]}")


class SomeImages:
    """Some of a source's images, at their positions among all: what a machine needs that only looks at these.

    Parameters
    ----------
    total
        How many the source has.
    positions
        Of those that are here, (n,).
    images
        uint8, (n, 3, size, size).
    key
        The :func:`fingerprint` of all.
    """

    def __init__(self, total: int, positions: Tensor, images: Tensor, key: str) -> None:
        self.total = total
        self.positions = positions
        self.images = images
        self.key = key
        self._rows = {position: row for row, position in enumerate(positions.tolist())}

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.images[[self._rows[position] for position in index.tolist()]]


Images = Tensor | StreamedImages | SomeImages
"""uint8, (N, 3, size, size): in memory, on disk, or as far as they are needed."""


def fingerprint(images: Images) -> str:
    """Stands for the images' content; the same in every process."""
    if not isinstance(images, Tensor):
        return images.key
    return hashlib.sha256(images.contiguous().numpy().data).hexdigest()


class Pool:
    """Where a training takes its batches from.

    On a CUDA device the images are moved there once if they take at most half of its free memory. If they do not, or
    are :class:`StreamedImages`, the next batches are read, and copied from pinned memory, while one is worked on.
    On the CPU a batch is copied out of the mapped file, so that concurrent trials share its pages.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        self.device = device
        if isinstance(images, Tensor) and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            images = images.to(device) if images.nbytes <= free // 2 else images
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_resident(self) -> bool:
        """Whether the images are on the device already."""
        return isinstance(self.images, Tensor) and self.images.device.type == self.device.type

    def take(self, index: Tensor) -> Tensor:
        """The images at these positions, on the device."""
        if self.is_resident:
            return self.images[index]
        return self._read(index.cpu()).to(self.device, non_blocking=True)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        """:meth:`take` of one after the other, reading ahead where there is something to read."""
        if self.is_resident:
            yield from (self.take(index) for index in indices)
            return
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
            try:
                for index in indices:
                    waiting.append(reader.submit(self._read, index.cpu()))
                    if len(waiting) > AHEAD:
                        yield waiting.popleft().result().to(self.device, non_blocking=True)
                while waiting:
                    yield waiting.popleft().result().to(self.device, non_blocking=True)
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, index: Tensor) -> Tensor:
        batch = self.images[index]
        return batch.pin_memory() if self.device.type == "cuda" else batch
