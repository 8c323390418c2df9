"""Where a candidate is computed, and how its randomness is fixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nni_cssnas.errors import DeviceError

__all__ = ["bears_channels_last", "derive_seed", "resolve_device", "seeded", "to_cpu", "wait_for"]


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


def bears_channels_last(network: nn.Module, device: torch.device) -> bool:
    """Whether training ``network`` on ``device`` with channels_last does not damage the process's memory.

    oneDNN, with which torch computes convolutions on the CPU, writes beyond its workspace when it derives by the weights
    of a strided 1 x 1 convolution of fewer than 16 channels (8 without AVX-512) in channels_last:
    https://github.com/uxlfoundation/oneDNN/issues/6035, in torch 2.14 and before.
    """
    return device.type != "cpu" or not any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels // module.groups < 16
        for module in network.modules()
    )


def to_cpu(tensor: Tensor) -> Tensor:
    """The tensor, or a copy, on the CPU. It may be on its way yet: :func:`wait_for` before it is looked at."""
    return tensor.detach().to("cpu", non_blocking=True)


def wait_for(device: torch.device) -> None:
    """Until all that was begun on the device is done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def derive_seed(seed: int, content: str) -> int:
    """A seed that depends on the experiment's ``seed`` and an architecture's ``content``, not on the order of trials."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{content}".encode()).digest()[:7], "big")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's global generators start from ``seed``; afterwards they are as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
