"""The guard before a small server of its own; tests/integration/test_security.py has the real manager and browser."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nni
import nni_node
import psutil
import pytest

from nni_cssnas.bridge import guard
from nni_cssnas.bridge.guard import manager_environment

NODE = Path(nni_node.__path__[0]) / "node"
# Answers every request, and accepts every websocket, with what it was asked for.
SERVER = """
const http = require("http");
const server = http.createServer((request, response) => response.end(JSON.stringify([request.url, process.argv])));
server.on("upgrade", (request, socket) => socket.end("HTTP/1.1 101 Switching Protocols\\r\\n\\r\\n"));
server.listen(0, () => console.log(server.address().port));
process.on("message", () => {});
if (process.env.NNI_CSSNAS_TOKEN) throw new Error("the token is left to trials");
"""
TOKEN = "-secret_1"


@contextmanager
def served(folder: Path, token: str | None = None) -> Iterator[int]:
    (folder / "nni_node").mkdir()
    script = folder / "nni_node" / "main.js"
    script.write_text(SERVER)
    with subprocess.Popen(
        [str(NODE), str(script)],
        env=manager_environment(token=token),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with served(tmp_path_factory.mktemp("guarded")) as number:
        yield number


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with served(tmp_path_factory.mktemp("public"), TOKEN) as number:
        yield number


def test_a_manager_does_not_wait_for_idle_connections(tmp_path: Path) -> None:
    (tmp_path / "nni_node").mkdir()
    script = tmp_path / "nni_node" / "main.js"
    # It ends with its input, as soon as nobody is connected.
    script.write_text(
        SERVER.replace(
            "process.on", 'process.stdin.on("end", () => server.close(() => process.exit())).resume(); process.on'
        )
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([NODE, script], env=manager_environment(), stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(process.stdout.readline()))
        try:
            connection.request("GET", "/")
            assert connection.getresponse().read()
            assert connection.sock is not None  # kept for more questions
            begun = time.monotonic()
            process.stdin.close()
            assert process.wait(10) == 0
            assert time.monotonic() - begun < 2
        finally:
            connection.close()
            process.kill()


def ask(
    port: int,
    path: str = "/",
    host: str | None = "127.0.0.1",
    method: str = "GET",
    to: str = "127.0.0.1",
    **headers: str,
) -> tuple[int, str]:
    """The status and the body of the answer; the request is sent as it is, whatever a client would mend."""
    lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    with socket.create_connection((to, port), timeout=10) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket"}


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "[::1]:{port}", "localhost:9000"]
)
def test_this_machine_is_let_in(port: int, host: str) -> None:
    host = host.format(port=port)
    assert ask(port, "/api", host)[0] == 200
    assert ask(port, "/api", host, "POST", Origin=f"http://{host}")[0] == 200
    assert ask(port, "/tuner", host, **UPGRADE)[0] == 101


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:{port}",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil",
        "10.0.0.1",
        "0.0.0.0",
        "",
        "localhost@evil",
        "evil#localhost",
    ],
)
def test_a_foreign_host_is_refused(port: int, host: str) -> None:
    host = host.format(port=port)
    assert ask(port, "/api", host)[0] in (400, 403)
    assert ask(port, "/api", host, "POST", Origin=f"http://{host}")[0] in (400, 403)
    assert ask(port, "/tuner", host, **UPGRADE)[0] in (400, 403)


def test_no_host_is_refused(port: int) -> None:
    assert ask(port, host=None)[0] in (400, 403)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://localhost:1",
        "null",
        "",
        "http://127.0.0.1.evil",
        "file://",
        "http://127.0.0.1@evil",
    ],
)
def test_a_foreign_origin_is_refused(port: int, origin: str) -> None:
    host = f"127.0.0.1:{port}"
    for method in ("GET", "POST", "OPTIONS", "PUT", "DELETE"):
        assert ask(port, "/api", host, method, Origin=origin)[0] == 403
    assert ask(port, "/tuner", host, Origin=origin, **UPGRADE)[0] == 403


@pytest.mark.parametrize(
    ("site", "mode", "dest", "status"),
    [
        ("cross-site", "no-cors", "image", 403),
        ("same-site", "no-cors", "script", 403),  # another port of this machine
        ("cross-site", "navigate", "iframe", 403),
        ("cross-site", "navigate", "document", 200),  # a link to the portal
        ("none", "navigate", "document", 200),
        ("same-origin", "cors", "empty", 200),
    ],
)
def test_what_a_browser_tells_of_the_page(port: int, site: str, mode: str, dest: str, status: int) -> None:
    told = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": dest}
    assert ask(port, **told)[0] == status
    if site == "cross-site":
        assert ask(port, method="POST", **told)[0] == 403


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        "..%2fx",
        "%2e%2e%2fx",
        "%2E%2e/x",
        "..%5cx",
        "..\\x",
        "%252e%252e%252fx",
        "a/..%2f..%2fx",
        "%25252e%25252e/x",
        "%",
        "%zz",
        "%2525252525252e.",
    ],
)
def test_paths_do_not_leave_their_folder(port: int, name: str) -> None:
    assert ask(port, f"/api/v1/nni/trial-file/TRIAL/{name}")[0] == 403


def test_other_paths_are_as_they_were(port: int) -> None:
    for path in ("/a..b/..c/...", "/x%20y?z=..%2f", "/trial-file/T/trial.log", "/100%25"):
        status, body = ask(port, path)
        assert (status, json.loads(body)[0]) == (200, path)
    assert ask(port, "http://evil.example/x")[0] == 403
    assert ask(port, "/netron/index.html")[0] == 403


def test_it_listens_on_loopback_only(port: int) -> None:
    assert listening(port) == {"127.0.0.1"}


def listening(port: int) -> set[str]:
    return {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }


def elsewhere() -> str:
    """An address of this machine that is not loopback."""
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not found:
        pytest.skip("this machine has no network")
    return found[0]


def test_a_public_portal_needs_the_secret(public: int) -> None:
    assert listening(public) == {"::"}
    machine = elsewhere()
    host = f"{machine}:{public}"
    for path in ("/", "/api", "/-secret_", "/-secret_12/api", "/-SECRET_1/api", "/x/-secret_1/api", f"/?{TOKEN}"):
        for name in (host, "localhost", "127.0.0.1"):
            assert ask(public, path, name, to=machine)[0] == 403
        assert ask(public, path, host, to=machine, **UPGRADE)[0] == 403
    for path in (f"/{TOKEN}", f"/{TOKEN}/api", f"/{TOKEN}?x=1"):
        assert json.loads(ask(public, path, host, to=machine)[1])[0] == path
        assert ask(public, path, host, to=machine, **UPGRADE)[0] == 101
        assert ask(public, path, host, to=machine, Origin="http://evil.example")[0] == 403
        assert ask(public, path, "any.name.of.it", to=machine, Origin="https://any.name.of.it")[0] == 200
    assert ask(public, f"/{TOKEN}/trial-file/T/..%2fx", host, to=machine)[0] == 403


def test_nnictl_on_this_machine_need_not_know_the_secret(public: int) -> None:
    for path in ("/api/v1/nni/trial-jobs", f"/{TOKEN}/api/v1/nni/trial-jobs"):
        status, body = ask(public, path, f"localhost:{public}")
        assert status == 200
        url, argv = json.loads(body)
        assert url == f"/{TOKEN}/api/v1/nni/trial-jobs"
        assert f"--url-prefix={TOKEN}" in argv
    assert ask(public, "/api", "evil.example")[0] == 403
    assert ask(public, "/api", f"localhost:{public}", Origin="http://evil.example")[0] == 403
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if TOKEN in command]


def test_a_slow_tuner_is_waited_for(tmp_path: Path) -> None:
    """By the timer that NNI's manager really has."""
    source = Path(nni_node.__path__[0]) / "core" / "tuner_command_channel.js"
    timers = re.findall(r"setTimeout\(\(\) => \{.*?\}, \d+\);", source.read_text(), re.DOTALL)
    assert len(timers) == 1
    (tmp_path / "nni_node").mkdir()
    script = tmp_path / "nni_node" / "main.js"
    delay = "console.log(%s._idleTimeout)"
    other = delay % "setTimeout(() => {}, 10000)"
    promise = "require('util').promisify(setTimeout)(1).then(() => { console.log('awaited'); process.exit(); });"
    script.write_text(f"{delay % timers[0].rstrip(';')};\n{other};\n{promise}\n")
    done = subprocess.run(
        [str(NODE), str(script)], env=manager_environment(), capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.split() == ["120000", "10000", "awaited"]


def test_a_manager_outlives_a_broken_connection_to_a_machine(tmp_path: Path) -> None:
    """With the SSH client that NNI's manager has; to an error that nobody listens to, node ends."""
    (tmp_path / "nni_node").mkdir()
    script = tmp_path / "nni_node" / "main.js"
    script.write_text(
        """
        const { once } = require("events");
        const { Client } = require("ssh2");
        (async () => {
            const client = new Client();
            client.connect({ host: "127.0.0.1", port: Number(process.argv[2]), username: "me", password: "x" });
            await new Promise((done) => client.on("close", done));
            console.log("alive", client.config.keepaliveInterval);
            client.connect({ host: "127.0.0.1", port: Number(process.argv[2]), username: "me", password: "x" });
            await once(client, "ready").catch((error) => console.log("told", error.message));
        })();
        """
    )
    environment = manager_environment() | {"NODE_PATH": str(NODE.parent / "node_modules")}
    with socket.create_server(("127.0.0.1", 0)) as server:
        closing = threading.Thread(target=lambda: [server.accept()[0].close() for _ in range(2)], daemon=True)
        closing.start()
        done = subprocess.run(
            [str(NODE), str(script), str(server.getsockname()[1])],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    lines = done.stdout.splitlines()
    assert lines[:1] == ["alive 15000"], done.stderr
    assert lines[1].startswith("told "), done.stderr
    assert done.returncode == 0
    assert "SSH connection to 127.0.0.1: " in done.stderr


def test_tensorboard_does_not_listen_everywhere(tmp_path: Path) -> None:
    """With NNI's way of calling it: options in one word, which a shell takes apart."""
    (tmp_path / "nni_node").mkdir()
    script = tmp_path / "nni_node" / "main.js"
    words = ["--bind_all --logdir_spec=0-x:/y", "--port=6006"]
    script.write_text(
        "const { spawn } = require('child_process');"
        f"spawn('tensorboard', {json.dumps(words)}, {{ shell: true, stdio: 'inherit' }});"
        f"spawn('echo', {json.dumps(words)}, {{ shell: true, stdio: 'inherit' }});"
    )
    (tmp_path / "tensorboard").write_text('#!/bin/sh\necho tensorboard "$@"\n')
    (tmp_path / "tensorboard").chmod(0o755)
    environment = manager_environment()
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run([str(NODE), str(script)], env=environment, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == [
        "--bind_all --logdir_spec=0-x:/y --port=6006",
        "tensorboard --logdir_spec=0-x:/y --port=6006",
    ]


def test_what_the_manager_starts_of_nni_comes_after_this_package(tmp_path: Path) -> None:
    """So that it loads less; arguments and exit code are those of ``python -m``."""
    (tmp_path / "nni_node").mkdir()
    script = tmp_path / "nni_node" / "main.js"
    script.write_text(
        "const { spawn } = require('child_process');"
        "const [shell, program, ...words] = process.argv.slice(2);"
        "spawn(program, words, { stdio: 'inherit', shell: shell === 'shell' }).on('exit', (code) => { process.exitCode = code; });"
    )

    def start(*words: str, shell: str = "none") -> subprocess.CompletedProcess[str]:
        command = [str(NODE), str(script), shell, sys.executable, *words]
        environment = manager_environment() | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    version = start("-m", "nni.tools.nni_manager_scripts.collect_version_info")
    assert (version.returncode, json.loads(version.stdout)["nniVersion"]) == (0, nni.__version__)
    (tmp_path / "nni_cssnas_words.py").write_text(
        "import sys; print(sys.argv[1:], 'nni_cssnas' in sys.modules); sys.exit(3)"
    )
    other = start("-m", "nni_cssnas_words", "a")
    assert (other.returncode, other.stdout) == (3, "['a'] False\n")  # what is not NNI's is started as it was
    tuner = start("-m", "nni", "--exp_params", "%%", shell="shell")  # as NNI starts it
    assert tuner.returncode == 1
    assert "JSONDecodeError" in tuner.stderr
    assert "run_module" in tuner.stderr


def test_the_files_of_a_trials_output_are_closed(tmp_path: Path) -> None:
    """With NNI's own way of starting trials, which leaves two files open for each."""
    source = Path(nni_node.__path__[0]) / "common" / "trial_keeper" / "process.js"
    made = re.findall(r"(const std(?:out|err) = .*createWriteStream.*;)\n", source.read_text())
    waited = re.findall(r"(await Promise.all.*'open'.*;)\n", source.read_text())
    assert (len(made), len(waited)) == (2, 1)
    (tmp_path / "nni_node").mkdir()
    script = tmp_path / "nni_node" / "main.js"
    script.write_text(
        """
        const [fs_1, path_1, events_1, child_process_1] = ["fs", "path", "events", "child_process"].map((name) => ({ default: require(name) }));
        async function start(outputDirectory) {
            const options = { outputDirectory };
        LINES
            const child = child_process_1.default.spawn("sleep 0.2; echo out; echo err >&2", { shell: true, stdio: ["ignore", stdout, stderr] });
            await events_1.default.once(child, "close");
        }
        (async () => {
            for (let trial = 0; trial < 5; trial++) await start(process.argv[2]);
            const names = require("fs").readdirSync("/proc/self/fd").map((fd) => {
                try { return require("fs").readlinkSync("/proc/self/fd/" + fd); } catch { return ""; }
            });
            console.log(names.filter((name) => name.includes("trial.std")).length);
        })();
        """.replace("LINES", "\n".join(made + waited))
    )
    command = [str(NODE), str(script), str(tmp_path)]
    open_files = {}
    for name, environment in (("plain", dict(os.environ)), ("guarded", manager_environment())):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=30)
        open_files[name] = int(done.stdout)
        assert [(tmp_path / f"trial.std{kind}").read_text() for kind in ("out", "err")] == ["out\n", "err\n"]
    assert open_files == {"plain": 10, "guarded": 0}


def test_other_programs_of_node_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "main.js").write_text(
        SERVER.replace(
            "console.log(server.address().port)", "console.log(JSON.stringify(server.address())) || server.close()"
        )
    )
    done = subprocess.run(
        [str(NODE), str(tmp_path / "main.js")], env=manager_environment(), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["address"] == "::"


def test_the_line_for_plain_nnictl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / 'it\'s a "folder" \\ $HOME'
    odd.mkdir()
    for name in ("mine.js", "loopback.js"):
        (odd / name).write_text(f"console.log('{name}')")
    monkeypatch.setattr(guard, "GUARD", odd / "mine.js")
    before = guard.hooked()
    monkeypatch.setattr(guard, "GUARD", odd / "loopback.js")
    line = guard.shell_line({"NODE_OPTIONS": before})
    done = subprocess.run(["sh", "-c", f"{line}; {NODE} -p 1"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mine.js", "loopback.js", "1"]
    assert guard.hooked(guard.hooked("--a")) == guard.hooked("--a")


def test_the_environment_of_the_manager() -> None:
    environment = manager_environment({"PATH": "/bin", "NODE_OPTIONS": "--a", "NNI_CSSNAS_TOKEN": "old"})
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]
    assert environment["NODE_OPTIONS"].startswith('--a --require "')
    assert environment["NODE_OPTIONS"].endswith('loopback.js"')
    assert "NNI_CSSNAS_TOKEN" not in environment
    assert manager_environment({}, token="x")["NNI_CSSNAS_TOKEN"] == "x"


ASK = """
import socket, sys
port, request, wait = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "wait"
connection = socket.create_connection((sys.argv[4], port), timeout=10)
connection.sendall(request.encode().decode("unicode_escape").encode())
if wait:
    print(connection.recv(65536).decode().split()[1])
"""


def ask_as(user: int, port: int, path: str = "/api", *, wait: bool = True, to: str = "127.0.0.1") -> str:
    """The status of the answer to a program of another user."""
    request = (
        f"POST {path} HTTP/1.1\\r\\nHost: localhost:{port}\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n"
    )
    done = subprocess.run(
        ["python3", "-c", ASK, str(port), request, "wait" if wait else "go", to],
        user=user,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
    )
    return done.stdout.strip()


OTHER = 65534


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can act as two users")
def test_other_users_of_the_machine_are_refused(port: int, public: int) -> None:
    assert ask_as(0, port) == "200"
    assert ask_as(OTHER, port) == "403"
    # A program that does not wait for the answer leaves a socket of nobody behind: it must not pass for root's.
    ask_as(OTHER, port, wait=False)
    # Where the portal is public, the secret lets in whoever knows it.
    assert ask_as(OTHER, public) == "403"
    assert ask_as(OTHER, public, f"/{TOKEN}/api") == "200"
    assert ask_as(0, public) == "200"


LEFT = """
const http = require("http");
const seen = [];
const server = http.createServer((request, response) => { seen.push(request.url); response.end(JSON.stringify(seen)); });
server.listen(0, () => console.log(server.address().port));
"""


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can act as two users")
def test_a_request_that_is_sent_and_left_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SERVER", LEFT)
    with served(tmp_path) as number:
        for index in range(20):
            ask_as(OTHER, number, f"/left-{index}", wait=False)
        assert json.loads(ask(number, "/mine")[1]) == ["/mine"]
