"""What a user writes in ``proxy.yml``: how one candidate architecture is judged.

Every section is a frozen pydantic model: wrong keys and values are refused where the file is read,
before any image is loaded or network built. ``preset`` fills in what the file leaves out.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from nni_cssnas.base.files import one_line, read_mapping
from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.genotype import OPERATIONS
from nni_cssnas.measures import DEFAULT_WEIGHTS, check_name

__all__ = [
    "PRESETS",
    "RAY_ADDRESS",
    "CellSpaceConfig",
    "ConstraintsConfig",
    "ContrastiveConfig",
    "ImagesConfig",
    "ProxyConfig",
    "SpaceConfig",
    "StandInConfig",
    "TargetConfig",
    "UntrainedConfig",
    "ViewsConfig",
    "merge",
]


def _name_of_file(value: Any) -> Any:
    try:
        valid = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ValueError("it holds characters that no name of a file has")
    return value


RAY_ADDRESS = re.compile(r"(?:ray://)?(?P<host>\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")
"""``host:port`` of a cluster of Ray, or ``ray://host:port``."""


def _address_of_ray(value: str) -> str:
    if value != "auto" and not RAY_ADDRESS.fullmatch(value):
        raise ValueError(
            f"it is {value!r}; give auto, host:port of the head node (`ray start --head` prints it), or ray://host:10001"
        )
    return value


# The upper bounds are far above whatever is of use. Beyond them a value is a slip, which would end in a full memory, an
# overflow or a wait without end. Each is said where the file is read.
Probability = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Side = Annotated[int, Field(ge=8, le=4096)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Batch = Annotated[int, Field(le=2**16)]
NumImages = Annotated[int, Field(ge=2, le=10**9)]
Strength = Annotated[float, Field(ge=0, le=100)]
Weight = Annotated[float, Field(gt=0, le=10**6)]
FileName = Annotated[str, AfterValidator(_name_of_file)]
FilePath = Annotated[Path, AfterValidator(_name_of_file)]
Amp = Annotated[Literal["off", "bf16", "fp16"], BeforeValidator(lambda value: "off" if value is False else value)]
"""Mixed precision. YAML reads ``off`` as false."""
Degrees = Annotated[float, Field(ge=-360, le=360)]

MOST_MISTAKES = 5
"""That are named at a time."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, errors as :class:`ConfigError`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        for name in type(self).model_fields:
            value = values.get(name)
            for key in value if isinstance(value, Mapping) else ():
                if not isinstance(key, str):
                    raise ConfigError(f"{name}: its key {_shown(key)} is not a text; put it in quotes")
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(error, type(self))) from None


CELL_SPACE = "nni_cssnas.spaces:CellSpace"


class SpaceConfig(Section):
    """The model space: ``name`` is ``module:attribute`` of an NNI ``ModelSpace`` class or a function that makes one.

    ``classifier`` names the layer that gives the logits, where it cannot be found (``""``: there is none).
    """

    name: str = CELL_SPACE
    arguments: dict[str, Any] = {}
    classifier: str | None = None

    @model_validator(mode="after")
    def _check_cell_space(self) -> Self:
        if self.name == CELL_SPACE:
            CellSpaceConfig(**self.arguments)
            return self
        module, _, attribute = self.name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), attribute)):
            raise ValueError(
                f"name {_shown(self.name)} is not of the form 'module:attribute', as 'my_spaces:MySpace' or 'package.module:make'"
            )
        return self


class CellSpaceConfig(Section):
    """Arguments of :class:`nni_cssnas.spaces.CellSpace`.

    In ``proxy.yml`` leave ``num_cells`` and ``channels`` out: they come from ``target`` and ``untrained``, or from
    ``stand_in`` (:attr:`ProxyConfig.scored_space`).
    ``num_classes: 0`` gives pooled features instead of logits. ``output_nodes: last4`` concatenates
    the last four nodes as the reference implementation does; ``all`` all of them. ``params`` gives every architecture
    the width with which it comes nearest to so many parameters, in place of ``channels``.
    """

    encoding: Literal["two-input", "edge"] = "two-input"
    num_nodes: Literal[4, 5] = 5
    num_cells: int = Field(8, ge=3, le=200)
    channels: int = Field(16, ge=1, le=4096)
    params: int | None = Field(None, ge=1, le=10**9)
    stem: Literal["cifar", "imagenet"] = "cifar"
    num_classes: int = Field(0, ge=0, le=10**6)
    output_nodes: Literal["all", "last4"] = "all"
    operations: tuple[str, ...] | None = None
    drop_path: float = Field(0.0, ge=0, lt=1)
    auxiliary: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        operations = self.operations
        if operations is not None:
            for name in operations:
                if name not in OPERATIONS:
                    raise ValueError(f"unknown operation {name!r}{nearest(name, OPERATIONS)}")
            if len(set(operations)) != len(operations):
                raise ValueError(f"operations repeat: {list(operations)}")
            if self.encoding == "two-input" and "none" in operations:
                raise ValueError(
                    "operation 'none' has no meaning in encoding 'two-input', where every named edge exists; "
                    "leave it out or use encoding 'edge'"
                )
            if not set(operations) - {"none"}:
                raise ValueError(f"operations is {list(operations)}; at least one besides 'none' is needed")
        if self.auxiliary and not self.num_classes:
            raise ValueError("auxiliary is true but num_classes is 0; an auxiliary head needs classes to predict")
        return self


class TargetConfig(Section):
    """The network of cells that will be trained with labels; the default is DARTS's for CIFAR-10 (arXiv:1806.09055).

    The untrained score sees its depth, at the width of ``untrained`` and the resolution of ``views``. Where the section is
    given, what the search finds carries it: ``retrain``, ``compare`` and ``export`` build this network unless told otherwise.
    """

    num_cells: int = Field(20, ge=3, le=200)
    channels: int = Field(36, ge=1, le=4096)
    stem: Literal["cifar", "imagenet"] = "cifar"
    size: Side | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        least = 32 if self.stem == "imagenet" else 8
        if self.size is not None and self.size < least:
            raise ValueError(
                f"size is {self.size}, which stem {self.stem!r} and two reductions bring below one pixel; "
                f"it must be at least {least}"
            )
        return self


class StandInConfig(Section):
    """The smaller network of cells that is trained in the search where ``score`` is ``contrastive`` or ``combined``."""

    num_cells: int = Field(8, ge=3, le=200)
    channels: int = Field(16, ge=1, le=4096)


class ImagesConfig(Section):
    """Unlabelled images.

    ``source``: ``tiles`` (real photographs that ship with scikit-image and scikit-learn, as 32x32
    crops), ``cifar10`` (torchvision's, below ``root``), a folder of images, or an ``.npz`` file with
    a uint8 array ``images`` of shape (N, H, W, 3). At most one of ``num_images`` (exactly so many) and ``fraction``
    takes a random part, drawn with ``seed``. ``max_images`` is the most that are taken: a random part of a larger source
    or ``fraction``, and all of a smaller one. A folder whose images take more than ``resident_gb`` GiB
    at ``size`` is decoded as it is read, batch after batch, instead of being kept decoded.
    """

    source: FileName = "tiles"
    size: Side = 32
    num_images: NumImages | None = None
    fraction: float | None = Field(None, gt=0, le=1)
    max_images: NumImages | None = None
    seed: Seed = 0
    root: FilePath | None = None
    download: bool = False
    resident_gb: float = Field(16.0, ge=0, le=10**6)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_images is not None and self.fraction is not None:
            raise ValueError("both num_images and fraction are given; keep one of them")
        if self.num_images is not None and self.max_images is not None and self.num_images > self.max_images:
            raise ValueError(f"num_images is {self.num_images} but max_images is {self.max_images}; keep one of them")
        return self


class ViewsConfig(Section):
    """SimCLR views (arXiv:2002.05709): names and defaults are those of lightly's ``SimCLRTransform``.

    ``backend``: ``batched`` draws the views of a whole batch on its device; ``lightly`` runs lightly's
    transform image by image. ``input_size`` is the views' side in pixels, by default the images'.
    """

    backend: Literal["batched", "lightly"] = "batched"
    input_size: Side | None = None
    cj_prob: Probability = 0.8
    cj_strength: Strength = 1.0
    cj_bright: Strength = 0.8
    cj_contrast: Strength = 0.8
    cj_sat: Strength = 0.8
    cj_hue: float = Field(0.2, ge=0, le=0.5)
    min_scale: float = Field(0.08, gt=0, le=1)
    random_gray_scale: Probability = 0.2
    gaussian_blur: Probability = 0.5
    sigmas: tuple[float, float] = (0.1, 2.0)
    vf_prob: Probability = 0.0
    hf_prob: Probability = 0.5
    rr_prob: Probability = 0.0
    rr_degrees: Degrees | tuple[Degrees, Degrees] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.sigmas
        if not 0 < low <= high <= 100:
            raise ValueError(
                f"sigmas is {list(self.sigmas)}; it must be two standard deviations, 0 < low <= high <= 100"
            )
        if self.cj_strength * self.cj_hue > 0.5:
            raise ValueError(f"cj_strength * cj_hue is {self.cj_strength * self.cj_hue:g}; a hue shift is at most 0.5")
        return self


class ContrastiveConfig(Section):
    """The short contrastive training of one candidate (the criterion of arXiv:2102.10557).

    ``criterion`` is what is maximised: minus the ``loss`` of the last epoch, the ``drop`` of the loss
    from the first epoch to the last, minus the ``held_out`` loss on images that were not trained on,
    or minus the ``alignment`` or ``uniformity`` (arXiv:2005.10242) of the backbone's features of these.
    ``steps`` is the budget in optimiser steps, in place of ``epochs``. ``loss`` is NT-Xent (``ntxent``, with
    ``memory_bank_size`` negatives from lightly's memory bank if it is not 0) or the paper's pretext-invariant
    two-term form (``pirl``, arXiv:1912.01991). ``view_pool: fixed`` draws the views once, all in memory, and trains on
    the same pairs every epoch. ``compile`` runs the network through ``torch.compile``, which takes a minute and pays off in trainings of many minutes.
    """

    criterion: Literal["loss", "drop", "held_out", "alignment", "uniformity"] = "loss"
    loss: Literal["ntxent", "pirl"] = "ntxent"
    epochs: int = Field(10, ge=1, le=10**5)
    steps: int | None = Field(None, ge=1, le=10**9)
    batch_size: Batch = Field(256, ge=2)
    lr: float = Field(0.1, gt=0)  # too high a one makes the loss diverge, which is said
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, le=1000)
    warmup_epochs: float = Field(1.0, ge=0, le=10**5)
    temperature: float = Field(0.5, gt=1e-8, le=10**6)
    memory_bank_size: int = Field(0, ge=0, le=10**7)
    pirl_weight: Probability = 0.5
    pirl_momentum: float = Field(0.5, ge=0, lt=1)
    projection_hidden: Width = 512
    projection_dim: Width = 128
    view_pool: Literal["fresh", "fixed"] = "fresh"
    held_out: float = Field(0.1, ge=0, lt=1)
    amp: Amp = "off"
    channels_last: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.criterion in ("held_out", "alignment", "uniformity") and self.held_out == 0:
            raise ValueError(
                f"criterion is {self.criterion!r} but held_out is 0; give the fraction of images to hold out, as 0.1"
            )
        if self.criterion == "drop" and self.epochs < 2 and self.steps is None:
            raise ValueError("criterion is 'drop' but epochs is 1; a drop needs at least 2 epochs")
        if self.loss == "pirl" and self.memory_bank_size:
            raise ValueError("loss 'pirl' has a memory of every image of its own; set memory_bank_size to 0")
        return self


class UntrainedConfig(Section):
    """Statistics of the untrained network on contrastive views; ``channels`` is the width of networks of cells.

    ``weights`` says how much each measure counts in the sum that is the score (names in
    :data:`~nni_cssnas.measures.MEASURES`, or ``module:function`` of one's own; :mod:`nni_cssnas.scores.combine`).
    ``criterion_weight`` is that of the contrastive criterion in a ``combined`` score.
    """

    weights: dict[str, Weight] = DEFAULT_WEIGHTS
    batch_size: Batch = Field(32, ge=4)
    channels: int = Field(6, ge=1, le=4096)
    # Half weight: among six random stand-ins of the cpu preset the drop has a standard deviation of .09, the rest of .18.
    criterion_weight: Weight = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.weights:
            raise ValueError("weights is empty; name at least one component")
        for name in self.weights:
            check_name(name)
        return self


class ScreenConfig(Section):
    """A tuner's ``screen``: of ``candidates`` proposals, the best by the untrained score becomes the trial.

    With ``cascade: 4`` only a quarter of them are scored, those with the most multiply-adds. ``proxy`` is the ``proxy.yml`` that names space and images. 1 candidate is no screening. ``ray`` scores them on a cluster of
    Ray, all at the same time: ``auto`` or its address, with so many ``workers`` as it has room for, or as are named, each of
    which takes ``gpus_per_worker``.
    """

    candidates: int = Field(8, ge=1, le=10**4)
    cascade: int = Field(1, ge=1, le=1000)
    proxy: FilePath = Path("proxy.yml")
    ray: Annotated[str, AfterValidator(_address_of_ray)] | None = None
    workers: int | None = Field(None, ge=1, le=10**5)
    gpus_per_worker: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("workers", "gpus_per_worker"):
            if self.ray is None and getattr(self, name) is not None:
                raise ValueError(f"{name} is {getattr(self, name)}, which only ray uses")
        return self


class ConstraintsConfig(Section):
    """A tuner's ``constraints``: what breaks one never becomes a trial.

    ``max_params`` and ``max_macs`` (multiply-adds) are those of the network that will be trained, without classifier and
    auxiliary head: cells in the depth and width of ``target`` (20 cells of 36 channels where ``proxy.yml`` names none), and
    the networks of another space as they are. ``max_latency_ms`` is the median time of its forward pass of one image on the
    configured device, or what the table ``latency`` (a file of ``nni-cssnas latency``) predicts of it.
    Constraints that the space itself declares are checked too. ``proxy`` is the ``proxy.yml`` that names the space.
    """

    max_params: int | None = Field(None, ge=1, le=10**15)
    max_macs: int | None = Field(None, ge=1, le=10**18)
    max_latency_ms: float | None = Field(None, gt=0, le=10**12)
    latency: FilePath | None = None
    proxy: FilePath = Path("proxy.yml")


PRESETS: dict[str, dict[str, Any]] = {
    name: read_mapping(Path(__file__).with_name("presets") / f"{name}.yml") for name in ("paper", "gpu", "cpu")
}
"""Values that ``preset: NAME`` fills in where the file is silent."""


class ProxyConfig(Section):
    """All of ``proxy.yml``.

    ``score`` is what is maximised: see :mod:`nni_cssnas.judge.proxy`.
    ``seed`` is the experiment's: a trial's own seed is derived from it and from the architecture, so
    neither order nor resuming changes a score. ``threads`` 0 takes the trial's share of the cores.
    """

    preset: Literal["paper", "gpu", "cpu"] = "cpu"
    score: Literal["untrained", "contrastive", "combined"] = "untrained"
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(0, ge=0, le=1024)
    target: TargetConfig | None = None
    stand_in: StandInConfig = StandInConfig()
    space: SpaceConfig = SpaceConfig()
    images: ImagesConfig = ImagesConfig()
    views: ViewsConfig = ViewsConfig()
    untrained: UntrainedConfig = UntrainedConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()

    def __init__(self, /, **values: Any) -> None:
        preset = values.get("preset", "cpu")
        if isinstance(preset, str) and preset in PRESETS:
            defaults = PRESETS[preset]
            space = values.get("space")
            if isinstance(space, Mapping) and space.get("name", CELL_SPACE) != CELL_SPACE:
                # The presets' arguments are CellSpace's; another space has its own.
                defaults = {key: value for key, value in defaults.items() if key not in ("space", "stand_in")}
            if _says_how_many(values.get("images")):
                # A cap is for those who did not say.
                own = {key: value for key, value in defaults.get("images", {}).items() if key != "max_images"}
                defaults = {**defaults, "images": own}
            values = merge(defaults, values)
        super().__init__(**values)

    @model_validator(mode="after")
    def _check_depths(self) -> Self:
        for name in ("target", "stand_in"):
            if name in self.model_fields_set and getattr(self, name) is not None and self.space.name != CELL_SPACE:
                raise ValueError(
                    f"{name} is about networks of cells; the networks of {self.space.name} have the size that the space "
                    "gives them: leave it out"
                )
        return self

    @property
    def scored_space(self) -> SpaceConfig:
        """The space as it is scored. Networks of cells are as deep as those that will be trained with labels (``target``),
        and as wide as ``untrained`` says; where the score trains them, they are those of ``stand_in``. ``space.arguments``
        may name another ``num_cells``, and ``channels`` or ``params``."""
        if self.space.name != CELL_SPACE:
            return self.space
        size = {"num_cells": (self.target or TargetConfig()).num_cells, "channels": self.untrained.channels}
        if self.score != "untrained":
            size = {"num_cells": self.stand_in.num_cells, "channels": self.stand_in.channels}
        if "params" in self.space.arguments:
            del size["channels"]
        return SpaceConfig(
            name=self.space.name, arguments={**size, **self.space.arguments}, classifier=self.space.classifier
        )

    def with_epochs(self, budget: Any) -> Self:
        """The same with another number of epochs of contrastive training, as Hyperband and BOHB ask for.

        Raises
        ------
        ConfigError
            If it is no whole number from 1, or the score trains nothing, or needs more epochs.
        """
        try:
            epochs = int(budget) if isinstance(budget, (int, float)) else 0
        except (ValueError, OverflowError):  # nan, inf
            epochs = 0
        if epochs < 1 or epochs != budget:
            raise ConfigError(f"TRIAL_BUDGET is {budget!r}; it must be a whole number of epochs")
        if self.score == "untrained":
            raise ConfigError(
                "the tuner gives trials a budget of epochs (TRIAL_BUDGET), but score is 'untrained', which trains nothing; "
                "set score: contrastive, or use another tuner"
            )
        trained = self.contrastive.model_dump() | {"epochs": epochs, "steps": None}
        return self.model_copy(update={"contrastive": ContrastiveConfig(**trained)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file; relative paths in it are taken from the file's folder.

        Raises
        ------
        ConfigError
            If the file cannot be read, is not a mapping, or holds a wrong key or value.
        """
        path = Path(path)
        data = read_mapping(path)
        images = data.get("images")
        if isinstance(images, dict):
            for key in ("source", "root"):
                value = images.get(key)
                if isinstance(value, str) and (key == "root" or value not in ("tiles", "cifar10")):
                    images[key] = _from(path.parent, value, f"{path}: images.{key}")
        try:
            return cls(**data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _from(folder: Path, value: str, field: str) -> str:
    """A path as the file in ``folder`` names it."""
    try:
        return str((folder / Path(_name_of_file(value)).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, an unknown user, no name
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"{field} is {_shown(value)}: {one_line(reason)}") from None


def _says_how_many(images: Any) -> bool:
    """Whether the section of the user's tells how many images to take, were it ``null`` for all."""
    given = images.model_fields_set if isinstance(images, BaseModel) else images if isinstance(images, Mapping) else ()
    return "num_images" in given or "fraction" in given


def _shown(value: object) -> str:
    """A value in a message, however long or deep it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    try:
        return short.repr(value)
    except ValueError:  # Python writes no integers of more than 4300 digits
        return f"a {type(value).__name__} of very many digits"


def merge(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` over ``defaults``, section by section."""
    merged = dict(defaults)
    for key, value in values.items():
        default = merged.get(key)
        if isinstance(value, BaseModel):
            value = value.model_dump(exclude_unset=True)
        merged[key] = merge(default, value) if isinstance(default, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line of the mistakes: each with its field, the value, and what is allowed."""
    mistakes = error.errors()
    lines = [_mistake(item, model) for item in mistakes[:MOST_MISTAKES]]
    if len(mistakes) > MOST_MISTAKES:
        lines.append(f"and {len(mistakes) - MOST_MISTAKES} more")
    return one_line("; ".join(lines))


def _mistake(item: Any, model: type[BaseModel]) -> str:
    location = [str(part)[:80] for part in item["loc"]]
    field = ".".join(location) or model.__name__
    given = item["input"]
    if item["type"] == "extra_forbidden":
        owner: type[BaseModel] = model
        for part in location[:-1]:
            owner = owner.model_fields[part].annotation  # type: ignore[assignment]
        where = f" in {'.'.join(location[:-1])}" if location[:-1] else ""
        return f"unknown key {location[-1]!r}{where}{nearest(location[-1], owner.model_fields)}"
    if item["type"] == "literal_error":
        allowed = [part.strip(" '\"") for part in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"{field} is {_shown(given)}{nearest(given[:80] if isinstance(given, str) else _shown(given), allowed)}"
    if item["type"] == "value_error":
        return f"{field}: {item['ctx']['error']}" if location else str(item["ctx"]["error"])
    return f"{field} is {_shown(given)}: {item['msg'][0].lower()}{item['msg'][1:]}"
