"""What of screening on Ray needs no cluster; the rest is in tests/integration/test_ray.py."""

from __future__ import annotations

import http.server
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import nni_cssnas
from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError, DeviceError, ExperimentError, ImagesError
from nni_cssnas.images.pool import SomeImages, StreamedImages
from nni_cssnas.judge import on_ray
from nni_cssnas.judge.on_ray import Cluster, connected
from nni_cssnas.judge.ray_workers import Workers
from nni_cssnas.judge.screening import Proposals, Screener
from nni_cssnas.spaces.factory import make_space
from nni_cssnas.spaces.identity import space_key, users_files
from nni_cssnas.tuners.tpe import Tpe

SETTINGS: dict[str, Any] = {
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "images": {"source": "tiles", "num_images": 64},
    "untrained": {"batch_size": 8},
    "threads": 1,
}


@pytest.fixture
def no_ray_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def web_server() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def refused(**options: Any) -> str:
    start = time.monotonic()
    with pytest.raises((ConfigError, ExperimentError)) as caught:
        nni_cssnas.screen(config=SETTINGS, num=2, **options)
    assert time.monotonic() - start < 30
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("address", ["nowhere", "host:port", "http://host:6379", ""])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    assert f"--ray is {address!r}; give auto, host:port" in refused(ray=address)


@pytest.mark.parametrize("part", [0.0, -1.0, 1.5, float("nan")])
def test_a_part_of_a_gpu_that_is_none_is_refused(part: float) -> None:
    assert "--gpus-per-worker is" in refused(ray="auto", gpus_per_worker=part)


def test_a_part_of_a_gpu_needs_ray() -> None:
    assert refused(gpus_per_worker=0.5) == "--gpus-per-worker is 0.5, which only --ray uses"


def test_without_ray_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'nni-cssnas[ray]'" in refused(ray="auto")
    monkeypatch.setattr("nni_cssnas.tuners.base.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"screen: ray is 'auto', but Ray is not installed; .*pip install"):
        Tpe(screen={"ray": "auto"})


def test_an_address_where_nothing_or_something_else_answers(web_server: int, no_ray_yet: None) -> None:
    port = closed_port()
    # Ray dials 127.0.0.1 by the address that others know this machine by.
    assert "nothing answers at" in refused(ray=f"127.0.0.2:{port}")
    assert on_ray._problem_of("127.0.0.1", web_server) == f"what answers at 127.0.0.1:{web_server} is not Ray"


@pytest.mark.parametrize(
    ("screen", "message"),
    [
        ({"ray": "nowhere"}, "ray: it is 'nowhere'; give auto"),
        ({"workers": 3}, "workers is 3, which only ray uses"),
        ({"ray": "auto", "gpus_per_worker": 2}, "gpus_per_worker is 2"),
    ],
)
def test_a_tuners_wrong_cluster_is_refused_at_once(screen: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Tpe(screen=screen)
    assert message in str(caught.value)


class FakeRay:
    """A cluster that only tells what its nodes have."""

    def __init__(self, *nodes: dict[str, float], dead: int = 0) -> None:
        self._nodes = [
            {"Resources": node, "Alive": index >= dead, "NodeID": str(index)} for index, node in enumerate(nodes)
        ]

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes


def room(cpus: int, gpus: float, *nodes: dict[str, float], dead: int = 0) -> int:
    pool = Workers.__new__(Workers)
    pool._cluster, pool._cpus, pool._gpus = Cluster(FakeRay(*nodes, dead=dead), None), cpus, gpus
    return pool._room()


def test_how_many_workers_there_is_room_for() -> None:
    assert room(1, 0, {"CPU": 4.0}, {"CPU": 2.0}, {}) == 6
    assert room(3, 0, {"CPU": 4.0}, {"CPU": 2.0}) == 1
    assert room(1, 0.25, {"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}) == 8
    assert room(1, 0.4, {"CPU": 16.0, "GPU": 2.0}) == 4  # two on each card
    assert room(1, 0.1, {"CPU": 3.0, "GPU": 1.0}) == 3
    assert room(1, 0, {"CPU": 4.0}, {"CPU": 2.0}, dead=1) == 2


@pytest.mark.parametrize(("asked", "with_gpus", "without"), [("auto", "cuda", "cpu"), ("cpu", "cpu", "cpu")])
def test_all_workers_compute_on_one_kind_of_device(asked: str, with_gpus: str, without: str) -> None:
    config = ProxyConfig(device=asked)
    assert Cluster(FakeRay({"CPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}), None).device(config) == with_gpus
    assert Cluster(FakeRay({"CPU": 2.0}), None).device(config) == without


def test_a_cluster_without_the_device_is_named() -> None:
    with pytest.raises(DeviceError, match="device is 'cuda', but Ray knows no GPU"):
        Cluster(FakeRay({"CPU": 2.0}), None).device(ProxyConfig(device="cuda"))


def made(config: ProxyConfig, driver: Screener) -> Screener:
    """A worker's screener, as it is made on a node."""
    sent, key = on_ray._sendable(driver.proxy.needed_images(), driver.proxy.images_key)
    return on_ray._make_screener(config, space_key(driver.space), key, sent)


@pytest.mark.parametrize("score", ["untrained", "contrastive"])
def test_a_worker_needs_no_images_of_its_own(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = {"contrastive": {"criterion": "loss", "epochs": 1, "batch_size": 32, "held_out": 0}}
    config = ProxyConfig(**SETTINGS | {"score": score, "views": {"input_size": 8}} | trained)
    driver = Screener(config)
    monkeypatch.setattr("nni_cssnas.judge.proxy.load_images", lambda *_, **__: pytest.fail("it reads images"))
    worker = made(config, driver)
    for choices in driver.random(2, 0):
        assert worker.screen(choices).score == driver.screen(choices).score
    if score == "untrained":
        assert isinstance(worker.proxy.images, SomeImages)
        assert worker.proxy.images.images.shape == (8, 3, 32, 32)
    else:
        assert worker.finalist(choices) == driver.finalist(choices)


def test_images_that_a_node_must_have_are_asked_for(tmp_path: Path) -> None:
    images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    streamed = StreamedImages(["a.png"], lambda position: images[position].numpy(), "their key", 1)
    assert on_ray._sendable(streamed, "their key") == (None, "their key")
    config = ProxyConfig(**SETTINGS)
    key = space_key(Screener(config).space)
    with pytest.raises(ImagesError, match=r"the images of 'tiles' are others there than here; put the same files"):
        on_ray._make_screener(config, key, "another key", None)
    elsewhere = config.model_copy(
        update={"images": config.images.model_copy(update={"source": str(tmp_path / "gone")})}
    )
    with pytest.raises(ImagesError, match="no such folder or file"):
        on_ray._make_screener(elsewhere, key, "another key", None)
    with pytest.raises(ExperimentError, match="is another one there than here"):
        on_ray._make_screener(config, "another space", "another key", None)


def test_the_users_modules_are_found_with_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "__init__.py").write_text("")
    (tmp_path / "sent" / "parts.py").write_text("KERNELS = (1, 3)\n")
    (tmp_path / "sent" / "space.py").write_text(
        "import torch\nfrom nni.nas.nn.pytorch import LayerChoice, ModelSpace\nfrom .parts import KERNELS\n"
        "class Mine(ModelSpace):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = LayerChoice([torch.nn.Conv2d(3, 4, k) for k in KERNELS], label='conv')\n"
    )
    (tmp_path / "sent_measure.py").write_text("def one(look):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import sent_measure  # type: ignore[import-not-found]

    space = make_space(ProxyConfig(space={"name": "sent.space:Mine"}).space)
    files = users_files(space, [sent_measure.one])
    assert {"sent/space.py", "sent/parts.py", "sent_measure.py"} <= files.keys()
    assert files["sent/parts.py"] == b"KERNELS = (1, 3)\n"
    assert users_files(Screener(ProxyConfig(**SETTINGS)).space) == {}


def test_proposals_are_taken_at_one_lag_whatever_the_number_of_workers() -> None:
    screener = Screener(ProxyConfig(**SETTINGS))
    screener.screen = lambda choices: choices["number"]  # type: ignore[method-assign,assignment,return-value]
    taken = 0

    def items() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for number in range(30):
            taken += 1
            yield {"number": number}

    def method(judge: Screener, choices: Any) -> Any:
        return choices["number"]

    with screener.spread(1) as spread:
        seen = [(result, taken) for result in spread(method, Proposals(items(), 11))]
    assert [result for result, _ in seen] == list(range(30))
    assert [number for _, number in seen] == [min(30, 12 + index) for index in range(30)]


def test_connected_gives_nothing_without_a_cluster(no_ray_yet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/nonexistent")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.2:{closed_port()}")
    with pytest.raises(ExperimentError, match="--ray is 'auto', but nothing answers"), connected("auto"):
        pass
