"""How a warning looks to a person: one line, without the place in the code that Python's own form shows."""

from __future__ import annotations

__all__ = ["warning_line"]


def warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """For ``warnings.formatwarning``; the place is kept where the warning is not a message to the user."""
    if category is UserWarning:
        return f"note: {message}\n"
    return f"{category.__name__}: {message} ({filename}:{lineno})\n"
