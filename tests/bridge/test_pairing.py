"""A trial's parameters, before a small server in the place of NNI's manager."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from nni.runtime import trial_command_channel

from nni_cssnas.bridge import pairing
from nni_cssnas.errors import ExperimentError

# Each would make a program of what it is given, were it read by NNI's own loader.
HOSTILE = [
    {"__symbol__": "path:os.abort"},
    {"__nni_type__": "path:os.abort"},
    {"__nni_obj__": "gASVFQAAAAAAAACMAm9zlIwFYWJvcnSUk5QpUpQu"},
    {"c0": {"__symbol__": "path:os.abort"}},
]


@pytest.fixture
def manager() -> Iterator[Any]:
    """Its records, by trial, and its queue."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[1]
            if "/api/" in self.path:
                body: Any = server.answers.get(name) or {"hyperParameters": server.records.get(name, [])}
            else:
                body = {"type": "parameter", "parameter": server.queue.pop(0)}
            text = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_PUT(self) -> None:
            server.sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.records, server.queue, server.answers, server.sent = {}, [], {}, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}/prefix/env/local-env"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("parameters", [{"c0": "v1", "c1": 2}, *HOSTILE])
def test_a_local_trial_gets_its_own_record_as_it_is(parameters: Any, manager: Any) -> None:
    records = [{"parameter_id": number, "parameters": parameters} for number in range(2)]
    manager.records = {"a": [json.dumps(records[0])], "b": [json.dumps(records[1])]}
    for name, record in (("b", records[1]), ("a", records[0])):
        assert pairing.OwnParametersChannel(f"{manager.url}/{name}", name).receive_parameter() == record


@pytest.mark.parametrize("parameters", [{"c0": "v1"}, *HOSTILE])
def test_elsewhere_the_queue_gives_plain_json_too(parameters: Any, manager: Any) -> None:
    manager.queue = [json.dumps({"parameter_id": 3, "parameters": parameters})]
    record = pairing.PlainChannel(f"{manager.url}/a").receive_parameter()
    assert record == {"parameter_id": 3, "parameters": parameters}


def test_no_record_in_time(manager: Any) -> None:
    channel = pairing.OwnParametersChannel(f"{manager.url}/a", "a", patience=0.3)
    with pytest.raises(ExperimentError, match=r"did not tell the parameters of trial a within 0\.3 s"):
        channel.receive_parameter()


@pytest.mark.parametrize(
    ("platform", "url", "kind"),
    [
        ("local", "http://localhost:1/env/local-env/a", pairing.OwnParametersChannel),
        ("kubeflow", "http://localhost:1/env/x/a", pairing.PlainChannel),
        ("local", "", None),
        ("", "", None),
    ],
)
def test_which_channel(platform: str, url: str, kind: type | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNI_PLATFORM", platform)
    monkeypatch.setenv("NNI_TRIAL_COMMAND_CHANNEL", url)
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "a")
    monkeypatch.setattr(trial_command_channel, "_channel", None)
    pairing.install()
    channel = trial_command_channel._channel
    assert channel is None if kind is None else type(channel) is kind


Worker = Callable[..., Path]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Leaves a keeper's file as NNI does on another machine, and makes this process its trial ``a``."""
    environment = tmp_path / "environments" / "remote-worker1"
    monkeypatch.setenv("NNI_PLATFORM", "remote")
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "a")
    monkeypatch.setenv("NNI_TRIAL_COMMAND_CHANNEL", "http://localhost:1/env/remote-worker1/a")
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(environment / "trials" / "a"))
    monkeypatch.setattr(trial_command_channel, "_channel", None)

    def leave(url: str, folder: str = "trial_keeper", age: float = 0.0) -> Path:
        path = environment / folder / "trial_keeper_config.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"managerCommandChannel": url, "platform": "remote"}))
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
        return path

    return leave


def keeper_url(manager: Any) -> str:
    return str(manager.url.replace("http", "ws", 1).replace("/env/local-env", "/platform/remote/1"))


def test_a_trial_on_another_machine_reads_its_record_through_the_newest_keeper(
    worker: Worker, manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker("ws://127.0.0.1:1/of-before/platform/remote/1", age=100)
    worker(keeper_url(manager), "trial_keeper_1")
    record = {"parameter_id": 4, "parameters": {"c0": "v1"}}
    manager.records = {"a": [json.dumps(record)]}
    # Its own entry leaves the queue, in case that another trial has to take the head.
    monkeypatch.setenv("NNI_TRIAL_COMMAND_CHANNEL", f"{manager.url}/a")
    # A proxy for the internet does not know the manager.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1/env")
    pairing.install()
    assert trial_command_channel._channel.api == f"{manager.url.rsplit('/env/')[0]}/api/v1/nni"
    monkeypatch.delenv("http_proxy")
    assert trial_command_channel._channel.receive_parameter() == record
    assert manager.sent == [{"type": "request_parameter"}]


@pytest.mark.parametrize("problem", ["nobody listens", "no file", "no JSON", "no address"])
def test_where_the_manager_cannot_be_asked_the_queue_is_used_and_said_so(problem: str, worker: Worker) -> None:
    if problem != "no file":
        path = worker("ws://127.0.0.1:1/token/platform/remote/1")
        if problem != "nobody listens":
            path.write_text("{" if problem == "no JSON" else "{}")
    with pytest.warns(UserWarning, match=r"NNI's queue.*open nniManagerIp and the manager's port to this machine"):
        pairing.install()
    assert type(trial_command_channel._channel) is pairing.PlainChannel


@pytest.mark.parametrize(
    ("concurrency", "machines", "share"), [(4, 2, 2), (5, 2, 3), (1, 3, 1), (4, 0, 4), (None, 2, 1)]
)
def test_trials_share_the_cores_of_their_own_machine(
    concurrency: int | None, machines: int, share: int, worker: Worker, manager: Any
) -> None:
    worker(keeper_url(manager))
    service = {"platform": "remote", "machineList": [{"host": f"h{number}"} for number in range(machines)]}
    manager.answers["experiment"] = {"params": {"trialConcurrency": concurrency, "trainingService": service}}
    assert pairing.trial_concurrency() == share


def test_what_the_tuner_was_given(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"objectives": {"score": "maximize", "latency_ms": "minimize"}}
    manager.answers["experiment"] = {
        "params": {"trialConcurrency": 3, "tuner": {"className": "x.Tpe", "classArgs": given}}
    }
    assert pairing.tuner_arguments() == {}  # outside of NNI
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setenv("NNI_TRIAL_COMMAND_CHANNEL", f"{manager.url}/a")
    assert pairing.tuner_arguments() == given
    for other in ({"params": {"tuner": {"name": "TPE"}}}, {"params": {"advisor": {"name": "BOHB"}}}, {"params": None}):
        manager.answers["experiment"] = other
        assert pairing.tuner_arguments() == {}
