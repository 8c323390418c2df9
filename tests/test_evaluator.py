from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nni_cssnas import CellSpace, ProxyConfig, ProxyEvaluator
from nni_cssnas.errors import ConfigError, DeviceError, DivergenceError, ExperimentError, ImagesError
from nni_cssnas.proxy import candidate_seed
from nni_cssnas.results.records import read_records
from nni_cssnas.spaces import random_parameters

ARGUMENTS = {"num_nodes": 4, "num_cells": 3, "channels": 4}


def config(**values: Any) -> ProxyConfig:
    defaults: dict[str, Any] = {
        "score": "contrastive",
        "space": {"arguments": ARGUMENTS},
        "images": {"num_images": 40},
        "views": {"input_size": 16},
        "contrastive": {"epochs": 2, "batch_size": 16},
    }
    for key, value in values.items():
        defaults[key] = defaults[key] | value if isinstance(defaults.get(key), dict) else value
    return ProxyConfig(**defaults)


def score(settings: ProxyConfig, parameters: dict[str, Any], folder: Path | None = None) -> float:
    space = CellSpace(**ARGUMENTS)
    evaluator = ProxyEvaluator(settings, record_dir=folder)
    return evaluator.run(lambda: space.freeze(parameters), parameters, space).score


@pytest.fixture(scope="module")
def samples() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    space = CellSpace(**ARGUMENTS)
    return [random_parameters(space, rng) for _ in range(3)]


SMALL = {"batch_size": 16, "references": 8}


@pytest.mark.parametrize(
    "values",
    [
        {"score": "contrastive"},
        {"score": "contrastive", "views": {"backend": "lightly"}},
        {"score": "untrained", "untrained": SMALL},
        {"score": "combined", "untrained": SMALL},
    ],
    ids=lambda values: f"{values['score']}-{values.get('views', {}).get('backend', 'batched')}",
)
def test_neither_order_nor_repetition_changes_a_score(samples: list[dict[str, Any]], values: dict[str, Any]) -> None:
    settings = config(**values)
    forward = [score(settings, parameters) for parameters in samples]
    torch.manual_seed(99)
    backward = [score(settings, parameters) for parameters in reversed(samples)]
    assert forward == backward[::-1]
    assert len(set(forward)) == 3


@pytest.mark.slow
def test_another_process_gives_the_same_score(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = config(threads=1)
    torch.set_num_threads(1)
    here = score(settings, samples[0])
    code = (
        "import json, sys; from nni_cssnas import *\n"
        "c, p = ProxyConfig(**json.loads(sys.argv[1])), json.loads(sys.argv[2]); s = CellSpace(**c.space.arguments)\n"
        "print(repr(ProxyEvaluator(c).run(lambda: s.freeze(p), p, s).score))"
    )
    command = [sys.executable, "-c", code, settings.model_dump_json(), json.dumps(samples[0])]
    there = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(there.stdout.split()[-1]) == here


def test_scores_of_untrained_networks_train_nothing(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = config(score="untrained", untrained=SMALL)
    assert score(settings, samples[0], tmp_path) <= 0
    (record,) = read_records(tmp_path)
    assert not record.epoch_losses
    assert set(settings.untrained.weights) | {"params", "macs"} == set(record.components)


def test_combined_scores_have_every_component_and_rank_them_all(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = config(score="combined", untrained=SMALL)
    value = score(settings, samples[0], tmp_path)
    (record,) = read_records(tmp_path)
    assert set(settings.untrained.weights) | {"params", "macs", "loss", "drop"} <= set(record.components)
    # The same from its parts: log-rank sum of the untrained components and of the criterion.
    alone = score(config(score="untrained", untrained=SMALL), samples[0])
    assert value <= alone <= 0
    assert len(record.epoch_losses) == 2


def test_references_are_drawn_once_and_a_damaged_file_is_made_anew(
    samples: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNI_CSSNAS_CACHE", str(tmp_path))
    settings = config(score="untrained", untrained=SMALL)
    first = score(settings, samples[0])
    (path,) = (tmp_path / "references").glob("*.json")
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert score(settings, samples[0]) == first
    assert path.read_text() == text
    stamp = path.stat().st_mtime_ns
    assert score(settings, samples[1]) != first
    assert path.stat().st_mtime_ns == stamp
    assert score(config(score="untrained", untrained=SMALL, seed=1), samples[0]) != first
    assert len(list((tmp_path / "references").glob("*.json"))) == 2


def test_references_that_cannot_be_kept_are_said(
    samples: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(score="untrained", untrained=SMALL)
    kept = score(settings, samples[0])
    monkeypatch.setenv("NNI_CSSNAS_CACHE", str(tmp_path))
    (tmp_path / "references").write_text("not a folder")
    with pytest.warns(UserWarning, match=r"cannot be kept.*NNI_CSSNAS_CACHE"):
        assert score(settings, samples[0]) == kept


def test_the_record_holds_everything(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = config(threads=1)
    value = score(settings, samples[0], tmp_path)
    (record,) = read_records(tmp_path)
    assert record.finished
    assert record.score == value == record.components["drop"]
    assert record.parameters == samples[0]
    assert record.genotype == CellSpace(**ARGUMENTS).genotype_of(samples[0]).to_dict()
    assert record.seed == candidate_seed(settings, samples[0])
    assert len(record.epoch_losses) == 2
    assert ProxyConfig(**record.config) == settings
    assert record.environment["threads"] == 1
    assert {"python", "torch", "nni"} <= record.environment["versions"].keys()
    score(settings, samples[1], tmp_path)
    assert len(read_records(tmp_path)) == 2


@pytest.mark.parametrize("name", ["nni.nas.hub.pytorch:NasBench201", "nni.nas.hub.pytorch:MobileNetV3Space"])
def test_other_spaces_are_scored_too(name: str) -> None:
    from nni_cssnas.spaces import make_space

    size = 32
    settings = config(space={"name": name, "arguments": {}}, views={"input_size": size})
    space = make_space(settings.space)
    sample: dict[str, Any] = {}
    space.random(sample, random_state=np.random.RandomState(0))
    result = ProxyEvaluator(settings).run(lambda: space.freeze(sample), {}, space)
    assert np.isfinite(result.score)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"contrastive": {"batch_size": 64}}, ImagesError, "40"),
        ({"contrastive": {"batch_size": 38}}, ConfigError, "only 36 images to train on"),
        ({"images": {"source": "no/such/folder", "num_images": None}}, ImagesError, "no/such/folder"),
        ({"contrastive": {"lr": 1e30}}, DivergenceError, "lower lr"),
    ],
)
def test_what_is_wrong_is_said_and_recorded(
    values: dict[str, Any], error: type[Exception], message: str, samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        score(config(**values), samples[0], tmp_path)
    (record,) = read_records(tmp_path)
    assert record.status == "failed"
    assert message in (record.error or "")
    (story,) = tmp_path.rglob("error.txt")
    assert message in story.read_text()
    assert json.dumps(samples[0]) in story.read_text()


def test_an_interrupted_evaluation_is_stopped_not_failed(
    samples: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(proxy: Any, model: Any, seed: int, on_epoch: Any) -> None:
        on_epoch(0, 2.5)
        raise KeyboardInterrupt

    monkeypatch.setattr("nni_cssnas.proxy.Proxy.score", interrupt)
    with pytest.raises(KeyboardInterrupt):
        score(config(), samples[0], tmp_path)
    (record,) = read_records(tmp_path)
    assert (record.status, record.error, record.epoch_losses, record.finished) == ("stopped", None, [2.5], False)
    assert record.duration is not None
    assert not list(tmp_path.rglob("error.txt"))


def test_an_unwritable_folder_stops_before_the_work(
    samples: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("nni_cssnas.proxy.load_images", lambda *_, **__: pytest.fail("worked before it looked"))
    with pytest.raises(ExperimentError, match="make the folder writable"):
        score(config(), samples[0], tmp_path / "file")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_before_the_work(samples: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nni_cssnas.proxy.load_images", lambda *_, **__: pytest.fail("worked before it looked"))
    with pytest.raises(DeviceError, match="device: cpu"):
        score(config(device="cuda"), samples[0])


def test_config_may_be_a_file_or_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "proxy.yml"
    path.write_text(yaml.safe_dump({"seed": 3}))
    assert ProxyEvaluator(path).config == ProxyEvaluator({"seed": 3}).config == ProxyConfig(seed=3)
    with pytest.raises(ConfigError, match="give the path"):
        ProxyEvaluator(3)  # type: ignore[arg-type]
