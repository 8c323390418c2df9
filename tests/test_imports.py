"""The direction of the arrows in the README's architecture section, held by a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nni_cssnas"

# What a part may import of this package, besides errors.
ALLOWED = {
    "errors": set(),
    "base": {"base"},
    "genotype": set(),
    "config": {"base", "genotype"},
    "images": {"base", "config", "images"},
    "spaces": {"base", "config", "genotype", "spaces"},
    "results": {"base", "genotype", "results"},
    "scores": {"base", "config", "images", "scores"},
    "judge": {"base", "config", "genotype", "images", "judge", "results", "scores", "spaces"},
    "tuners": {"base", "config", "judge", "results", "tuners"},
    "formats": {"base", "formats", "spaces"},
    "training": {"base", "config", "genotype", "images", "results", "training", "scores", "spaces"},
    "bridge": {"base", "bridge", "config", "genotype", "images", "judge", "results", "scores", "spaces", "tuners"},
    "search": {"config", "images", "judge", "results", "search", "spaces", "tuners"},
    "verbs": {
        "base",
        "bridge",
        "comparison",
        "config",
        "formats",
        "genotype",
        "images",
        "results",
        "scores",
        "search",
        "spaces",
        "training",
    },
    "comparison": {"base", "comparison", "genotype", "images", "results", "training", "scores", "spaces"},
}
WITHOUT_NNI = ("errors", "base", "config", "genotype", "images", "scores", "training", "comparison")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "nni_cssnas":  # from nni_cssnas import tuners
                found |= {f"nni_cssnas.{alias.name}" for alias in node.names}
    return found


def files(part: str) -> list[Path]:
    single = PACKAGE / f"{part}.py"
    return [single] if single.exists() else sorted((PACKAGE / part).rglob("*.py"))


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_run_downhill(part: str) -> None:
    assert files(part)
    for path in files(part):
        for name in imports(path):
            if name.startswith("nni_cssnas."):
                assert name.split(".")[1] in ALLOWED[part] | {"errors"}, f"{path.name} imports {name}"


@pytest.mark.parametrize("part", WITHOUT_NNI)
def test_pure_parts_know_nothing_of_nni(part: str) -> None:
    for path in files(part):
        assert not {name for name in imports(path) if name.split(".")[0] == "nni"}, path


@pytest.mark.parametrize("module", ["nni_cssnas", "nni_cssnas.config", "nni_cssnas.cli"])
def test_light_modules_do_not_pull_in_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'nni', 'lightly', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_trial_leaves_lightning_alone_until_it_is_asked_for() -> None:
    code = """
import sys
from nni_cssnas.bridge.imports import defer_lightning
defer_lightning()
import nni_cssnas.bridge.evaluator, nni_cssnas.spaces
print([name for name in ("pytorch_lightning", "torchvision", "lightly") if name in sys.modules])
from nni.nas.evaluator import FunctionalEvaluator, Lightning
import nni.nas.evaluator
from nni.nas.evaluator.pytorch import Trainer
print(Lightning.__module__, "pytorch_lightning" in sys.modules, hasattr(nni.nas.evaluator, "nonsense"))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "nni.nas.evaluator.pytorch.lightning True False"]
