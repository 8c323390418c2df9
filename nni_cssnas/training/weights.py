"""Trained weights in a file that says what network they are of."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nni_cssnas.base.files import write_atomically
from nni_cssnas.config import SpaceConfig
from nni_cssnas.errors import CheckpointError, ConfigError, CssnasError
from nni_cssnas.genotype import Genotype
from nni_cssnas.spaces.architecture import Architecture

__all__ = ["NetworkShape", "Weights", "check_file", "own_weights", "write_tensors"]


@dataclass(frozen=True)
class NetworkShape:
    """What :meth:`~nni_cssnas.spaces.architecture.Architecture.build` is called with. 0 classes: pooled features."""

    num_classes: int
    size: int
    num_cells: int
    channels: int
    stem: str
    auxiliary: bool = False

    def build(self, architecture: Architecture) -> nn.Module:
        """The network with fresh weights."""
        arguments = asdict(self)
        return architecture.build(arguments.pop("num_classes"), **arguments)


@dataclass(frozen=True)
class Weights:
    """A network's weights and what else is needed to use it.

    Attributes
    ----------
    architecture, shape
        What the network is built from.
    state
        Its ``state_dict``, on the CPU.
    mean, std
        With which its input is normalised.
    classes
        Names, in the order of the logits; empty for features.
    """

    architecture: Architecture
    shape: NetworkShape
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()

    def network(self) -> nn.Module:
        """The network with these weights, in evaluation mode.

        Raises
        ------
        CheckpointError
            If they are not of this network.
        """
        network = self.shape.build(self.architecture)
        try:
            network.load_state_dict(self.state)
        except RuntimeError as error:
            raise CheckpointError(f"the weights do not fit their architecture: {str(error).splitlines()[0]}") from None
        return network.eval()

    def check(self, name: str, architecture: Architecture | None, given: Mapping[str, Any]) -> None:
        """Refuse what a user asks for beside these weights and that is not theirs.

        Parameters
        ----------
        name
            Of their file.
        architecture
            What the user named, if anything.
        given
            Attributes of :class:`NetworkShape` that the user gave.

        Raises
        ------
        ConfigError
            Which says what they are of.
        """
        if architecture is not None and architecture.to_dict() != self.architecture.to_dict():
            raise ConfigError(
                f"{name} holds weights of another architecture than the one given; leave it out to take theirs"
            )
        for key, value in given.items():
            own = getattr(self.shape, key)
            if value != own:
                option = OPTIONS[key]
                raise ConfigError(f"{option} is {value!r}, but {name} holds weights of {own!r}; leave {option} out")

    def write(self, path: Path) -> None:
        """Replace ``path``, atomically."""
        content = {
            "architecture": self.architecture.to_dict(),
            "shape": asdict(self.shape),
            "state": {name: value.detach().cpu().contiguous() for name, value in self.state.items()},
            "mean": list(self.mean),
            "std": list(self.std),
            "classes": list(self.classes),
        }
        write_tensors(path, content)

    @classmethod
    def read(cls, path: Path) -> Weights:
        """The inverse of :meth:`write`; nothing in the file is executed.

        Raises
        ------
        CheckpointError
            If the file cannot be read, is damaged, or holds something else.
        """
        check_file(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            found = content["architecture"]
            architecture = (
                Architecture(genotype=Genotype.from_dict(found["genotype"]))
                if "genotype" in found
                else Architecture(space=SpaceConfig(**found["space"]), choices=found["parameters"])
            )
            return cls(
                architecture,
                NetworkShape(**content["shape"]),
                content["state"],
                tuple(content["mean"]),
                tuple(content["std"]),
                tuple(content["classes"]),
            )
        except CssnasError as error:
            raise CheckpointError(f"{path} holds no weights of nni-cssnas: {error}") from None
        except Exception as error:  # whatever torch's reader raises, or a missing key
            # torch's own words end in the advice to let the file run code.
            raise CheckpointError(
                f"{path} holds no weights of nni-cssnas ({type(error).__name__}); give a weights file that retrain or its "
                "pre-training wrote, as best.pt"
            ) from None


OPTIONS = {
    "num_classes": "--classes",
    "num_cells": "--cells",
    "channels": "--channels",
    "stem": "--stem",
    "size": "--size",
}


def own_weights(path: Path) -> Weights | None:
    """The weights of a file that says what network they are of; None of any other file.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    if not zipfile.is_zipfile(path):
        return None
    check_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever torch's reader raises of a file that is none of ours
        return None
    return Weights.read(path) if isinstance(content, dict) and {"architecture", "shape"} <= content.keys() else None


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """``torch.save`` beside ``path``, then replace it: a reader sees the old file or the new, never half."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def check_file(path: Path) -> None:
    """Read a file of torch's through and compare its checksums, which torch itself does not.

    Raises
    ------
    CheckpointError
        If it cannot be read, is cut short, or a byte changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged or no file of torch's ({error})") from None
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} has changed")
