"""What is refused of an experiment on other machines before any of them is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_cssnas.bridge import launch, remote, worker_probe
from nni_cssnas.bridge.rehearsal import rehearse
from nni_cssnas.bridge.remote import Asked, Machine, carry_images, check_code_folder, check_source, refuse_closed
from nni_cssnas.errors import ConfigError
from nni_cssnas.images.cache import cache_folder

MACHINE = Machine("worker1", 2222, "me", Path("/home/me/key"), "/home/me/venv/bin")


def test_a_code_folder_that_travels_whole_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.py").write_text("x = 1\n")
    check_code_folder(tmp_path)


@pytest.mark.parametrize("target", ["/data/photos", "gone", "space"])
@pytest.mark.parametrize("place", ["images", "space/images"])
def test_a_link_in_the_code_folder_is_refused(target: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    (tmp_path / place).symlink_to(target)
    with pytest.raises(
        ConfigError, match=rf"^trialCodeDirectory: {place} is a symbolic link to {target},.* \.nniignore$"
    ):
        check_code_folder(tmp_path)
    (tmp_path / ".nniignore").write_text("# not these\n\nimages/\n")
    check_code_folder(tmp_path)


def test_more_than_nni_sends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(remote.MOST_BYTES + 1)  # takes no space
    with pytest.raises(ConfigError, match=r"holds more than 2000 files or 300 MB, .*\.nniignore"):
        check_code_folder(tmp_path)
    (tmp_path / "large").unlink()
    for number in range(remote.MOST_FILES):
        (tmp_path / str(number)).touch()
    check_code_folder(tmp_path)
    (tmp_path / "one more").touch()
    with pytest.raises(ConfigError, match=r"holds more than 2000 files"):
        check_code_folder(tmp_path)


def test_a_source_is_the_same_place_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path.resolve()
    monkeypatch.setenv("HOME", str(real))
    code = real / "code"
    (code / "images").mkdir(parents=True)
    (real / "photos").mkdir()
    (real / "link").symlink_to("photos")
    for good in ("tiles", "cifar10", "images", "./images", str(real / "photos"), "/on/another/machine"):
        check_source(good, code)
    for bad, right in (
        ("../photos", real / "photos"),
        ("~/photos", real / "photos"),
        (str(real / "link"), real / "photos"),
        (str(code / "images") + "/../images", code / "images"),
    ):
        with pytest.raises(ConfigError, match=rf"images\.source is .*; write its absolute path .* source: {right}$"):
            check_source(bad, code)


@pytest.mark.parametrize(
    ("platform", "public", "refused"),
    [("remote", False, True), ("remote", True, False), ("local", False, False), (None, False, False)],
)
def test_a_manager_that_its_machines_cannot_reach_is_not_started(
    platform: str | None, public: bool, refused: bool
) -> None:
    if not refused:
        refuse_closed(platform, public)
        return
    with pytest.raises(
        ConfigError, match=r"platform: remote,.* add --public: .* whoever has it can run programs as you"
    ):
        refuse_closed(platform, public)


@pytest.mark.parametrize("spelling", ["trainingService", "training_service"])
def test_the_platform_is_read_as_nni_reads_it(spelling: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yml"
    path.write_text(f"{spelling}: {{platform: remote}}\n")
    with pytest.raises(ConfigError, match="add --public"):
        launch.create(path, port=launch.free_port(18895))


def test_the_ssh_command_never_asks_and_quotes_what_it_runs() -> None:
    words = MACHINE.command("echo 'it''s'; exit 3")
    assert words[0] == "ssh"
    assert "BatchMode=yes" in words
    assert words[words.index("-i") + 1] == "/home/me/key"
    assert words[words.index("-p") + 1] == "2222"
    # What follows is one argument, which a login shell takes apart again.
    done = subprocess.run(words[-1], shell=True, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (3, "its\n")
    assert words[-3:-1] == ["--", "worker1"]  # no host is taken for an option


def test_the_probe_needs_the_standard_library_alone(tmp_path: Path) -> None:
    probe = Path(worker_probe.__file__).read_text()
    (tmp_path / "here").touch()
    question = json.dumps({"source": str(tmp_path / "here"), "carried": "none.npy", "manager": ["127.0.0.1", 1]})
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-", question],
        input=probe,
        text=True,
        capture_output=True,
        env=environment,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["python"] == ".".join(map(str, sys.version_info[:2]))
    assert found["source"] == [1, 0]
    assert found["carried"] is None
    assert "refused" in found["route"].lower()
    assert found["cache"] == str(tmp_path / ".cache" / "nni_cssnas")
    assert {found[name] for name in worker_probe.PACKAGES} == {None}  # without site-packages there are none


@pytest.mark.parametrize("variables", [{}, {"NNI_CSSNAS_CACHE": "~/c"}, {"XDG_CACHE_HOME": "/x"}])
def test_the_probe_finds_the_cache_where_trials_have_it(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("NNI_CSSNAS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert worker_probe.cache_folder() == cache_folder()


def answer(**other: Any) -> dict[str, Any]:
    return {**worker_probe.facts(), "route": None, **other}


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({}, None),
        ({"python": "3.8"}, r"its Python is 3\.8, and that of this machine .*pythonPath"),
        ({"nni": None}, r"nni is not installed there, and 3\.0 on this machine; pip install 'nni==3\.0' there"),
        ({"nni": "2.10"}, r"nni is 2\.10 there"),
        ({"torch": "1.0"}, r"torch is 1\.0 there, .*pip install 'torch=="),
        ({"nni-cssnas": None}, r"nni-cssnas is not installed there"),
        ({"code": "0" * 64}, r"the source of nni_cssnas is another there"),
        ({"source": [3, 600]}, None),
        (
            {"source": [3, 601]},
            r"holds 3 files of 601 bytes together, and that of another machine 3 of 600; .* carried$",
        ),
        ({"route": "timed out"}, r"it does not reach this machine at 192\.0\.2\.1:8080 \(timed out\); open that port"),
    ],
)
def test_what_differs_is_named_with_the_remedy(other: dict[str, Any], problem: str | None) -> None:
    found = remote._problem(answer(**other), {**worker_probe.facts(), "source": [3, 600]}, "192.0.2.1", 8080)
    if problem is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(problem, found), found


def test_images_that_nobody_has_are_told_for_each_machine() -> None:
    asked = [Asked(MACHINE, answer(source=there)) for there in (None, [3, 600], None)]
    told: list[str] = []
    with pytest.raises(ConfigError) as caught:
        carry_images(asked, source="/data/photos", config=None, images=None, tell=told.append)
    lines = str(caught.value).splitlines()
    assert (
        lines
        == [
            "worker1:2222: images.source /data/photos is not there, and it is not here either; put it there, at that path"
        ]
        * 2
    )
    assert len(told) == 1
    assert told[0].endswith("; it has /data/photos")


def test_the_extent_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "1.png").write_bytes(b"x" * 10)
    (tmp_path / "a" / "b" / "2.png").write_bytes(b"x" * 5)
    (tmp_path / "a" / "gone").symlink_to("nowhere")
    assert worker_probe.facts(str(tmp_path / "a"))["source"] == [3, 15 + len("nowhere")]
    assert worker_probe.facts(str(tmp_path / "a" / "1.png"))["source"] == [1, 10]
    assert worker_probe.facts(str(tmp_path / "none"))["source"] is None


def test_the_gpu_may_be_another_machines(tmp_path: Path) -> None:
    """Space and images are looked at here all the same."""
    settings = {
        "searchSpaceFile": "search_space.json",
        "trialCommand": "python -m nni_cssnas.trial",
        "trialCodeDirectory": ".",
        "trialConcurrency": 2,
        "nniManagerIp": "192.0.2.2",
        "tuner": {"className": "nni_cssnas.tuners.tpe.Tpe", "codeDirectory": "."},
        "trainingService": {
            "platform": "remote",
            "machineList": [{"host": "192.0.2.1", "user": "me", "password": "x"}],
        },
    }
    (tmp_path / "experiment.yml").write_text(yaml.safe_dump(settings))
    (tmp_path / "search_space.json").write_text('{"op": {"_type": "choice", "_value": ["a", "b"]}}')
    (tmp_path / "proxy.yml").write_text("{score: untrained, device: cuda, images: {source: tiles, num_images: 64}}")
    told: list[str] = []
    found = rehearse(tmp_path / "experiment.yml", on_machine=told.append)
    assert found.images == 64
    assert told == [
        "192.0.2.1: not looked at, for it wants a password; with a key of its own (ssh-keygen, ssh-copy-id) it is"
    ]
