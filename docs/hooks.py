"""What mkdocs does beside its plugins: the page of the commands is made from the command line itself."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- commands -->"


@lru_cache(maxsize=1)
def commands() -> str:
    """Every command with its arguments and options, as typer's own utility writes them."""
    command = [sys.executable, "-m", "typer", "nni_cssnas.cli", "utils", "docs", "--name", "nni-cssnas"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return "## " + done.stdout.split("\n## ", 1)[1]  # the page has a title and an introduction of its own


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown
