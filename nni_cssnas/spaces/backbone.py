"""Features instead of logits, and the natural stages of any network.

A network is looked at once: two black images pass through it while hooks note what every module
gives. From that alone follow the *classifier* (the linear layer whose output is the network's), the
pooled features (what enters it), and the *stages* (the blocks that the image passes one after the
other). Nothing here knows the class of a network: cells, MobileNet-like, transformers, and whatever
a user declares go the same way. A network that knows all this of itself may say so and is not looked
at: ``known_structure(size)`` gives its :class:`Structure`, or None where it is not sure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nni_cssnas.base.modules import evaluation_mode, feature_tensor, pooled, walk
from nni_cssnas.errors import SpaceError, nearest

__all__ = ["Backbone", "Stage", "Structure", "inspect"]


@dataclass(frozen=True)
class Stage:
    """A block on the way of the image: ``name`` as in ``model.get_submodule(name)``.

    ``size`` is (height, width) of its feature map, or (tokens, 1) for a transformer block.
    """

    name: str
    channels: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Structure:
    """What :func:`inspect` found.

    ``classifier`` is the dotted name of the layer that gives the logits, or None if the network gives
    features already. ``num_features`` is the width of the pooled features.
    """

    classifier: str | None
    num_features: int
    stages: tuple[Stage, ...]


class Backbone(nn.Module):
    """``model`` without its classifier: images (batch, 3, size, size) to features (batch, num_features).

    The classifier is replaced by an identity *in place*, so that its weights are neither trained nor
    counted.

    Parameters
    ----------
    model
        A frozen network, as ``space.freeze(sample)`` gives it.
    size
        Height and width of the images.
    classifier
        Dotted name of the classifier if it cannot be found, ``""`` if the network has none.

    Raises
    ------
    SpaceError
        As :func:`inspect`.
    """

    def __init__(self, model: nn.Module, size: int, classifier: str | None = None) -> None:
        super().__init__()
        self.structure = inspect(model, size, classifier)
        if self.structure.classifier is not None:
            parent, _, name = self.structure.classifier.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Identity())
        self.model = model
        self.num_features = self.structure.num_features

    def forward(self, images: Tensor) -> Tensor:
        return pooled(self.model(images))


def inspect(model: nn.Module, size: int, classifier: str | None = None) -> Structure:
    """Find classifier, width and stages of a network. Neither its weights nor its mode are changed.

    Stages are the children of the root, where a child that is only a chain of blocks (a ``Sequential``
    or ``ModuleList``), or that holds a whole chain of resolutions, is replaced by what it holds.

    Parameters
    ----------
    model
        A frozen network.
    size
        Height and width of the images.
    classifier
        Dotted name of the classifier if it cannot be found, ``""`` if the network has none.

    Raises
    ------
    SpaceError
        If the images are smaller than the total stride, the network fails on them, the classifier
        does not exist, or the features cannot be found; the message names the module to give.
    """
    if classifier is None and (known := getattr(model, "known_structure", None)) is not None:
        structure = known(size)
        if isinstance(structure, Structure):
            return structure
    modules = dict(walk(model))
    if classifier and classifier not in modules:
        raise SpaceError(f"classifier {classifier!r} is not a module of the network{nearest(classifier, modules)}")
    probe = _Probe(model, size)
    name = _find_classifier(probe, modules) if classifier is None else (classifier or None)
    if name is None:
        features = probe.output
    elif name in probe.inputs:
        features = probe.inputs[name]
    else:
        raise SpaceError(f"classifier {name!r} takes no part in the forward pass; name another module")
    tensor = feature_tensor(features)
    if tensor is None or tensor.ndim not in (2, 3, 4):
        heads = [key for key, module in modules.items() if key in probe.inputs and isinstance(module, nn.Linear)]
        raise SpaceError(
            f"no features of shape (batch, channels) were found: "
            f"{'the network gives' if name is None else f'{name!r} takes'} {_describe(features)}. "
            f"Name the layer that gives the logits as classifier; linear layers are: {', '.join(heads) or 'none'}"
        )
    stages = _find_stages(model, probe, name)
    if not stages:
        raise SpaceError(
            "no stage with feature maps (batch, C, H, W) or tokens (batch, N, C) was found; put the blocks of the "
            "network into a Sequential or ModuleList, or make them children of the network"
        )
    return Structure(name, pooled(tensor).shape[1], stages)


class _Probe:
    """What every module took and gave when two black images passed."""

    def __init__(self, model: nn.Module, size: int) -> None:
        self.inputs: dict[str, Any] = {}
        self.shapes: dict[str, torch.Size] = {}  # in the order in which the modules finished
        self.results: dict[str, Any] = {}
        names = {module: name for name, module in walk(model)}
        open_modules: list[nn.Module] = []

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            open_modules.append(module)
            self.inputs[names[module]] = args[0] if len(args) == 1 else args
            tensor = feature_tensor(args)
            stride = _stride(module)
            if tensor is not None and tensor.ndim == 4 and stride > 1 and min(tensor.shape[2:]) < stride:
                raise SpaceError(
                    f"images of {size} pixels are smaller than the total stride of the network: {names[module]!r} has "
                    f"stride {stride} but gets a map of {tensor.shape[2]}x{tensor.shape[3]}; use larger images"
                )

        def after(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            open_modules.pop()
            name = names[module]
            self.results[name] = result
            tensor = feature_tensor(result)
            self.shapes.pop(name, None)
            if tensor is not None:
                self.shapes[name] = tensor.shape

        handles = [module.register_forward_pre_hook(before) for module in names]
        handles += [module.register_forward_hook(after) for module in names]
        parameter = next(iter(model.parameters()), torch.zeros(()))
        images = torch.zeros(2, 3, size, size, device=parameter.device, dtype=parameter.dtype)
        try:
            with torch.no_grad(), evaluation_mode(model):
                self.output = model(images)
        except SpaceError:
            raise
        except Exception as error:  # a user's own layers may fail in any way
            failed = open_modules[-1] if open_modules else model
            taken = feature_tensor(self.inputs.get(names[failed]))
            raise SpaceError(_explain(error, names[failed], failed, taken, images)) from error
        finally:
            for handle in handles:
                handle.remove()


def _explain(error: Exception, name: str, module: nn.Module, taken: Tensor | None, images: Tensor) -> str:
    """Why images cannot pass a network, where that is seen from the layer ``name`` that failed on ``taken``."""
    size = f"{images.shape[2]}x{images.shape[3]}"
    layer = f"{type(module).__name__} {name!r}"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if taken is not None:
        expected, found = _widths(module, taken)
        if expected is not None and expected != found:
            if taken.data_ptr() == images.data_ptr():
                return (
                    f"the network is for images of {expected} channel{'' if expected == 1 else 's'} (layer {layer}), but "
                    f"here they always have {found}, grey ones too; declare it with {found} input channels"
                )
            if isinstance(module, nn.Linear):
                return (
                    f"layer {layer} takes {expected} features, but gets {found}: the network was declared for another "
                    f"size than {size} pixels (images.size or views.input_size), or candidates of one choice differ in width"
                )
            return (
                f"this combination of candidates cannot run: layer {layer} takes {expected} channels, but gets {found}; "
                "let all candidates of a choice give the same number of channels"
            )
    if ("must match" in reason and "dimension 1" in reason) or "Sizes of tensors must match" in reason:
        return (
            f"this combination of candidates cannot run: {layer} joins maps of different shapes ({reason}); let all "
            "candidates of a choice give the same number of channels, and the same size"
        )
    return (
        f"the network fails on images of {size} pixels in layer {layer} ({reason}); "
        "they may be smaller than its total stride, or it was declared for another size"
    )


def _widths(module: nn.Module, taken: Tensor) -> tuple[int | None, int]:
    """How many channels or features a layer takes, if it tells, and how many it got."""
    if isinstance(module, nn.Linear):
        return module.in_features, taken.shape[-1]
    width = getattr(module, "in_channels", None) or getattr(module, "num_features", None)
    return (width if isinstance(width, int) else None), taken.shape[1] if taken.ndim > 1 else 0


def _stride(module: nn.Module) -> int:
    stride = getattr(module, "stride", 1)
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) or stride is None:
        return 1
    return int(max(stride)) if isinstance(stride, tuple | list) else int(stride)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def _find_classifier(probe: _Probe, modules: dict[str, nn.Module]) -> str | None:
    """The linear layer, or 1x1 convolution, whose output is the network's output."""
    outputs = probe.output if isinstance(probe.output, tuple | list) else [probe.output]
    for name, result in probe.results.items():
        if name and isinstance(modules[name], nn.Linear | nn.Conv2d) and isinstance(result, Tensor):
            for output in outputs:
                if (
                    isinstance(output, Tensor)
                    and output.data_ptr() == result.data_ptr()
                    and output.numel() == result.numel()
                    and output.ndim == 2
                ):
                    return name
    return None


def _find_stages(model: nn.Module, probe: _Probe, classifier: str | None) -> tuple[Stage, ...]:
    names = {module: name for name, module in walk(model)}
    modules = dict(walk(model))

    def is_map(name: str) -> bool:
        shape = probe.shapes.get(name)
        return shape is not None and (len(shape) == 4 or (len(shape) == 3 and shape[0] == 2))

    def resolutions(name: str) -> int:
        # Octaves, since padding before a strided convolution is no change of resolution (32, 33, 16).
        inside = {
            round(math.log2(shape[2] * shape[3]) / 2)
            for key, shape in probe.shapes.items()
            if key.startswith(f"{name}.")
            and len(shape) == 4
            and shape[2] * shape[3] > 1
            and isinstance(modules[key], nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
        }
        return len(inside)

    def expands(module: nn.Module) -> bool:
        if _is_chain(module):
            return any(len(list(child.children())) > 0 for child in module.children())
        return resolutions(names[module]) > 2

    def descend(module: nn.Module, in_chain: bool, opened: set[str]) -> Iterator[str]:
        for child in module.children():
            name = names[child]
            if name == classifier:
                continue
            if expands(child) or name in opened:
                yield from descend(child, True, opened)
            elif is_map(name) and _counts(child, in_chain, probe.inputs[name], probe.shapes[name]):
                yield name

    order = {name: position for position, name in enumerate(probe.shapes)}
    opened: set[str] = set()
    found = sorted(dict.fromkeys(descend(model, _is_chain(model), opened)), key=order.__getitem__)
    while len(found) < 3:
        # Everything in one wrapper: look into the largest block that holds a chain of blocks.
        wrappers = [name for name in found if _holds_chain(modules[name])]
        if not wrappers:
            break
        opened.add(max(wrappers, key=lambda name: len(list(modules[name].modules()))))
        found = sorted(dict.fromkeys(descend(model, _is_chain(model), opened)), key=order.__getitem__)
    stages = []
    for name in found:
        shape = probe.shapes[name]
        channels, size = (shape[1], (shape[2], shape[3])) if len(shape) == 4 else (shape[2], (shape[1], 1))
        stages.append(Stage(name, int(channels), (int(size[0]), int(size[1]))))
    return tuple(stages)


def _is_chain(module: nn.Module) -> bool:
    """A container as such; a user's subclass of Sequential is a block of its own."""
    if isinstance(module, nn.ModuleList):
        return True
    home = type(module).__module__
    return isinstance(module, nn.Sequential) and (home.startswith(("torch.nn", "nni.nas.nn.pytorch")))


def _holds_chain(module: nn.Module) -> bool:
    """Whether a chain of at least two blocks, each with parts of its own, is somewhere inside."""
    return any(
        _is_chain(part) and sum(bool(list(child.children())) for child in part.children()) > 1
        for part in module.modules()
    )


def _counts(module: nn.Module, in_chain: bool, taken: Any, shape: torch.Size) -> bool:
    """Whether a block is a stage: not the pooling before the classifier, nor a lone norm, activation or dropout."""
    if any(isinstance(part, nn.Conv2d | nn.Linear) for part in module.modules()):
        return True
    before = feature_tensor(taken)
    if (
        before is not None
        and before.ndim == 4
        and len(shape) == 4
        and shape[2] * shape[3] == 1 < before.shape[2] * before.shape[3]
    ):
        return False
    # A chain may hold blocks without weights, as the identity or the pooling that a layer choice became.
    home = type(module).__module__
    return in_chain and not home.endswith(("batchnorm", "normalization", "activation", "dropout", "stochastic_depth"))
