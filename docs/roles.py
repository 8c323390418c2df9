"""An extension of griffe, which reads the docstrings for mkdocstrings: Sphinx's roles become links of Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

SEVERAL = re.compile(r"^(\w+(?:, \w+)+)\n((?: {4}.*(?:\n|\Z)|\n(?= {4}))+)", re.MULTILINE)
"""``num, guided`` and their common description, of which griffe would give all the default of the first."""

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")


def resolved(name: str, home: griffe.Object) -> str | None:
    """The full name of what ``home``'s docstring calls ``name``; None if it is not known."""
    if name.startswith("nni_cssnas."):
        return name
    try:
        found = home.resolve(name.split(".")[0])
    except griffe.NameResolutionError:
        return None
    return ".".join([found, *name.split(".")[1:]])


def as_markdown(text: str, home: griffe.Object) -> str:
    """A docstring with links where it has roles, and a colon where it announces a literal block."""

    def link(role: re.Match[str]) -> str:
        short = role[2].rpartition(".")[2] if role[1] else role[2]
        full = resolved(role[2], home)
        if full is None:
            return f"`{short}`"
        # Optional: not every name has a place on the site.
        return f'<autoref identifier="{full}" optional><code>{short}</code></autoref>'

    def apart(entry: re.Match[str]) -> str:
        description = entry[2].rstrip("\n")
        return "".join(f"{name}\n{description}\n" for name in entry[1].split(", "))

    return re.sub(r"::$", ":", ROLE.sub(link, SEVERAL.sub(apart, text)), flags=re.MULTILINE)


class Roles(griffe.Extension):
    """Rewrites every docstring as it is found."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called when a package is read."""
        self._walk(pkg)

    def _walk(self, item: griffe.Object) -> None:
        if item.docstring:
            item.docstring.value = as_markdown(item.docstring.value, item)
        for member in item.members.values():
            if not member.is_alias:
                self._walk(member)  # type: ignore[arg-type]
