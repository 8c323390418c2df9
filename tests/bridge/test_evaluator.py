from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from nni_cssnas import CellSpace, ProxyConfig, ProxyEvaluator
from nni_cssnas.errors import ConfigError, DeviceError, DivergenceError, ExperimentError, ImagesError, SpaceError
from nni_cssnas.judge.proxy import Proxy, candidate_seed
from nni_cssnas.results import records
from nni_cssnas.results.carried import found_in_metric, found_in_output
from nni_cssnas.results.records import TrialRecord, read_records
from nni_cssnas.scores.combine import DEAD
from nni_cssnas.spaces import random_choices
from nni_cssnas.spaces.network import CellNetwork

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
    return evaluator.run(lambda: space.freeze(parameters), parameters).score


@pytest.fixture(scope="module")
def samples() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    space = CellSpace(**ARGUMENTS)
    return [random_choices(space, rng) for _ in range(3)]


SMALL = {"batch_size": 16}


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
        "print(repr(ProxyEvaluator(c).run(lambda: s.freeze(p), p).score))"
    )
    command = [sys.executable, "-c", code, settings.model_dump_json(), json.dumps(samples[0])]
    there = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(there.stdout.split()[-1]) == here


def test_scores_of_untrained_networks_train_nothing(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = config(score="untrained", untrained=SMALL)
    assert score(settings, samples[0], tmp_path) > DEAD
    (record,) = read_records(tmp_path)
    assert not record.epoch_losses
    assert set(settings.untrained.weights) | {"params", "macs"} == set(record.components)


def test_a_combined_score_is_the_sum_of_both(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = config(score="combined", untrained=SMALL | {"criterion_weight": 3.0})
    value = score(settings, samples[0], tmp_path)
    (record,) = read_records(tmp_path)
    assert set(settings.untrained.weights) | {"params", "macs", "loss", "drop"} <= set(record.components)
    alone = score(config(score="untrained", untrained=SMALL), samples[0])
    trained = score(config(), samples[0])
    assert value == pytest.approx(alone + 3 * trained, rel=1e-12)
    assert len(record.epoch_losses) == 2


@pytest.mark.parametrize("kind", ["contrastive", "untrained"])
def test_all_trials_of_an_experiment_have_the_same_images(
    kind: str, samples: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(40):
        Image.new("RGB", (16, 16), (number, number, number)).save(photos / f"{number}.png")
    settings = config(score=kind, images={"source": str(photos), "num_images": None}, untrained=SMALL)

    def trial(name: str, settings: ProxyConfig = settings) -> float:
        monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path / "trials" / name))
        return score(settings, samples[0])

    first = trial("a")
    assert trial("b") == first
    (photos / "3.png").rename(tmp_path / "3.png")
    with pytest.raises(
        ImagesError, match=r"the 39 images of '.*photos' are not those .* \(40 images\).*; restore them"
    ):
        trial("c")
    (tmp_path / "3.png").rename(photos / "3.png")
    assert trial("d") == first
    # A trial that NNI runs again, as after its manager was killed, keeps the record that it has finished with.
    record = tmp_path / "trials" / "d" / "record.json"
    whole = record.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Proxy, "prepare", lambda self: pytest.fail("evaluated again"))
        assert trial("d") == first
        assert record.read_bytes() == whole
    other = score(settings, samples[1])
    assert (other != first, json.loads(record.read_text())["score"]) == (True, other)  # but no other one's
    # Damaged, it is written anew; outside of an experiment nothing is compared.
    (tmp_path / "trials" / "images.txt").write_bytes(b"\xff")
    assert trial("e") == first
    assert sorted(record.status for record in read_records(tmp_path)) == ["failed", *["succeeded"] * 4]


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
    result = ProxyEvaluator(settings).run(lambda: space.freeze(sample), {})
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

    monkeypatch.setattr("nni_cssnas.judge.proxy.Proxy.score", interrupt)
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
    monkeypatch.setattr("nni_cssnas.judge.proxy.load_images", lambda *_, **__: pytest.fail("worked before it looked"))
    with pytest.raises(ExperimentError, match="make the folder writable"):
        score(config(), samples[0], tmp_path / "file")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_before_the_work(samples: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nni_cssnas.judge.proxy.load_images", lambda *_, **__: pytest.fail("worked before it looked"))
    with pytest.raises(DeviceError, match="device: cpu"):
        score(config(device="cuda"), samples[0])


def test_config_may_be_a_file_or_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "proxy.yml"
    path.write_text(yaml.safe_dump({"seed": 3}))
    assert ProxyEvaluator(path).config == ProxyEvaluator({"seed": 3}).config == ProxyConfig(seed=3)
    with pytest.raises(ConfigError, match="give the path"):
        ProxyEvaluator(3)  # type: ignore[arg-type]


def test_a_network_of_ones_own_is_judged_as_a_copy() -> None:
    network = torchvision.models.resnet18(num_classes=7)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert np.isfinite(ProxyEvaluator(config(views={"input_size": 32})).evaluate(network))
    assert network.fc.out_features == 7
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_network_that_cannot_be_copied_is_not_judged() -> None:
    class Stubborn(torch.nn.Module):
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("no")

    with pytest.raises(SpaceError, match=r"a Stubborn, cannot be copied \(no\).* run\(build, parameters\)"):
        ProxyEvaluator(config()).evaluate(Stubborn())


def test_a_choice_in_the_place_of_a_setting_is_refused() -> None:
    choice = nni.choice("where", ["a", "b"])
    with pytest.raises(ConfigError, match=r"record_dir is the choice Categorical.* choices belong in the model space"):
        ProxyEvaluator({"seed": 1}, record_dir=choice)
    with pytest.raises(ConfigError, match="config is the choice"):
        ProxyEvaluator(choice)
    with pytest.raises(ConfigError, match="seed"):
        ProxyEvaluator({"seed": nni.choice("seed", [1, 2])})


def test_nni_is_told_the_score_and_the_costs(samples: list[dict[str, Any]]) -> None:
    space = CellSpace(**ARGUMENTS)
    evaluator = ProxyEvaluator(config(score="combined", untrained=SMALL))
    result = evaluator.run(lambda: space.freeze(samples[0]), samples[0])
    assert list(result.metric()) == ["default", "params", "macs"]
    assert {"loss", "depth", "macs"} <= result.components.keys()


def test_nni_is_told_what_the_tuner_asks_for(
    samples: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, float]] = []
    objectives = {"score": "maximize", "latency_ms": "minimize", "effective_macs": "minimize"}
    monkeypatch.setattr("nni_cssnas.bridge.pairing.tuner_arguments", lambda: {"objectives": objectives})
    monkeypatch.setattr("nni_cssnas.bridge.evaluator._inside_nni", lambda: True)
    monkeypatch.setattr("nni.report_final_result", told.append)
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path / "trial"))
    target = {"num_cells": 4, "channels": 12, "size": 16}
    settings = config(score="untrained", untrained=SMALL, target=target)
    space = CellSpace(**ARGUMENTS)
    for _ in range(2):  # the second time a finished trial tells its record again
        ProxyEvaluator(settings).run(lambda: space.freeze(samples[0]), samples[0])
    assert told[0] == told[1]
    assert set(told[0]) == {"default", "params", "macs", "latency_ms", "effective_macs"}
    (record,) = read_records(tmp_path)
    assert told[0]["latency_ms"] == record.components["latency_ms"] > 0
    assert told[0]["effective_macs"] == record.components["effective_macs"]
    # Parameters are those of the network that will be trained, counted here on the network itself.
    trained = CellNetwork(space.freeze(samples[0]).genotype, num_cells=4, channels=12)
    assert told[0]["params"] == sum(parameter.numel() for parameter in trained.parameters())
    assert told[0]["params"] > record.components["params"]


@pytest.mark.parametrize("writes", [1, 4])
def test_on_a_full_disk_a_trial_says_so_and_nothing_else(
    writes: int, samples: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = records.write_atomically
    calls = 0

    def full(path: Path, text: str) -> None:
        nonlocal calls
        calls += 1
        if calls >= writes:
            raise OSError(28, "No space left on device")
        real(path, text)

    monkeypatch.setattr(records, "write_atomically", full)
    with pytest.raises(ExperimentError, match=r"cannot write the trial's record .*No space left"):
        score(config(), samples[0], tmp_path)


@pytest.mark.parametrize("platform", ["remote", "local"])
def test_the_record_of_another_machines_trial_travels(
    platform: str,
    samples: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With its final metric; and where there is none, as a line of its output."""
    metrics: list[Any] = []
    monkeypatch.setattr(nni, "report_final_result", metrics.append)
    monkeypatch.setattr(nni.trial, "_params", {"parameter_id": 3, "parameters": samples[0]})
    monkeypatch.setenv("NNI_PLATFORM", platform)
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path / "a"))
    settings = config(score="untrained", untrained=SMALL)
    value = score(settings, samples[0])
    written = TrialRecord.read(tmp_path / "a" / "record.json")
    assert score(settings, samples[0]) == value  # run once more by NNI, it tells what it has found before
    assert [metric["default"] for metric in metrics] == [value] * 2
    sent = [found_in_metric(metric, nni.get_trial_id()) for metric in metrics]
    assert sent == [written if platform == "remote" else None] * 2
    capsys.readouterr()

    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path / "b"))
    with pytest.raises(DivergenceError):
        score(config(contrastive={"lr": 1e30}), samples[0])
    failed = TrialRecord.read(tmp_path / "b" / "record.json")
    assert failed.status == "failed"
    told = found_in_output(capsys.readouterr().out, nni.get_trial_id())
    assert told == (failed if platform == "remote" else None)
    assert len(metrics) == 2
