"""The judge: a network in, a label-free score out, as ``proxy.yml`` says. Knows nothing of NNI's trials.

Three kinds of score (``score`` in ``proxy.yml``):

``untrained``
    Statistics of the network as initialised, on contrastive views: a fraction of a second.
``contrastive``
    The short contrastive training: the paper's criterion (arXiv:2102.10557).
``combined``
    Both, as one more component beside the untrained ones.

Components of different units become one number by their log-ranks (arXiv:2403.19232) among *reference*
architectures, which are drawn from the space once, scored, and kept on disk: so one architecture has the same
score whenever it is asked.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nni_cssnas.base.device import derive_seed, resolve_device, seeded
from nni_cssnas.base.files import write_atomically
from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError
from nni_cssnas.genotype import Choices
from nni_cssnas.images.cache import cache_folder, locked
from nni_cssnas.images.pool import Images, Pool, fingerprint
from nni_cssnas.images.sources import load_images
from nni_cssnas.images.views import make_views
from nni_cssnas.scores.combine import ReferenceSet
from nni_cssnas.scores.contrastive import check_images, train_contrastive
from nni_cssnas.scores.cost import multiply_adds, num_parameters
from nni_cssnas.scores.untrained import measure
from nni_cssnas.spaces.backbone import Backbone
from nni_cssnas.spaces.encoding import decode, random_choices
from nni_cssnas.spaces.factory import Space
from nni_cssnas.spaces.identity import own_sources, space_key
from nni_cssnas.spaces.network import CellNetwork

__all__ = ["Candidate", "OnReferences", "Proxy", "ProxyResult", "References", "candidate_seed", "references_of"]

OnReferences = Callable[[int, int], None]
"""``on_references(done, total)``: how many reference architectures are scored; ``done`` is -1 when another process is at it."""

COSTS = ("params", "macs", "channels")
"""Which components are what a network costs."""

CRITERION = "criterion"
"""Name of the contrastive criterion among the components of a ``combined`` score."""


@dataclass(frozen=True)
class Candidate:
    """An architecture that can be built: ``build()`` gives a fresh network, under ``seed`` the same one."""

    build: Callable[[], nn.Module]
    seed: int


@dataclass(frozen=True)
class References:
    """Where reference architectures come from.

    Attributes
    ----------
    key
        Identifies the space by its content (:func:`~nni_cssnas.spaces.identity.space_key`).
    draw
        Gives random architectures of the space, always the same for one seed.
    """

    key: str
    draw: Callable[[int], Iterator[Candidate]]


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

    def metric(self) -> dict[str, float]:
        """NNI's final metric: ``default`` is the score, beside it the costs.

        The portal makes an axis of each number, so the parts of the score are in the trial's record only.
        """
        return {"default": self.score, **{name: self.components[name] for name in COSTS if name in self.components}}


def candidate_seed(config: ProxyConfig, choices: Choices) -> int:
    """The seed of one architecture's weights: from the experiment's seed and the architecture's content."""
    return derive_seed(config.seed, json.dumps(dict(choices), sort_keys=True, default=str))


def references_of(space: Space, config: ProxyConfig) -> References:
    """Random architectures of an NNI model space as references."""

    def draw(seed: int) -> Iterator[Candidate]:
        rng = np.random.default_rng(seed)
        while True:
            choices = random_choices(space, rng)
            sample = decode(space, choices)
            yield Candidate(partial(space.freeze, sample), candidate_seed(config, choices))

    return References(space_key(space), draw)


class Proxy:
    """Judges candidates as a configuration says.

    Life cycle: :meth:`prepare` finds whatever is wrong before any work; :meth:`judge` may then be called for any
    number of candidates. The images and the views of the untrained scores are made once.

    Parameters
    ----------
    config
        All of ``proxy.yml``.
    references
        Where the ranks of ``untrained`` and ``combined`` scores come from; may be None for ``contrastive``.
    cache_dir
        Where reference sets are kept; by default with the images.
    on_references
        Told while the reference architectures are scored, which takes up to minutes.
    """

    def __init__(
        self,
        config: ProxyConfig,
        references: References | None = None,
        *,
        cache_dir: Path | None = None,
        on_references: OnReferences = lambda done, total: None,
    ) -> None:
        self.config = config
        self.references = references
        self.cache_dir = cache_dir
        self.on_references = on_references
        self.size = config.views.input_size or config.images.size

    def prepare(self) -> None:
        """Load the images and check all that can be checked. Raises CssnasError of the kind that fits."""
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        if self.config.score != "contrastive" and self.references is None:
            raise ConfigError(f"score is {self.config.score!r}, which needs a space to draw references from")
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
        macs = multiply_adds(backbone, (3, self.size, self.size))
        components = {"params": float(num_parameters(backbone)), "macs": float(macs)}
        if isinstance(model, CellNetwork) and "params" in self.config.space.arguments:
            components["channels"] = float(model.channels)  # each architecture has its own
        ranked: dict[str, float] = {}
        losses: tuple[float, ...] = ()
        if kind != "contrastive":
            ranked |= self._untrained(backbone, macs)
            components |= ranked
        if kind != "untrained":
            criterion, trained, losses = self._contrastive(backbone, seed, on_epoch)
            components |= trained
            if kind == "contrastive":
                return ProxyResult(criterion, components, losses)
            ranked[CRITERION] = criterion
        return ProxyResult(self.reference_set.score(ranked), components, losses)

    def untrained(self, model: nn.Module, components: Sequence[str]) -> dict[str, float]:
        """Some of :data:`~nni_cssnas.measures.MEASURES` of a network, on weights drawn anew; its own are kept."""
        backbone = Backbone(model, self.size, self.config.space.classifier)
        return self._untrained(backbone, multiply_adds(backbone, (3, self.size, self.size)), components)

    def _untrained(
        self, backbone: Backbone, macs: int | None = None, components: Sequence[str] = ()
    ) -> dict[str, float]:
        # The weights are drawn anew; the contrastive training starts from the candidate's own.
        own = {name: value.clone() for name, value in backbone.state_dict().items()}
        found = measure(
            backbone.to(self.device),
            self._fixed_views,
            self.config.seed,
            stages=[f"model.{stage.name}" if stage.name else "model" for stage in backbone.structure.stages],
            components=components or tuple(self.config.untrained.weights),
            macs=macs,
        )
        backbone.load_state_dict(own)
        return found

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
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        order = torch.randperm(len(self.images), generator=generator, device=self.device)
        batch = self._pool.take(order[: self.config.untrained.batch_size])
        return make_views(self.config.views, self.size)(batch, generator)

    def try_one(self) -> None:
        """Build one architecture and look whether its features can be found, which no trial could do without.

        Raises
        ------
        SpaceError
            If they cannot, or the images are too small.
        """
        if self.references is not None:
            Backbone(self.build(next(self.references.draw(self.config.seed))), self.size, self.config.space.classifier)

    def rehearse(self, on_stage: Callable[[str, int, int], None], *, references: bool = True) -> None:
        """Find what every candidate would fail of, and score the reference architectures that all of them need.

        Parameters
        ----------
        on_stage
            Told ``images`` (they are read), ``checked`` (space and images can be used: how many images), ``references``
            (how many of how many are scored), ``waiting`` (another process scores them).
        references
            Whether they are scored, which takes up to minutes if they are not kept from before.

        Raises
        ------
        CssnasError
            Of the kind that fits.
        """
        on_stage("images", 0, 0)
        self.prepare()
        self.try_one()
        on_stage("checked", len(self.images), len(self.images))
        if references and self.config.score != "contrastive":
            self.on_references = lambda done, total: on_stage(
                "waiting" if done < 0 else "references", max(done, 0), total
            )
            _ = self.reference_set

    # ---- references -------------------------------------------------------------------------------

    @cached_property
    def reference_set(self) -> ReferenceSet:
        """The reference architectures' components: read from the cache, or drawn and scored once.

        Of several processes that need them at a time one does the work; the others wait for it.
        """
        if self.references is None:
            raise ConfigError(f"score is {self.config.score!r}, which needs a space to draw references from")
        key = self._reference_key()
        found: ReferenceSet | None = None
        path = cache_folder(self.cache_dir) / "references" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = self._read_references(path, key)
            if found is not None:  # a finished file needs no lock, nor a folder that can be written
                return found
            wanted = self.config.untrained.references
            with locked(path.with_suffix(".lock"), lambda: self.on_references(-1, wanted)):
                found = self._read_references(path, key)
                if found is None:
                    found = self._draw_references(key)
                    write_atomically(path, found.to_json())
            return found
        except OSError as error:
            warnings.warn(
                f"reference architectures cannot be kept as {path} ({error.strerror or error}); every trial scores "
                "them again. Set NNI_CSSNAS_CACHE to a writable folder with enough space",
                stacklevel=2,
            )
            return found or self._draw_references(key)

    def _reference_key(self) -> str:
        """Everything that the components of a reference depend on."""
        assert self.references is not None
        config = self.config
        parts = {
            "space": self.references.key,
            "classifier": config.space.classifier,
            "images": self.images_key,
            "views": config.views.model_dump(mode="json"),
            "size": self.size,
            "seed": config.seed,
            "untrained": config.untrained.model_dump(mode="json"),
            "contrastive": config.contrastive.model_dump(mode="json") if config.score == "combined" else None,
            "nni_cssnas": own_sources(),
            "torch": torch.__version__,
        }
        return json.dumps(parts, sort_keys=True)

    def _read_references(self, path: Path, key: str) -> ReferenceSet | None:
        if not os.path.lexists(path):
            return None
        try:
            if not (path.is_file() or path.is_dir()):  # opening a pipe would wait for ever
                raise ConfigError("it is no file")
            return ReferenceSet.from_json(path.read_text(encoding="utf-8"), key)
        except (UnicodeDecodeError, ConfigError) as error:
            warnings.warn(f"reference architectures {path} are damaged ({error}); they are scored again", stacklevel=4)
            return None

    def _draw_references(self, key: str) -> ReferenceSet:
        assert self.references is not None
        wanted = self.config.untrained.references
        candidates = itertools.islice(self.references.draw(self.config.seed), wanted)
        scores: list[dict[str, float]] = []
        for candidate in candidates:
            self.on_references(len(scores), wanted)
            scores.append(self._measure_reference(candidate))
        self.on_references(wanted, wanted)
        weights = dict(self.config.untrained.weights)
        if self.config.score == "combined":
            weights[CRITERION] = self.config.untrained.criterion_weight
        return ReferenceSet.from_scores(scores, weights, key)

    def _measure_reference(self, candidate: Candidate) -> dict[str, float]:
        backbone = Backbone(self.build(candidate), self.size, self.config.space.classifier)
        ranked = self._untrained(backbone)
        if self.config.score == "combined":
            ranked[CRITERION], _, _ = self._contrastive(backbone, candidate.seed, None)
        return ranked
