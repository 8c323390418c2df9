"""The site builds without a warning, holds every page, and says of every key and command what the code says."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from nni_cssnas.cli import app
from nni_cssnas.config import (
    PRESETS,
    CellSpaceConfig,
    ConstraintsConfig,
    ContrastiveConfig,
    ImagesConfig,
    ProxyConfig,
    ScreenConfig,
    SpaceConfig,
    StandInConfig,
    TargetConfig,
    UntrainedConfig,
    ViewsConfig,
)
from nni_cssnas.measures import MEASURES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def pages(tree: Any) -> Iterator[str]:
    """The files that a nav of mkdocs names."""
    if isinstance(tree, str):
        yield tree
    for branch in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from pages(branch)


def test_every_page_is_in_the_nav_once() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = list(pages(settings["nav"]))
    assert sorted(named) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


# ---- README -------------------------------------------------------------------------------------------


def test_readme_is_short_and_its_links_work_from_anywhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    assert len(links) > 10
    for link in (one or other for one, other in links):
        assert link.startswith("https://"), link  # PyPI shows the README too, and has none of the other files


def test_readme_names_every_command_and_every_page_for_readers() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert command.hidden or re.search(rf"^\|.*`{name}`", text, re.MULTILINE), f"{name} is not in the table"
    for path in DOCS.glob("how-to/*.md"):
        assert f"docs/how-to/{path.name}" in text


# ---- reference ----------------------------------------------------------------------------------------


def tables(document: Path) -> dict[str, list[list[str]]]:
    """The rows of every table below each heading, and for tables that a line ending in a colon announces, below that."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in document.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or line.endswith(":"):
            heading = line.lstrip("# ")
        if line.startswith("| `"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def plain(value: Any) -> Any:
    """A value as YAML gives it."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


SECTIONS: dict[str, type[BaseModel]] = {
    "The top level": ProxyConfig,
    "space": SpaceConfig,
    "The arguments of `CellSpace`:": CellSpaceConfig,
    "target": TargetConfig,
    "stand_in": StandInConfig,
    "images": ImagesConfig,
    "views": ViewsConfig,
    "untrained": UntrainedConfig,
    "contrastive": ContrastiveConfig,
    "the untrained score:": ScreenConfig,
    "`constraints` keeps to limits; what breaks one never becomes a trial:": ConstraintsConfig,
}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_of_proxy_yml_is_described_with_its_default(heading: str) -> None:
    rows = tables(DOCS / "reference" / "proxy-yml.md")[heading]
    said = {name.strip("`"): yaml.safe_load(default.strip("`")) for name, default, _ in rows}
    fields = SECTIONS[heading].model_fields
    sections = {name for name, field in fields.items() if isinstance(field.default, BaseModel)}
    assert said == {name: plain(field.default) for name, field in fields.items() if name not in sections}


OWN_MEASURES = (
    "`weights` may name measures of your own too: [Bring your own measure](../how-to/own-measure.md). "
    "Those of this package are:"
)


def test_every_measure_is_described_with_its_scale() -> None:
    rows = tables(DOCS / "reference" / "proxy-yml.md")[OWN_MEASURES]
    said = {name.strip("`"): scale.strip("`") for name, scale, _ in rows}
    assert said == {name: item.scale for name, item in MEASURES.items()}
    assert list(said) == list(MEASURES)


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def test_every_value_of_the_presets_is_told() -> None:
    rows = tables(DOCS / "reference" / "proxy-yml.md")["What each preset fills in:"]
    for index, preset in enumerate(("cpu", "gpu", "paper"), start=1):
        said = {row[0].strip("`"): yaml.safe_load(row[index].strip("`")) for row in rows if row[index]}
        assert said == {name: plain(value) for name, value in flat(PRESETS[preset]).items()}


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_has_every_option() -> None:
    page = hooks().on_page_markdown((DOCS / "reference" / "commands.md").read_text(encoding="utf-8"))
    sections = dict(re.findall(r"^## `nni-cssnas ([\w-]+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    group: Any = typer.main.get_command(app)
    assert sections.keys() == {name for name, command in group.commands.items() if not command.hidden}
    for name, text in sections.items():
        for parameter in group.commands[name].params:
            assert parameter.param_type_name == "argument" or parameter.opts[0] in text, f"{name} {parameter.opts}"


# ---- built --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the site was built. With ``--strict`` a link or an anchor that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_and_no_docstring_shows_its_markup(site: Path) -> None:
    built = sorted(site.rglob("index.html"))
    assert len(built) == len(list(DOCS.rglob("*.md")))
    for path in built:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r":(class|func|meth|mod|data|attr|exc):", text), path
        assert "<!-- commands -->" not in text


@pytest.mark.slow
def test_the_reference_has_the_public_names_with_their_arguments(site: Path) -> None:
    import nni_cssnas

    reference = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").rglob("index.html"))
    table = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    for name in nni_cssnas.__all__:
        if not name.startswith("_"):
            assert re.search(rf'id="nni_cssnas\.[\w.]*\b{name}"', reference), name
            assert f"`{name}`" in table
    # Parameters that share a description have defaults of their own.
    [text] = re.findall(r"<li[^>]*>(?:(?!</li>).)*?<code>guided</code>.*?</li>", reference, re.DOTALL)[:1]
    assert "default: 0" in re.sub(r"\s+|<[^>]+>", " ", text).replace("  ", " ")


def python_m(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_uploaded_is_built_and_its_readme_is_shown(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "dist"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "nni_cssnas", source / "nni_cssnas", ignore=shutil.ignore_patterns("__pycache__"))
    # Without isolation nothing is downloaded; setuptools is a dependency of ours.
    python_m("build", "--no-isolation", "--outdir", str(out), str(source))
    python_m("twine", "check", "--strict", *map(str, sorted(out.iterdir())))
    assert {path.suffix for path in out.iterdir()} == {".whl", ".gz"}
    [wheel] = out.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = [path.relative_to(source) for path in (source / "nni_cssnas").rglob("*") if path.is_file()]
    assert {str(path) for path in files} <= packed  # the presets, templates and programs beside the modules, too


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = shutil.copy(DOCS / "first-search.ipynb", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", str(notebook)]
    # In a folder of its own, as a reader runs it: what it writes lies there.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
