"""``target`` is said once, in proxy.yml: the search scores that depth, and retrain, compare and export build that network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import nni_cssnas
from nni_cssnas.cli.app import app
from nni_cssnas.config import ProxyConfig, TargetConfig
from nni_cssnas.errors import ConfigError, GenotypeError
from nni_cssnas.genotype import NAMED_GENOTYPES, Genotype
from nni_cssnas.results.best import export_best
from nni_cssnas.results.records import TrialRecord
from nni_cssnas.spaces.architecture import read_architecture
from nni_cssnas.verbs import recipe_of

TARGET = {"num_cells": 4, "channels": 6, "size": 16}
SETTINGS: dict[str, Any] = {
    "target": TARGET,
    "space": {"arguments": {"channels": 2}},
    "images": {"source": "tiles", "num_images": 16},
    "untrained": {"batch_size": 4},
    "threads": 1,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return nni_cssnas.screen(config=SETTINGS, num=3, workers=1, output=tmp_path_factory.mktemp("target") / "out")


def test_the_search_scores_that_depth(found: Any) -> None:
    config = ProxyConfig(**SETTINGS)
    space = config.scored_space.arguments
    assert (space["num_cells"], space["channels"]) == (4, 2)
    from nni_cssnas.scores.cost import num_parameters
    from nni_cssnas.spaces.network import CellNetwork

    assert found.best.genotype is not None
    scored = CellNetwork(found.best.genotype, 4, 2)
    assert found.best.measures["params"] == num_parameters(scored)


def test_it_is_written_beside_the_cells_and_read_again(found: Any) -> None:
    path = found.folder / "genotype.json"
    assert json.loads(path.read_text())["target"] == {"num_cells": 4, "channels": 6, "stem": "cifar", "size": 16}
    for item in (path, found.folder):
        assert read_architecture(str(item)).target == TargetConfig(**TARGET)
    # The file is a genotype as before, and two architectures differ by their cells alone.
    assert Genotype.parse(path.read_text()) == found.best.genotype
    assert read_architecture(str(path)) == found.best.architecture
    assert read_architecture(str(path)).to_dict() == {"genotype": found.best.genotype.to_dict()}


def record_of(cells: dict[str, Any], config: dict[str, Any]) -> TrialRecord:
    return TrialRecord(
        experiment="abc",
        trial="t",
        sequence=0,
        parameter_id=None,
        parameters={"a": "b"},
        status="succeeded",
        started=0.0,
        duration=1.0,
        score=1.0,
        genotype=cells,
        config=config,
    )


def test_the_record_of_a_trial_carries_it(tmp_path: Path) -> None:
    cells = NAMED_GENOTYPES["DARTS_V2"].to_dict()
    config = ProxyConfig(**SETTINGS).model_dump(mode="json")
    record = record_of(cells, config)
    path = export_best(record, tmp_path).architecture
    assert read_architecture(str(path)).target == TargetConfig(**TARGET)
    from nni_cssnas.search.result import SearchResult

    assert SearchResult.of_records([record]).best.architecture.target == TargetConfig(**TARGET)
    plain = record_of(cells, {})
    assert json.loads(export_best(plain, tmp_path / "plain").architecture.read_text()) == cells
    assert SearchResult.of_records([plain]).best.architecture.target is None


def test_training_takes_it_unless_told_otherwise(found: Any) -> None:
    best = found.best.architecture
    for recipe in ("cifar10", "folder"):
        config = recipe_of(recipe, {}, best)
        assert (config.num_cells, config.channels, config.size, config.stem) == (4, 6, 16, "cifar")
    config = recipe_of("folder", {"num_cells": 5, "channels": None}, best)
    assert (config.num_cells, config.channels) == (5, 6)
    config = recipe_of("imagenet", {}, read_architecture("DARTS_V2"))
    assert (config.num_cells, config.channels) == (14, 48)


def test_export_builds_it(found: Any, tmp_path: Path) -> None:
    exported = nni_cssnas.export(found.best, tmp_path / "network.pth", classes=3)
    from nni_cssnas.scores.cost import num_parameters

    assert exported.params == num_parameters(found.best.architecture.build(3, num_cells=4, channels=6))
    shallower = nni_cssnas.export(found.folder, tmp_path / "shallow.pth", classes=3, cells=3)
    assert shallower.params == num_parameters(found.best.architecture.build(3, num_cells=3, channels=6))


@pytest.mark.slow
def test_compare_gives_all_of_them_that_depth(found: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "l.npz", images=rng.integers(0, 255, (24, 16, 16, 3), dtype=np.uint8), labels=np.arange(24) % 2)
    who: list[Any] = []
    settings = {"epochs": 1, "batch_size": 8, "auxiliary_weight": 0, "cutout": 0}
    nni_cssnas.compare(
        [found.best],
        tmp_path / "l.npz",
        output=tmp_path / "compared",
        random=1,
        baselines=(),
        seeds=1,
        workers=1,
        on_contestants=who.extend,
        **settings,
    )
    from nni_cssnas.scores.cost import num_parameters

    assert who[0].params == num_parameters(found.best.architecture.build(2, num_cells=4, channels=6))
    other = json.loads((found.folder / "genotype.json").read_text()) | {"target": {"num_cells": 5}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="searches for different networks"):
        nni_cssnas.compare([found.best, tmp_path / "other.json"], tmp_path / "l.npz", **settings)


def test_a_target_in_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps(NAMED_GENOTYPES["DARTS_V2"].to_dict() | {"target": {"cells": 20}}))
    with pytest.raises(GenotypeError, match=r"genotype\.json: target: unknown key 'cells'"):
        read_architecture(str(path))
    path.write_text(json.dumps(NAMED_GENOTYPES["DARTS_V2"].to_dict() | {"target": 20}))
    with pytest.raises(GenotypeError, match=r"genotype\.json: target: .*mapping"):
        read_architecture(str(path))


def test_init_writes_what_its_recipe_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nni_cssnas.bridge.scaffold import Scaffold

    monkeypatch.setattr("nni_cssnas.judge.proxy.Proxy.rehearse", lambda self, on_stage, candidate: None)
    monkeypatch.setattr(
        Scaffold, "check", lambda self: type("Result", (), {"components": {"params": 1.0, "macs": 1.0}})
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    for arguments, target in (
        ([], {"num_cells": 20, "channels": 36, "stem": "cifar", "size": 32}),
        (["--recipe", "imagenet"], {"num_cells": 14, "channels": 48, "stem": "imagenet", "size": 224}),
        (["--images", str(photos)], {"num_cells": 8, "channels": 24, "stem": "cifar", "size": 64}),
    ):
        done = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--force", *arguments])
        assert done.exit_code == 0, done.output
        assert yaml.safe_load((tmp_path / "new" / "proxy.yml").read_text())["target"] == target
    done = CliRunner().invoke(
        app, ["init", str(tmp_path / "hub"), "--space", "nni.nas.hub.pytorch:DARTS", "-r", "folder"]
    )
    assert isinstance(done.exception, ConfigError)
    assert "leave it out" in str(done.exception)


def test_screen_takes_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ProxyConfig] = []
    monkeypatch.setattr("nni_cssnas.search.screen.screen", lambda config, **others: asked.append(config))
    photos = tmp_path / "photos"
    photos.mkdir()
    folder = TargetConfig(num_cells=8, channels=24, size=64)
    for arguments, target in (
        ({}, None),
        ({"images": photos}, folder),
        ({"images": "tiles", "recipe": "folder"}, folder),
        ({"images": photos, "recipe": "imagenet"}, TargetConfig(num_cells=14, channels=48, stem="imagenet", size=224)),
        ({"images": photos, "config": {"target": TARGET}}, TargetConfig(**TARGET)),
        ({"config": {"target": TARGET}, "recipe": "folder"}, folder),
        ({"images": photos, "space": "my_spaces:MySpace"}, None),
    ):
        nni_cssnas.screen(**arguments)  # type: ignore[arg-type]
        assert asked.pop().target == target
    with pytest.raises(ConfigError, match="recipe is 'foldr'"):
        nni_cssnas.screen(photos, recipe="foldr")
    with pytest.raises(ConfigError, match="--recipe is 'folder', but the networks of my_spaces:MySpace"):
        nni_cssnas.screen(photos, recipe="folder", space="my_spaces:MySpace")
