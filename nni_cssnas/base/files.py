"""Files: what a user writes is read with one clear line for whatever is wrong; what we write is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from nni_cssnas.errors import ConfigError

__all__ = ["beside", "one_line", "read_mapping", "replacing", "write_atomically"]


def read_mapping(path: str | Path, what: str = "settings") -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty mapping.

    Parameters
    ----------
    path
        The file, in UTF-8.
    what
        What it is a mapping of, for messages.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not UTF-8, not YAML, no mapping, or has a key at its top that is no text.
    """
    path = Path(path)
    try:
        # PyYAML itself drops a byte order mark of UTF-8 only from bytes.
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x} at position {error.start}); save it as UTF-8"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be {what}") from None
    except Exception as error:  # PyYAML lets through what Python's int, float and date raise
        raise ConfigError(f"{path} is not YAML: {_reason(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must be a mapping of {what}, not {type(data).__name__}")
    for key in data:
        if not isinstance(key, str):
            raise ConfigError(f"{path} must be a mapping of {what}: its key {key!r} is not a text; put it in quotes")
    return data


def beside(path: Path) -> Path:
    """Where this process writes what shall become ``path``: in the same folder, so that it can take its place at once."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write, which takes its place at the end: a reader sees the old one or the new.

    It is on the disk, not only in its cache, before it does. After an error inside, or a full disk, the old one stays.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    temporary = beside(path)
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes | memoryview, *, mode: int | None = None) -> None:
    """Replace a file's contents, a text's in UTF-8: a reader sees the old or the new, never half.

    Parameters
    ----------
    mode
        Who may read and write it, from its first byte on; by default as the umask says.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with replacing(path) as temporary:
        if mode is not None:
            temporary.touch(mode)
            temporary.chmod(mode)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def one_line(text: object) -> str:
    """Any text on one line, for example another library's message."""
    return " ".join(str(text).split())


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{one_line(error.problem)}, line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {chr(error.character)!r} at position {error.position} is not allowed"
    return one_line(error) or type(error).__name__
