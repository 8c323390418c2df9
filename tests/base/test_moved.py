from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

import nni_cssnas  # noqa: F401
from nni_cssnas.base.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_whoever_imports_an_old_name_is_told_the_new_one(old: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"^{old} is now {MOVED[old]}$"):
        import_module(old)
    assert find_spec(MOVED[old]) is not None


def test_a_command_that_names_an_old_module_says_the_new_one() -> None:
    done = subprocess.run([sys.executable, "-m", "nni_cssnas.nas_trial"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "nni_cssnas.nas_trial is now nni_cssnas.bridge.nas_trial" in done.stderr


def test_a_name_that_never_was_stays_unknown() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'nni_cssnas\.nonsense'"):
        import_module("nni_cssnas.nonsense")
