from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from nni_cssnas.bridge import launch
from nni_cssnas.cli import main
from nni_cssnas.errors import ConfigError, ExperimentError


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, in this process: another one would import torch again."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", ["nni-cssnas", *arguments]),
        mock.patch.object(sys, "path", list(sys.path)),
        mock.patch.object(warnings, "formatwarning"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def test_help_names_the_commands() -> None:
    done = cli("--help")
    assert done.returncode == 0
    for command in ("run", "best", "space"):
        assert command in done.stdout


def test_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "experiment.yml").write_text("trialCommand: python -m nni_cssnas.trial\nsearchSpaceFile: s.json")
    (tmp_path / "proxy.yml").write_text("epochs: 3")
    for arguments, message in (
        (("run", str(tmp_path / "experiment.yml")), "unknown key 'epochs'"),
        (("run", str(tmp_path / "nowhere.yml")), "nowhere.yml"),
        (("best", "no_such_id_x"), "there is no experiment 'no_such_id_x'"),
        (("best", str(tmp_path)), "no trial has finished yet (0 started"),
        (("space", str(tmp_path / "proxy.yml")), "unknown key 'epochs'"),
    ):
        done = cli(*arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_space_writes_and_does_not_overwrite(tmp_path: Path) -> None:
    config = tmp_path / "proxy.yml"
    config.write_text("space: {arguments: {num_nodes: 4}}")
    assert cli("space", str(config)).returncode == 0
    path = tmp_path / "search_space.json"
    assert len(json.loads(path.read_text())) == 22
    config.write_text("space: {arguments: {num_nodes: 5}}")
    refused = cli("space", str(config))
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert len(json.loads(path.read_text())) == 22
    assert cli("space", str(config), "--force").returncode == 0
    assert len(json.loads(path.read_text())) == 28


def test_a_space_beside_its_config_is_found(tmp_path: Path) -> None:
    (tmp_path / "own_space_x.py").write_text(
        "import nni\nfrom nni.nas.nn.pytorch import ModelSpace\n"
        "class Own(ModelSpace):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.add_mutable(nni.choice('width', [8, 16]))\n"
    )
    (tmp_path / "proxy.yml").write_text("space: {name: 'own_space_x:Own'}")
    done = cli("space", str(tmp_path / "proxy.yml"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "search_space.json").read_text()) == {"width": {"_type": "choice", "_value": [8, 16]}}


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert launch.free_port(port) > port
        with pytest.raises(ConfigError, match=f"port {port} is in use"):
            launch.create(Path(__file__), port=port)


def test_the_pause_between_two_rounds_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def states(status: str, running: int, number: int) -> list[launch.Progress]:
        return [launch.Progress(status, succeeded=3, failed=0, stopped=0, running=running, best=None)] * number

    pause = states("TUNER_NO_MORE_TRIAL", 0, 5)
    story = [*states("TUNER_NO_MORE_TRIAL", 1, 20), *pause, *states("RUNNING", 1, 2), *pause * 5]
    told = iter(story)
    monkeypatch.setattr(launch.RunningExperiment, "progress", lambda self: next(told))
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)
    seen = list(launch.RunningExperiment("x", 1).watch(interval=1.0, patience=10.0))
    assert len(seen) == 20 + 5 + 2 + 11
    told = iter(states("DONE", 0, 2))
    assert len(list(launch.RunningExperiment("x", 1).watch())) == 1


def test_nnictls_refusal_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yml"
    path.write_text("trialConcurrency: 1\nnonsense: 2\n")
    with pytest.raises(ExperimentError, match="nnictl create failed"):
        launch.create(path, port=launch.free_port(18500))
