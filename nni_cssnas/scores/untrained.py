"""Scores of a network that was never trained, on contrastive views: no labels, a fraction of a second.

:func:`untrained_scores` passes either view of a batch through the network once and gives those of
:mod:`nni_cssnas.scores.statistics` that are asked for. They are turned into one number by
:mod:`nni_cssnas.scores.combine`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nni_cssnas.base.modules import evaluation_mode, feature_tensor, pool
from nni_cssnas.config import DEFAULT_WEIGHTS, UNTRAINED_SCORES
from nni_cssnas.errors import ConfigError, SpaceError, nearest
from nni_cssnas.scores.combine import WORST, is_dead
from nni_cssnas.scores.cost import multiply_adds
from nni_cssnas.scores.statistics import (
    contrastive_loss,
    distinct_patterns,
    entropy,
    expressivity,
    gradient_flow,
    gram,
    jacov,
    naswot,
    nonlinearity,
    progressivity,
    similarity,
    zico,
)

__all__ = ["PAIR_SCORES", "average_scores", "initialise", "measure", "untrained_scores"]

PAIR_SCORES = frozenset({"gradient_flow", "zico"})
"""Components that compare the two views of an image."""

SWAP_IMAGES = 16
"""The codes of more images are nearly all distinct: their number then only counts the activations."""

_ACTIVATIONS: frozenset[Callable[..., Any]] = frozenset(
    getattr(home, name)
    for home in (F, torch, Tensor)
    for name in (
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "rrelu", "prelu", "elu", "elu_", "selu", "celu"),
        *("gelu", "silu", "mish", "hardswish", "softplus", "hardtanh", "hardtanh_", "tanh", "tanh_"),
    )
    if hasattr(home, name)
)


def initialise(model: nn.Module, seed: int) -> None:
    """Draw all weights anew, by each layer's own ``reset_parameters``; the global generator is left alone.

    A layer's weights depend on ``seed`` and on its name, so layers that two architectures share start
    alike: less of the difference of their scores is chance. A parameter whose module has no
    ``reset_parameters`` (class tokens, position embeddings) stays if it is constant and is drawn from a
    normal distribution of deviation 0.02 if it is not.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    # Not torch.manual_seed, which seeds every accelerator for every layer: half the time of a score.
    generators = [torch.default_generator, *(torch.cuda.default_generators[device] for device in devices)]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        for name, module in model.named_modules():
            for generator in generators:
                generator.manual_seed((zlib.crc32(name.encode()) + seed * 1_000_003) % 2**63)
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.numel() > 1 and bool((parameter != parameter.flatten()[0]).any()):
                    parameter.copy_(torch.randn(parameter.shape) * 0.02)


@dataclass(frozen=True)
class _Stage:
    entropy: float
    resolution: tuple[int, ...]
    gram: Tensor


@dataclass(frozen=True)
class _Pass:
    """One view's way through the network."""

    stages: list[_Stage]
    codes: Tensor
    features: Tensor
    gradient: Tensor | None
    idle_macs: int


def untrained_scores(
    model: nn.Module,
    views0: Tensor,
    views1: Tensor | None = None,
    *,
    stages: Sequence[str],
    classifier: str | None = None,
    components: Sequence[str] = UNTRAINED_SCORES,
    macs: int | None = None,
) -> dict[str, float]:
    """Scores of one untrained network on two views of a batch of images.

    Batch norm takes the statistics of each batch of views; the network's running statistics, mode and
    gradients are left as they are. The same weights and views give the same scores, bit for bit on a CPU.

    Parameters
    ----------
    model
        A frozen network, as initialised (:func:`initialise`).
    views0, views1
        (batch, 3, size, size), normalised. ``views1`` may be left out where no component compares the
        views (``gradient_flow`` and ``zico`` do).
    stages
        Names of the modules whose outputs are the stages, in order (``nni_cssnas.spaces.backbone.inspect``).
    classifier
        Name of the module whose input is the features; None if the network gives features.
    components
        What to measure, of :data:`nni_cssnas.config.UNTRAINED_SCORES`. ``gradient_flow`` and ``zico`` need the
        gradients of the weights and take as long as the others together.
    macs
        The network's multiply-adds on such an image, where they are known already.

    Returns
    -------
    dict of str to float
        Every component to be maximised and finite. If the features do not depend on the image, or
        anything is not finite, the architecture is dead and all are :data:`~nni_cssnas.scores.combine.WORST`.

        - effective_macs: multiply-adds less those of layers that do not reach the features, or that
          see the same for every image.
        - expressivity, progressivity: of all stages; resolution_expressivity: of the last stage of each
          resolution, so that a space's depth counts less than what comes out.
        - continuity: the least :func:`similarity` of consecutive stages.
        - nonlinearity, jacov, naswot, swap (:func:`distinct_patterns`), gradient_flow, zico: as the functions.

    Raises
    ------
    ConfigError
        If a component is unknown or needs the second view, the views differ in shape, or are fewer than 4.
    SpaceError
        If a stage gives no features.
    """
    for name in components:
        if name not in UNTRAINED_SCORES:
            raise ConfigError(f"unknown component {name!r}{nearest(name, UNTRAINED_SCORES)}")
    views = [views0] if views1 is None else [views0, views1]
    if views0.ndim != 4 or views0.shape[0] < 4 or any(view.shape != views0.shape for view in views):
        raise ConfigError(
            f"views have the shapes {[tuple(view.shape) for view in views]}; they must be equal, (batch, 3, size, size) "
            "with at least 4 images"
        )
    if not stages:
        raise ConfigError("stages is empty; name the modules whose outputs are the stages")
    wanted = set(components)
    if views1 is None and wanted & PAIR_SCORES:
        raise ConfigError(f"{min(wanted & PAIR_SCORES)} compares two views, and only one is given")
    with evaluation_mode(model, batch_statistics=True), torch.enable_grad():
        passes = [_measure(model, view, stages, classifier, wanted) for view in views]
        if any(_is_dead(item) for item in passes):
            return dict.fromkeys(components, WORST)
        first = passes[0].features.detach()
        values: dict[str, Callable[[], float]] = {
            "effective_macs": lambda: float(
                (multiply_adds(model, views0.shape[1:]) if macs is None else macs) - passes[0].idle_macs
            ),
            "expressivity": lambda: _mean(expressivity(_entropies(item)) for item in passes),
            "resolution_expressivity": lambda: _mean(expressivity(_of_resolutions(item)) for item in passes),
            "progressivity": lambda: _mean(progressivity(_entropies(item)) for item in passes),
            "continuity": lambda: _mean(_continuity(item) for item in passes),
            "nonlinearity": lambda: nonlinearity(_mixed(model, views0, classifier), (first + first.roll(1, 0)) / 2),
            "jacov": lambda: jacov(torch.cat([item.gradient for item in passes if item.gradient is not None])),
            "naswot": lambda: naswot(torch.cat([item.codes for item in passes])),
            "swap": lambda: float(distinct_patterns(passes[0].codes[:SWAP_IMAGES])),
        }
        if wanted & PAIR_SCORES:
            halves = _weight_gradients(model, passes, classifier)
            values["gradient_flow"] = lambda: gradient_flow([(a + b) / 2 for a, b in zip(*halves, strict=True)])
            values["zico"] = lambda: zico(*halves)
        result = {name: values[name]() for name in components}
    return dict.fromkeys(components, WORST) if is_dead(list(result.values())) else result


def average_scores(
    model: nn.Module,
    draws: Sequence[Sequence[Tensor]],
    seed: int,
    *,
    stages: Sequence[str],
    classifier: str | None = None,
    components: Sequence[str] = tuple(DEFAULT_WEIGHTS),
    macs: int | None = None,
) -> dict[str, float]:
    """Mean of :func:`untrained_scores` over several initialisations, each with views of its own.

    Parameters
    ----------
    model
        A frozen network; its weights are drawn anew (:func:`initialise`).
    draws
        The views of each initialisation, one or two. ``[(views0,), (views1,)]`` costs as much as one
        initialisation with both views and depends less on the luck of a weight.
    seed
        Draw i is initialised with a seed derived from ``seed`` and i.
    stages, classifier, components, macs
        As for :func:`untrained_scores`.

    Returns
    -------
    dict of str to float
        All :data:`~nni_cssnas.scores.combine.WORST` if one draw is dead.
    """
    if not draws:
        raise ConfigError("draws is empty; give the views of at least one initialisation")
    if macs is None and "effective_macs" in components:
        macs = multiply_adds(model, draws[0][0].shape[1:])
    found = []
    for index, views in enumerate(draws):
        initialise(model, seed * 1_009 + index)
        found.append(
            untrained_scores(model, *views, stages=stages, classifier=classifier, components=components, macs=macs)
        )
    if any(is_dead(list(scores.values())) for scores in found):
        return dict.fromkeys(components, WORST)
    return {name: _mean(scores[name] for scores in found) for name in components}


def measure(
    model: nn.Module,
    views: tuple[Tensor, Tensor],
    seed: int,
    *,
    stages: Sequence[str],
    classifier: str | None = None,
    components: Sequence[str] = tuple(DEFAULT_WEIGHTS),
    macs: int | None = None,
) -> dict[str, float]:
    """The components of one architecture as the default score takes them; the weights are drawn anew.

    Components of single views are averaged over two initialisations, each with one of the ``views``;
    :data:`PAIR_SCORES` take both views through the first. Arguments otherwise as for :func:`average_scores`.
    """
    single = [name for name in components if name not in PAIR_SCORES]
    pairs = [name for name in components if name in PAIR_SCORES]
    found: dict[str, float] = {}
    if single:
        draws = [(view,) for view in views]
        found |= average_scores(model, draws, seed, stages=stages, classifier=classifier, components=single, macs=macs)
    if pairs:
        found |= average_scores(model, [views], seed, stages=stages, classifier=classifier, components=pairs)
    if is_dead(list(found.values())):
        return dict.fromkeys(components, WORST)
    return {name: found[name] for name in components}


def _mean(values: Iterator[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _entropies(item: _Pass) -> list[float]:
    return [stage.entropy for stage in item.stages]


def _of_resolutions(item: _Pass) -> list[float]:
    ends = zip(item.stages, [*item.stages[1:], None], strict=True)
    return [stage.entropy for stage, after in ends if after is None or after.resolution != stage.resolution]


def _continuity(item: _Pass) -> float:
    pairs = zip(item.stages, item.stages[1:], strict=False)
    return min((similarity(before.gram, after.gram) for before, after in pairs), default=1.0)


def _measure(
    model: nn.Module, images: Tensor, stages: Sequence[str], classifier: str | None, wanted: set[str]
) -> _Pass:
    measured: dict[str, _Stage] = {}
    layers: list[tuple[Tensor, int]] = []  # outputs of layers that see more than a constant, with their multiply-adds
    constant_macs = 0

    def on_stage(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = feature_tensor(output)
            if tensor is not None and tensor.ndim >= 3:
                # Measured at once: a later layer may work in place.
                resolution = tuple(tensor.shape[2:]) if tensor.ndim == 4 else tuple(tensor.shape[1:2])
                measured[name] = _Stage(entropy(tensor), resolution, gram(tensor))

        return hook

    def on_layer(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal constant_macs
        weight, tensor = getattr(module, "weight", None), feature_tensor(args)
        if not isinstance(weight, Tensor) or tensor is None or not isinstance(output, Tensor):
            return
        macs = output.numel() // output.shape[0] // weight.shape[0] * weight.numel()
        if output.requires_grad and _differs(tensor):
            layers.append((output, macs))
        else:
            constant_macs += macs

    handles = [model.get_submodule(name).register_forward_hook(on_stage(name)) for name in stages]
    if "effective_macs" in wanted:
        handles += [
            module.register_forward_hook(on_layer)
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and name != classifier
        ]
    images = images.detach().clone().requires_grad_()
    try:
        with _Codes(bool(wanted & {"naswot", "swap"})) as recorder:
            features = _features(model, images, classifier)
    finally:
        for handle in handles:
            handle.remove()
    for name in stages:
        if name not in measured:
            raise SpaceError(
                f"stage {name!r} gives no features of shape (batch, C, H, W) or (batch, N, C); leave it out"
            )
    # Alternating signs: a network that ends in a batch norm has a constant *sum* of features, whose gradient is 0.
    signs = torch.ones(images.shape[0], 1, device=images.device, dtype=features.dtype)
    signs[1::2] = -1
    gradient: Tensor | None = None
    reached: Sequence[Tensor | None] = [None] * len(layers)
    if features.requires_grad:
        gradient, *reached = torch.autograd.grad(
            (signs * features).sum(), [images, *(output for output, _ in layers)], retain_graph=True, allow_unused=True
        )
    if gradient is not None:
        gradient = gradient * signs[:, :, None, None]
    idle = sum(macs for (_, macs), g in zip(layers, reached, strict=True) if g is None or not _any(g))
    return _Pass([measured[name] for name in stages], recorder.all(images), features, gradient, constant_macs + idle)


def _differs(tensor: Tensor) -> bool:
    """Whether not all rows are equal; nearly always the first two tell."""
    return bool((tensor[1] != tensor[0]).any()) or bool((tensor != tensor[:1]).any())


def _any(tensor: Tensor) -> bool:
    """Whether anything is not 0; nearly always the first row tells."""
    return bool(tensor[0].any()) or bool(tensor.any())


def _features(model: nn.Module, images: Tensor, classifier: str | None) -> Tensor:
    captured: list[Any] = []
    if classifier is None:
        return pool(model(images))
    handle = model.get_submodule(classifier).register_forward_pre_hook(lambda module, args: captured.append(args))
    try:
        model(images)
    finally:
        handle.remove()
    if not captured:
        raise SpaceError(f"classifier {classifier!r} takes no part in the forward pass; name another module")
    return pool(captured[-1])


def _mixed(model: nn.Module, images: Tensor, classifier: str | None) -> Tensor:
    with torch.no_grad():
        return _features(model, (images + images.roll(1, 0)) / 2, classifier)


def _is_dead(item: _Pass) -> bool:
    """Whether the features are not finite, or the same for every image, or untouched by the input."""
    features = item.features.detach()
    if not bool(torch.isfinite(features).all()):
        return True
    spread = float((features.amax(0) - features.amin(0)).max())
    if spread <= 1e-6 * float(features.abs().max()):
        return True
    return item.gradient is None or not bool(torch.isfinite(item.gradient).all()) or not bool(item.gradient.any())


def _weight_gradients(
    model: nn.Module, passes: Sequence[_Pass], classifier: str | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the contrastive loss on two halves of the batch, for the weights of all layers but the classifier."""
    ignored = {id(p) for p in model.get_submodule(classifier).parameters()} if classifier is not None else set()
    weights = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad and id(p) not in ignored]
    features0, features1 = passes[0].features, passes[1].features
    half = features0.shape[0] // 2
    halves = []
    for part in (slice(0, half), slice(half, 2 * half)):
        loss = contrastive_loss(features0[part], features1[part])
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        halves.append([torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)])
    return halves[0], halves[1]


class _Codes(TorchFunctionMode):
    """Notes which activations are on, whether they are layers or functions: the sign of what enters them.

    For ReLU that is the usual code; GELU, h-swish and the like bend at the same place.
    """

    def __init__(self, active: bool) -> None:
        super().__init__()
        self.active = active
        self.codes: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.active and func in _ACTIVATIONS and args:
            self.codes.append((args[0].detach() > 0).flatten(1))
        return func(*args, **(kwargs or {}))

    def all(self, images: Tensor) -> Tensor:
        """(batch, activations); activations that do not have one row for each image are left out."""
        n = images.shape[0]
        codes = [code for code in self.codes if code.shape[0] == n]
        return torch.cat(codes, 1) if codes else torch.zeros(n, 0, dtype=torch.bool, device=images.device)
