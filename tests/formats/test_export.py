from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from nni_cssnas.cli import app
from nni_cssnas.config import SpaceConfig
from nni_cssnas.errors import ConfigError, ExportError, SpaceError
from nni_cssnas.formats.names import FORMATS
from nni_cssnas.formats.write import export, load_weights
from nni_cssnas.genotype import Cell, Edge, Genotype
from nni_cssnas.spaces import CellNetwork, CellSpace, decode, make_space, random_choices
from nni_cssnas.spaces.architecture import Architecture, read_architecture
from nni_cssnas.training.weights import NetworkShape, Weights

LONG = "CSSNAS_KILLS" in os.environ


def stirred(network: nn.Module, seed: int = 0) -> nn.Module:
    """Norms as after a training: with fresh ones, half of the mistakes would not show."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network


def load(path: Path) -> nn.Module:
    namespace: dict[str, Any] = {"__name__": "exported"}
    exec(path.read_text(), namespace)
    return namespace["Network"]()


def genotypes(encoding: str, number: int) -> Iterator[Genotype]:
    for nodes in (4, 5):
        space = CellSpace(encoding=encoding, num_nodes=nodes, num_cells=3, channels=2)
        rng = np.random.default_rng(nodes)
        for _ in range(number // 2):
            yield space.genotype_of(decode(space, random_choices(space, rng)))


def chain(*operations: str) -> Cell:
    """Node after node, reading only the last input; the first node of three is no output's."""
    nodes = [(Edge(operations[0], 1),)]
    nodes += [(Edge(name, state),) for state, name in enumerate(operations[1:], start=2)]
    return Cell(tuple(nodes), tuple(range(3, 2 + len(nodes))))


ODD = {
    # Everything that a network may leave out: inputs, nodes, cells, the stem, all.
    "one input": Genotype(chain("sep_conv_3x3", "skip_connect", "max_pool_3x3"), chain(*["dil_conv_5x5"] * 3)),
    "dead nodes": Genotype(
        Cell(((Edge("sep_conv_3x3", 0),), (), (Edge("avg_pool_3x3", 2),)), (2, 3, 4)),
        Cell(((Edge("skip_connect", 0),), (Edge("sep_conv_5x5", 1),), ()), (2, 3, 4)),
    ),
    "only the cell before the last": Genotype(
        Cell(((Edge("sep_conv_3x3", 0),), (Edge("skip_connect", 0),)), (2, 3)),
        Cell(((Edge("skip_connect", 0),), (Edge("skip_connect", 0),)), (2, 3)),
    ),
    "disconnected": Genotype(Cell(((), ()), (2, 3)), Cell(((Edge("sep_conv_3x3", 0),), ()), (2, 3))),
    "two concatenations": Genotype(
        Cell(((Edge("sep_conv_3x3", 0),), (Edge("skip_connect", 1),), (Edge("skip_connect", 2),)), (2, 4)),
        Cell(((Edge("sep_conv_3x3", 0),), (Edge("skip_connect", 1),), (Edge("skip_connect", 2),)), (3, 4)),
    ),
}


@pytest.mark.parametrize("encoding", ["two-input", "edge"])
def test_python_gives_the_same_logits(encoding: str, tmp_path: Path) -> None:
    for index, genotype in enumerate(genotypes(encoding, 20 if LONG else 6)):
        network = stirred(CellNetwork(genotype, 5, 4, num_classes=7, auxiliary=index % 2 == 0))
        path = tmp_path / f"{index}.py"
        assert export(network, path, "python").difference < 1e-6
        copy = load(path)
        copy.load_state_dict(network.state_dict())  # the same names, none missing
        images = torch.randn(2, 3, 32, 32)
        for mode in (True, False):  # in training with the auxiliary logits
            for expected, found in zip(network.train(mode)(images), copy.train(mode)(images), strict=True):
                assert torch.equal(expected, found)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", ODD)
def test_what_a_network_leaves_out_is_left_out(name: str, stem: str, tmp_path: Path) -> None:
    for classes in (0, 3):
        network = stirred(CellNetwork(ODD[name], 6, 4, stem=stem, num_classes=classes))
        export(network, tmp_path / "network.py", "python", size=64, force=True)
        copy = load(tmp_path / "network.py")
        copy.load_state_dict(network.state_dict())
        images = torch.randn(2, 3, 64, 64)
        assert torch.equal(network.eval()(images), copy.eval()(images))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["two-input", "edge"])
def test_onnx_gives_the_same_logits(encoding: str, tmp_path: Path) -> None:
    for index, genotype in enumerate(islice(genotypes(encoding, 8), 8 if LONG else 1)):
        network = stirred(CellNetwork(genotype, 3, 2, num_classes=7))
        assert export(network, tmp_path / f"{index}.onnx", "onnx").difference < 1e-4


HUB = {
    "NasBench201": {"stem_out_channels": 8, "num_modules_per_stack": 1},
    "MobileNetV3Space": {},
    "DARTS": {"width": 4, "num_cells": 3, "dataset": "cifar"},
    "ShuffleNetSpace": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("hub", HUB)
def test_other_spaces(hub: str, tmp_path: Path) -> None:
    config = SpaceConfig(name=f"nni.nas.hub.pytorch:{hub}", arguments=HUB[hub])
    size = 64 if hub == "ShuffleNetSpace" else 32
    parameters = random_choices(make_space(config), np.random.default_rng(0))
    network = stirred(Architecture(space=config, choices=parameters).build(5, size=size)).eval()
    for name in ("python", "torchscript", "onnx") if hub in ("NasBench201", "DARTS") or LONG else ("python",):
        assert export(network, tmp_path / f"a{FORMATS[name]}", name, size=size).difference < 1e-4
    copy = load(tmp_path / "a.py").eval()
    copy.load_state_dict(network.state_dict())
    images = torch.randn(3, 3, size, size)
    torch.testing.assert_close(copy(images), network(images))


def test_a_module_needs_only_torch(tmp_path: Path) -> None:
    network = CellNetwork(Genotype.parse("DARTS_V2"), 4, 4, num_classes=3)
    export(network, tmp_path / "network.py", "python", about={"title": 'A "quoted" \\ title', "genotype": '"""'})
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert not name.startswith('nni'), name\n"
        "sys.meta_path.insert(0, Block())\n"
        "import runpy; runpy.run_path('network.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    parameters = sum(weight.numel() for weight in network.parameters())
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{parameters:,} parameters\noutput (2, 3)\n"
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=120", "--select=E,F,I,W", "network.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_torchscript_and_state_dict_load_without_us(tmp_path: Path) -> None:
    network = stirred(CellNetwork(Genotype.parse("DARTS_V2"), 4, 4, num_classes=3)).eval()
    about = {"genotype": "DARTS_V2", "channels": 4}
    images = torch.randn(5, 3, 40, 40)  # another batch and size than what was traced
    export(network, tmp_path / "a.pt", "torchscript", about=about)
    extra = {"about.json": ""}
    assert torch.equal(torch.jit.load(tmp_path / "a.pt", _extra_files=extra)(images), network(images))
    assert json.loads(extra["about.json"]) == about
    export(network, tmp_path / "a.pth", "state-dict", about=about)
    saved = torch.load(tmp_path / "a.pth", weights_only=True)
    assert json.loads(saved["about"]) == about
    other = CellNetwork(Genotype.parse("DARTS_V2"), 4, 4, num_classes=3).eval()
    load_weights(other, tmp_path / "a.pth")
    assert torch.equal(other(images), network(images))


class Follows(nn.Module):
    """Its way depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).mean((2, 3)) if x.sum() > 0 else x.mean((2, 3))


def test_what_cannot_be_followed_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"torch\.fx cannot follow it .* use --format onnx, torchscript or state-dict"):
        export(Follows(), tmp_path / "a.py", "python")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    # Another image takes the other way, which a trace does not know.
    with pytest.raises(ExportError, match="torchscript file differs from the network"):
        export(Switch(), tmp_path / "a.pt", "torchscript")
    assert list(tmp_path.iterdir()) == []


class Switch(nn.Module):
    """Does something else with two images than with three."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * (1.0 if len(x) == 2 else 2.0)


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = CellNetwork(Genotype.parse("DARTS_V2"), 3, 2, num_classes=3)
    path = tmp_path / "network.py"
    path.write_text("mine")
    with pytest.raises(ExportError, match="is there already"):
        export(network, path, "python")
    assert path.read_text() == "mine"
    export(network, path, "python", force=True)
    assert "class Network" in path.read_text()
    with pytest.raises(ConfigError, match=r"format is 'onx'; did you mean 'onnx'"):
        export(network, tmp_path / "a", "onx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install onnx onnxruntime onnxscript"):
        export(network, tmp_path / "a.onnx", "onnx")


def test_weights_of_a_checkpoint(tmp_path: Path) -> None:
    genotype = Genotype.parse("DARTS_V2")
    trained = CellNetwork(genotype, 3, 2, num_classes=3, auxiliary=True)
    state = {f"model.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    network = CellNetwork(genotype, 3, 2, num_classes=3)
    load_weights(network, tmp_path / "last.ckpt")
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in network.state_dict().items())
    with pytest.raises(ExportError, match=r"classifier\.weight has shape \[3, 32\], the network needs \[5, 32\]"):
        load_weights(CellNetwork(genotype, 3, 2, num_classes=5), tmp_path / "last.ckpt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ExportError, match="holds no plain weights"):
        load_weights(network, tmp_path / "text.pt")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--cells", "3", "--channels", "2", "--classes", "4", "--seed", "1"]
    command = ["export", "DARTS_V2", "-f", "python", "-f", "state-dict", "-o", "out/net", *small]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "parameters" in done.output
    copy = load(tmp_path / "out" / "net.py").eval()
    copy.load_state_dict(torch.load(tmp_path / "out" / "net.pth", weights_only=True)["state_dict"])
    torch.manual_seed(1)
    network = read_architecture("DARTS_V2").build(4, num_cells=3, channels=2).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(copy(images), network(images))
    with pytest.raises(ExportError, match="is there already"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"--format is 'pyton'; did you mean 'python'"):
        CliRunner().invoke(app, ["export", "DARTS_V2", "-f", "pyton"], catch_exceptions=False)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Weights as `retrain` writes them: a sample of another space, with a class whose folder's name is not UTF-8."""
    home = SpaceConfig(
        name="nni.nas.hub.pytorch:NasBench201", arguments={"stem_out_channels": 4, "num_modules_per_stack": 1}
    )
    parameters = random_choices(make_space(home), np.random.default_rng(1))
    (tmp_path / "sample.json").write_text(json.dumps(parameters))
    architecture, shape = Architecture(space=home, choices=parameters), NetworkShape(4, 16, 5, 8, "cifar")
    torch.manual_seed(3)
    state = stirred(shape.build(architecture)).state_dict()
    names = ("a", "b", "c", os.fsdecode(b"caf\xe9"))
    Weights(architecture, shape, state, (0.5,) * 3, (0.25,) * 3, names).write(tmp_path / "best.pt")
    return tmp_path


OWN = ["--space", "nni.nas.hub.pytorch:NasBench201", "--arguments", "{stem_out_channels: 4, num_modules_per_stack: 1}"]


@pytest.mark.parametrize("named", [True, False])
def test_weights_know_their_network(trained: Path, named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    space = [*OWN, "--sample", "sample.json"] if named else []
    formats = ["-f", "python", "-f", "state-dict", "-f", "torchscript"]
    done = CliRunner().invoke(
        app, ["export", "--weights", "best.pt", *space, *formats, "-o", "net"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    weights = Weights.read(trained / "best.pt")
    images = torch.randn(2, 3, 16, 16)
    copy = load(trained / "net.py").eval()
    copy.load_state_dict(weights.state)
    torch.testing.assert_close(copy(images), weights.network()(images))
    assert copy(images).shape == (2, 4)
    # The name that is not UTF-8 is written escaped, in files that are.
    assert "class names: a, b, c, caf" + "\\" * 2 + "xe9" in (trained / "net.py").read_text(encoding="utf-8")
    about = json.loads(torch.load(trained / "net.pth", weights_only=True)["about"])
    assert about["class names"] == r"a, b, c, caf\xe9"
    assert about["image size"] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "10"], r"--classes is 10, but best\.pt holds weights of 4; leave --classes out"),
        (["--size", "32"], r"--size is 32, but best\.pt holds weights of 16"),
        (["--stem", "imagenet"], r"--stem is 'imagenet', but best\.pt holds weights of 'cifar'"),
        (["DARTS_V2"], r"best\.pt holds weights of another architecture than the one given"),
    ],
)
def test_what_contradicts_the_weights_is_refused(
    trained: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, ["export", "--weights", "best.pt", *options, "-o", "net"], catch_exceptions=False)
    assert not (trained / "net.py").exists()


def test_torchs_advice_to_run_code_is_not_repeated(tmp_path: Path) -> None:
    torch.save(Path("x"), tmp_path / "object.pt")
    network = CellNetwork(Genotype.parse("DARTS_V2"), 3, 2, num_classes=3)
    for path, said in ((tmp_path / "object.pt", "holds no plain weights"), (tmp_path / "absent.pt", "No such file")):
        with pytest.raises(ExportError, match=said) as caught:
            load_weights(network, path)
        assert "weights_only" not in str(caught.value)
        assert "\n" not in str(caught.value)
