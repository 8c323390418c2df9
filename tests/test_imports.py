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


def test_a_score_and_its_costs_load_no_compiler(tmp_path: Path) -> None:
    """TorchDynamo and SymPy take two seconds, which every trial would pay; torch loads them for many an innocent call."""
    (tmp_path / "proxy.yml").write_text(
        "{images: {source: tiles, num_images: 32}, untrained: {batch_size: 8}, threads: 1, "
        "space: {arguments: {num_nodes: 4, num_cells: 3, channels: 4}}}"
    )
    code = """
import sys
from nni_cssnas.trial import main
assert main(["proxy.yml"]) == 0
print([name for name in ("torch._dynamo", "sympy", "lightly", "torchvision") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "macs: " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
