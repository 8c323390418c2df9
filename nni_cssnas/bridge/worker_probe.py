"""What another machine is asked before trials are sent to it; its Python reads this file from the standard input.

It runs where nni_cssnas may not be installed, so it imports the standard library alone. Its argument is a JSON object of
:func:`facts`' arguments, and it prints the answer as one JSON line.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from importlib import metadata, util
from pathlib import Path

CIFAR10 = Path("datasets") / "cifar-10-batches-py"
PACKAGES = ("nni", "nni-cssnas", "torch")


def facts(
    source: str | None = None, carried: str | None = None, manager: list[object] | None = None
) -> dict[str, object]:
    """What this machine has.

    Parameters
    ----------
    source
        A path that may be here; ``cifar10`` is that of the cache.
    carried
        Name of a file in the cache of images.
    manager
        Address and port that must be reached.
    """
    cache = cache_folder()
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        **{name: _version(name) for name in PACKAGES},
        "code": _digest("nni_cssnas"),
        "source": None if source is None else _extent(cache / CIFAR10 if source == "cifar10" else Path(source)),
        "cache": str(cache),
        "carried": None if carried is None else _end(cache / carried),
        "route": None if manager is None else _route(str(manager[0]), int(str(manager[1]))),
    }


def cache_folder() -> Path:
    """As :func:`nni_cssnas.images.cache.cache_folder` says."""
    given, base = os.environ.get("NNI_CSSNAS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given).expanduser()
    return Path(base, "nni_cssnas") if base else Path.home() / ".cache" / "nni_cssnas"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name).split("+")[0]  # torch adds what it was built for
    except metadata.PackageNotFoundError:
        return None


def _digest(package: str) -> str | None:
    """Stands for the source text of a package: versions under development have one number."""
    found = util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    folder, digest = Path(found.submodule_search_locations[0]), hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _extent(path: Path) -> list[int] | None:
    """Number and bytes of the files below a folder, or of one file; None if there is no such path."""
    if not path.is_dir():
        return [1, path.stat().st_size] if path.exists() else None
    sizes = [os.lstat(os.path.join(parent, name)).st_size for parent, _, names in os.walk(path) for name in names]
    return [len(sizes), sum(sizes)]


def _end(path: Path) -> list[object] | None:
    """Length and last line of a file: those of carried images tell their checksum."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - 32))
            return [length, file.read().rpartition(b"CRC-32: ")[2].decode("ascii", "replace").strip()]
    except OSError:
        return None


def _route(host: str, port: int) -> str | None:
    """Why a port is not reached; None if it is."""
    try:
        socket.create_connection((host, port), timeout=5).close()
        return None
    except OSError as error:
        return error.strerror or str(error)


if __name__ == "__main__":
    print(json.dumps(facts(**json.loads(sys.argv[1]))))
