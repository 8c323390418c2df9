from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import nni_cssnas
from nni_cssnas.cli import app
from nni_cssnas.config import SpaceConfig
from nni_cssnas.errors import CheckpointError, ConfigError, DeviceError, DivergenceError, ImagesError, SpaceError
from nni_cssnas.images.labelled import LabelledImages, load_labelled
from nni_cssnas.spaces import make_space, random_choices
from nni_cssnas.spaces.architecture import Architecture, read_architecture
from nni_cssnas.training.bar import EpochBar
from nni_cssnas.training.checks import check_hardware, check_network, ignored
from nni_cssnas.training.config import RetrainConfig
from nni_cssnas.training.plan import Plan, make_plan
from nni_cssnas.training.pretrain import contrastive_config
from nni_cssnas.training.result import RetrainResult
from nni_cssnas.training.run import make_module, retrain
from nni_cssnas.training.weights import Weights

from .conftest import SMALL
from .test_labelled import write_folder

DARTS = read_architecture("DARTS_V2")


def train(config: RetrainConfig, data: LabelledImages, out: Path, **options: Any) -> RetrainResult:
    return retrain(DARTS, config, data, out, tensorboard=False, **options)


def numbers(out: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((out / "history.csv").open()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_it_learns_and_writes_everything_down(data: LabelledImages, tmp_path: Path) -> None:
    config = RetrainConfig(**SMALL | {"epochs": 12, "lr": 0.1, "auxiliary_weight": 0.0})
    result = retrain(DARTS, config, data, tmp_path / "run")
    assert result.best_top1 > 0.7  # four classes
    assert result.best_top5 is None
    rows = numbers(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 13)]
    assert float(rows[-1]["val_top1"]) == result.final_top1
    assert max(float(row["val_top1"]) for row in rows) == result.best_top1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["architecture"] == DARTS.to_dict()
    assert summary["recipe"]["lr"] == 0.1
    assert summary["data"]["train"] == data.train.counts(4).tolist()
    assert torch.__version__.startswith(summary["environment"]["torch"])
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    # The weights that were kept give the accuracy that was told.
    weights = Weights.read(tmp_path / "run" / "final.pt")
    network = weights.network().eval()
    mean, std = (torch.tensor(value)[:, None, None] for value in (weights.mean, weights.std))
    with torch.no_grad():
        found = network((data.val.images / 255 - mean) / std).argmax(1)
    assert float((found == data.val.labels).double().mean()) == pytest.approx(result.final_top1)


def run_in_child(config: RetrainConfig, data: LabelledImages, out: Path) -> None:
    torch.set_num_threads(1)
    train(config, data, out)
    os._exit(0)


def test_killed_three_times_ends_with_the_same_numbers(data: LabelledImages, tmp_path: Path) -> None:
    config = RetrainConfig(
        **SMALL | {"epochs": 12, "auxiliary_weight": 0, "drop_path": 0.3, "ema": 0.9, "label_smoothing": 0.1}
    )
    train(config, data, tmp_path / "whole")
    out = tmp_path / "killed"
    # A fork has everything imported already.
    context = multiprocessing.get_context("fork")
    kills = 0
    for after in (1, 4, 7, None):
        child = context.Process(target=run_in_child, args=(config, data, out))
        child.start()
        deadline = time.monotonic() + 120
        while child.is_alive() and time.monotonic() < deadline:
            if after is not None and (out / "history.csv").exists() and len(numbers(out)) >= after:
                time.sleep(0.03 * after)  # somewhere in the next epochs
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        child.join(120)
    assert kills == 3
    assert numbers(out) == numbers(tmp_path / "whole")
    ours, theirs = (Weights.read(folder / "final.pt").state for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


class StoppedError(Exception):
    pass


def stop_after(epoch: int) -> Any:
    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == epoch:
            raise StoppedError

    return stop


def test_a_damaged_checkpoint(data: LabelledImages, small: RetrainConfig, tmp_path: Path) -> None:
    config = small.model_copy(update={"epochs": 5})
    train(config, data, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(config, data, tmp_path / "run", on_epoch=stop_after(3))
    _, newer = sorted((tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    newer.write_bytes(newer.read_bytes()[:-1000])
    with pytest.warns(
        UserWarning, match=r"epoch-00003\.ckpt is damaged.* going on from epoch-00002\.ckpt, the one before"
    ):
        train(config, data, tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(config, data, tmp_path / "none", on_epoch=stop_after(2))
    for path in (tmp_path / "none" / "checkpoints").glob("*.ckpt"):
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        for position in range(middle, middle + 300):  # more than the gaps between the parts of the file
            content[position] ^= 0xFF
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint is left, begin anew with --force"):
        train(config, data, tmp_path / "none")


def test_a_finished_run_is_not_repeated_and_no_other_is_overwritten(
    data: LabelledImages, small: RetrainConfig, tmp_path: Path
) -> None:
    first = train(small, data, tmp_path)
    assert train(small, data, tmp_path, on_epoch=stop_after(1)) == first
    with pytest.raises(ConfigError, match=r"another recipe: lr is 0\.025 there and 0\.5 here; name another folder"):
        train(small.model_copy(update={"lr": 0.5}), data, tmp_path)
    with pytest.raises(ConfigError, match="another architecture"):
        retrain(read_architecture("DARTS_V1"), small, data, tmp_path)
    changed = LabelledImages(data.classes, data.train.take(torch.arange(60)), data.val, data.size)
    with pytest.raises(ConfigError, match="other images or labels"):
        train(small, changed, tmp_path)
    again = train(small.model_copy(update={"lr": 0.5}), data, tmp_path, force=True)
    assert again.final_top1 != first.final_top1 or again.seconds != first.seconds


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_full_disk_is_one_line_and_it_goes_on(
    share: float, data: LabelledImages, small: RetrainConfig, tmp_path: Path
) -> None:
    train(small, data, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(small, data, tmp_path / "run", on_epoch=stop_after(2))
    size = max(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write in .*run: .*; the epochs .* are kept\. Make space"):
            train(small, data, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    train(small, data, tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


def test_a_loss_that_is_no_number_ends_it_with_the_remedy(data: LabelledImages, tmp_path: Path) -> None:
    config = RetrainConfig(**SMALL | {"lr": 1e20, "gradient_clip": 0})
    with pytest.raises(DivergenceError, match=r"training loss became .* epoch 1.* set a lower lr \(1e\+20\)"):
        train(config, data, tmp_path)


def test_few_labels(data: LabelledImages, small: RetrainConfig, tmp_path: Path) -> None:
    config = small.model_copy(update={"label_fraction": 0.1, "epochs": 1, "batch_size": 4})
    train(config, data, tmp_path / "few")
    assert sum(json.loads((tmp_path / "few" / "summary.json").read_text())["data"]["train"]) == 9
    with pytest.raises(
        ImagesError, match=r"label_fraction 0\.01 of 90 training images is 1 labels.* use at least 0\.0444"
    ):
        train(small.model_copy(update={"label_fraction": 0.01}), data, tmp_path / "too-few")
    assert not (tmp_path / "too-few").exists()


def test_what_does_not_fit_is_said_before_anything(data: LabelledImages, small: RetrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"images are 16 pixels wide, but size is 32"):
        train(small.model_copy(update={"size": 32}), data, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"too small for the auxiliary head.* set auxiliary_weight: 0"):
        train(small.model_copy(update={"auxiliary_weight": 0.4}), data, tmp_path / "b")
    with pytest.raises(SpaceError, match="total stride"):
        train(
            small.model_copy(update={"stem": "imagenet"}),
            LabelledImages(data.classes, data.train, data.val, 16),
            tmp_path / "c",
        )
    assert not list(tmp_path.glob("[abc]"))


def test_pretraining_changes_where_it_starts(data: LabelledImages, tmp_path: Path) -> None:
    values = SMALL | {"epochs": 1, "lr": 1e-8, "contrastive": {"epochs": 1, "batch_size": 32}}
    train(RetrainConfig(**values, pretrain="contrastive"), data, tmp_path / "with")
    before = Weights.read(tmp_path / "with" / "pretrained.pt").state
    after = Weights.read(tmp_path / "with" / "final.pt").state
    name = "stem.0.0.weight"
    torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=0)
    train(RetrainConfig(**values), data, tmp_path / "without")
    assert not torch.allclose(Weights.read(tmp_path / "without" / "final.pt").state[name], before[name], atol=1e-3)


def test_pretraining_takes_the_images_there_are(data: LabelledImages, tmp_path: Path) -> None:
    assert len(data.train) == 90
    values = SMALL | {"epochs": 1, "contrastive": {"epochs": 1, "batch_size": 256}}
    plans: list[Plan] = []
    train(RetrainConfig(**values, pretrain="contrastive"), data, tmp_path / "all", on_plan=plans.append)
    assert "first 1 epoch without labels on 90 images in batches of 90, then 1 epoch in" in str(plans[0])
    # Batches of all images are what it comes to.
    values["contrastive"] = {"epochs": 1, "batch_size": 90}
    train(RetrainConfig(**values, pretrain="contrastive"), data, tmp_path / "same")
    ours, theirs = (Weights.read(tmp_path / name / "pretrained.pt").state for name in ("all", "same"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert contrastive_config(RetrainConfig(), 90).batch_size == 90
    assert contrastive_config(RetrainConfig(), 1000).batch_size == 256
    with pytest.raises(ConfigError, match=r"pre-training \(contrastive\.\*\): .*only 1 images"):
        contrastive_config(RetrainConfig(), 1)


def test_what_never_began_blocks_nothing(data: LabelledImages, small: RetrainConfig, tmp_path: Path) -> None:
    other = small.model_copy(update={"epochs": 1, "lr": 0.1})

    def stop(_: object) -> None:
        raise StoppedError

    # Stopped while it says what it is about to do,
    with pytest.raises(StoppedError):
        train(small, data, tmp_path / "run", on_plan=stop)
    assert not (tmp_path / "run").exists()
    # or before the first epoch is finished.
    with pytest.raises(StoppedError):
        train(
            small.model_copy(update={"pretrain": "contrastive"}),
            data,
            tmp_path / "run",
            on_pretrain_epoch=lambda *_: stop(0),
        )
    assert (tmp_path / "run" / "pretraining.ckpt").exists()
    with pytest.raises(
        ConfigError, match=r"lr is 0\.025 there and 0\.1 here; pretrain is .contrastive. there and .none. here; name"
    ):
        train(other, data, tmp_path / "run")  # an epoch without labels is work, too
    (tmp_path / "run" / "pretraining.ckpt").unlink()
    train(other, data, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["lr"] == 0.1
    nested = other.model_copy(update={"contrastive": other.contrastive.model_copy(update={"batch_size": 64})})
    with pytest.raises(ConfigError, match=r"another recipe: contrastive\.batch_size is 256 there and 64 here; name"):
        train(nested, data, tmp_path / "run")


def test_the_plan_tells_size_and_hours(data: LabelledImages, small: RetrainConfig, tmp_path: Path) -> None:
    plans: list[Plan] = []
    config = small.model_copy(update={"epochs": 6})
    with pytest.raises(StoppedError):
        train(config, data, tmp_path / "run", on_plan=plans.append, on_epoch=stop_after(2))
    train(config, data, tmp_path / "run", on_plan=plans.append)
    train(config, data, tmp_path / "run", on_plan=plans.append)  # finished: nothing is planned
    first, second = plans
    assert (first.epochs, second.epochs, first.images) == (6, 4, 90)
    network = DARTS.build(4, size=16, num_cells=3, channels=2)
    assert first.params == sum(weight.numel() for weight in network.parameters())
    text = f"3 cells of 2 channels, 16 px, {first.params:,} parameters; 90 images, 6 epochs in batches of 16: about"
    assert text in str(first)
    assert "the last 4 of 6 epochs" in str(second)
    # 6 batches, the last of 10 images, and 30 images to validate with.
    assert 5 * first.batch <= first.epoch
    assert first.seconds == pytest.approx(6 * first.epoch)
    # The numbers of the training are those without a plan.
    train(config, data, tmp_path / "other")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "other")
    long = dataclasses.replace(first, epochs=600, total_epochs=600, epoch=72.0, batch=12.0, first_look="--cells 8")
    assert str(long).endswith("about 12 hours (a batch takes 12 s); for a first look: --cells 8")


def test_a_long_training_names_a_first_look(data: LabelledImages) -> None:
    config = RetrainConfig(size=16, auxiliary_weight=0, epochs=10**5, batch_size=16, num_cells=9, channels=3)
    state = torch.random.get_rng_state()
    plan = make_plan(make_module(DARTS, config, data), config, data.train, data.val, name="")
    assert plan.first_look == "--cells 8 --epochs 20"
    assert plan.seconds > 3600
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_network_beyond_the_memory_is_refused() -> None:
    config = RetrainConfig(channels=4096, num_cells=200)
    with pytest.raises(ConfigError, match=r"200 cells of 4096 channels have [\d,]+ parameters, which take \d+ GiB"):
        check_network(DARTS, config, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sync_batchnorm": True, "device": "cpu"}, "sync_batchnorm is true, which torch can do on GPUs only"),
        ({"strategy": "dpp", "device": "cpu"}, "strategy is 'dpp', which Lightning does not know; use auto, or ddp"),
        ({"device": "cuda"}, "device is 'cuda' but torch .* sees no CUDA device here; set device: cpu"),
    ],
)
def test_what_the_machine_cannot_do_is_refused_before_images_are_read(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options: dict[str, Any] = {"output": tmp_path / "out", **settings}
    with pytest.raises((ConfigError, DeviceError), match=message):
        nni_cssnas.retrain("DARTS_V2", tmp_path / "missing", **options)
    with pytest.raises((ConfigError, DeviceError), match=message):
        nni_cssnas.compare(["DARTS_V2"], tmp_path / "missing", **options)
    with pytest.raises((ConfigError, DeviceError), match=message):
        nni_cssnas.probe("DARTS_V2", tmp_path / "missing", **options)
    assert not list(tmp_path.iterdir())


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_hardware(RetrainConfig(device="cuda", devices=2))
    with pytest.raises(DeviceError, match="devices is 4, but there are only 2 GPUs"):
        check_hardware(RetrainConfig(device="cuda", devices=4))


def test_epochs_count_from_one() -> None:
    bar = EpochBar()
    bar._trainer = SimpleNamespace(max_epochs=1)
    assert bar._get_train_description(0).strip() == "Epoch 1/1"


def test_interrupted_it_says_how_to_go_on(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nni_cssnas.training.run.retrain", interrupt)
    done = CliRunner().invoke(app, ["retrain", "DARTS_V2", "-d", str(npz), "--size", "16", "-o", "run"])
    assert done.exit_code == 130
    assert "interrupted; the same command goes on after the last epoch that is finished in run" in done.output


def test_torchs_advice_to_run_code_is_not_repeated(tmp_path: Path) -> None:
    torch.save({"architecture": Path("x")}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError) as caught:
        Weights.read(tmp_path / "bad.pt")
    assert "holds no weights of nni-cssnas" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_architecture_of_another_space(npz: Path, tmp_path: Path) -> None:
    space = SpaceConfig(
        name="nni.nas.hub.pytorch:NasBench201", arguments={"stem_out_channels": 4, "num_modules_per_stack": 1}
    )
    parameters = random_choices(make_space(space), np.random.default_rng(1))
    architecture = Architecture(space=space, choices=parameters)
    config = RetrainConfig(**SMALL | {"epochs": 1})
    assert "channels, num_cells, stem, drop_path of the recipe are ignored" in (ignored(architecture, config) or "")
    result = retrain(architecture, config, load_labelled(npz, 16), tmp_path / "run", tensorboard=False)
    network = Weights.read(tmp_path / "run" / "best.pt").network()
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 4)
    assert result.params == sum(weight.numel() for weight in network.parameters())


def test_the_command_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", {"cat": 30, "dog": 12, "emu": 6})
    shape = ["--cells", "3", "--channels", "2", "--size", "16", "--batch-size", "8", "--set", "auxiliary_weight=0"]
    command = [
        "retrain",
        "DARTS_V2",
        "-r",
        "folder",
        "-d",
        "photos",
        "-o",
        "run",
        "--epochs",
        "2",
        *shape,
        "--set",
        "cutout=4",
    ]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "epoch 2/2: loss" in done.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["recipe"]["class_weights"] == "balanced"
    assert summary["data"]["classes"] == ["cat", "dog", "emu"]
    assert f"top-1 {summary['final_top1']:.2%}" in done.output
    # What it left can be exported without saying again what it is.
    export = ["export", "--weights", "run/best.pt", "-o", "net.py"]
    assert CliRunner().invoke(app, export, catch_exceptions=False).exit_code == 0
    namespace: dict[str, Any] = {"__name__": "exported"}
    exec((tmp_path / "net.py").read_text(), namespace)
    weights = Weights.read(tmp_path / "run" / "best.pt")
    copy = namespace["Network"]().eval()
    copy.load_state_dict(weights.state)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(copy(images), weights.network()(images))
    assert "class names: cat, dog, emu" in (tmp_path / "net.py").read_text()
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "epoch" not in again.output.replace("best epoch", "")
    # Pictures that stay on disk give the same classes and about the same work.
    streamed = [*command[:5], "photos", "-o", "streamed", *command[8:], "--set", "resident_gb=0", "--set", "workers=0"]
    done = CliRunner().invoke(app, streamed, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert len(numbers(tmp_path / "streamed")) == 2
    with pytest.raises(ConfigError, match=r"--unlabelled is 'photos', which only --pretrain contrastive uses"):
        CliRunner().invoke(app, [*command[:7], "other", "--unlabelled", "photos"], catch_exceptions=False)


@pytest.mark.slow
def test_two_devices_share_the_work(npz: Path, tmp_path: Path) -> None:
    shape = ["--cells", "3", "--channels", "2", "--size", "16", "--batch-size", "16", "--epochs", "2"]
    options = ["--set", "auxiliary_weight=0", "--devices", "2", "--device", "cpu", "-o", str(tmp_path / "run")]
    command = [sys.executable, "-m", "nni_cssnas.cli", "retrain", "DARTS_V2", "-d", str(npz), *shape, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("summary.json") == 1  # one of them speaks
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["environment"]["devices"] == 2
    assert len(numbers(tmp_path / "run")) == 2
