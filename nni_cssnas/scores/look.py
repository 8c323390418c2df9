"""What two views of a batch show of a network on their way through it: all that a measure may look at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nni_cssnas.base.device import to_cpu, wait_for
from nni_cssnas.base.modules import feature_tensor, pooled, walk
from nni_cssnas.errors import SpaceError
from nni_cssnas.scores.cost import multiply_adds
from nni_cssnas.scores.paths import activations_on_paths, are_all_products
from nni_cssnas.scores.statistics import contrastive_loss, entropy, gram, scatter

__all__ = ["Look", "Stage", "View"]

_ACTIVATIONS: frozenset[Callable[..., Any]] = frozenset(
    getattr(home, name)
    for home in (F, torch, Tensor)
    for name in (
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "rrelu", "prelu", "elu", "elu_", "selu", "celu"),
        *("gelu", "silu", "mish", "hardswish", "softplus", "hardtanh", "hardtanh_", "tanh", "tanh_"),
    )
    if hasattr(home, name)
)


@dataclass(frozen=True)
class Stage:
    """The output of a stage: ``scatter`` and ``gram`` of its features, and its ``resolution``, ``(H, W)`` or ``(N,)``."""

    scatter: Tensor
    gram: Tensor
    resolution: tuple[int, ...]

    @cached_property
    def entropy(self) -> float:
        """:func:`~nni_cssnas.scores.statistics.entropy` of the features."""
        return entropy(self.scatter)


@dataclass(frozen=True)
class View:
    """One view's way through the network.

    Attributes
    ----------
    stages
        In order.
    codes
        ``(batch, activations)``, bool: which activations are on; without columns unless they are needed.
    features
        ``(batch, F)``, with their graph.
    gradient
        Of the features, with alternating signs, by the image: as the images, on the CPU, or None if they do not depend on
        them.
    is_dead
        Whether the features are not finite, or the same for every image, or untouched by the input.
    layers
        What each layer is in autograd's graph, where ``macs`` are needed.
    macs
        Their multiply-adds for one image.
    idle_macs
        Those of them that do not reach the features, or see the same for every image.
    outputs
        Of the stages, with their graph, where ``stages`` are needed.
    images
        The leaf of the graph.
    """

    stages: list[Stage]
    codes: Tensor
    features: Tensor
    gradient: Tensor | None
    is_dead: bool
    layers: list[Any]
    macs: int
    idle_macs: int
    outputs: list[Tensor]
    images: Tensor


class Look:
    """A network with the views that went through it.

    Parameters
    ----------
    model
        In evaluation mode with batch statistics, gradients enabled.
    images
        One or two views, ``(batch, 3, size, size)`` each.
    stages, classifier
        As for :func:`~nni_cssnas.scores.untrained.untrained_scores`.
    needs
        What the measures need, of :data:`nni_cssnas.measures.NEEDS`.
    macs
        The network's multiply-adds, where they are known already.

    Raises
    ------
    SpaceError
        If a stage gives no features, or the classifier takes no part.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Sequence[Tensor],
        *,
        stages: Sequence[str],
        classifier: str | None = None,
        needs: Iterable[str] = (),
        macs: int | None = None,
    ) -> None:
        self.model = model
        self.images = list(images)
        self.classifier = classifier
        self._macs = macs
        needs = set(needs)
        layers = [
            module
            for name, module in walk(model)
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and name != classifier and "macs" in needs
        ]
        self.views = [_pass(model, view, stages, layers, classifier, needs) for view in images]

    @property
    def is_dead(self) -> bool:
        """Whether the features are not finite, or the same for every image, or untouched by the input."""
        return any(view.is_dead for view in self.views)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of the whole network for one image."""
        if self._macs is not None:
            return self._macs
        view = self.views[0]
        if self.classifier is None and view.layers and are_all_products(view.features, view.layers):
            return view.macs
        return multiply_adds(self.model, self.images[0].shape[1:])  # another pass, that sees what is no layer too

    @cached_property
    def ways(self) -> tuple[int, int]:
        """The fewest and the most activations on a way from the images to the features; zeros where none leads there."""
        view = self.views[0]
        return activations_on_paths(view.features, view.images) or (0, 0)

    def features_of(self, images: Tensor) -> Tensor:
        """``(batch, F)`` of other images, without their graph."""
        with torch.no_grad():
            return _features(self.model, images, self.classifier)

    @cached_property
    def stage_gradients(self) -> list[list[tuple[Tensor, Tensor]]]:
        """For each view and each stage but the first: a random sign for every number of its output, and the gradient of
        their product by the output of the stage before (zeros where that does not reach it)."""
        return [_stage_gradients(view.outputs) for view in self.views]

    @cached_property
    def weight_gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of the contrastive loss on either half of the batch, for the weights of all layers but the classifier."""
        return _weight_gradients(self.model, self.views, self.classifier)


def _pass(
    model: nn.Module,
    images: Tensor,
    stages: Sequence[str],
    counted: Sequence[nn.Module],
    classifier: str | None,
    needs: set[str],
) -> View:
    """Send images through and back. On a GPU nothing is waited for before all of it is under way."""
    measured: dict[str, Stage] = {}
    outputs: dict[str, Tensor] = {}
    layers: list[_Layer] = []

    def on_stage(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = feature_tensor(output)
            if tensor is not None and tensor.ndim >= 3:
                # Measured at once: a later layer may work in place.
                resolution = tuple(tensor.shape[2:]) if tensor.ndim == 4 else tuple(tensor.shape[1:2])
                measured[name] = Stage(scatter(tensor), gram(tensor), resolution)
                if "stages" in needs:
                    outputs[name] = tensor

        return hook

    def on_layer(module: nn.Module, args: Any, output: Any) -> None:
        # First where it nearly always is: a module's own getattr looks everywhere else before.
        weight = module._parameters.get("weight")
        weight = getattr(module, "weight", None) if weight is None else weight
        tensor = args[0] if len(args) == 1 and isinstance(args[0], Tensor) else feature_tensor(args)
        if not isinstance(weight, Tensor) or tensor is None or not isinstance(output, Tensor):
            return
        macs = output.numel() // output.shape[0] // weight.shape[0] * weight.numel()
        entering = tensor.detach()  # what follows needs no graph
        layers.append(_Layer(entering, output, output.grad_fn, macs, (entering[1] != entering[0]).any()))

    handles = [model.get_submodule(name).register_forward_hook(on_stage(name)) for name in stages]
    handles += [module.register_forward_hook(on_layer) for module in counted]
    images = images.detach().clone().requires_grad_()
    try:
        recorder = _Codes()
        # Every call of a function goes through it, so only where its codes are asked for.
        with recorder if "codes" in needs else nullcontext():
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
    deriving = [layer for layer in layers if layer.output.requires_grad]
    if features.requires_grad:
        gradient, *reached = torch.autograd.grad(
            (signs * features).sum(),
            [images, *(layer.output for layer in deriving)],
            retain_graph=True,
            allow_unused=True,
        )
        for layer, found in zip(deriving, reached, strict=True):
            layer.gradient = found
    if gradient is not None:
        gradient = gradient * signs[:, :, None, None]
    reaching = [layer for layer in layers if layer.gradient is not None]
    facts = [layer.varies & layer.gradient[0].any() for layer in reaching if layer.gradient is not None]
    facts.append(_is_dead(features.detach(), gradient))
    flags = to_cpu(torch.stack(facts))
    gradient = None if gradient is None else to_cpu(gradient)
    seen = [
        Stage(to_cpu(measured[name].scatter), to_cpu(measured[name].gram), measured[name].resolution) for name in stages
    ]
    wait_for(images.device)
    *found_active, dead = flags.tolist()
    active = [is_so or layer.is_active() for layer, is_so in zip(reaching, found_active, strict=True)]
    total = sum(layer.macs for layer in layers)
    return View(
        seen,
        recorder.all(images),
        features,
        gradient,
        dead,
        [layer.node for layer in layers],
        total,
        total - sum(layer.macs for layer, is_so in zip(reaching, active, strict=True) if is_so),
        [outputs[name] for name in stages] if "stages" in needs else [],
        images,
    )


@dataclass
class _Layer:
    """What enters a layer and leaves it, and the ``gradient`` by the latter if it reaches the features; the ``node`` that it
    is in autograd's graph; its multiply-adds; and on the device whether the first two images enter differently."""

    input: Tensor
    output: Tensor
    node: Any
    macs: int
    varies: Tensor
    gradient: Tensor | None = None

    def is_active(self) -> bool:
        """Whether what enters varies from image to image, and anything of it reaches the features; all images are asked,
        where nearly always the first two tell."""
        return self.gradient is not None and bool(self.gradient.any()) and bool((self.input != self.input[:1]).any())


def _features(model: nn.Module, images: Tensor, classifier: str | None) -> Tensor:
    captured: list[Any] = []
    if classifier is None:
        return pooled(model(images))
    handle = model.get_submodule(classifier).register_forward_pre_hook(lambda module, args: captured.append(args))
    try:
        model(images)
    finally:
        handle.remove()
    if not captured:
        raise SpaceError(f"classifier {classifier!r} takes no part in the forward pass; name another module")
    return pooled(captured[-1])


def _is_dead(features: Tensor, gradient: Tensor | None) -> Tensor:
    """See :attr:`View.is_dead`."""
    spread = (features.amax(0) - features.amin(0)).max().double()
    dead = ~torch.isfinite(features).all() | (spread <= 1e-6 * features.abs().max().double())
    return torch.ones_like(dead) if gradient is None else dead | ~torch.isfinite(gradient).all() | ~gradient.any()


def _stage_gradients(outputs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for before, after in itertools.pairwise(outputs):
        signs = torch.randint(0, 2, after.shape, generator=generator).mul_(2).sub_(1).to(after.device, after.dtype)
        (gradient,) = (
            torch.autograd.grad(after, before, signs, retain_graph=True, allow_unused=True)
            if after.requires_grad and before.requires_grad
            else (None,)
        )
        found.append((signs, torch.zeros_like(before) if gradient is None else gradient))
    return found


def _weight_gradients(
    model: nn.Module, passes: Sequence[View], classifier: str | None
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

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _ACTIVATIONS and args:
            self.codes.append((args[0].detach() > 0).flatten(1))
        return func(*args, **(kwargs or {}))

    def all(self, images: Tensor) -> Tensor:
        """(batch, activations); activations that do not have one row for each image are left out."""
        n = images.shape[0]
        codes = [code for code in self.codes if code.shape[0] == n]
        return torch.cat(codes, 1) if codes else torch.zeros(n, 0, dtype=torch.bool, device=images.device)
