"""What tells one model space from another, also after its code was edited: a key for what is kept on disk."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from nni_cssnas.spaces.encoding import search_space

__all__ = ["own_sources", "space_key"]

PACKAGE = Path(__file__).resolve().parents[1]
MEASURED_BY = ("genotype.py", "modules.py", "proxy.py", "images", "scores", "spaces")
"""The parts of this package on which the numbers of an architecture depend."""

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def space_key(space: Any) -> str:
    """Identifies a model space by its content; the same in every process.

    It covers the choices with their candidates, the name and the arguments of the class, and the source of a user's
    module with all modules of the same folder that it imports, since layers may change while the labels stay.

    Parameters
    ----------
    space
        An NNI ``ModelSpace``.
    """
    kind = type(space)
    parts = {
        "name": kind.__qualname__,
        "arguments": _plain([getattr(space, "trace_args", []), getattr(space, "trace_kwargs", {})]),
        "choices": search_space(space),
        "source": _digest(_sources(kind)),
    }
    return json.dumps(parts, sort_keys=True)


@lru_cache(maxsize=1)
def own_sources() -> str:
    """A digest of the code of this package that measures networks: its version alone misses an edited checkout."""
    paths = []
    for name in MEASURED_BY:
        path = PACKAGE / name
        paths += sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.is_file() else []
    return _digest(paths)


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _plain(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """Any argument as JSON. Where its ``repr`` holds a memory address, an object becomes its class and attributes."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if id(value) in inside:
        return name
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        return [[_plain(key, inside), _plain(item, inside)] for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(item, inside) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item, inside) for item in value), key=json.dumps)
    if callable(value) and hasattr(value, "__qualname__"):
        return [value.__module__, value.__qualname__]
    text = repr(value)
    return (
        [name, _plain(vars(value), inside)]
        if ADDRESS.search(text) and hasattr(value, "__dict__")
        else [name, ADDRESS.sub("", text)]
    )


def _sources(kind: type) -> list[Path]:
    """The files of a user's own that define a class: its module's, and those beside it that this imports.

    Installed packages have a version and are not edited; the one that says so is not in the key, as that of torch is.
    """
    try:
        file = inspect.getsourcefile(kind)
    except TypeError:  # made in an interactive session, or sent as bytes
        file = None
    if file is None or not Path(file).is_file():
        return []
    path = Path(file).resolve()
    if _is_installed(path):
        return []
    found = {path: None}
    waiting = [path]
    while waiting:
        for other in _imported(waiting.pop()):
            if other not in found:
                found[other] = None
                waiting.append(other)
    return sorted(found)


def _is_installed(path: Path) -> bool:
    folders = [sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")]
    return path.is_relative_to(PACKAGE) or any(path.is_relative_to(Path(folder).resolve()) for folder in folders)


def _imported(path: Path) -> Iterator[Path]:
    """The files that a module imports and that lie in its own folder or below it, or above it in the same package."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, folder = [alias.name for alias in node.names], path.parent
        elif isinstance(node, ast.ImportFrom):
            folder = path.parent
            for _ in range(node.level - 1):
                folder = folder.parent
            start = [node.module] if node.module else []
            names = [*start, *(".".join([*start, alias.name]) for alias in node.names)]
        else:
            continue
        for name in names:
            for root in (folder, *(root for root in _roots(path) if root != folder)):
                target = root.joinpath(*name.split("."))
                for candidate in (target.with_suffix(".py"), target / "__init__.py"):
                    if candidate.is_file() and not _is_installed(candidate.resolve()):
                        yield candidate.resolve()


def _roots(path: Path) -> list[Path]:
    """The folder from which the package of a file is imported, if it belongs to one and that is on the path."""
    folder = path.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    known = {Path(entry or ".").resolve() for entry in sys.path}
    return [folder] if folder in known else []
