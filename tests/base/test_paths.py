from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from nni_cssnas.base.paths import importable, make_importable


@pytest.fixture(autouse=True)
def _path_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("aardvark_space",):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_module_can_be_imported_inside_only(tmp_path: Path) -> None:
    (tmp_path / "aardvark_space.py").write_text("VALUE = 3\n")
    before = list(sys.path)
    with importable(tmp_path):
        assert importlib.import_module("aardvark_space").VALUE == 3
    assert sys.path == before
    del sys.modules["aardvark_space"]
    with pytest.raises(ImportError):
        importlib.import_module("aardvark_space")


def test_first_or_last_and_once(tmp_path: Path) -> None:
    make_importable(tmp_path / "a", tmp_path / "b")
    assert sys.path[:2] == [str(tmp_path / "a"), str(tmp_path / "b")]
    make_importable(tmp_path / "c", tmp_path / "a", first=False)
    assert sys.path.count(str(tmp_path / "a")) == 1
    assert sys.path[-1] == str(tmp_path / "c")
