"""The verbs: what the commands do, from Python, without printing."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nni_cssnas
from nni_cssnas import verbs
from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError, CssnasError, ExperimentError, ExportError, GenotypeError
from nni_cssnas.genotype import Genotype
from nni_cssnas.results.records import TrialRecord
from nni_cssnas.search.screen import Step

VERBS = ("best", "compare", "export", "probe", "report", "retrain", "run", "screen")
SETTINGS: dict[str, Any] = {
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "images": {"source": "tiles", "num_images": 64},
    "untrained": {"batch_size": 8},
    "threads": 1,
}
SMALL: dict[str, Any] = {
    "channels": 2,
    "num_cells": 3,
    "epochs": 1,
    "batch_size": 16,
    "size": 16,
    "auxiliary_weight": 0,
    "cutout": 4,
}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 16)
    images = rng.integers(0, 255, (48, 16, 16, 3), dtype=np.uint8)
    images[np.arange(48), :, :, labels] //= 4
    path = tmp_path / "labelled.npz"
    np.savez(path, images=images, labels=labels, classes=np.array(["a", "b", "c"]))
    return path


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_of_the_package_and_documented(name: str) -> None:
    verb = getattr(nni_cssnas, name)
    assert verb is getattr(verbs, name)
    assert name in nni_cssnas.__all__
    assert name in dir(nni_cssnas)
    text = inspect.getdoc(verb) or ""
    for argument in inspect.signature(verb).parameters:
        assert argument in text, argument
    assert "Raises" in text


def test_importing_the_package_does_not_hide_a_verb() -> None:
    code = (
        "import nni_cssnas, importlib, pkgutil\n"
        "for item in pkgutil.iter_modules(nni_cssnas.__path__): importlib.import_module(f'nni_cssnas.{item.name}')\n"
        f"print(all(callable(getattr(nni_cssnas, name)) for name in {VERBS}))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.slow
def test_from_images_to_a_trained_network(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stages: list[Step] = []
    found = nni_cssnas.screen(config=SETTINGS, num=6, seed=0, workers=1, on_step=stages.append)
    assert found.best.score == max(item.score for item in found.found)
    assert [row["rank"] for row in found.table] == list(range(1, 7))
    assert {"score", "params", "macs", "normal_2_first"} <= found.table[0].keys()
    assert found.front[0].score == found.best.score
    assert [item.measures["params"] for item in found.front] == sorted(
        (item.measures["params"] for item in found.front), reverse=True
    )
    assert (found.folder, found.files, found.interrupted) == (None, (), False)
    assert {step.stage for step in stages} == {"images", "screening"}
    assert list(tmp_path.iterdir()) == [labelled]  # nothing is written unless a folder is named
    assert [path.suffix for path in found.best.draw(tmp_path / "cell.svg")] == [".svg", ".png"]

    rows: list[dict[str, float]] = []
    trained = nni_cssnas.retrain(found.best, labelled, recipe="folder", output="run", on_epoch=rows.append, **SMALL)
    assert len(rows) == 1
    assert trained.final_top1 == rows[0]["val_top1"]
    network = trained.network()
    assert not network.training
    images = torch.rand(2, 3, 16, 16)
    logits = network(images)
    assert logits.shape == (2, 3)

    written = nni_cssnas.export(trained, "network.pt")
    assert written.params == sum(weight.numel() for weight in network.parameters())
    torch.testing.assert_close(torch.jit.load(written.path)(images), logits)
    probed = nni_cssnas.probe(data=labelled, weights="run/best.pt", neighbours=5, **SMALL)
    assert 0 <= probed.features.knn <= 1
    assert probed.untrained is not None
    assert probed.path is None
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_compare_gives_its_verdicts(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained: list[str] = []
    result = nni_cssnas.compare(
        ["PC-DARTS", Genotype.parse("DARTS_V1")],
        labelled,
        recipe="folder",
        output=tmp_path / "compared",
        random=1,
        seeds=1,
        workers=1,
        tolerance=0.9,
        on_training=lambda run: trained.append(run.name),
        **SMALL,
    )
    assert sorted(trained) == ["DARTS_V2", "found-1", "found-2", "random-1"]
    assert [group.name for group in result.groups] == ["found", "random", "DARTS_V2"]
    assert len(result.verdicts) == 2
    assert result.caveat is not None
    assert json.loads((tmp_path / "compared" / "compare.json").read_text())["caveat"] == result.caveat
    assert all(path.is_file() for path in result.files)
    assert capsys.readouterr().out == ""


def test_what_an_experiment_has_found(tmp_path: Path) -> None:
    config = ProxyConfig(space={"name": "my_spaces:Space"}).model_dump(mode="json")
    for number, (status, score) in enumerate([("succeeded", 1.0), ("succeeded", 3.0), ("failed", None)]):
        record = TrialRecord(
            "exp", f"t{number}", number, number, {"width": number}, status=status, score=score, config=config
        )
        record.components = {"params": 10.0 * number}
        record.write(tmp_path / f"t{number}")
    found = nni_cssnas.best(tmp_path)
    assert [(item.rank, item.trial, item.score) for item in found.found] == [(1, 1, 3.0), (2, 0, 1.0)]
    assert found.best.architecture.to_dict()["parameters"] == {"width": 1}
    assert found.best.space.name == "my_spaces:Space"
    assert [item.trial for item in found.front] == [1, 0]
    with pytest.raises(ExperimentError, match="has no cells that could be drawn"):
        found.best.draw(tmp_path / "cell")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: nni_cssnas.screen(minutes=0), ConfigError, "--minutes is 0; it must be more than 0"),
        (lambda: nni_cssnas.screen(config={"epochs": 1}), ConfigError, "unknown key 'epochs'"),
        (lambda: nni_cssnas.screen(config="nowhere.yml"), ConfigError, "cannot read nowhere.yml"),
        (lambda: nni_cssnas.run("nowhere.yml"), ConfigError, "cannot read nowhere.yml"),
        (lambda: nni_cssnas.best("no_such_one"), ExperimentError, "there is no experiment 'no_such_one'"),
        (lambda: nni_cssnas.report("no_such_one"), ExperimentError, "there is no experiment 'no_such_one'"),
        (lambda: nni_cssnas.retrain(3, "x"), ConfigError, "an architecture is given as int; give what a search found"),
        (lambda: nni_cssnas.retrain("NO_NAME", "x"), GenotypeError, "NO_NAME"),
        (lambda: nni_cssnas.retrain("DARTS_V2", epoch=3), ConfigError, "unknown key 'epoch'.*epochs"),
        (lambda: nni_cssnas.retrain("DARTS_V2", unlabelled="x"), ConfigError, "which only --pretrain contrastive uses"),
        (lambda: nni_cssnas.probe(), ConfigError, "give either --weights, or the architecture"),
        (lambda: nni_cssnas.probe("DARTS_V2", pretrain_epochs=2), ConfigError, "name a folder for that training"),
        (lambda: nni_cssnas.compare([]), ConfigError, "needs at least one architecture"),
        (lambda: nni_cssnas.export("DARTS_V2", "network"), ConfigError, "give it one of the endings .py, .onnx"),
        (lambda: nni_cssnas.export("DARTS_V2", "n.py", format="pyton"), ConfigError, "did you mean 'python'"),
        (lambda: nni_cssnas.export(None, "network.py"), ConfigError, "give what to export"),
        (lambda: nni_cssnas.export("DARTS_V2", __file__), ExportError, "is there already"),
    ],
)
def test_mistakes_are_one_line(call: Any, kind: type[CssnasError], message: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_the_commands_answer_in_json(tmp_path: Path) -> None:
    (tmp_path / "proxy.yml").write_text(json.dumps(SETTINGS))
    command = [sys.executable, "-W", "ignore", "-m", "nni_cssnas.cli", "screen", "proxy.yml", "-n", "3", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["best"][0]["rank"] == 1
    assert not answer["interrupted"]
    assert "best of 3 architectures" in done.stderr
    version = subprocess.run(
        [sys.executable, "-m", "nni_cssnas.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert version.stdout == f"nni-cssnas {nni_cssnas.__version__}\n"
