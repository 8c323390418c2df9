"""How the threads of a process behave beside those of others."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

__all__ = ["wait_politely"]


def wait_politely(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep while they wait for each other; call it before torch is imported.

    By default they wait in a loop that takes the core. With two threads on two cores of which another process has one,
    scoring a network takes 20 s in place of 2.5 s. Whoever has set ``OMP_WAIT_POLICY`` keeps it.
    """
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
