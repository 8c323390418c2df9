"""The judge: a network in, a label-free score out, as ``proxy.yml`` says. Knows nothing of NNI's trials.

Three kinds of score (``score`` in ``proxy.yml``):

``untrained``
    Statistics of the network as initialised, on contrastive views: a fraction of a second.
``contrastive``
    The short contrastive training: the paper's criterion (arXiv:2102.10557).
``combined``
    Both, as one more component beside the untrained ones.

A score depends on the architecture, the images and the settings alone: whoever asks, and whenever, is told the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import nn

from nni_cssnas.base.device import derive_seed, resolve_device, seeded
from nni_cssnas.config import ProxyConfig
from nni_cssnas.genotype import Choices
from nni_cssnas.images.pool import Images, Pool, SomeImages, fingerprint
from nni_cssnas.images.sources import load_images
from nni_cssnas.images.views import make_views
from nni_cssnas.measures import COSTS
from nni_cssnas.scores.combine import DEAD, combine
from nni_cssnas.scores.contrastive import check_images, train_contrastive
from nni_cssnas.scores.cost import multiply_adds, num_parameters
from nni_cssnas.scores.untrained import measure
from nni_cssnas.spaces.backbone import Backbone
from nni_cssnas.spaces.encoding import decode, random_choices
from nni_cssnas.spaces.factory import Space
from nni_cssnas.spaces.network import CellNetwork

__all__ = ["Candidate", "Proxy", "ProxyResult", "candidate_seed", "random_candidates"]


@dataclass(frozen=True)
class Candidate:
    """An architecture that can be built: ``build()`` gives a fresh network, under ``seed`` the same one."""

    build: Callable[[], nn.Module]
    seed: int


@dataclass(frozen=True)
class ProxyResult:
    """What the proxy says of one architecture.

    Attributes
    ----------
    score
        What is maximised.
    components
        Every number measured, by name: those of the untrained network, of the contrastive training,
        and ``params``, ``macs`` and, where all networks have one size, the width ``channels``.
    epoch_losses
        Mean training loss of each epoch; empty if nothing was trained.
    """

    score: float
    components: dict[str, float]
    epoch_losses: tuple[float, ...] = ()

    def metric(self, beside: Mapping[str, float] | None = None) -> dict[str, float]:
        """NNI's final metric: ``default`` is the score; by default the costs of the network that was judged are beside it.

        The portal makes an axis of each number, so the parts of the score are in the trial's record only.
        """
        judged = {name: self.components[name] for name in COSTS if name in self.components}
        return {"default": self.score, **judged, **(beside or {})}


def candidate_seed(config: ProxyConfig, choices: Choices) -> int:
    """The seed of one architecture's weights: from the experiment's seed and the architecture's content."""
    return derive_seed(config.seed, json.dumps(dict(choices), sort_keys=True, default=str))


def random_candidates(space: Space, config: ProxyConfig, seed: int) -> Iterator[Candidate]:
    """Random architectures of an NNI model space, always the same for one seed."""
    rng = np.random.default_rng(seed)
    while True:
        choices = random_choices(space, rng)
        yield Candidate(partial(space.freeze, decode(space, choices)), candidate_seed(config, choices))


def _copy(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.items()}


class Proxy:
    """Judges candidates as a configuration says.

    Life cycle: :meth:`prepare` finds whatever is wrong before any work; :meth:`judge` may then be called for any
    number of candidates. The images and the views of the untrained scores are made once.

    Parameters
    ----------
    config
        All of ``proxy.yml``.
    images
        Those that ``config`` names, where they are at hand already; by default they are read.
    """

    def __init__(self, config: ProxyConfig, images: Images | None = None) -> None:
        self.config = config
        self.size = config.views.input_size or config.images.size
        if images is not None:
            self.images = images

    def prepare(self) -> None:
        """Load the images and check all that can be checked. Raises CssnasError of the kind that fits."""
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        _ = self.device
        if self.config.score != "untrained":
            check_images(len(self.images), self.config.contrastive)
        _ = self.images

    @cached_property
    def device(self) -> torch.device:
        """Where candidates are computed."""
        return resolve_device(self.config.device)

    @cached_property
    def images(self) -> Images:
        """All unlabelled images: uint8, ``(N, 3, H, W)``, in main memory or on disk."""
        config = self.config
        batches = {
            f"{name}.batch_size": getattr(config, name).batch_size
            for name in ("untrained", "contrastive")
            if config.score in (name, "combined")
        }
        needed_by = max(batches, key=lambda name: batches[name])
        return load_images(config.images, min_images=batches[needed_by], needed_by=needed_by)

    @cached_property
    def images_key(self) -> str:
        """Stands for the images' content; see :func:`~nni_cssnas.images.pool.fingerprint`."""
        return fingerprint(self.images)

    @cached_property
    def _pool(self) -> Pool:
        return Pool(self.images, self.device)

    def judge(self, candidate: Candidate, on_epoch: Callable[[int, float], None] | None = None) -> ProxyResult:
        """Build a candidate and score it.

        Parameters
        ----------
        candidate
            The architecture.
        on_epoch
            Called with the number and the mean loss of every epoch of contrastive training.

        Raises
        ------
        CssnasError
            If the network does not fit the images, or its training diverges.
        """
        return self.score(self.build(candidate), candidate.seed, on_epoch)

    def build(self, candidate: Candidate) -> nn.Module:
        """The candidate's network, initialised under its seed."""
        with seeded(candidate.seed):
            return candidate.build()

    def score(self, model: nn.Module, seed: int, on_epoch: Callable[[int, float], None] | None = None) -> ProxyResult:
        """Score a network that is built already; see :meth:`judge`."""
        kind = self.config.score
        backbone = Backbone(model, self.size, self.config.space.classifier)
        components = {"params": float(num_parameters(backbone))}
        if isinstance(model, CellNetwork) and "params" in self.config.space.arguments:
            components["channels"] = float(model.channels)  # each architecture has its own
        if kind == "contrastive":
            components["macs"] = float(multiply_adds(backbone, (3, self.size, self.size)))
            criterion, trained, losses = self._contrastive(backbone, seed, on_epoch)
            return ProxyResult(criterion, components | trained, losses)
        own = _copy(backbone.state_dict()) if kind == "combined" else {}
        measured = self._untrained(backbone, dict.fromkeys(["macs", *self.config.untrained.weights]))
        score = combine(measured, self.config.untrained.weights)
        if score == DEAD:
            measured["macs"] = float(multiply_adds(backbone, (3, self.size, self.size)))
        components |= measured
        if kind == "untrained" or score == DEAD:
            return ProxyResult(score, components)
        backbone.load_state_dict(own)  # the training begins with the candidate's own weights
        criterion, trained, losses = self._contrastive(backbone, seed, on_epoch)
        score += self.config.untrained.criterion_weight * criterion
        return ProxyResult(max(score, DEAD + 1), components | trained, losses)

    def untrained(self, model: nn.Module, components: Sequence[str]) -> dict[str, float]:
        """Some of :data:`~nni_cssnas.measures.MEASURES` of a network, on weights drawn anew; its own are kept."""
        backbone = Backbone(model, self.size, self.config.space.classifier)
        own = _copy(backbone.state_dict())
        found = self._untrained(backbone, components)
        backbone.load_state_dict(own)
        return found

    def _untrained(self, backbone: Backbone, components: Iterable[str]) -> dict[str, float]:
        """Measures of a backbone whose weights are drawn anew."""
        return measure(
            backbone,
            self._fixed_views,
            self.config.seed,
            stages=[f"model.{stage.name}" if stage.name else "model" for stage in backbone.structure.stages],
            components=tuple(components),
        )

    def _contrastive(
        self, backbone: Backbone, seed: int, on_epoch: Callable[[int, float], None] | None
    ) -> tuple[float, dict[str, float], tuple[float, ...]]:
        config = self.config
        trained = train_contrastive(
            backbone,
            self._pool,
            config.contrastive,
            views=make_views(config.views, self.size),
            seed=seed,
            data_seed=config.seed,
            device=self.device,
            on_epoch=on_epoch,
        )
        return trained.score(config.contrastive.criterion), trained.components, trained.epoch_losses

    @cached_property
    def _fixed_views(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The two views on which every untrained network is measured."""
        positions, generator = self._fixed_images()
        batch = Pool(self.images, torch.device("cpu")).take(positions)
        view0, view1 = make_views(self.config.views, self.size)(batch, generator)
        return view0.to(self.device), view1.to(self.device)

    def _fixed_images(self) -> tuple[torch.Tensor, torch.Generator]:
        """Which images these are of, and the generator after that draw; on the CPU, so that every device sees the same."""
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.randperm(len(self.images), generator=generator)
        return order[: self.config.untrained.batch_size], generator

    def needed_images(self) -> Images:
        """The images without which a network cannot be scored: all, or those that an untrained one is measured on."""
        if self.config.score != "untrained":
            return self.images
        positions, _ = self._fixed_images()
        return SomeImages(len(self.images), positions, self.images[positions], self.images_key)

    def rehearse(self, on_stage: Callable[[str, int, int], None], candidate: Candidate) -> None:
        """Find what every candidate would fail of.

        Parameters
        ----------
        on_stage
            Told ``images`` (they are read) and ``checked`` (space and images can be used: how many images).
        candidate
            Any architecture of the space; it is built, and its features are looked for.

        Raises
        ------
        CssnasError
            Of the kind that fits.
        """
        on_stage("images", 0, 0)
        self.prepare()
        Backbone(self.build(candidate), self.size, self.config.space.classifier)
        on_stage("checked", len(self.images), len(self.images))
