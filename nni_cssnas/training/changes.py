"""In what two recipes differ, key by key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["changes", "listed_changes"]

NAMED = 6
"""So many differences a message names."""


def changes(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``["contrastive.batch_size is 64 there and 256 here"]``: what differs between two nested mappings of JSON values."""
    found = []
    for name in dict.fromkeys([*here, *there]):
        before, now = there.get(name), here.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += changes(before, now, f"{prefix}{name}.")
        elif before != now:
            found.append(f"{prefix}{name} is {json.dumps(before)} there and {json.dumps(now)} here")
    return found


def listed_changes(found: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return "; ".join(found[:NAMED]) + more
