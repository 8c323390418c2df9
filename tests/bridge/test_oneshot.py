"""NNI's one-shot strategies on the contrastive loss."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_cssnas.errors import ConfigError
from nni_cssnas.genotype import Genotype

pytestmark = pytest.mark.slow

PROXY: dict[str, Any] = {
    "preset": "cpu",
    "images": {"source": "tiles", "num_images": 96},
    "views": {"input_size": 16},
    "contrastive": {"epochs": 2, "batch_size": 16, "view_pool": "fresh"},
}


def search(space: Any, strategy: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    monkeypatch.setenv("HOME", str(folder))  # NNI's registry of experiments
    from nni_cssnas.bridge.experiment import NasExperiment
    from nni_cssnas.bridge.oneshot import contrastive_evaluator

    before = {name: value.clone() for name, value in space.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = contrastive_evaluator(PROXY, enable_progress_bar=False)
        experiment = NasExperiment(space, evaluator, strategy)
        experiment.config.experiment_working_directory = folder
        experiment.run()
        [sample] = experiment.export_top_models(1, formatter="dict")
        experiment.stop()
    loss = evaluator.trainer.callback_metrics["loss"]
    assert torch.isfinite(loss)
    after = strategy.supernet.state_dict()
    # Weights that keep their names were trained.
    assert any(not torch.equal(before[name], after[name]) for name in before.keys() & after.keys())
    return dict(sample)


@pytest.mark.parametrize("name", ["DARTS", "GumbelDARTS", "RandomOneShot"])
def test_cells_come_out_as_genotypes(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nni.nas import strategy

    from nni_cssnas.spaces import CellSpace
    from nni_cssnas.spaces.supernet import CellSupernet

    space = CellSupernet(
        num_nodes=4, num_cells=3, channels=4, operations=["max_pool_3x3", "skip_connect", "sep_conv_3x3"]
    )
    sample = search(space, getattr(strategy, name)(), monkeypatch, tmp_path)
    genotype = space.genotype_of(sample)
    assert isinstance(genotype, Genotype)
    cells = CellSpace(num_nodes=4, num_cells=3, channels=4)
    assert cells.freeze(cells.sample_of(genotype))(torch.randn(2, 3, 16, 16)).shape == (2, 64)


def test_the_hubs_darts_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nni.nas import strategy
    from nni.nas.hub.pytorch import DARTS

    space = DARTS(width=4, num_cells=3, dataset="cifar")
    sample = search(space, strategy.DARTS(), monkeypatch, tmp_path)
    assert {label.split("/")[0] for label in sample} >= {"normal", "reduce"}


def test_what_a_one_shot_search_cannot_do() -> None:
    from nni_cssnas.bridge.oneshot import contrastive_evaluator

    with pytest.raises(ConfigError, match=r"not loss 'pirl'.*change contrastive"):
        contrastive_evaluator(PROXY | {"contrastive": {"loss": "pirl"}})
    with pytest.raises(ConfigError, match="view_pool 'fixed'"):
        contrastive_evaluator(PROXY | {"contrastive": {"view_pool": "fixed"}})
