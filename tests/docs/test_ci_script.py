"""``.ci/run`` installs nothing on a developer's machine, and takes no arguments."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "run"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Programs that only write down how they were called; there is no Chromium."""
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    for name in ("make", "apt-get"):
        (tmp_path / name).write_text(f'#!{shutil.which("bash")}\necho "{name} $*" >> {tmp_path / "log"}\n')
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run(machine: Path, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    command = [str(machine / "bash"), str(SCRIPT), *arguments]
    env = {"PATH": str(machine), **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    log = machine / "log"
    return done, log.read_text().splitlines() if log.exists() else []


def test_arguments_are_refused_before_anything_runs(machine: Path) -> None:
    done, called = run(machine, "--fast", CI="true")
    assert (done.returncode, called) == (2, [])
    assert "takes no arguments, and was given: --fast" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_developers_machine_is_told_what_is_missing(machine: Path) -> None:
    done, called = run(machine)
    assert (done.returncode, called) == (1, [])
    assert "chromium is missing" in done.stderr
    assert "apt-get install chromium" in done.stderr


def test_ci_installs_it_and_runs_the_commands(machine: Path) -> None:
    done, called = run(machine, CI="true")
    assert done.returncode == 0, done.stderr
    assert called == [
        "apt-get update -qq",
        "apt-get install -y -qq chromium",
        "make lint",
        "make quickstart",
        "make test",
    ]


def test_with_chromium_nothing_is_installed(machine: Path) -> None:
    (machine / "chromium").symlink_to(machine / "make")
    done, called = run(machine)
    assert done.returncode == 0, done.stderr
    assert called == ["make lint", "make quickstart", "make test"]
