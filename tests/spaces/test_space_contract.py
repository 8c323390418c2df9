"""The contract of :mod:`nni_cssnas.testing` for our spaces and NNI's. CSSNAS_SAMPLES=200 for the long version."""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest

from nni_cssnas.config import SpaceConfig
from nni_cssnas.spaces import CellSpace, make_space
from nni_cssnas.testing import SpaceContract

SAMPLES = int(os.environ.get("CSSNAS_SAMPLES", "3"))


class TestTwoInput(SpaceContract):
    num_samples = max(50, SAMPLES)
    num_networks = 5 if SAMPLES < 200 else 10

    def make_space(self) -> Any:
        return CellSpace(num_nodes=4, num_cells=3, channels=4)


class TestEdge(SpaceContract):
    num_samples = max(50, SAMPLES)
    num_networks = 5 if SAMPLES < 200 else 10

    def make_space(self) -> Any:
        return CellSpace(encoding="edge", num_nodes=4, num_cells=3, channels=4)


CELLS = {"width": 8, "num_cells": 5, "dataset": "cifar"}
AUTOFORMER = {
    "img_size": 32,
    "patch_size": 4,
    "search_embed_dim": (32, 48),
    "search_mlp_ratio": (2.0, 3.0),
    "search_num_heads": (2, 4),
    "search_depth": (2, 3),
}
HUB: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("DARTS", "NASNet", "ENAS", "AmoebaNet", "PNAS"), CELLS),
    "MobileNetV3Space": {},
    "ProxylessNAS": {},
    "ShuffleNetSpace": {},
    "NasBench101": {"stem_out_channels": 16, "num_modules_per_stack": 1},
    "NasBench201": {"stem_out_channels": 8, "num_modules_per_stack": 1},
    "AutoFormer": AUTOFORMER,
}


@functools.cache
def space_of(hub: str) -> Any:
    """Made once, since some take seconds; no test changes a space."""
    return make_space(SpaceConfig(name=f"nni.nas.hub.pytorch:{hub}", arguments=HUB[hub]))


@pytest.mark.slow
@pytest.mark.parametrize("hub", HUB)
class TestHub(SpaceContract):
    num_samples = SAMPLES
    num_networks = max(1, SAMPLES // 20)

    @pytest.fixture(autouse=True)
    def _choose(self, hub: str) -> None:
        self.space = space_of(hub)
        # 7 halvings and more
        self.size = 64 if hub == "ShuffleNetSpace" else 32

    def make_space(self) -> Any:
        return self.space
