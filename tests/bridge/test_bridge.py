"""The tables of what is mended, and of the files of this room, name what is there."""

from __future__ import annotations

import re
from pathlib import Path

import nni_cssnas.bridge

TESTS = Path(__file__).parents[1]
PACKAGE = Path(nni_cssnas.bridge.__file__).parents[1]


def test_every_row_of_the_table_has_its_module_and_its_test() -> None:
    rows = [row for row in (nni_cssnas.bridge.__doc__ or "").splitlines() if row.startswith("| ")][2:]
    assert len(rows) == 22
    for row in rows:
        _, _, here, test, _ = row.split("|")
        modules = re.findall(r"`([\w/]+\.(?:py|js))`", here)
        assert modules, row
        assert all((PACKAGE / name).is_file() or (PACKAGE / "bridge" / name).is_file() for name in modules), row
        assert (TESTS / test.strip(" `")).is_file(), row


def test_every_file_of_the_room_is_in_its_table() -> None:
    page = (TESTS.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("The files of `bridge/`:")[2].partition("NNI's tuner process")[0]
    files = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))
    named = re.findall(r"`([\w.]+\.(?:py|js))`", files)
    here = {path.name for path in (PACKAGE / "bridge").iterdir() if path.suffix in (".py", ".js")} - {"__init__.py"}
    assert sorted(named) == sorted(here)
