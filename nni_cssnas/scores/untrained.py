"""Scores of a network that was never trained, on contrastive views: no labels, a fraction of a second.

:func:`untrained_scores` passes either view of a batch through the network once and gives the
:mod:`~nni_cssnas.measures` that are asked for. They are turned into one number by
:mod:`nni_cssnas.scores.combine`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from nni_cssnas.base.modules import evaluation_mode, walk
from nni_cssnas.errors import ConfigError
from nni_cssnas.measures import DEFAULT_WEIGHTS, MEASURES, find_measure
from nni_cssnas.scores.combine import WORST, is_dead
from nni_cssnas.scores.look import Look
from nni_cssnas.scores.measured import mean

__all__ = ["average_scores", "initialise", "measure", "untrained_scores"]


def initialise(model: nn.Module, seed: int) -> None:
    """Draw all weights anew, by each layer's own ``reset_parameters``; the global generator is left alone.

    On a GPU these are other weights than on the CPU. A layer's weights depend on ``seed`` and on its name, so layers that two architectures share start
    alike: less of the difference of their scores is chance. A parameter whose module has no
    ``reset_parameters`` (class tokens, position embeddings) stays if it is constant and is drawn from a
    normal distribution of deviation 0.02 if it is not.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    # Not torch.manual_seed, which seeds every accelerator for every layer: half the time of a score.
    generators = [torch.default_generator, *(torch.cuda.default_generators[device] for device in devices)]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        for name, module in walk(model):
            # Not getattr of the module itself, which takes long to find that there is none.
            own = module.__dict__.get("reset_parameters")
            resets = callable(own or getattr(type(module), "reset_parameters", None))
            if not resets and not module._parameters:
                continue  # half of all modules
            for generator in generators:
                generator.manual_seed((zlib.crc32(name.encode()) + seed * 1_000_003) % 2**63)
            if resets:
                module.reset_parameters()  # type: ignore[operator]
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.numel() > 1 and bool((parameter != parameter.flatten()[0]).any()):
                    parameter.copy_(torch.randn(parameter.shape) * 0.02)


def untrained_scores(
    model: nn.Module,
    views0: Tensor,
    views1: Tensor | None = None,
    *,
    stages: Sequence[str],
    classifier: str | None = None,
    components: Sequence[str] = tuple(MEASURES),
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
        What to measure, of :data:`nni_cssnas.measures.MEASURES`, or ``module:function`` of one's own. ``gradient_flow`` and ``zico`` need the
        gradients of the weights and take as long as the others together.
    macs
        The network's multiply-adds on such an image, where they are known already.

    Returns
    -------
    dict of str to float
        Every component to be maximised and finite. If the features do not depend on the image, or
        anything is not finite, the architecture is dead and all are :data:`~nni_cssnas.scores.combine.WORST`.

        What each is: :mod:`nni_cssnas.scores.measured`.

    Raises
    ------
    ConfigError
        If a component is unknown or needs the second view, the views differ in shape, or are fewer than 4.
    SpaceError
        If a stage gives no features.
    """
    views = [views0] if views1 is None else [views0, views1]
    if views0.ndim != 4 or views0.shape[0] < 4 or any(view.shape != views0.shape for view in views):
        raise ConfigError(
            f"views have the shapes {[tuple(view.shape) for view in views]}; they must be equal, (batch, 3, size, size) "
            "with at least 4 images"
        )
    if not stages:
        raise ConfigError("stages is empty; name the modules whose outputs are the stages")
    chosen = {name: find_measure(name) for name in components}
    pairs = sorted(name for name, item in chosen.items() if "pair" in item.needs)
    if views1 is None and pairs:
        raise ConfigError(f"{pairs[0]} compares two views, and only one is given")
    # On a GPU convolutions would be rounded to 10 bits, and their algorithms, so their rounding, vary.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with evaluation_mode(model, batch_statistics=True), torch.enable_grad(), exact:
        look = Look(
            model,
            views,
            stages=stages,
            classifier=classifier,
            needs={need for item in chosen.values() for need in item.needs},
            macs=macs,
        )
        if look.is_dead:
            return dict.fromkeys(components, WORST)
        if pairs:
            _ = look.weight_gradients  # before a measure sends other images through the same layers
        result = {name: item.value(look) for name, item in chosen.items()}
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
        A frozen network; its weights are drawn anew (:func:`initialise`), and it is moved to where the views are.
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
    seeds = [seed * 1_009 + index for index in range(len(draws))]
    found = []
    for views, _ in zip(draws, _initialisations(model, seeds, draws[0][0].device), strict=True):
        scores = untrained_scores(model, *views, stages=stages, classifier=classifier, components=components, macs=macs)
        macs = int(scores["macs"]) if "macs" in scores else macs
        found.append(scores)
    if any(is_dead(list(scores.values())) for scores in found):
        return dict.fromkeys(components, WORST)
    return {name: mean(scores[name] for scores in found) for name in components}


def _initialisations(model: nn.Module, seeds: Sequence[int], device: torch.device) -> Iterator[None]:
    """The model on the device with one set of weights after the other, drawn on the CPU: every device scores the same network."""
    home = torch.device("cpu")
    if device == home:
        for seed in seeds:
            initialise(_moved(model, home), seed)
            yield
        return
    weights = []
    for seed in seeds:
        initialise(_moved(model, home), seed)
        weights.append([tensor.detach().clone() for tensor in _state(model)])
    state = _state(_moved(model, device))
    for drawn in weights:
        with torch.no_grad():
            for tensor, value in zip(state, drawn, strict=True):
                tensor.copy_(value, non_blocking=True)
        yield


def _state(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers; ``parameters()`` and ``buffers()`` take ten times as long for many small layers."""
    held = [tensor for _, module in walk(model) for tensor in (*module._parameters.values(), *module._buffers.values())]
    return [tensor for tensor in held if tensor is not None]


def _moved(model: nn.Module, device: torch.device) -> nn.Module:
    return (
        model
        if all(tensor.device.type == device.type for tensor in _state(model))
        else model.to(device, non_blocking=True)
    )


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
    those that need a ``pair`` take both views through the first. Arguments otherwise as for :func:`average_scores`.
    """
    pairs = [name for name in components if "pair" in find_measure(name).needs]
    single = [name for name in components if name not in pairs]
    found: dict[str, float] = {}
    if single:
        draws = [(view,) for view in views]
        found |= average_scores(model, draws, seed, stages=stages, classifier=classifier, components=single, macs=macs)
    if pairs:
        found |= average_scores(model, [views], seed, stages=stages, classifier=classifier, components=pairs)
    if is_dead(list(found.values())):
        return dict.fromkeys(components, WORST)
    return {name: found[name] for name in components}
