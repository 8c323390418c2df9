"""Where a candidate is computed, and how its randomness is fixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nni_cssnas.errors import DeviceError

__all__ = ["derive_seed", "resolve_device", "seeded"]


def resolve_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    DeviceError
        If ``cuda`` is asked for and torch sees no CUDA device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            f"device is {name!r} but torch {torch.__version__} sees no CUDA device here; "
            "set device: cpu (or auto), or install a CUDA build of torch and the driver"
        )
    return torch.device(name)


def derive_seed(seed: int, content: str) -> int:
    """A seed that depends on the experiment's ``seed`` and an architecture's ``content``, not on the order of trials."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{content}".encode()).digest()[:7], "big")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's global generators start from ``seed``; afterwards they are as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
