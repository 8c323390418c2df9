"""What is checked before a training: its folder, the images, and the network."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from nni_cssnas.base.device import derive_seed, resolve_device, seeded
from nni_cssnas.errors import ConfigError, DeviceError, ImagesError
from nni_cssnas.images.labelled import LabelledImages, Split, stratified
from nni_cssnas.scores.cost import num_parameters
from nni_cssnas.spaces.architecture import Architecture
from nni_cssnas.spaces.backbone import inspect
from nni_cssnas.training.changes import changes, listed_changes
from nni_cssnas.training.config import RetrainConfig
from nni_cssnas.training.epochs import checkpoint_epoch
from nni_cssnas.training.weights import NetworkShape

__all__ = [
    "ELSEWHERE",
    "RUN",
    "SUMMARY",
    "WRITTEN",
    "check_hardware",
    "check_network",
    "check_output",
    "ignored",
    "network_shape",
]

RUN = "run.json"


SUMMARY = "summary.json"


WRITTEN = (
    RUN,
    SUMMARY,
    "history.csv",
    "best.pt",
    "final.pt",
    "pretrained.pt",
    "pretraining.ckpt",
    "checkpoints",
    "tensorboard",
)
"""What a run leaves in its folder."""


# They change where and how fast, not what is trained.
ELSEWHERE = {"device", "devices", "strategy", "workers", "resident_gb"}


def check_hardware(config: RetrainConfig) -> None:
    """Refuse what this machine cannot train on; cheap, and before any image is read.

    Raises
    ------
    DeviceError
        If the device is not there, or there are not so many.
    ConfigError
        If ``sync_batchnorm`` or ``strategy`` do not suit it.
    """
    device = resolve_device(config.device)
    if device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise DeviceError(f"devices is {config.devices}, but there are only {torch.cuda.device_count()} GPUs")
    if device.type == "cpu" and config.sync_batchnorm:
        raise ConfigError("sync_batchnorm is true, which torch can do on GPUs only; leave it out, or set device: cuda")
    if config.strategy == "auto":
        return
    from pytorch_lightning.strategies import StrategyRegistry  # seconds

    known = {"auto", *StrategyRegistry.available_strategies()}
    if config.strategy not in known:
        close = difflib.get_close_matches(config.strategy, known, n=3)
        raise ConfigError(
            f"strategy is {config.strategy!r}, which Lightning does not know; use auto, or {' or '.join(close or ['ddp'])}"
        )


def check_output(out: Path, architecture: Architecture, config: RetrainConfig, *, force: bool = False) -> None:
    """Refuse a folder that holds another run; cheap, and before any image is read.

    Raises
    ------
    ConfigError
        Which says in what it differs.
    """
    if not force:
        refuse_another_run(out, run_identity(architecture, config))


def run_identity(architecture: Architecture, config: RetrainConfig) -> dict[str, Any]:
    """What tells one run from another, as JSON values."""
    recipe = config.model_dump(mode="json", exclude=ELSEWHERE)
    return {"architecture": json.loads(json.dumps(architecture.to_dict())), "recipe": recipe}


def refuse_another_run(out: Path, identity: Mapping[str, Any]) -> None:
    remedy = "name another folder with --output, or begin anew with --force"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder with --output")
    try:
        there = json.loads((out / RUN).read_text(encoding="utf-8"))
        found = {"architecture": there["architecture"], "recipe": dict(there["recipe"])}
    except FileNotFoundError:
        foreign = [name for name in WRITTEN if (out / name).exists()]
        if foreign:
            raise ConfigError(
                f"{out / foreign[0]} is there already, but is of no run that can be resumed; {remedy}"
            ) from None
        return
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{out / RUN} cannot be read ({error}); {remedy}") from None
    if not has_begun(out):
        return
    if found["architecture"] != identity["architecture"]:
        raise ConfigError(f"{out} holds the training of another architecture; {remedy}")
    changed = changes(found["recipe"], identity["recipe"])
    if changed:
        raise ConfigError(f"{out} holds a training by another recipe: {listed_changes(changed)}; {remedy}")
    for name in ("data", "unlabelled"):
        if "data" in identity and there.get(name) != identity.get(name):
            kind = "unlabelled images" if name == "unlabelled" else "images or labels"
            raise ConfigError(f"{out} holds a training on other {kind}; {remedy}")


def has_begun(out: Path) -> bool:
    """Whether the run in this folder left anything that another run could harm; if not, its folder is free."""
    results = [name for name in WRITTEN if name not in (RUN, "checkpoints", "tensorboard")]
    return epochs_done(out) > 0 or any((out / name).exists() for name in results)


def epochs_done(out: Path) -> int:
    """Epochs that need not be trained again, by the newest checkpoint."""
    return max((checkpoint_epoch(path) for path in (out / "checkpoints").glob("epoch-*.ckpt")), default=0)


def check_size(config: RetrainConfig, data: LabelledImages) -> None:
    if data.size != config.size:
        raise ConfigError(f"the images are {data.size} pixels wide, but size is {config.size}")


def labelled_part(config: RetrainConfig, data: LabelledImages) -> Split:
    """The training images whose labels are used."""
    num_classes, num_images = len(data.classes), len(data.train)
    if config.label_fraction == 1:
        train = data.train
    else:
        wanted = round(config.label_fraction * num_images)
        if wanted < num_classes:
            raise ImagesError(
                f"label_fraction {config.label_fraction:g} of {num_images} training images is {wanted} labels, but there are "
                f"{num_classes} classes and each needs one; use at least {num_classes / num_images:.3g}"
            )
        seed = derive_seed(config.seed, "label_fraction")
        train = data.train.take(stratified(data.train.labels, num_classes, config.label_fraction, seed))
    if len(train) < 2 * config.devices:
        raise ImagesError(f"there are {len(train)} images to train on; every device needs 2 for batch norm")
    return train


def network_shape(architecture: Architecture, config: RetrainConfig, num_classes: int) -> NetworkShape:
    """The network that the recipe asks for."""
    return NetworkShape(
        num_classes,
        config.size,
        config.num_cells,
        config.channels,
        config.stem,
        auxiliary=config.auxiliary_weight > 0 and architecture.genotype is not None,
    )


def ignored(architecture: Architecture, config: RetrainConfig) -> str | None:
    """A note about what of the recipe means nothing to this architecture."""
    if architecture.genotype is not None:
        return None
    names = ["channels", "num_cells", "stem"]
    names += ["drop_path"] * (config.drop_path > 0) + ["auxiliary_weight"] * (config.auxiliary_weight > 0)
    assert architecture.space is not None
    return f"{', '.join(names)} of the recipe are ignored: {architecture.space.name} is no network of cells and has its own"


def check_network(architecture: Architecture, config: RetrainConfig, num_classes: int) -> None:
    """Try the network on two black images, as it is evaluated and as it is trained.

    Raises
    ------
    SpaceError
        If the images are smaller than the network's total stride, or it fails on them.
    ConfigError
        If they are too small for the auxiliary head.
    """
    shape = network_shape(architecture, config, num_classes)
    if architecture.genotype is not None:
        _check_memory(shape, architecture)
    with seeded(config.seed):
        network = shape.build(architecture)
        inspect(network, config.size, architecture.space.classifier if architecture.space is not None else None)
        head = getattr(network, "auxiliary_head", None)
        if head is None:
            return
        try:
            with torch.no_grad():
                network.train()(torch.zeros(2, 3, config.size, config.size))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"images of {config.size} pixels are too small for the auxiliary head behind stem {config.stem!r} "
                f"({str(error).splitlines()[0]}); set auxiliary_weight: 0, or a larger size"
            ) from None


def _check_memory(shape: NetworkShape, architecture: Architecture) -> None:
    """Refuse a network of cells whose weights alone do not fit into memory; the system would end the process without a word."""
    with torch.device("meta"):  # nothing is allocated
        params = num_parameters(shape.build(architecture))
    # Weights, gradients and momentum in float32.
    needed, present = 12 * params, psutil.virtual_memory().total
    if needed > present:
        raise ConfigError(
            f"{shape.num_cells} cells of {shape.channels} channels have {params:,} parameters, which take {needed / 2**30:.0f} GiB "
            f"to train, but there are {present / 2**30:.0f} GiB; set fewer channels or num_cells"
        )
