"""A trial's parameters, before a small server in the place of NNI's manager."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
            if self.path.endswith("/experiment"):
                body: Any = server.experiment
            elif "/api/" in self.path:
                body = {"hyperParameters": server.records.get(name, [])}
            else:
                body = {"type": "parameter", "parameter": server.queue.pop(0)}
            text = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.records, server.queue, server.experiment = {}, [], {}
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
        ("remote", "http://localhost:1/env/x/a", pairing.PlainChannel),
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


def test_what_the_tuner_was_given(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"objectives": {"score": "maximize", "latency_ms": "minimize"}}
    manager.experiment = {"params": {"trialConcurrency": 3, "tuner": {"className": "x.Tpe", "classArgs": given}}}
    assert pairing.tuner_arguments() == {}  # outside of NNI
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setenv("NNI_TRIAL_COMMAND_CHANNEL", f"{manager.url}/a")
    assert pairing.tuner_arguments() == given
    for other in ({"params": {"tuner": {"name": "TPE"}}}, {"params": {"advisor": {"name": "BOHB"}}}, {}):
        manager.experiment = other
        assert pairing.tuner_arguments() == {}
