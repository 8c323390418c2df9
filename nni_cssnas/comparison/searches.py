"""Which of the architectures that a user names come from one search."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from nni_cssnas.errors import ConfigError
from nni_cssnas.genotype import NAMED_GENOTYPES
from nni_cssnas.spaces.architecture import entry_file

__all__ = ["searches_of"]


def searches_of(items: Sequence[str], given: Sequence[str] = ()) -> list[str]:
    """The name of the search behind each item.

    Parameters
    ----------
    items
        Genotypes, files or folders, as they were typed.
    given
        ``NAME=ITEM,ITEM``: these items are of the search ``NAME``. An item is its number from 1, or a pattern of its
        text (``*seed0*``). Of the others, files of one folder are of one search, each published cell is of its own, and
        all that are typed as text are of one.

    Raises
    ------
    ConfigError
        If one is not of that form, means no item, or an item is said to be of two searches.
    """
    names: dict[int, str] = {}
    for text in given:
        name, equals, members = text.partition("=")
        if not equals or not name.strip() or not members.strip():
            raise ConfigError(
                f"--search is {text!r}; it must be NAME=ITEM,ITEM, as --search first=1,2 or --search 'first=*seed0*'"
            )
        for member in members.split(","):
            for position in _meant(member.strip(), items, text):
                if names.setdefault(position, name.strip()) != name.strip():
                    raise ConfigError(
                        f"--search {text!r}: item {position + 1} ({items[position][:60]!r}) is of the search "
                        f"{names[position]!r} already; name it once"
                    )
    return [names.get(position) or _deduced(item) for position, item in enumerate(items)]


def _meant(member: str, items: Sequence[str], text: str) -> list[int]:
    if member.isdecimal():
        if 1 <= int(member) <= len(items):
            return [int(member) - 1]
        raise ConfigError(f"--search {text!r}: there is no item {member}; they are numbered 1 to {len(items)}")
    found = [position for position, item in enumerate(items) if item == member or fnmatchcase(item, member)]
    if not found:
        raise ConfigError(f"--search {text!r}: {member!r} is none of the {len(items)} architectures given")
    return found


def _deduced(item: str) -> str:
    if item in NAMED_GENOTYPES:
        return item
    try:
        path = entry_file(Path(item))
        folder = path if path.is_dir() else path.parent if path.is_file() else None
    except (OSError, ValueError):  # a text that is no path
        folder = None
    if folder is None:
        return "typed"
    folder = folder.resolve()
    # `best` writes into this folder of the experiment.
    return str(folder.parent if folder.name == "best" else folder)
