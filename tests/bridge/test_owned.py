from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nni_cssnas.bridge.owned import own_folder, read_model, read_owned, write_model, write_owned
from nni_cssnas.errors import ExperimentError


def test_what_only_its_owner_can_write_is_read(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "a" / "b")
    (folder / "x").write_bytes(b"text")
    (folder / "x").chmod(0o644)
    assert read_owned(folder / "x") == b"text"


def test_what_is_written_can_be_read_where_groups_may_write(tmp_path: Path) -> None:
    before = os.umask(0o002)  # the usual one where every user has a group of their own
    try:
        folder = own_folder(tmp_path / "f")
        write_owned(folder / "x", "text")
    finally:
        os.umask(before)
    assert read_owned(folder / "x") == b"text"


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
@pytest.mark.parametrize("part", ["file", "folder"])
def test_what_others_may_write_is_refused(mode: int, part: str, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "f")
    path = folder / "x"
    path.write_bytes(b"text")
    path.chmod(0o600)
    changed = path if part == "file" else folder
    changed.chmod(mode | (0o111 if part == "folder" else 0))
    with pytest.raises(ExperimentError, match=f"{changed} may be written by other users.*chmod go-w {changed}"):
        read_owned(path)
    own_folder(folder)
    path.chmod(0o600)
    assert read_owned(path) == b"text"


def test_what_another_user_owns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_folder(tmp_path / "f")
    path = folder / "x"
    path.write_bytes(b"text")
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ExperimentError, match=f"{path} belongs to user"):
        read_owned(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_owned(tmp_path / "x")


def test_a_model_travels_by_its_name(tmp_path: Path) -> None:
    import nni

    sent = write_model(tmp_path / "models", 12, {"choice": (1, 2)})
    assert sent == {"model": "12.json"}
    assert (tmp_path / "models" / "12.json").stat().st_mode & 0o777 == 0o600
    assert nni.load(read_model(tmp_path / "models", sent)) == {"choice": [1, 2]}


@pytest.mark.parametrize(
    "parameters",
    [
        {"model": "../1.json"},
        {"model": "/tmp/1.json"},
        {"model": "1.json/../../x.json"},
        {"model": "1.json\n"},
        {"model": ["1.json"]},
        {"model": None},
        {"__nni_obj__": "gASVAAAAAAAAAC4="},
        {},
        None,
        "1.json",
        0,
    ],
)
def test_nothing_else_is_taken_from_a_parameter(parameters: Any, tmp_path: Path) -> None:
    own_folder(tmp_path / "models")
    (tmp_path / "1.json").write_text("{}")
    (tmp_path / "models" / "1.json").write_text("{}")
    with pytest.raises(ExperimentError, match="none that this experiment has sent"):
        read_model(tmp_path / "models", parameters)
