#!/usr/bin/env python3
"""Does the code work with the oldest versions that pyproject.toml allows?

    make minimum

installs exactly the lower bounds of every dependency into an environment of its own (``MINIMUM``, default ``.venv-minimum``;
several gigabytes) and runs the fast tests there (or those files and folders that are named as arguments of this file). Packages that a dependency brings are the newest that it
allows, as with ``uv pip install --resolution lowest-direct``. It is not part of ``make test``, which takes the newest of everything.

Last run on 26 November 2026, on Python 3.11 and Linux x86_64: every folder and file, in two runs, with torch 2.5.0, torchvision 0.20.0, pytorch-lightning 2.6.0 and lightly 1.5.26.
What failed before, and so raised a bound: Pillow 10 (16 bits in colour), psutil 5.0 (names of addresses), torch 2.3 (counting multiply-adds), typer 0.12 (`int | None`), matplotlib 3.8 (an
attribute that a test reads), statsmodels 0.14.0 (pandas 3), lightly before 1.5.9 (pydantic 2), before 1.5.16 (the memory bank
of the loss) and before 1.5.22 (the schedule of learning rates, with which the same training gave other numbers).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("bohb",)
TOOLS = ("hypothesis", "optuna", "playwright", "pytest", "pytest-timeout", "pytest-xdist", "ruff")
"""Of the extra ``dev``, what the fast tests need."""


def project() -> dict[str, object]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pytest brings it there
        import tomli as tomllib
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def pin(requirement: str) -> str:
    """``name>=1.2,<3`` as ``name==1.2``; what has no lower bound stays as it is."""
    name, bound = re.match(r"([\w.\[\]-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
    lowest = re.search(r">=\s*([\w.]+)", bound)
    return f"{name}=={lowest[1]}" if lowest else requirement


def pins() -> Iterator[str]:
    """The lower bounds of all that the tests need."""
    about = project()
    extras = about["optional-dependencies"]
    assert isinstance(extras, dict)
    dependencies = about["dependencies"]
    assert isinstance(dependencies, list)
    tools = [one for one in extras["dev"] if re.match(r"[\w-]+", one)[0] in TOOLS]  # type: ignore[index]
    for requirement in [*dependencies, *(one for extra in EXTRAS for one in extras[extra]), *tools]:
        yield pin(requirement)


def main() -> int:
    python = sys.executable
    subprocess.run([python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *pins()], check=True)
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--quiet",
            "--no-deps",
            "--editable",
            str(ROOT),
        ],
        check=True,
    )
    return subprocess.run(
        [python, "-m", "pytest", "-m", "not slow and not integration", *sys.argv[1:]], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
