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


def test_a_search_leaves_lightning_alone_until_it_is_asked_for() -> None:
    code = """
import sys
import nni_cssnas.bridge.evaluator, nni_cssnas.search.screen, nni_cssnas.judge.ray_workers
print([name for name in ("pytorch_lightning", "torchvision", "lightly") if name in sys.modules])
from nni.nas.evaluator import FunctionalEvaluator, Lightning
import nni.nas.evaluator
from nni.nas.evaluator.pytorch import Trainer
print(Lightning.__module__, "pytorch_lightning" in sys.modules, hasattr(nni.nas.evaluator, "nonsense"))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "nni.nas.evaluator.pytorch.lightning True False"]
