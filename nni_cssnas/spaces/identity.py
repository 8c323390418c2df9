"""What tells one model space from another, also after its code was edited: a key for what is kept on disk."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any

from nni_cssnas.spaces.encoding import search_space
from nni_cssnas.spaces.factory import Space

__all__ = ["own_sources", "space_key", "users_files"]

PACKAGE = Path(__file__).resolve().parents[1]
MEASURED_BY = (
    "genotype.py",
    "measures.py",
    "base/device.py",
    "base/modules.py",
    "judge/proxy.py",
    "images",
    "scores",
    "spaces",
)
"""The parts of this package on which the numbers of an architecture depend."""

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def space_key(space: Space) -> str:
    """Identifies a model space by its content; the same in every process.

    It covers the choices with their candidates, the name and the arguments of the class, and the source of a user's
    modules (that of the space, those of its layers, and what these import from their folders), since layers may change
    while the labels stay. Of classes that have no file, as those of a notebook, it covers the code.

    Parameters
    ----------
    space
        An NNI ``ModelSpace``.
    """
    kind = type(space)
    kinds = _kinds(space)
    parts = {
        "name": kind.__qualname__,
        "arguments": _plain([getattr(space, "trace_args", []), getattr(space, "trace_kwargs", {})]),
        "choices": search_space(space),
        "source": _digest(_sources(kinds)),
        "code": sorted(_code_of(one) for one in kinds if one.__module__ == "__main__"),
    }
    return json.dumps(parts, sort_keys=True)


def users_files(space: Space, others: Iterable[Any] = ()) -> dict[str, bytes]:
    """The user's own modules that a space is made of, and those beside them that these import.

    Parameters
    ----------
    space
        An NNI ``ModelSpace``.
    others
        Functions and classes whose modules are wanted, too.

    Returns
    -------
    files
        The content of each, by its path below the folder from which it is imported. Installed packages are not among them.
    """
    kinds = [*_kinds(space), *others]
    roots = {root for kind in kinds if (root := _root_of(kind)) is not None}
    files = {}
    for path in _sources(kinds):
        root = next((root for root in roots if path.is_relative_to(root)), path.parent)
        files[path.relative_to(root).as_posix()] = path.read_bytes()
    return files


def _kinds(space: Space) -> set[type]:
    layers = space.modules() if hasattr(space, "modules") else ()
    return {one for part in (space, *layers) for one in type(part).__mro__}


def _root_of(kind: Any) -> Path | None:
    """The folder from which the module of a class or function is imported."""
    path = _file_of(kind)
    if path is None:
        return None
    levels = kind.__module__.count(".") + (path.name == "__init__.py")
    return path.parents[levels] if levels < len(path.parents) else None


@lru_cache(maxsize=1)
def own_sources() -> str:
    """A digest of the code of this package that measures networks: its version alone misses an edited checkout."""
    paths = []
    for name in MEASURED_BY:
        path = PACKAGE / name
        paths += sorted(path.rglob("*.py")) if path.is_dir() else [path]
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


def _sources(kinds: Iterable[Any]) -> list[Path]:
    """The files of a user's own that define classes: their modules', and those beside them that these import.

    Installed packages have a version and are not edited; the one that says so is not in the key, as that of torch is.
    """
    found = {path: None for path in map(_file_of, kinds) if path is not None and not _is_installed(path)}
    waiting = list(found)
    while waiting:
        for other in _imported(waiting.pop()):
            if other not in found:
                found[other] = None
                waiting.append(other)
    return sorted(found)


def _file_of(kind: Any) -> Path | None:
    try:
        file = inspect.getsourcefile(kind)
    except (TypeError, OSError):  # built in, or made in an interactive session
        return None
    return Path(file).resolve() if file is not None and Path(file).is_file() else None


def _code_of(kind: type) -> str:
    """A digest of a class's code. One of ``__main__`` may have no file (a notebook), or reach a trial as bytes."""
    code = {name: [_plain_code(value.__code__) for value in _functions(member)] for name, member in vars(kind).items()}
    return hashlib.sha256(json.dumps([kind.__qualname__, code], sort_keys=True).encode()).hexdigest()[:24]


def _functions(member: Any) -> Iterator[Any]:
    """The function that a member of a class is, and what wraps it."""
    member = getattr(member, "fget", getattr(member, "__func__", member))
    while member is not None:
        if inspect.isfunction(member):
            yield member
        member = getattr(member, "__wrapped__", None)


def _plain_code(code: CodeType) -> list[Any]:
    constants = [_plain_code(item) if isinstance(item, CodeType) else _plain(item) for item in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]


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
