"""Signals that end a work by an exception."""

from __future__ import annotations

import signal
import sys

__all__ = ["forget_alarm", "raise_once"]

REMINDER = 0.1
"""Seconds after which an exception that was dropped is raised again."""


def raise_once(error: BaseException) -> None:
    """Raise an exception from a signal's handler, unless one of its class is being handled: while the end is recorded, say.

    Python drops what is raised within a finalizer, as of a connection that is closed just then. So an alarm (SIGALRM, where
    there is one) raises it again until somebody handles it. :func:`forget_alarm` ends that where the process goes on.

    Parameters
    ----------
    error
        What is raised in the main thread.
    """
    handled = sys.exc_info()[1]
    while handled is not None:
        if isinstance(handled, type(error)):
            return
        handled = handled.__context__
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, lambda number, frame: raise_once(error))
        signal.setitimer(signal.ITIMER_REAL, REMINDER)
    raise error.with_traceback(None)


def forget_alarm() -> None:
    """Let no alarm of :func:`raise_once` come any more."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
