"""Screening on a real cluster of Ray: two nodes on this machine, of which one goes, and workers that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

import nni_cssnas
from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ExperimentError, ImagesError
from nni_cssnas.judge import on_ray, ray_workers
from nni_cssnas.judge.screening import Screener
from nni_cssnas.results.screening_log import LOG_NAME
from nni_cssnas.search.screen import Step
from nni_cssnas.tuners.tpe import Tpe

pytestmark = pytest.mark.integration

SETTINGS: dict[str, Any] = {
    "space": {"name": "far.spaces:Small"},
    "images": {"source": "tiles", "num_images": 64},
    "untrained": {"batch_size": 8},
    "threads": 1,
}
# A package that only this process can import; the second module is imported by the first.
SPACE = """
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace

from .widths import WIDTH


class Small(ModelSpace):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, WIDTH, 3, padding=1)
        self.layers = torch.nn.ModuleList(
            LayerChoice([torch.nn.Conv2d(WIDTH, WIDTH, k, padding=k // 2) for k in (1, 3, 5)], label=f"layer{i}")
            for i in range(5)
        )

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.mean((2, 3))
"""
MEMORY = 80 * 2**20
# A loopback address that Ray does not take for "this machine as others see it".
HOME = "127.0.0.2"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """The head, on which this process is, with one CPU."""
    folder = tempfile.mkdtemp(prefix="ray-")  # a short path: Ray's sockets lie below it
    before = dict(os.environ)
    os.environ.update(RAY_TMPDIR=folder, RAY_USAGE_STATS_ENABLED="0")
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY, "node_ip_address": HOME}
    found = Nodes(initialize_head=True, head_node_args=head)
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "only-here" / "far"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "spaces.py").write_text(SPACE)
    (package / "widths.py").write_text("WIDTH = 6\n")
    monkeypatch.syspath_prepend(str(package.parent))
    for name in ("far", "far.spaces", "far.widths"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def actors() -> list[psutil.Process]:
    """The processes of workers, oldest first."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.create_time())


def rows(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, LOG_NAME).read_text().splitlines()[1:]]


def test_a_node_that_goes_and_a_killed_worker_change_nothing(nodes: Nodes) -> None:
    numbers = {"num": 100, "guided": 20, "seed": 3}
    alone = nni_cssnas.screen(config=SETTINGS, workers=1, output="alone", **numbers)
    second = nodes.add_node(num_cpus=1, object_store_memory=MEMORY, node_ip_address=HOME)
    happened = []

    def accidents(step: Step) -> None:
        if step.stage != "screening":
            return
        if step.done == 10:
            os.kill(actors()[0].pid, signal.SIGKILL)
            happened.append("killed")
        elif step.done == 40:
            nodes.remove_node(second)
            happened.append("removed")
        elif step.done == 70:
            nodes.add_node(num_cpus=1, object_store_memory=MEMORY, node_ip_address=HOME)
            happened.append("added")

    spread = nni_cssnas.screen(config=SETTINGS, ray=nodes.address, output="spread", on_step=accidents, **numbers)
    assert happened == ["killed", "removed", "added"]
    assert not ray.is_initialized()
    assert spread.table == alone.table
    assert Path("spread", "screen.csv").read_bytes() == Path("alone", "screen.csv").read_bytes()

    def key(row: dict[str, Any]) -> str:
        return json.dumps(row, sort_keys=True)

    # Each once, though in the order in which they arrived.
    assert sorted(map(key, rows("spread"))) == sorted(map(key, rows("alone")))
    deadline = time.monotonic() + 30
    while actors() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not actors()


def test_an_interrupted_search_goes_on_anywhere(nodes: Nodes) -> None:
    numbers = {"num": 40, "guided": 10}

    def press(step: Step) -> None:
        if step.stage == "screening" and step.done == 12:
            raise KeyboardInterrupt

    part = nni_cssnas.screen(config=SETTINGS, ray=nodes.address, workers=1, output="found", on_step=press, **numbers)
    assert part.interrupted
    assert len(part.found) == 12
    kept = len(rows("found"))
    assert 12 <= kept < 50
    steps: list[Step] = []
    whole = nni_cssnas.screen(config=SETTINGS, workers=1, output="found", on_step=steps.append, **numbers)
    assert Step("recalled", kept) in steps
    again = nni_cssnas.screen(config=SETTINGS, ray=nodes.address, output="found", force=True, **numbers)
    assert again.table == whole.table
    assert len(rows("found")) == 50


# The workers cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Stub:
    """What a worker of these tests works with."""

    def __init__(self, sent: Any) -> None:
        self.sent = sent

    def work(self, item: Any) -> Any:
        if item == "die":
            os._exit(1)
        if item == "fail":
            raise ZeroDivisionError("of the user's")
        return (item, self.sent)


def fails(sent: Any) -> Any:
    raise ImagesError("no such folder")


def test_what_kills_its_workers_and_what_fails_is_named(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_workers, "DEATHS", 2)
    with on_ray.connected(nodes.address) as cluster:
        pool = ray_workers.Workers(cluster, fails, number=1)
        try:
            with pytest.raises(ExperimentError, match=r"node .* of Ray's cluster cannot be used: no such folder"):
                pool.start("work", 1)()
        finally:
            pool.end()
        pool = ray_workers.Workers(cluster, Stub, "sent", number=1)
        try:
            arrived: list[Any] = []
            finish = [pool.start("work", item, arrived.append) for item in (1, "fail", 2)]
            assert finish[0]() == (1, "sent")
            assert finish[2]() == (2, "sent")
            assert arrived == [(1, "sent"), (2, "sent")]
            with pytest.raises(ExperimentError, match="fail cannot be scored: ZeroDivisionError: of the user's"):
                finish[1]()
            finish = [pool.start("work", item, arrived.append) for item in (3, "die", 4)]
            with pytest.raises(ExperimentError, match=r"died 2 times while it worked on die, .* same command goes on"):
                finish[1]()
            assert finish[0]() == (3, "sent")
            assert finish[2]() == (4, "sent")
            assert not capfd.readouterr().out  # with --json nothing else may be there
        finally:
            pool.end()


def test_other_versions_are_refused_and_named(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    with on_ray.connected(nodes.address) as cluster:
        pool = ray_workers.Workers(cluster, Stub, number=1)
        try:
            assert pool.start("work", 1)() == (1, None)
            # A node that comes later with another version is left out, and the search waits for others.
            pool._here = {**pool._here, "torch": "9.9"}
            os.kill(actors()[-1].pid, signal.SIGKILL)
            pool.start("work", 2)

            def go_on() -> None:
                deadline = time.monotonic() + 60
                while not pool._left_out and time.monotonic() < deadline:
                    pool._hand_out()
                    pool._collect()

            with pytest.warns(UserWarning, match=r"cannot be used: torch is \S+ there and 9.9 here; .* without it"):
                go_on()
            assert not pool._actors
        finally:
            pool.end()
        monkeypatch.setattr(nni_cssnas, "__version__", "9.9")
        with pytest.raises(ExperimentError, match=r"node .* cannot be used: nni-cssnas is \S+ there and 9\.9 here"):
            nni_cssnas.screen(config=SETTINGS, num=2, ray=nodes.address)


def test_a_tuner_screens_on_ray(nodes: Nodes, tmp_path: Path) -> None:
    Path("proxy.yml").write_text(json.dumps(SETTINGS))
    space = Screener(ProxyConfig(**SETTINGS)).search_space
    proposed: list[list[dict[str, Any]]] = []

    def propose(screen: dict[str, Any]) -> None:
        tuner = Tpe(seed=0, screen={"candidates": 6, **screen})
        tuner.update_search_space(space)
        try:
            proposed.append([tuner.generate_parameters(number) for number in range(3)])
            assert (tuner._standing is None) == (not screen)
            assert (tuner._screener is None) == bool(screen)
        finally:
            if tuner._standing is not None:
                tuner._standing.end()

    propose({})
    # NNI's dispatcher calls from a thread of its own.
    thread = threading.Thread(target=partial(propose, {"ray": nodes.address}))
    thread.start()
    thread.join()
    assert len(proposed) == 2
    assert proposed[0] == proposed[1]
