"""Attacks on a real manager, by programs and by a real browser: none gets in, and the portal itself works."""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import websockets
import yaml
from websockets.exceptions import InvalidHandshake

from nni_cssnas.bridge import launch

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TRIAL = """
import nni
from nni_cssnas.bridge import pairing
pairing.install()
parameters = nni.get_next_parameter()
print("parameters", parameters)
nni.report_intermediate_result(1.0)
nni.report_final_result({"default": 1.0})
"""
CHOICES = {f"c{i}": {"_type": "choice", "_value": list(range(8))} for i in range(4)}
PAGE = "<html><body>a page of somebody else's</body></html>"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def hostile(folder: Path, name: str) -> list[dict[str, Any]]:
    """Parameters that NNI's own loader would turn into programs."""
    pickled = base64.b64encode(pickle.dumps(Payload(folder / f"pickle-{name}"))).decode()
    return [
        {"__nni_obj__": pickled},
        {"__nni_type__": f"bytes:{pickled}"},
        {"__symbol__": "path:os.system", "__args__": [f"touch {folder}/symbol-{name}"]},
    ]


def test_the_payloads_work_where_nothing_hinders_them(tmp_path: Path) -> None:
    import nni

    for payload in hostile(tmp_path, "x"):
        nni.load(json.dumps(payload))
    assert {path.name for path in tmp_path.iterdir()} == {"pickle-x", "symbol-x"}


class Target:
    """A running experiment, and what the attacks would leave."""

    def __init__(self, experiment: launch.RunningExperiment, folder: Path, spoils: Path) -> None:
        self.experiment = experiment
        self.folder = folder
        self.spoils = spoils
        self.port = experiment.port
        self.api = f"http://127.0.0.1:{self.port}/api/v1/nni"

    def trial(self) -> str:
        return str(self.experiment.get("trial-jobs")[0]["trialJobId"])

    def wait(self, number: int) -> None:
        deadline = time.monotonic() + 90
        while (state := self.experiment.progress()).succeeded < number:
            assert time.monotonic() < deadline, state
            time.sleep(0.5)


@pytest.fixture(scope="module")
def target(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    code = tmp_path_factory.mktemp("target")
    (code / "trial.py").write_text(TRIAL)
    (code / "search_space.json").write_text(json.dumps(CHOICES))
    (code / "experiment.yml").write_text(
        yaml.safe_dump(
            {
                "searchSpaceFile": "search_space.json",
                "trialCommand": "python trial.py",
                "trialCodeDirectory": ".",
                "experimentWorkingDirectory": str(home / "nni-experiments"),
                "trialConcurrency": 2,
                "maxTrialNumber": 3,
                "tuner": {"className": "nni_cssnas.tuners.tpe.Tpe", "codeDirectory": ".", "classArgs": {"seed": 0}},
                "trainingService": {"platform": "local"},
            }
        )
    )
    experiment = launch.create(code / "experiment.yml", port=launch.free_port(18600), public=True)
    found = Target(experiment, home / "nni-experiments" / experiment.id, tmp_path_factory.mktemp("spoils"))
    try:
        found.wait(3)
        yield found
    finally:
        experiment.stop()


def test_trials_and_tuner_work_behind_the_guard(target: Target) -> None:
    assert target.experiment.progress().succeeded == 3
    for path in target.folder.glob("environments/*/trials/*/trial.stderr"):
        assert path.read_text() == ""
    dispatcher = (target.folder / "log" / "dispatcher.log").read_text()
    assert "ERROR" not in dispatcher


def test_nnictl_works_behind_the_guard(target: Target, tmp_path: Path) -> None:
    nnictl = str(Path(sys.executable).with_name("nnictl"))
    command = [nnictl, "experiment", "export", target.experiment.id, "-f", str(tmp_path / "export.json"), "-t", "json"]
    subprocess.run(command, check=True, capture_output=True)
    assert len(json.loads((tmp_path / "export.json").read_text())) == 3


def test_the_secret_is_in_no_process_list(target: Target) -> None:
    assert target.experiment.token
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if target.experiment.token in command]


def machine() -> str:
    """An address of this machine as others see it."""
    addresses = (address for found in psutil.net_if_addrs().values() for address in found)
    outer = [a.address for a in addresses if a.family == socket.AF_INET and not a.address.startswith("127.")]
    if not outer:
        pytest.skip("this machine has no network")
    return outer[0]


def test_other_machines_need_the_secret(target: Target) -> None:
    base = f"http://{machine()}:{target.port}"
    for path in ("", "/api/v1/nni/trial-jobs", "/logs/nnimanager.log", "/wrong/api/v1/nni/trial-jobs"):
        assert requests.get(base + path, timeout=10).status_code == 403
    assert requests.get(f"{base}/{target.experiment.token}/api/v1/nni/trial-jobs", timeout=10).ok
    url = f"{base}/{target.experiment.token}/api/v1/nni/trial-file/{target.trial()}"
    assert requests.get(f"{url}/trial.log", timeout=10).ok
    assert requests.get(f"{url}/..%2f..%2ftrials", timeout=10).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}],
)
def test_foreign_requests_are_refused(target: Target, headers: dict[str, str]) -> None:
    before = len(target.experiment.get("trial-jobs"))
    for payload in hostile(target.spoils, "foreign"):
        for kind in ("application/json", "text/plain"):
            answer = requests.post(
                f"{target.api}/trial-jobs",
                data=json.dumps(payload),
                headers=headers | {"Content-Type": kind},
                timeout=10,
            )
            assert answer.status_code == 403
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        assert requests.request(method, f"{target.api}/experiment", headers=headers, timeout=10).status_code == 403
    assert len(target.experiment.get("trial-jobs")) == before


def test_foreign_websockets_are_refused(target: Target) -> None:
    async def connect(path: str, **settings: Any) -> None:
        async with websockets.connect(f"ws://127.0.0.1:{target.port}/{path}", **settings):
            pass

    for path in ("tuner", f"{target.experiment.token}/tuner", "platform/local/1"):
        with pytest.raises(InvalidHandshake, match="403"):
            asyncio.run(connect(path, origin="http://evil.example"))
    assert target.experiment.progress().status != "ERROR"


@pytest.mark.parametrize(
    "name", ["..%2f..%2f..%2f..%2flog%2fnnimanager.log", "%252e%252e%252fx", "..%5cx", "..%2f..%2f..%2fetc%2fpasswd"]
)
def test_trial_files_do_not_leave_their_folder(target: Target, name: str) -> None:
    assert requests.get(f"{target.api}/trial-file/{target.trial()}/trial.log", timeout=10).ok
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:  # requests would tidy the path
        path = f"/api/v1/nni/trial-file/{target.trial()}/{name}"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 403")


@pytest.fixture(scope="module")
def foreign() -> Iterator[int]:
    """A web server of somebody else's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


ATTACK = """async ([base, socket, payload, trial]) => {
    const outcome = {};
    const attempt = async (name, path, settings) => {
        try {
            const answer = await fetch(base + path, settings);
            outcome[name] = answer.type === "opaque" ? "opaque" : answer.status + " " + (await answer.text()).slice(0, 60);
        } catch (error) {
            outcome[name] = "blocked";
        }
    };
    const body = JSON.stringify(payload);
    await attempt("read", "/api/v1/nni/trial-jobs", {});
    await attempt("file", `/api/v1/nni/trial-file/${trial}/trial.log`, {});
    await attempt("climb", `/api/v1/nni/trial-file/${trial}/..%2f..%2fx`, {});
    await attempt("text", "/api/v1/nni/trial-jobs", {method: "POST", body});
    await attempt("text, no cors", "/api/v1/nni/trial-jobs", {method: "POST", body, mode: "no-cors"});
    const json = {"Content-Type": "application/json"};
    await attempt("json", "/api/v1/nni/trial-jobs", {method: "POST", body, headers: json});
    outcome.websocket = await new Promise((resolve) => {
        const channel = new WebSocket(socket);
        channel.onopen = () => resolve("open");
        channel.onerror = () => resolve("blocked");
    });
    outcome.script = await new Promise((resolve) => {
        const element = document.createElement("script");
        element.onload = () => resolve("open");
        element.onerror = () => resolve("blocked");
        element.src = base + "/api/v1/nni/trial-jobs";
        document.body.append(element);
    });
    return outcome;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "the portal is attacked in Chromium: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
    # Chromium's own hurdles before this machine's addresses are not what is tried here.
    flags += [
        "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests,PrivateNetworkAccessSendPreflights"
    ]
    flags += ["--host-resolver-rules=MAP evil.example 127.0.0.1"]
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield found
        found.close()


@pytest.mark.parametrize("kind", ["another port", "another name", "rebinding"])
def test_a_web_page_of_somebody_else_gets_nothing(kind: str, target: Target, foreign: int, browser: Any) -> None:
    before = len(target.experiment.get("trial-jobs"))
    page = browser.new_page()
    # What DNS rebinding does: the page's own name becomes this machine's address, so that it is of the same origin.
    name = {"another port": f"127.0.0.1:{foreign}", "another name": f"evil.example:{foreign}"}
    base = f"http://evil.example:{target.port}" if kind == "rebinding" else f"http://127.0.0.1:{target.port}"
    if kind == "rebinding":
        page.route(f"{base}/attack", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
        page.goto(f"{base}/attack")
    else:
        page.goto(f"http://{name[kind]}/")
    sent = [hostile(target.spoils, kind)[0], base.replace("http", "ws", 1) + "/tuner", target.trial()]
    outcome = page.evaluate(ATTACK, [base, sent[1], sent[0], sent[2]])
    page.close()
    for attempt, result in outcome.items():
        # What a page may send without reading the answer arrives, and is refused there.
        assert result in ("blocked", "opaque") or result.startswith("403 nni_cssnas refuses"), (attempt, result)
    assert outcome["websocket"] == "blocked"
    assert len(target.experiment.get("trial-jobs")) == before
    assert target.experiment.progress().status != "ERROR"


@pytest.mark.parametrize("public", [False, True])
def test_the_portal_itself_works(public: bool, target: Target, browser: Any) -> None:
    base = f"http://{machine()}:{target.port}/{target.experiment.token}" if public else target.experiment.portal
    page = browser.new_page(viewport={"width": 1500, "height": 1300})
    answers: list[tuple[int, str]] = []
    page.on("response", lambda answer: answers.append((answer.status, answer.url)))
    page.goto(f"{base}/detail")
    page.wait_for_selector("text=SUCCEEDED")
    page.goto(f"{base}/oview")
    page.wait_for_selector(f"text={target.experiment.id}")
    page.close()
    assert [url for status, url in answers if "/api/v1/nni/trial-jobs" in url and status == 200]
    own = f":{target.port}/"
    assert [url for status, url in answers if own in url and status >= 400] == []


def test_what_gets_through_all_the_same_runs_nothing(target: Target) -> None:
    """A program of this machine may talk to the manager; even then nothing is unpickled in trials and tuner."""
    profile = target.experiment.get("experiment")
    profile["params"]["maxTrialNumber"] = 10
    settings = {"json": profile, "timeout": 10}
    requests.put(f"{target.api}/experiment?update_type=MAX_TRIAL_NUM", **settings).raise_for_status()
    for payload in hostile(target.spoils, "local"):
        requests.post(f"{target.api}/trial-jobs", json=payload, timeout=10).raise_for_status()
    finished = [{"parameter": payload, "value": 1} for payload in hostile(target.spoils, "import")]
    requests.post(f"{target.api}/experiment/import-data", json=finished, timeout=10).raise_for_status()
    target.wait(10)
    printed = [path.read_text() for path in target.folder.glob("environments/*/trials/*/trial.log")]
    assert sum("__nni_obj__" in text or "__symbol__" in text or "__nni_type__" in text for text in printed) == 3
    assert list(target.spoils.iterdir()) == []
