from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from nni_cssnas.base.files import read_mapping, replacing, write_atomically
from nni_cssnas.errors import ConfigError


def test_a_mapping_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_bytes("\ufeffname: Käse\nnested: {a: [1, 2.5]}\n".encode())
    assert read_mapping(path) == {"name": "Käse", "nested": {"a": [1, 2.5]}}
    path.write_text("# nothing\n")
    assert read_mapping(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is not YAML: .*, line 1, column 5$"),
        (b"a: 1\n b: 2\n", "is not YAML: mapping values are not allowed here, line 2, column 3$"),
        (b"a: \xe9t\xe9", r"is not UTF-8 text \(byte 0xe9 at position 3\); save it as UTF-8"),
        (b"a: \x00", r"is not YAML: character '\\x00' at position 3 is not allowed"),
        (b"a: " + b"[" * 5000, "is nested too deeply to be rules"),
        (b"a: 2024-99-99", "is not YAML: month must be in 1..12"),
        (b"a: !!int x", "is not YAML: invalid literal"),
        (b"a: !!timestamp x", "is not YAML"),
        (b"a: !!python/object/apply:os.system [true]", "is not YAML: could not determine a constructor"),
        (b"- 1", "must be a mapping of rules, not list"),
        (b"1: 2", "its key 1 is not a text; put it in quotes"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.yml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_mapping(path, "rules")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.yml: No such file"):
        read_mapping(tmp_path / "nowhere.yml")
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_mapping(tmp_path)


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "Käse")
    assert path.read_bytes() == "Käse".encode()
    write_atomically(path, b"\x00\x01", mode=0o600)
    assert path.read_bytes() == b"\x00\x01"
    assert path.stat().st_mode & 0o777 == 0o600
    with contextlib.suppress(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        assert path.read_bytes() == b"\x00\x01"
        raise RuntimeError
    assert path.read_bytes() == b"\x00\x01"
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    assert list(tmp_path.iterdir()) == [path]


def test_an_own_file_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    real = Path.write_bytes

    def write(self: Path, content: bytes) -> int:
        modes.append(self.stat().st_mode & 0o777)
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    before = os.umask(0)
    try:
        write_atomically(tmp_path / "secret", "x", mode=0o600)
    finally:
        os.umask(before)
    assert modes == [0o600]
