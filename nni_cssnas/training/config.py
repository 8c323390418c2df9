"""Recipes: how a chosen architecture is trained with labels, frozen and validated.

A recipe is one flat list of numbers, as DARTS's command line is. ``recipe`` names the published one that fills in
whatever is not given (:data:`RECIPES`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator
from typing_extensions import Self

from nni_cssnas.base.files import one_line, read_mapping
from nni_cssnas.config import CELL_SPACE, Amp, ContrastiveConfig, Section, TargetConfig, ViewsConfig, merge
from nni_cssnas.errors import ConfigError, nearest

__all__ = ["RECIPES", "RetrainConfig", "parse_settings", "target_of"]

Channels = tuple[float, float, float]

IMAGENET_AUGMENTATION: dict[str, Any] = {
    "size": 224,
    "stem": "imagenet",
    "crop": "resized",
    "jitter": (0.4, 0.4, 0.4, 0.2),
    # Crops are taken from the whole pictures, which are decoded as they are read.
    "resident_gb": 0.0,
}

RECIPES: dict[str, dict[str, Any]] = {
    # arXiv:1806.09055, section 3.2 and appendix, and the authors' train.py. Every other default is its value too.
    "cifar10": {},
    # arXiv:1806.09055, section 3.3, and the authors' train_imagenet.py.
    "imagenet": {
        **IMAGENET_AUGMENTATION,
        "channels": 48,
        "num_cells": 14,
        "epochs": 250,
        "batch_size": 128,
        "lr": 0.1,
        "weight_decay": 3e-5,
        "schedule": "step",
        "decay": 0.97,
        "decay_epochs": 1,
        "drop_path": 0.0,
        "cutout": 0,
        "label_smoothing": 0.1,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    # arXiv:2102.10557 on ISIC-2019: the options of the reference implementation's train_isic.py. It reads label
    # smoothing and cutout but never applies them, and computes class weights without using them.
    "isic": {
        **IMAGENET_AUGMENTATION,
        "channels": 58,
        "num_cells": 24,
        "epochs": 3000,
        "batch_size": 160,
        "lr": 0.01,
        "weight_decay": 3e-5,
        "schedule": "step",
        "decay": 0.999,
        "decay_epochs": 3,
        "drop_path": 0.0,
        "cutout": 16,
        "label_smoothing": 0.2,
        "class_weights": "balanced",
        "mean": (0.763, 0.545, 0.570),
        "std": (0.141, 0.152, 0.169),
    },
    # Ours, for a folder of a few thousand photographs: kept decoded at 64 px, a network that one GPU trains in an hour.
    "folder": {
        "size": 64,
        "channels": 24,
        "num_cells": 8,
        "epochs": 200,
        "padding": 8,
        "cutout": 16,
        "label_smoothing": 0.1,
        "class_weights": "balanced",
    },
}
"""Values that ``recipe: NAME`` fills in where nothing else is said."""


class RetrainConfig(Section):
    """How an architecture is trained with labels. The defaults are DARTS's recipe for CIFAR-10 (arXiv:1806.09055).

    The network
        ``channels``, ``num_cells`` and ``stem`` of a network of cells; ``drop_path`` is what is reached at the end, rising
        linearly over the epochs; ``auxiliary_weight`` 0 leaves the auxiliary head out.

    The optimisation
        SGD. ``batch_size`` is that of all devices together. ``schedule`` ``cosine`` ends at 0; ``step`` multiplies by
        ``decay`` every ``decay_epochs``; before either, the rate rises over ``warmup_epochs``. ``gradient_clip`` 0 clips nothing.
        ``class_weights: balanced`` weighs the loss of a class by the inverse of its share. ``ema`` is the decay of an
        exponential moving average of the weights, which is then what is validated and kept; 0 is none.

    The images
        ``crop: pad`` is a random crop of the image with ``padding``, ``resized`` torchvision's RandomResizedCrop.
        ``jitter`` is brightness, contrast, saturation and hue of ColorJitter; ``cutout`` the side of the square that is
        blanked. ``mean`` and ``std`` are by default those of the training images. ``validation`` is the part of every
        class that is held out where no validation images are given; ``label_fraction`` the part of the training images
        whose labels are used. A folder that takes at most ``resident_gb`` GiB decoded is kept so; a larger one is read by
        ``workers`` processes (default: one for each core).

    Before
        ``pretrain: contrastive`` trains the network without labels first, as ``contrastive`` and ``views`` say.

    Where
        ``devices`` is how many, ``strategy`` Lightning's name of how they share the work.
    """

    recipe: Literal["cifar10", "imagenet", "isic", "folder"] = "cifar10"
    # Upper bounds are where a number can only be a slip of the hand.
    seed: int = Field(0, ge=0, lt=2**63)

    channels: int = Field(36, ge=1, le=4096)
    num_cells: int = Field(20, ge=3, le=200)
    stem: Literal["cifar", "imagenet"] = "cifar"
    drop_path: float = Field(0.2, ge=0, lt=1)
    auxiliary_weight: float = Field(0.4, ge=0)

    epochs: int = Field(600, ge=1, le=100_000)
    batch_size: int = Field(96, ge=2, le=65_536)
    lr: float = Field(0.025, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(3e-4, ge=0)
    schedule: Literal["cosine", "step"] = "cosine"
    decay: float = Field(0.97, gt=0, le=1)
    decay_epochs: int = Field(1, ge=1, le=100_000)
    warmup_epochs: int = Field(0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"
    gradient_clip: float = Field(5.0, ge=0)
    ema: float = Field(0.0, ge=0, lt=1)

    size: int = Field(32, ge=8, le=4096)
    crop: Literal["pad", "resized"] = "pad"
    padding: int = Field(4, ge=0, le=4096)
    flip: bool = True
    jitter: tuple[
        Annotated[float, Field(ge=0)],
        Annotated[float, Field(ge=0)],
        Annotated[float, Field(ge=0)],
        Annotated[float, Field(ge=0, le=0.5)],
    ] = (0.0, 0.0, 0.0, 0.0)
    cutout: int = Field(16, ge=0, le=4096)
    mean: Channels | None = None
    std: Channels | None = None
    validation: float = Field(0.1, gt=0, lt=1)
    label_fraction: float = Field(1.0, gt=0, le=1)
    resident_gb: float = Field(4.0, ge=0)
    workers: int | None = Field(None, ge=0, le=1024)

    pretrain: Literal["none", "contrastive"] = "none"
    contrastive: ContrastiveConfig = ContrastiveConfig()
    views: ViewsConfig = ViewsConfig()

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(1, ge=1, le=64)
    strategy: str = "auto"
    sync_batchnorm: bool = False
    amp: Amp = "off"
    channels_last: bool = True

    def __init__(self, **values: Any) -> None:
        recipe = values.get("recipe", "cifar10")
        if isinstance(recipe, str) and recipe in RECIPES:
            given = merge(RECIPES[recipe], values)
            values = merge(_pretraining(given), given)
        super().__init__(**values)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both or neither")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std is {list(self.std)}; every one must be above 0")
        if self.batch_size % self.devices:
            raise ValueError(
                f"batch_size is {self.batch_size}, which is that of all devices together and cannot be shared by {self.devices}"
            )
        if self.batch_size // self.devices < 2:
            raise ValueError(
                f"batch_size {self.batch_size} on {self.devices} devices is 1 image each; batch norm needs 2"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs} but epochs is {self.epochs}; it must be less")
        if self.jitter != (0, 0, 0, 0) and self.crop == "pad":
            raise ValueError("jitter needs crop: resized")
        return self

    @classmethod
    def load(cls, recipe: str | Path, **values: Any) -> Self:
        """A recipe by its name, or a YAML file that says what differs from the one it names as ``recipe``.

        Parameters
        ----------
        recipe
            A key of :data:`RECIPES`, or the path of a ``.yml`` file.
        values
            Replace what the recipe says.

        Raises
        ------
        ConfigError
            If there is no such recipe or file, it is not a mapping, or holds a wrong key or value.
        """
        if str(recipe) in RECIPES:
            return cls(**{"recipe": str(recipe), **values})
        path = Path(recipe)
        if path.suffix not in (".yml", ".yaml"):
            raise ConfigError(f"recipe is {str(recipe)!r}{nearest(str(recipe), RECIPES)}, or a file.yml")
        data = read_mapping(path)
        try:
            cls(**data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        return cls(**merge(data, values))


def target_of(recipe: str | None, source: str, space: str = CELL_SPACE) -> TargetConfig | None:
    """The network of cells that a search is for.

    Parameters
    ----------
    recipe
        What its best cells will be trained by: a key of :data:`RECIPES` or a file; by default ``folder`` for images from a
        folder.
    source
        Of the images without labels.
    space
        The name of the space.

    Returns
    -------
    TargetConfig or None
        None where neither the recipe nor the images tell, or the space is another, whose networks have their own size.

    Raises
    ------
    ConfigError
        If there is no such recipe, or one is named for another space.
    """
    if space != CELL_SPACE:
        if recipe is not None:
            raise ConfigError(
                f"--recipe is {recipe!r}, but the networks of {space} have the size that it gives them; leave it out"
            )
        return None
    if recipe is None and not Path(source).is_dir():
        return None
    trained = RetrainConfig.load(recipe or "folder")
    return TargetConfig(**{name: getattr(trained, name) for name in TargetConfig.model_fields})


def _pretraining(given: Mapping[str, Any]) -> dict[str, Any]:
    """SimCLR (arXiv:2002.05709, appendix B.9): on small images half the colour strength and no blur."""
    size = given.get("size", 32)
    small = isinstance(size, int) and size < 96
    return {
        "contrastive": {
            "epochs": 100,
            "batch_size": 256,
            "lr": 0.1,
            "temperature": 0.5,
            "held_out": 0.0,
            "amp": given.get("amp", "off"),
            "channels_last": given.get("channels_last", True),
        },
        "views": {"cj_strength": 0.5, "gaussian_blur": 0.0} if small else {"cj_strength": 1.0},
    }


def parse_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """``["lr=0.1", "views.cj_strength=1"]`` as nested values; a value is read as YAML.

    Raises
    ------
    ConfigError
        If one has no ``=`` or a value that is not YAML.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, found, text = assignment.partition("=")
        if not found or not key.strip():
            raise ConfigError(f"--set {assignment!r} is not of the form key=value, as --set lr=0.1")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment!r}: the value is not YAML: {one_line(error)}") from None
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        values = merge(values, value)
    return values
