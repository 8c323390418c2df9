"""The contract of :mod:`nni_cssnas.testing` for our scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nni_cssnas.config import ContrastiveConfig, ViewsConfig
from nni_cssnas.images.views import make_views
from nni_cssnas.scores.contrastive import train_contrastive
from nni_cssnas.scores.untrained import measure
from nni_cssnas.spaces.backbone import Backbone, inspect
from nni_cssnas.testing import ScoreContract

# Patches of colour, which views of one image share; noise would teach a network nothing.
PATCHES = torch.randint(0, 256, (64, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES = PATCHES.repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.mark.parametrize("component", ["resolution_expressivity", "jacov", "naswot", "swap"])
class TestUntrained(ScoreContract):
    @pytest.fixture(autouse=True)
    def _choose(self, component: str) -> None:
        self.component = component

    def score(self, network: nn.Module) -> float:
        structure = inspect(network, self.size)
        views = make_views(ViewsConfig(), self.size)(IMAGES[:16], torch.Generator().manual_seed(0))
        stages = [stage.name for stage in structure.stages]
        return measure(network, views, 0, stages=stages, classifier=structure.classifier, components=(self.component,))[
            self.component
        ]


@pytest.mark.parametrize("criterion", ["loss", "drop", "held_out", "alignment", "uniformity"])
class TestContrastive(ScoreContract):
    @pytest.fixture(autouse=True)
    def _choose(self, criterion: str) -> None:
        self.criterion = criterion

    def score(self, network: nn.Module) -> float:
        config = ContrastiveConfig(
            criterion=self.criterion,  # type: ignore[arg-type]
            epochs=8,
            batch_size=16,
            held_out=0.25,
            projection_hidden=16,
            projection_dim=8,
        )
        backbone = Backbone(network, self.size)
        found = train_contrastive(backbone, IMAGES, config, views=make_views(ViewsConfig(), self.size), seed=0)
        return found.score(self.criterion)
