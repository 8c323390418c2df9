"""The wheel, used outside of a checkout: all that the package reads lies in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # A copy: setuptools leaves a build/ beside pyproject.toml, and takes up what an earlier one has left there.
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.split("\0"):
        if name.startswith("nni_cssnas/") or name in ("pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(source)]
    subprocess.run([*pip, *built], check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if not name.startswith(("nni_cssnas/", "nni_cssnas-"))]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def outside(site: Path, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_holds_every_file_that_the_package_reads(site: Path, tmp_path: Path) -> None:
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "nni_cssnas").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    installed = {path.relative_to(site).as_posix() for path in (site / "nni_cssnas").rglob("*") if path.is_file()}
    assert {name for name in installed if "__pycache__" not in name} == ours
    found = outside(site, tmp_path, "-c", "import nni_cssnas; print(nni_cssnas.__file__)")
    assert Path(found.strip()).parent == site / "nni_cssnas"


@pytest.mark.slow
def test_it_searches_outside_of_a_checkout(site: Path, tmp_path: Path) -> None:
    settings = "untrained: {batch_size: 8}\nimages: {source: tiles, max_images: 64}\nthreads: 1\n"
    (tmp_path / "proxy.yml").write_text(settings)
    said = outside(site, tmp_path, "-m", "nni_cssnas.cli", "screen", "proxy.yml", "-n", "2", "-o", "found")
    assert "best of 2 architectures" in said
    assert (tmp_path / "found" / "genotype.svg").is_file()
    said = outside(site, tmp_path, "-m", "nni_cssnas.cli", "export", "found", "-o", "network.py")
    assert "parameters" in said
    code = (
        "import torch, network\n"
        "print(network.Network().eval()(torch.zeros(1, 3, 32, 32)).shape)\n"
        "from nni_cssnas.bridge.guard import GUARD\n"
        "print(GUARD.is_file())"
    )
    assert outside(site, tmp_path, "-c", code).splitlines() == ["torch.Size([1, 10])", "True"]


SMALLER = {
    "num=200, minutes=20": 'num=2, config={"untrained": {"batch_size": 8}, "threads": 1}',
    "epochs=20": "epochs=1, channels=4, num_cells=3, size=32, auxiliary_weight=0, batch_size=8",
}
"""What makes the README's lines take seconds."""


@pytest.mark.slow
def test_the_readmes_lines_of_python(site: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for long, short in SMALLER.items():
        assert long in code
        code = code.replace(long, short)
    rng = np.random.default_rng(0)
    for folder, number in (("photos", 40), ("labelled/cat", 16), ("labelled/dog", 16)):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(number):
            picture = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(picture).resize((60, 48)).save(tmp_path / folder / f"{index}.jpg")
    (tmp_path / "first.py").write_text(code)
    said = outside(site, tmp_path, "first.py")
    assert "Genotype(" in said
    assert (tmp_path / "network.onnx").is_file()
    assert (tmp_path / "retrained" / "best.pt").is_file()
