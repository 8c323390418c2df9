"""Helpers for any torch module: its mode, and the features in what it gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nni_cssnas.errors import SpaceError

__all__ = ["evaluation_mode", "feature_tensor", "pooled", "walk"]


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What ``model.named_modules()`` gives, in a fifth of the time where modules lie deep: that passes each through every level."""
    seen: set[nn.Module] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if module not in seen:
            seen.add(module)
            yield name, module
            prefix = f"{name}." if name else ""
            waiting += [(prefix + key, child) for key, child in reversed(module._modules.items()) if child is not None]


@contextmanager
def evaluation_mode(model: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluation mode (no dropout, no drop path, no auxiliary head); afterwards all is as before.

    With ``batch_statistics``, batch norm takes the statistics of the batch, as in training, but leaves
    its running statistics alone.
    """
    modes = [(module, module.training) for _, module in walk(model)]
    norms = [module for module, _ in modes if isinstance(module, nn.modules.batchnorm._NormBase)]
    tracking = [norm.track_running_stats for norm in norms]
    try:
        for module, _ in modes:
            _put(module, "training", False)
        if batch_statistics:
            for norm in norms:
                # A training batch norm that tracks nothing does not touch its running statistics.
                _put(norm, "training", True)
                _put(norm, "track_running_stats", False)
        yield
    finally:
        for module, mode in modes:
            _put(module, "training", mode)
        for norm, track in zip(norms, tracking, strict=True):
            _put(norm, "track_running_stats", track)


def _put(module: nn.Module, name: str, value: bool) -> None:
    """Set a plain attribute. A module's own way looks through parameters, buffers and modules first; TorchScript needs its own."""
    if isinstance(module, torch.jit.ScriptModule):
        setattr(module, name, value)
    else:
        object.__setattr__(module, name, value)


def feature_tensor(value: Any) -> Tensor | None:
    """The tensor that a module gives; of several (auxiliary heads, pairs of cells), the last with the most dimensions."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list):
        tensors = [tensor for tensor in map(feature_tensor, value) if tensor is not None]
        return max(reversed(tensors), key=lambda tensor: tensor.ndim) if tensors else None
    return None


def pooled(output: Any) -> Tensor:
    """Features (batch, C): a map (batch, C, H, W) or tokens (batch, N, C) are averaged.

    Raises
    ------
    SpaceError
        If there is no tensor of 2 to 4 dimensions.
    """
    tensor = feature_tensor(output)
    if tensor is None or tensor.ndim not in (2, 3, 4):
        found = type(output).__name__ if tensor is None else f"a tensor of shape {tuple(tensor.shape)}"
        raise SpaceError(f"the network gives {found}; features are (batch, C), (batch, N, C) or (batch, C, H, W)")
    if tensor.ndim == 4:
        return tensor.mean((2, 3))
    return tensor.mean(1) if tensor.ndim == 3 else tensor
