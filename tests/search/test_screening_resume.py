"""A screening that ends early keeps what it has measured, and the same command goes on."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nni_cssnas.base import workers
from nni_cssnas.cli import app
from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError, ExperimentError
from nni_cssnas.judge import screening
from nni_cssnas.judge.screening import Screener
from nni_cssnas.results.screening_log import LOG_NAME, ScreeningLog
from nni_cssnas.search.explore import open_log

SETTINGS: dict[str, Any] = {
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "images": {"source": "tiles", "num_images": 64},
    "untrained": {"batch_size": 8},
    "threads": 1,
}
SHORT = {"criterion": "loss", "epochs": 1, "batch_size": 32, "held_out": 0}
SEARCH = ("screen", "proxy.yml", "--num", "6", "--guided", "6", "--workers", "1", "-o", "found")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proxy.yml").write_text(json.dumps(SETTINGS))


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def table(folder: str = "found") -> list[dict[str, str]]:
    with Path(folder, "screen.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")} for row in rows
    ]


def interrupted(monkeypatch: pytest.MonkeyPatch, method: str, number: int) -> Callable[[], None]:
    """Ctrl-C at the ``number``-th architecture of a method."""
    real = getattr(Screener, method)
    calls = 0

    def press(self: Screener, parameters: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return real(self, parameters)

    press.__name__ = method
    monkeypatch.setattr(Screener, method, press)
    return lambda: monkeypatch.setattr(Screener, method, real)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "number"), [("screen", 8), ("finalist", 2)])
def test_after_ctrl_c_the_same_command_ends_with_the_same_table(
    method: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = "contrastive" if method == "finalist" else "untrained"  # only what trains has finalists
    Path("proxy.yml").write_text(
        json.dumps(SETTINGS | {"score": score, "contrastive": SHORT, "views": {"input_size": 8}})
    )
    run(*SEARCH[:-1], "whole")
    again = interrupted(monkeypatch, method, number)
    said = run(*SEARCH, code=130)
    kept = len(Path("found", LOG_NAME).read_text().splitlines()) - 1
    assert f"interrupted; {min(kept, 12)} screened architectures are kept in found/{LOG_NAME}" in said
    part = table()
    assert len(part) == (12 if method == "finalist" else kept)
    scores = [float(row["score"]) for row in part]
    assert scores == sorted(scores, reverse=True)
    again()
    counted = 0
    real = Screener.screen

    def screen(self: Screener, parameters: Any) -> Any:
        nonlocal counted
        counted += 1
        return real(self, parameters)

    monkeypatch.setattr(Screener, "screen", screen)
    said = run(*SEARCH)
    assert f"holds {min(kept, 12)} architectures of this search; it goes on from there" in said
    assert counted == 12 - min(kept, 12)
    assert table() == table("whole")
    for name in ("genotype.json", "genotype.svg"):
        assert Path("found", name).read_bytes() == Path("whole", name).read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        '{"my": "only copy"}',
        '{"screen": {"a": 1}, "score": 1.0, "components": {}, "genotype": null}\n',
        '{"screening": {"seed": 1}}\n{"screen": {"a"',
    ],
)
def test_a_file_that_is_refused_stays_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / LOG_NAME
    path.write_text(text)
    with pytest.raises(ExperimentError, match="or use --force"):
        ScreeningLog.open(path, {"seed": 0})
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["", '{"scr', '{"screening": {"seed": 0'])
def test_a_log_that_was_cut_in_its_first_line_begins_anew(text: str, tmp_path: Path) -> None:
    path = tmp_path / LOG_NAME
    path.write_text(text)
    ScreeningLog.open(path, {"seed": 0})
    assert json.loads(path.read_text()) == {"screening": {"seed": 0}}


def test_more_of_the_same_search_screens_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    run("screen", "proxy.yml", "--num", "3", "--workers", "1")
    run("screen", "proxy.yml", "--num", "5", "--workers", "1")
    rows = [json.loads(line) for line in Path("screened", LOG_NAME).read_text().splitlines()]
    assert sum("screen" in row for row in rows) == 5
    assert len(table("screened")) == 5


def test_another_search_is_refused_and_named() -> None:
    run("screen", "proxy.yml", "--num", "2", "--workers", "1")
    before = {path: path.read_bytes() for path in Path("screened").iterdir()}
    with pytest.raises(ExperimentError, match=r"is of another screening \(seed is 0 there and 3 here\); name another"):
        run("screen", "proxy.yml", "--num", "2", "--workers", "1", "--seed", "3")
    assert {path: path.read_bytes() for path in Path("screened").iterdir()} == before
    run("screen", "proxy.yml", "--num", "2", "--workers", "1", "--seed", "3", "--force")
    assert len(table("screened")) == 2


@pytest.mark.parametrize("name", ["screen.csv", "genotype.json", "genotype-2.png", LOG_NAME])
def test_files_of_somebody_else_are_refused_before_the_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("screened").mkdir()
    Path("screened", name).write_text("mine\n")
    monkeypatch.setattr(screening.Proxy, "prepare", lambda self: pytest.fail("worked before it looked"))
    if name == LOG_NAME:
        with pytest.raises(ExperimentError, match="is no log of a screening"):
            ScreeningLog.open(Path("screened", LOG_NAME), {})
    else:
        with pytest.raises(ExperimentError, match="is there already"):
            run("screen", "proxy.yml", "--num", "2", "--top", "2")
    assert Path("screened", name).read_text() == "mine\n"


@pytest.mark.parametrize("minutes", ["0", "-5", "nan"])
def test_no_time_at_all_is_refused(minutes: str) -> None:
    with pytest.raises(ConfigError, match=r"--minutes is .*; it must be more than 0"):
        run("screen", "proxy.yml", f"--minutes={minutes}")


def test_a_torn_line_and_mistyped_ones_are_left_out(tmp_path: Path) -> None:
    screener = Screener(ProxyConfig(**SETTINGS))
    log = open_log(screener, tmp_path)
    with screener.spread(1, log) as spread:
        whole = list(spread(Screener.screen, screener.random(3, seed=0)))
    path = tmp_path / LOG_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    bad = [
        b'{"screen":3,"score":1,"components":{},"genotype":null}\n',
        b'{"screen":{},"score":"high"}\n',
        b'{"screen":{},"score":true,"components":{},"genotype":null}\n',
        b'{"screen":{},"score":1,"components":{"params":"many"},"genotype":null}\n',
        b'{"screen":{},"score":1,"components":{},"genotype":{"normal":3}}\n',
        b'{"finalist":{},"measured":{"score":"high"}}\n',
        b"[\n",
        b"\xff\n",
    ]
    path.write_bytes(b"".join([*lines[:3], *bad, lines[3][:-9]]))
    with pytest.warns(UserWarning, match="is damaged and left out") as caught:
        again = open_log(screener, tmp_path)
    assert [re.search(r"line (\d+)", str(item.message))[1] for item in caught] == [str(4 + i) for i in range(len(bad))]
    assert again.screened == 2
    with screener.spread(1, again) as spread:
        assert list(spread(Screener.screen, screener.random(3, seed=0))) == whole
    assert path.read_bytes().splitlines()[-1] + b"\n" == lines[3]


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nni_cssnas.cli", "screen", "proxy.yml", "-o", "found", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def lines_of(path: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") > number:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {number} lines in {path}: {process.communicate(timeout=10)}")


def children(process: subprocess.Popen[str]) -> Iterator[int]:
    """Pids of the worker processes, which multiprocessing spawns with a command line of its own."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = Path(path.parent, "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == process.pid and b"spawn_main" in command:
            yield int(path.parent.name)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_killed_workers_cost_nothing_and_a_killed_main_process_only_what_was_running(tmp_path: Path) -> None:
    log = tmp_path / "found" / LOG_NAME
    process = started(tmp_path, "--num", "24", "--workers", "2")
    try:
        lines_of(log, 3, process)
        for pid in list(children(process))[:1]:
            os.kill(pid, signal.SIGKILL)
        lines_of(log, 12, process)
        workers = list(children(process))
        assert workers
        process.kill()
        process.communicate(timeout=120)
        deadline = time.monotonic() + 120
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        assert not (tmp_path / "found" / "screen.csv").exists()
        process = started(tmp_path, "--num", "24", "--workers", "1")
        output, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
    finally:
        process.kill()
    assert "it goes on from there" in " ".join(output.split())
    rows = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    found = [json.dumps(row["screen"], sort_keys=True) for row in rows if "screen" in row]
    assert len(found) == len(set(found)) == 24
    screener = Screener(ProxyConfig(**SETTINGS))
    for row in [row for row in rows if "screen" in row][4:7]:
        assert screener.screen(row["screen"]).score == pytest.approx(row["score"], abs=1e-9)


def test_an_architecture_that_kills_its_workers_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        """A pool whose processes die at once."""

        _processes: dict[int, Any] = {}  # noqa: RUF012

        def submit(self, *_: Any) -> Any:
            raise workers.BrokenProcessPool

        def shutdown(self, **_: Any) -> None:
            pass

    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda *_, **__: Broken())
    screener = Screener(ProxyConfig(**SETTINGS))
    (parameters,) = screener.random(1, seed=0)
    with screener.spread(2) as spread, pytest.raises(ExperimentError, match=r"died 3 times .* fewer --workers goes on"):
        list(spread(Screener.screen, [parameters]))


@pytest.mark.slow
def test_a_full_disk_leaves_whole_lines_and_says_so(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    command = [
        sys.executable,
        "-m",
        "nni_cssnas.cli",
        "screen",
        "proxy.yml",
        "--num",
        "40",
        "--workers",
        "1",
        "-o",
        "f",
    ]
    # The images are in the cache by then, as they are when a disk fills up in the middle.
    run("screen", "proxy.yml", "--num", "1", "--workers", "1")
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=limit, timeout=120
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "architectures in it are kept. Make space, and the same command goes on" in line
    text = (tmp_path / "f" / LOG_NAME).read_text()
    assert text.endswith("\n")
    kept = len([json.loads(line) for line in text.splitlines()[1:]])
    assert 1 <= kept < 40
    assert f"the {kept} architectures" in line
