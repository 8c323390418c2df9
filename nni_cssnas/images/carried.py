"""A search's images on another machine that has not their source: they are carried there once, decoded.

They lie in that machine's cache, in a file that is named by the section ``images`` of ``proxy.yml``: the same section
finds them there. Whoever carries them compares the file's checksum, so that other images of the same name replace it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from nni_cssnas.config import ImagesConfig
from nni_cssnas.images.cache import FORMAT, cache_folder, footer, read_cached

__all__ = ["carried_bytes", "carried_images", "carried_length", "carried_name", "checksum"]

BLOCK = 2**22
"""Bytes that are sent at a time."""

HERE = {"root", "download", "resident_gb"}
"""Settings of the section that say nothing of the images themselves."""


def carried_name(config: ImagesConfig) -> str:
    """Name of the file in the cache's folder."""
    content = json.dumps({"format": FORMAT, **config.model_dump(mode="json", exclude=HERE)}, sort_keys=True)
    return f"carried-{config.size}px-{hashlib.sha256(content.encode()).hexdigest()[:20]}.npy"


def carried_images(config: ImagesConfig, cache_dir: Path | None = None) -> torch.Tensor | None:
    """The images that were carried to this machine: uint8, (num_images, 3, size, size); None if there are none.

    Only a trial whose manager is on another machine has such.

    Warns
    -----
    UserWarning
        If the file is damaged.
    """
    if os.environ.get("NNI_PLATFORM", "local") == "local":
        return None
    path = cache_folder(cache_dir) / carried_name(config)
    try:
        return read_cached(path, config.size)
    except (OSError, ValueError) as error:
        warnings.warn(
            f"carried images {path} cannot be used ({error}); nni-cssnas run carries them again", stacklevel=2
        )
        return None


def checksum(images: torch.Tensor) -> int:
    """The CRC-32 with which the file ends."""
    return zlib.crc32(images.contiguous().numpy().data)


def carried_length(images: torch.Tensor) -> int:
    """Bytes of the file."""
    return len(_header(images)) + images.numel() + len(footer(0))


def carried_bytes(images: torch.Tensor) -> Iterator[bytes]:
    """The file, in pieces."""
    yield _header(images)
    content = images.contiguous().numpy().data.cast("B")
    for start in range(0, len(content), BLOCK):
        yield bytes(content[start : start + BLOCK])
    yield footer(checksum(images))


def _header(images: torch.Tensor) -> bytes:
    file = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": tuple(images.shape)}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()
