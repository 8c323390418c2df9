"""The committed experiments are valid and in step with the code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from nni_cssnas.config import ProxyConfig
from nni_cssnas.spaces import make_space, search_space

EXPERIMENTS = sorted(path.parent for path in (Path(__file__).parents[1] / "experiments").glob("*/experiment.yml"))


def test_there_are_experiments() -> None:
    assert {"quickstart", "cifar10", "image-folder", "ssh"} <= {folder.name for folder in EXPERIMENTS}


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_search_space_is_what_the_code_says(folder: Path) -> None:
    config = ProxyConfig.load(folder / "proxy.yml")
    committed = json.loads((folder / "search_space.json").read_text())
    assert committed == search_space(make_space(config.space)), f"run: nni-cssnas space {folder}/proxy.yml --force"


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_nni_accepts_the_experiment(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nni.experiment.config import ExperimentConfig

    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").touch()  # which experiments/ssh names
    monkeypatch.setenv("HOME", str(tmp_path))
    config = ExperimentConfig.load(folder / "experiment.yml")
    config.experiment_working_directory = "/tmp"
    config.validate()
    settings = yaml.safe_load((folder / "experiment.yml").read_text())
    assert settings["trialCommand"] == "python -m nni_cssnas.trial proxy.yml"
    assert (folder / "README.md").exists()
