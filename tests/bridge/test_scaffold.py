from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from nni_cssnas.bridge.rehearsal import rehearse
from nni_cssnas.cli import app
from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import CssnasError
from nni_cssnas.spaces import make_space, search_space

SPACE = """
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn


class Tiny(ModelSpace):
    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(
            LayerChoice([nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 5, padding=2)], label="kernel"),
            LayerChoice([nn.ReLU(), nn.Identity()], label="activation"),
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def broken():
    raise RuntimeError("never")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "tiny_space", raising=False)
    (tmp_path / "tiny_space.py").write_text(SPACE)
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(70):
        Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(tmp_path / f"pictures/{number}.png")
    return tmp_path


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["init", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_a_space_of_the_users_own_becomes_an_experiment(here: Path) -> None:
    output = call(
        *("experiment", "--space", "tiny_space:Tiny", "--arguments", "{width: 6}", "--images", "pictures"),
        *("--trials", "7", "--seed", "3"),
    )
    folder = here / "experiment"
    assert f"nni-cssnas run {Path('experiment') / 'experiment.yml'}" in output
    assert "a random architecture of tiny_space:Tiny was scored" in output
    experiment = yaml.safe_load((folder / "experiment.yml").read_text())
    assert experiment["maxTrialNumber"] == 7
    assert (folder / "tiny_space.py").read_text() == SPACE
    config = ProxyConfig.load(folder / "proxy.yml")
    assert config.space.arguments == {"width": 6}
    assert Path(config.images.source) == here / "pictures"
    # 70 pictures: fewer than the preset takes at most, and no other number is written down.
    assert config.images.max_images == 576
    assert set(yaml.safe_load((folder / "proxy.yml").read_text())["images"]) <= {"source", "size"}
    assert json.loads((folder / "search_space.json").read_text()) == search_space(make_space(config.space))
    # What nnictl would start, in the folder where it would start it.
    command = [sys.executable, "-m", "nni_cssnas.trial", "proxy.yml"]
    (folder / "proxy.yml").write_text((folder / "proxy.yml").read_text())
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert "score:" in done.stdout


def test_the_projects_own_space_from_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An editable install lies below the working folder there, and is no module to copy.
    monkeypatch.chdir(Path(__file__).parents[2])
    output = call(str(tmp_path / "experiment"), "--trials", "3")
    assert "a random architecture of nni_cssnas.spaces:CellSpace was scored" in output
    names = {path.name for path in (tmp_path / "experiment").iterdir()}
    assert names == {"experiment.yml", "search_space.json", "proxy.yml", "README.md"}


@pytest.mark.slow
def test_constraints_of_a_space_are_the_tuners_to_check(here: Path) -> None:
    small = "{stem_out_channels: 8, num_modules_per_stack: 1}"
    call("experiment", "--space", "nni.nas.hub.pytorch:NasBench101", "--size", "32", "--arguments", small)
    tuner = yaml.safe_load((here / "experiment" / "experiment.yml").read_text())["tuner"]
    assert tuner["classArgs"] == {"seed": 0, "constraints": {}}


def test_nothing_is_overwritten(here: Path) -> None:
    arguments = ["experiment", "--space", "tiny_space:Tiny", "--images", "pictures"]
    call(*arguments)
    call(*arguments)  # the same again
    (here / "experiment" / "experiment.yml").write_text("mine")
    with pytest.raises(CssnasError, match=r"experiment\.yml is there with other contents.*--force"):
        call(*arguments)
    assert (here / "experiment" / "experiment.yml").read_text() == "mine"
    call(*arguments, "--force")
    assert "searchSpaceFile" in (here / "experiment" / "experiment.yml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "tiny_spaces:Tiny"], "cannot import module 'tiny_spaces'"),
        (["--space", "tiny_space:Tinny"], "did you mean 'Tiny'"),
        (["--space", "tiny_space:Tiny", "--arguments", "[1]"], "must be a mapping"),
        (["--space", "tiny_space:Tiny", "--images", "photos"], "no such folder or file"),
        (["--space", "tiny_space:Tiny", "--score", "untraind"], "did you mean 'untrained'"),
        (["--space", "a_package.inside:Tiny"], "install it"),
    ],
)
def test_mistakes_leave_nothing_behind(here: Path, arguments: list[str], message: str) -> None:
    (here / "a_package").mkdir()
    (here / "a_package" / "__init__.py").touch()
    (here / "a_package" / "inside.py").write_text(SPACE)
    with pytest.raises(CssnasError, match=message):
        call("experiment", *arguments)
    assert not (here / "experiment").exists()


def test_limits_become_the_tuners_constraints_and_are_checked(here: Path) -> None:
    call("limited", "--images", "pictures", "--recipe", "folder", "--max-params", "400000", "--max-macs", "300000000")
    tuner = yaml.safe_load((here / "limited" / "experiment.yml").read_text())["tuner"]
    assert tuner["classArgs"]["constraints"] == {"max_params": 400000, "max_macs": 300000000}
    # The network that will be trained: 8 cells of 24 channels.
    with pytest.raises(CssnasError, match=r"max_params is 5,000, but the smallest .* \(8 cells, 24 channels, without"):
        call("other", "--images", "pictures", "--max-params", "5000")
    assert not (here / "other").exists()
    path = here / "limited" / "experiment.yml"
    path.write_text(path.read_text().replace("400000", "4000"))
    with pytest.raises(CssnasError, match=r"max_params is 4,000, but the smallest"):
        rehearse(path)
    # A space without cells is built: 24 parameters in the stem alone.
    with pytest.raises(
        CssnasError, match=r"max_params is 10, but the smallest network of tiny_space:Tiny .* 60 found has"
    ):
        call("tiny", "--space", "tiny_space:Tiny", "--images", "pictures", "--max-params", "10")
