"""The table of what is mended names modules and tests that are there."""

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
