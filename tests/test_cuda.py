"""What only a GPU shows. Where there is none these are skipped; docs/limits.md names what they alone cover."""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import nni_cssnas
from nni_cssnas.base.device import seeded, wait_for
from nni_cssnas.bridge import launch
from nni_cssnas.config import ContrastiveConfig, ProxyConfig
from nni_cssnas.genotype import NAMED_GENOTYPES
from nni_cssnas.images.pool import Pool
from nni_cssnas.images.views import make_views
from nni_cssnas.judge.screening import Screener
from nni_cssnas.measures import DEFAULT_WEIGHTS, MEASURES
from nni_cssnas.results.records import TrialRecord, read_records
from nni_cssnas.scores import look
from nni_cssnas.scores.combine import DEAD
from nni_cssnas.scores.contrastive import train_contrastive
from nni_cssnas.scores.cost import latency
from nni_cssnas.scores.untrained import measure
from nni_cssnas.spaces.backbone import Backbone
from nni_cssnas.spaces.network import CellNetwork

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")

SETTINGS: dict[str, Any] = {
    "space": {"arguments": {"num_nodes": 4}},
    "target": {"num_cells": 8, "channels": 16},
    "images": {"source": "tiles", "num_images": 64},
    "threads": 1,
}


def screener(device: str, **values: Any) -> Screener:
    return Screener(ProxyConfig(**(SETTINGS | {"device": device} | values)))


@pytest.fixture
def no_synchronisation(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """What waits for the GPU raises, but for ``wait_for``, of which every call is noted."""
    waits: list[torch.device] = []

    def wait(device: torch.device) -> None:
        waits.append(device)
        torch.cuda.set_sync_debug_mode("default")
        wait_for(device)
        torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(look, "wait_for", wait)
    torch.cuda.set_sync_debug_mode("error")
    yield waits
    torch.cuda.set_sync_debug_mode("default")


def test_a_gpu_gives_the_scores_of_the_cpu() -> None:
    sides = {}
    for device in ("cpu", "cuda"):
        found = screener(device)
        sides[device] = [found.screen(choices) for choices in found.random(8, seed=0)]
    for cpu, cuda in zip(sides["cpu"], sides["cuda"], strict=True):
        assert cpu.choices == cuda.choices
        assert cuda.score == pytest.approx(cpu.score, abs=2e-3)
        assert cuda.components == pytest.approx(cpu.components, rel=1e-2, abs=1e-2)
        assert cuda.components["macs"] == cpu.components["macs"]


def test_a_gpu_repeats_its_scores() -> None:
    choices = next(screener("cuda").random(1, seed=3))
    scores = [screener("cuda").screen(choices).score for _ in range(2)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.parametrize("name", sorted(set(MEASURES)))
def test_every_measure_is_that_of_the_cpu(name: str) -> None:
    views = torch.randn(2, 16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    values = []
    for device in ("cpu", "cuda"):
        backbone = Backbone(CellNetwork(NAMED_GENOTYPES["DARTS_V2"], 5, 8), 32)
        stages = [f"model.{stage.name}" for stage in backbone.structure.stages]
        pair = (views[0].to(device), views[1].to(device))
        values.append(measure(backbone, pair, 0, stages=stages, components=[name])[name])
    assert values[1] == pytest.approx(values[0], rel=2e-2, abs=1e-2)


def test_nothing_of_the_default_score_waits_for_the_gpu(request: pytest.FixtureRequest) -> None:
    views = torch.randn(2, 16, 3, 32, 32).cuda()

    def score() -> dict[str, float]:
        backbone = Backbone(CellNetwork(NAMED_GENOTYPES["DARTS_V2"], 8, 6), 32)
        stages = [f"model.{stage.name}" for stage in backbone.structure.stages]
        return measure(backbone, (views[0], views[1]), 0, stages=stages, components=list(DEFAULT_WEIGHTS))

    before = score()  # cuDNN is loaded
    waits = request.getfixturevalue("no_synchronisation")
    assert score() == pytest.approx(before, abs=1e-3)
    assert len(waits) == 2  # one for each view


def test_the_check_for_synchronisation_can_fail(no_synchronisation: list[torch.device]) -> None:
    with pytest.raises(RuntimeError, match="synchroniz"):
        float(torch.ones(3, device="cuda").sum())


def test_a_network_that_sees_nothing_is_dead_there_too() -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)) for _ in range(3)))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.blocks(images * 0).mean((2, 3))

    backbone = Backbone(Blind(), 16)
    stages = [f"model.{stage.name}" for stage in backbone.structure.stages]
    views = torch.randn(2, 8, 3, 16, 16).cuda()
    found = measure(backbone, (views[0], views[1]), 0, stages=stages)
    assert set(found.values()) == {-1e9}


def test_processes_share_the_gpu_and_give_the_same() -> None:
    found = screener("cuda")
    choices = list(found.random(6, seed=1))
    with found.spread(2) as spread:
        together = [item.score for item in spread(Screener.screen, choices)]
    assert together == pytest.approx([found.screen(item).score for item in choices], abs=1e-4)
    assert min(together) > DEAD


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_contrastive_training(amp: str, channels_last: bool) -> None:
    images = torch.randint(0, 256, (96, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = ContrastiveConfig(
        epochs=3, batch_size=24, projection_hidden=32, projection_dim=16, amp=amp, channels_last=channels_last
    )
    losses = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        if device.type == "cpu":
            config_here = config.model_copy(update={"amp": "off", "channels_last": False})
        else:
            config_here = config
        with seeded(0):
            backbone = Backbone(CellNetwork(NAMED_GENOTYPES["DARTS_V2"], 3, 8), 32)
        trained = train_contrastive(
            backbone.to(device),
            Pool(images, device),
            config_here,
            views=make_views(ProxyConfig(**SETTINGS).views, 32),
            seed=0,
            device=device,
        )
        losses.append(trained.epoch_losses)
        assert all(math.isfinite(value) for value in trained.components.values())
    # Other views and another head: alike, not equal.
    assert statistics.fmean(losses[1]) == pytest.approx(statistics.fmean(losses[0]), rel=0.1)


def test_images_that_do_not_fit_the_gpu_come_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (images.nbytes, images.nbytes))
    pool = Pool(images, torch.device("cuda"))
    order = torch.randperm(64)
    found = pool.take(order)
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), images[order])


def test_a_search_the_training_and_the_export(tmp_path: Path) -> None:
    result = nni_cssnas.screen(config=SETTINGS | {"device": "cuda"}, num=6, output=tmp_path / "screened", workers=1)
    assert result.best.score > DEAD
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 32)
    images = rng.integers(0, 255, (96, 16, 16, 3), dtype=np.uint8)
    images[np.arange(96), :, :, labels] //= 4
    np.savez(tmp_path / "labelled.npz", images=images, labels=labels, classes=np.array(["a", "b", "c"]))
    settings: dict[str, Any] = {
        "channels": 4,
        "num_cells": 3,
        "batch_size": 16,
        "size": 16,
        "auxiliary_weight": 0,
        "device": "cuda",
        "workers": 0,
    }
    genotype = tmp_path / "screened" / "genotype.json"
    for amp in ("off", "bf16", "fp16"):
        output = tmp_path / f"trained_{amp}"
        trained = nni_cssnas.retrain(genotype, tmp_path / "labelled.npz", output=output, epochs=2, amp=amp, **settings)
        assert 0 <= trained.best_top1 <= 1
        nni_cssnas.export(trained, tmp_path / f"{amp}.onnx")
        assert (tmp_path / f"{amp}.onnx").stat().st_size > 0


def test_latency_is_the_gpus() -> None:
    network = CellNetwork(NAMED_GENOTYPES["DARTS_V2"], 3, 8).cuda()
    assert 0 < latency(network, torch.zeros(1, 3, 32, 32, device="cuda"), repeats=5) < 1e3


def test_one_gpu_under_nccl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backends = []
    start = torch.distributed.init_process_group

    def noted(backend: str, *arguments: Any, **options: Any) -> None:
        backends.append(backend)
        start(backend, *arguments, **options)

    monkeypatch.setattr(torch.distributed, "init_process_group", noted)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    labels = np.repeat(np.arange(3), 32)
    images = np.random.default_rng(0).integers(0, 255, (96, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "labelled.npz", images=images, labels=labels, classes=np.array(["a", "b", "c"]))
    settings: dict[str, Any] = {"channels": 4, "num_cells": 3, "batch_size": 16, "size": 16, "auxiliary_weight": 0}
    trained = nni_cssnas.retrain(
        NAMED_GENOTYPES["DARTS_V2"],
        tmp_path / "labelled.npz",
        output=tmp_path / "trained",
        epochs=2,
        device="cuda",
        strategy="ddp",
        sync_batchnorm=True,
        **settings,
    )
    assert backends == ["nccl"]
    assert 0 <= trained.best_top1 <= 1


SPACE = """
import os
from nni_cssnas.spaces import CellSpace

print("parent:", os.getppid(), "sees:", os.environ.get("CUDA_VISIBLE_DEVICES"))

class Space(CellSpace):
    pass
"""


def trials_of_nnictl(folder: Path, score: str) -> tuple[list[TrialRecord], list[str]]:
    """Four trials, two at a time on the one GPU, as nnictl starts them: their records, and what each one's space saw."""
    folder.mkdir()
    (folder / "own_space.py").write_text(SPACE)
    space = {"name": "own_space:Space", "arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}}
    proxy = {
        "score": score,
        "threads": 1,
        "space": space,
        "images": {"source": "tiles", "num_images": 96},
        "views": {"input_size": 16},
        "untrained": {"batch_size": 8},
        "contrastive": {"epochs": 2, "batch_size": 32},
    }
    (folder / "proxy.yml").write_text(yaml.safe_dump(proxy))
    experiment_file = {
        "searchSpaceFile": "search_space.json",
        "trialCommand": f"{sys.executable} -m nni_cssnas.trial proxy.yml",
        "trialCodeDirectory": ".",
        "experimentWorkingDirectory": str(folder / "nni-experiments"),
        "trialConcurrency": 2,
        "maxTrialNumber": 4,
        "trialGpuNumber": 1,
        "tuner": {"className": "nni_cssnas.tuners.tpe.Tpe", "codeDirectory": ".", "classArgs": {"seed": 0}},
        "trainingService": {"platform": "local", "useActiveGpu": True, "maxTrialNumberPerGpu": 2},
    }
    (folder / "experiment.yml").write_text(yaml.safe_dump(experiment_file))
    command = [sys.executable, "-m", "nni_cssnas.cli", "space", "proxy.yml"]
    subprocess.run(command, check=True, cwd=folder)
    experiment = launch.create(folder / "experiment.yml", port=launch.free_port(18480))
    try:
        *_, last = experiment.watch(interval=1.0)
    finally:
        experiment.stop()
    assert last.status == "DONE"
    records = read_records(folder / "nni-experiments" / experiment.id)
    logs = folder.glob("nni-experiments/*/environments/local-env/trials/*/trial.log")
    seen = [line for log in logs for line in re.findall(r"parent: .*", log.read_text())]
    return sorted(records, key=lambda record: record.sequence), seen


def test_forked_and_isolated_trials_on_a_gpu_that_nnictl_assigned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    forked, seen = trials_of_nnictl(tmp_path / "forked", "untrained")
    trained, _ = trials_of_nnictl(tmp_path / "trained", "contrastive")
    monkeypatch.setenv("NNI_CSSNAS_ISOLATED", "1")
    isolated, seen_alone = trials_of_nnictl(tmp_path / "isolated", "untrained")
    for records in (forked, trained, isolated):
        assert [record.status for record in records] == ["succeeded"] * 4
        assert {record.environment["device_name"] for record in records} == {torch.cuda.get_device_name()}
    assert all("sees: 0" in line for line in [*seen, *seen_alone])
    assert len(set(seen)) == 1
    assert len(seen) >= 4
    assert len(set(seen_alone)) == 4
    for one, other in zip(forked, isolated, strict=True):
        if one.parameters == other.parameters:  # what is proposed after the first two depends on which ended first
            assert one.score == pytest.approx(other.score, abs=1e-3)
