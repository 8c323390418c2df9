"""What a manager tells of its trials on other machines becomes records; the manager is a small server here."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from nni_cssnas.results.carried import KEY, LINE, pack
from nni_cssnas.results.records import TrialRecord, read_records
from nni_cssnas.tuners.collector import Collector
from nni_cssnas.tuners.dispatcher import runs_elsewhere

PARAMETERS = {"c0": "v1"}


class Manager:
    """Answers as NNI's REST API does: the trials, their metrics, their output."""

    def __init__(self) -> None:
        self.trials: dict[str, dict[str, Any]] = {}
        self.metrics: dict[str, list[Any]] = {}
        self.output: dict[str, str] = {}
        self.asked: list[str] = []

    def trial(self, name: str, status: str, *, number: int = 0, metric: Any = None, output: str = "") -> None:
        self.trials[name] = {
            "trialJobId": name,
            "status": status,
            "sequenceId": number,
            "hyperParameters": [json.dumps({"parameter_id": number, "parameters": PARAMETERS})],
            "startTime": 1_700_000_000_000,
            "logPath": f"worker1:~/nni-experiments/exp/environments/remote-worker1/trials/{name}",
        }
        if status not in ("RUNNING", "ADD_RESUMED"):
            self.trials[name]["endTime"] = 1_700_000_002_500
        found = [] if metric is None else [{"data": json.dumps(json.dumps(metric))}]
        self.metrics[name], self.output[name] = found, output
        if status == "SUCCEEDED":
            self.trials[name]["finalMetricData"] = found

    def answer(self, path: str) -> Any:
        self.asked.append(path)
        if path == "job-statistics":
            return [trial["status"] for trial in self.trials.values()]
        if path == "trial-jobs":
            return list(self.trials.values())
        name = path.split("/")[1].split("?")[0]
        return self.output[name] if path.endswith("/stdout") else self.metrics[name]


@pytest.fixture
def manager() -> Iterator[tuple[Manager, str]]:
    known = Manager()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = known.answer(self.path.split("/api/v1/nni/")[1])
            text = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield known, f"http://127.0.0.1:{server.server_address[1]}/token/api/v1/nni"
    server.shutdown()
    server.server_close()


def sent(name: str, status: str = "succeeded", score: float | None = 0.5, **values: Any) -> TrialRecord:
    return TrialRecord("exp", name, 0, 0, PARAMETERS, status=status, score=score, started=1.0, **values)


def collected(folder: Path) -> dict[str, TrialRecord]:
    return {record.trial: record for record in read_records(folder)}


def test_each_way_that_a_trial_may_end(manager: tuple[Manager, str], tmp_path: Path) -> None:
    known, api = manager
    folder = tmp_path / "exp"
    failed = sent("bad", "failed", None, error="ValueError: x")
    known.trial("good", "SUCCEEDED", metric={"default": 0.5, KEY: pack(sent("good"))})
    known.trial("bad", "FAILED", output=f"epoch 1\n{LINE}{pack(failed)}\n")
    known.trial("late", "USER_CANCELED", metric={"default": 0.5, KEY: pack(sent("late"))})  # killed after it reported
    known.trial("ended", "EARLY_STOPPED", output=f"{LINE}{pack(sent('ended', 'stopped', None))}\n")
    known.trial("dead", "USER_CANCELED", number=4, output="NNI internal error. Please check log file.")
    known.trial("broken", "FAILED", number=5)
    known.trial("swapped", "FAILED", output=f"{LINE}{pack(sent('good'))}")
    known.trial("foreign", "SUCCEEDED", metric={"default": 3.0})
    known.trial("running", "RUNNING", number=8)
    known.trial("again", "ADD_RESUMED", number=9)
    (folder / "trials" / "broken").mkdir(parents=True)
    (folder / "trials" / "broken" / "trial.stderr").write_text("Traceback\nModuleNotFoundError: no nni_cssnas\n\n")
    collector = Collector(api, folder)
    assert [collector.collect() for _ in range(3)] == [False, False, True]
    found = collected(folder)

    def located(record: TrialRecord) -> TrialRecord:
        name = record.trial
        return replace(record, location=f"worker1:~/nni-experiments/exp/environments/remote-worker1/trials/{name}")

    for record in (sent("good"), failed, sent("late"), sent("ended", "stopped", None)):
        assert found[record.trial] == located(record)
    assert "foreign" not in found
    assert found["dead"] == located(
        TrialRecord(
            *("exp", "dead", 4, 4, PARAMETERS),
            status="failed",
            error="no record came from worker1: it was killed, or its machine was lost",
            started=1.7e9,
            duration=2.5,
        )
    )
    assert found["broken"].error is not None
    assert found["broken"].error.endswith("it failed; the last that it printed: ModuleNotFoundError: no nni_cssnas")
    assert found["swapped"].status == "failed"
    assert {found[name].status for name in ("running", "again")} == {"running"}
    # They end, and their own records take the place.
    known.trial("running", "SUCCEEDED", metric={"default": 0.5, KEY: pack(sent("running"))})
    known.trial("again", "SUCCEEDED", metric={"default": 0.5})
    known.asked.clear()
    assert [collector.collect() for _ in range(3)] == [False, False, True]
    found = collected(folder)
    assert found["running"] == located(sent("running"))
    assert "again" not in found
    assert {path.split("?")[0].split("/")[0] for path in known.asked} == {"trial-jobs"}  # nothing is asked for twice


def test_what_was_collected_before_is_left_alone(manager: tuple[Manager, str], tmp_path: Path) -> None:
    known, api = manager
    known.trial("bad", "FAILED", output=f"{LINE}{pack(sent('bad', 'failed', None, error='E: x'))}")
    assert Collector(api, tmp_path).collect()
    path = tmp_path / "trials" / "bad" / "record.json"
    before = path.stat()
    known.output["bad"] = "its worker is gone since the experiment was resumed"
    assert Collector(api, tmp_path).collect()
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".."])
def test_a_name_that_leads_elsewhere_is_left_out(name: str, manager: tuple[Manager, str], tmp_path: Path) -> None:
    known, api = manager
    known.trial("good", "RUNNING")
    known.trials["good"]["trialJobId"] = name
    Collector(api, tmp_path / "exp").collect()
    assert list(tmp_path.rglob("record.json")) == []


def test_it_looks_at_the_list_only_when_something_has_ended(manager: tuple[Manager, str], tmp_path: Path) -> None:
    known, api = manager
    Collector(api, tmp_path).start(interval=0.02)
    known.trial("good", "SUCCEEDED", metric={"default": 0.5, KEY: pack(sent("good"))})
    deadline = time.monotonic() + 10
    while not collected(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    known.asked.clear()
    time.sleep(0.3)
    assert set(known.asked) == {"job-statistics"}


def test_a_manager_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(requests.RequestException):
        Collector("http://127.0.0.1:1/api/v1/nni", tmp_path).collect()


@pytest.mark.parametrize(
    ("service", "elsewhere"),
    [({"platform": "local"}, False), ({"platform": "remote"}, True), (None, False), ([{"platform": "remote"}], True)],
)
def test_where_trials_run(service: Any, elsewhere: bool) -> None:
    encoded = base64.b64encode(json.dumps({"trainingService": service}).encode()).decode()
    assert runs_elsewhere(["nni", "--exp_params", encoded]) is elsewhere
    assert not runs_elsewhere(["nni"])
