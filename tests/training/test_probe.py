from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from nni_cssnas.cli import app
from nni_cssnas.errors import CheckpointError, ConfigError
from nni_cssnas.images.labelled import LabelledImages
from nni_cssnas.spaces.architecture import read_architecture
from nni_cssnas.training.config import RetrainConfig
from nni_cssnas.training.pretrain import features_network, pretrain
from nni_cssnas.training.probe import knn_accuracy, linear_accuracy, probe, untrained
from nni_cssnas.training.weights import Weights

from .conftest import SMALL


def test_nearest_neighbours_against_a_loop() -> None:
    torch.manual_seed(0)
    labels, truth = torch.randint(0, 4, (60,)), torch.randint(0, 4, (25,))
    bank, queries = torch.randn(60, 8) + labels[:, None], torch.randn(25, 8) + truth[:, None]
    right = 0
    for query, expected in zip(queries, truth, strict=True):
        cosines = [float(query @ item / (query.norm() * item.norm())) for item in bank]
        votes = dict.fromkeys(range(4), 0.0)
        for index in sorted(range(60), key=lambda index: -cosines[index])[:7]:
            votes[int(labels[index])] += torch.exp(torch.tensor(cosines[index] / 0.1)).item()
        right += max(votes, key=lambda name: votes[name]) == int(expected)
    assert knn_accuracy(bank, labels, queries, truth, 4, neighbours=7) == pytest.approx(right / 25)
    assert 0 < right < 25
    # More neighbours than there are is all of them.
    everyone = knn_accuracy(bank, labels, queries, truth, 4, neighbours=60)
    assert knn_accuracy(bank, labels, queries, truth, 4, neighbours=1000) == everyone


def test_linear_classifier_against_sklearn() -> None:
    torch.manual_seed(0)
    labels, truth = torch.randint(0, 3, (80,)), torch.randint(0, 3, (40,))
    bank, queries = torch.randn(80, 5) + labels[:, None], torch.randn(40, 5) + truth[:, None]
    mean, std = bank.mean(0), bank.std(0, correction=0)
    model = LogisticRegression(max_iter=500).fit(((bank - mean) / std).numpy(), labels.numpy())
    expected = model.score(((queries - mean) / std).numpy(), truth.numpy())
    assert linear_accuracy(bank, labels, queries, truth) == pytest.approx(expected, abs=0.026)


def test_features_of_a_network(data: LabelledImages, small: RetrainConfig) -> None:
    weights = untrained(features_network(read_architecture("DARTS_V2"), small), data, small)
    result = probe(weights, data, small)
    assert result.num_features == 32
    assert 0.4 < result.linear <= 1  # classes are tints: even a random network tells them
    assert result == probe(weights, data, small)
    with pytest.raises(ConfigError, match=r"weights are of a network for images of 16 pixels, but size is 8"):
        probe(weights, LabelledImages(data.classes, data.train, data.val, 8), small)


def test_contrastive_training_goes_on_where_it_was_stopped(
    data: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RetrainConfig(**SMALL, pretrain="contrastive", contrastive={"epochs": 3, "batch_size": 32})
    architecture = read_architecture("DARTS_V2")
    whole: list[float] = []
    (tmp_path / "whole").mkdir()
    expected = pretrain(
        architecture, config, data.unlabelled(), tmp_path / "whole", on_epoch=lambda _, x: whole.append(x)
    )

    class StoppedError(Exception):
        pass

    def stop(epoch: int, loss: float) -> None:
        parts.append(loss)
        if epoch == 1 and not resumed:
            raise StoppedError

    parts: list[float] = []
    resumed = False
    (tmp_path / "parts").mkdir()
    with pytest.raises(StoppedError):
        pretrain(architecture, config, data.unlabelled(), tmp_path / "parts", on_epoch=stop)
    resumed = True
    found = pretrain(architecture, config, data.unlabelled(), tmp_path / "parts", on_epoch=stop)
    assert parts == pytest.approx(whole)
    assert all(torch.equal(value, expected.state[name]) for name, value in found.state.items())
    again = pretrain(architecture, config, data.unlabelled(), tmp_path / "parts", on_epoch=stop)
    assert len(parts) == 3  # nothing was repeated
    assert all(torch.equal(value, again.state[name]) for name, value in found.state.items())


def test_the_command(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shape = ["-d", "data.npz", "--channels", "2", "--cells", "3", "--size", "16", "--set", "validation=0.25"]
    command = ["probe", "DARTS_V2", *shape, "--pretrain-epochs", "1", "--set", "contrastive.batch_size=32"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "probed" / "probe.json").read_text())
    assert f"features: k-NN {content['features']['knn']:.2%}" in done.output
    assert f"untrained: k-NN {content['untrained']['knn']:.2%}" in done.output
    with pytest.raises(ConfigError, match=r"probe\.json is there already"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    # The weights that this left know their network.
    loaded = ["probe", "--weights", "probed/pretrained.pt", "-d", "data.npz", "--set", "validation=0.25", "-o", "again"]
    done = CliRunner().invoke(app, loaded, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "again" / "probe.json").read_text())["features"] == content["features"]
    with pytest.raises(ConfigError, match="give either --weights"):
        CliRunner().invoke(app, ["probe", "-d", "data.npz", "-o", "none"], catch_exceptions=False)
    (tmp_path / "probed" / "pretrained.pt").write_bytes(b"PK" + bytes(100))
    with pytest.raises(CheckpointError, match="damaged"):
        Weights.read(tmp_path / "probed" / "pretrained.pt")
