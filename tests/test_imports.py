"""What importing costs; the layers are held by `lint-imports` (pyproject.toml)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nni_cssnas"


def test_few_modules_lie_at_the_front_door() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


@pytest.mark.parametrize(
    "module", ["nni_cssnas", "nni_cssnas.config", "nni_cssnas.measures", "nni_cssnas.verbs", "nni_cssnas.cli"]
)
def test_light_modules_do_not_pull_in_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'nni', 'lightly', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
