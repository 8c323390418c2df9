"""One architecture, chosen: a genotype of cells, or a sample of any NNI model space; what retraining and export build."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from nni_cssnas.config import SpaceConfig, TargetConfig
from nni_cssnas.errors import ConfigError, GenotypeError, SpaceError
from nni_cssnas.genotype import TARGET, Choices, Genotype
from nni_cssnas.spaces.backbone import inspect
from nni_cssnas.spaces.encoding import decode, encode
from nni_cssnas.spaces.factory import Space, make_space
from nni_cssnas.spaces.network import CellNetwork

__all__ = ["Architecture", "entry_file", "read_architecture", "set_classifier"]


@dataclass(frozen=True)
class Architecture:
    """What to build: ``genotype``, or ``choices`` (as ``sample.json`` has them) of ``space``.

    ``target`` is the network of cells that the search was for, if it said so; it tells no two architectures apart.

    Raises
    ------
    GenotypeError
        If neither is given, or both.
    """

    genotype: Genotype | None = None
    space: SpaceConfig | None = None
    choices: Choices | None = None
    target: TargetConfig | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if (self.genotype is None) == (self.space is None) or (self.space is None) != (self.choices is None):
            raise GenotypeError("an architecture is a genotype, or a space with the choices of one sample; give one")

    def to_dict(self) -> dict[str, Any]:
        """Plain data that tells two architectures apart, for records."""
        if self.genotype is not None:
            return {"genotype": self.genotype.to_dict()}
        assert self.space is not None
        return {"space": self.space.model_dump(mode="json"), "parameters": dict(self.choices or {})}

    def build(
        self,
        num_classes: int,
        *,
        size: int = 32,
        num_cells: int = 20,
        channels: int = 36,
        stem: str = "cifar",
        drop_path: float = 0.0,
        auxiliary: bool = False,
    ) -> nn.Module:
        """A new network with freshly drawn weights: images ``(B, 3, size, size)`` to logits ``(B, num_classes)``.

        Depth, width, stem, drop path and auxiliary head are those of a network of cells
        (:class:`~nni_cssnas.spaces.network.CellNetwork`); an architecture of another space has its own,
        in the space's arguments. ``num_classes=0`` gives pooled features.

        Raises
        ------
        SpaceError
            If the space cannot be made, does not contain the sample, or does not fit the images.
        """
        if self.genotype is not None:
            return CellNetwork(
                self.genotype,
                num_cells,
                channels,
                stem=stem,
                num_classes=num_classes,
                drop_path=drop_path,
                auxiliary=auxiliary,
            )
        assert self.space is not None
        assert self.choices is not None
        space = make_space(self.space)
        model = space.freeze(decode(space, self.choices))
        return set_classifier(model, num_classes, size, self.space.classifier)


def set_classifier(model: nn.Module, num_classes: int, size: int, classifier: str | None = None) -> nn.Module:
    """Give any network a new last layer with ``num_classes`` outputs (0: an identity), in place, unless it fits already.

    Raises
    ------
    SpaceError
        If the layer that gives the logits cannot be found, or is neither linear nor a convolution.
    """
    name = inspect(model, size, classifier).classifier
    if name is None:
        if num_classes == 0:
            return model
        raise SpaceError("the layer that gives the logits was not found; name it as classifier")
    old = model.get_submodule(name)
    new: nn.Module
    if num_classes == 0:
        new = nn.Identity()
    elif isinstance(old, nn.Linear):
        if old.out_features == num_classes:
            return model
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        if old.out_channels == num_classes:
            return model
        new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size, bias=old.bias is not None)  # type: ignore[arg-type]
    else:
        raise SpaceError(f"classifier {name!r} is a {type(old).__name__}; name a linear layer or a 1x1 convolution")
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
    return model


def read_architecture(
    genotype: str | None = None, *, space: str | SpaceConfig | None = None, sample: Path | None = None
) -> Architecture:
    """What a user names on the command line.

    Parameters
    ----------
    genotype
        A published name (``DARTS_V2``), the DARTS form, JSON, a file with either, a folder of ``nni-cssnas best`` or
        ``screen`` with its ``genotype.json``, or an entry of the front there (``screened/front-2``).
    space, sample
        ``module:attribute`` of any NNI model space, and a JSON file with the choices of one of its samples, as
        ``nni-cssnas best`` writes them, or as NNI's ``space.freeze`` takes them.

    Raises
    ------
    GenotypeError
        If not exactly one of both is given, or a text or file holds no architecture; it tells what it holds.
    SpaceError
        If the sample is not one of the space.
    """
    if (genotype is None) == (space is None) or (space is None) != (sample is None):
        raise GenotypeError("name either a genotype, or --space module:attribute with --sample FILE")
    if genotype is not None:
        return _of_text(genotype)
    assert space is not None
    assert sample is not None
    path = sample / "sample.json" if sample.is_dir() else entry_file(sample)
    data = _json(_text(path), path)
    if not isinstance(data, dict) or "normal" in data:
        what = "a genotype; leave --space and --sample out" if isinstance(data, dict) else type(data).__name__
        raise GenotypeError(f"{path} must hold the choices of one sample as a JSON object, but holds {what}")
    config = space if isinstance(space, SpaceConfig) else SpaceConfig(name=space)
    return Architecture(space=config, choices=_choices(make_space(config), data))


def _choices(space: Space, data: dict[str, Any]) -> dict[str, Any]:
    """The choices of a file in a tuner's form, where they may be in that of NNI's samples. Raises SpaceError."""
    try:
        decode(space, data)
        return data
    except SpaceError as error:
        try:
            choices = encode(space, data)
            decode(space, choices)
        except SpaceError:
            raise error from None  # what is wrong with it in the form that this package writes
        return choices


def entry_file(path: Path) -> Path:
    """The file of an entry of a front, which is named without its ending: ``screened/front-2``."""
    with_ending = path.with_name(f"{path.name}.json") if path.name else path
    return with_ending if not path.exists() and with_ending.is_file() else path


def _of_text(text: str) -> Architecture:
    try:
        path = entry_file(Path(text))
        if path.is_dir():
            found = [file for file in (path / "genotype.json", path / "best" / "genotype.json") if file.is_file()]
            if not found:
                raise GenotypeError(f"folder {path} holds no genotype.json; make it with: nni-cssnas best -o {path}")
            path = found[0]
        elif not path.is_file() and re.fullmatch("front-[0-9]+", path.name) and path.parent.is_dir():
            there = sorted((file.stem for file in path.parent.glob("front-*.json")), key=lambda name: (len(name), name))
            raise GenotypeError(
                f"{path.parent} has no {path.name}; its front has {' to '.join(dict.fromkeys([there[0], there[-1]]))}"
                if there
                else f"{path.parent} holds no front, so no {path.name}; `nni-cssnas best --front` or `screen --objective` writes one"
            )
        elif not path.is_file():
            return Architecture(genotype=Genotype.parse(text))
    except OSError:  # a text that is too long for a file's name
        return Architecture(genotype=Genotype.parse(text))
    content = _text(path)
    try:
        return Architecture(genotype=Genotype.parse(content, quote=False), target=_target(content, path))
    except GenotypeError as error:
        hint = ""
        if content.lstrip().startswith("{") and "normal" not in _json(content, path):
            hint = ". If these are the choices of another space, give: --space module:attribute --sample " + str(path)
        raise GenotypeError(f"{path}: {error}{hint}") from None


def _target(content: str, path: Path) -> TargetConfig | None:
    """What a search wrote beside the cells. Raises GenotypeError if it cannot be used."""
    if not content.lstrip("\ufeff \n").startswith("{"):
        return None
    data = _json(content.removeprefix("\ufeff"), path).get(TARGET)
    try:
        return None if data is None else TargetConfig(**data)
    except (ConfigError, TypeError) as error:
        raise GenotypeError(f"{path}: {TARGET}: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GenotypeError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise GenotypeError(f"{path} is not JSON: {error}") from None
