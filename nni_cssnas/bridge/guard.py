"""The environment in which NNI's manager is guarded (``loopback.js``), for ``nnictl`` of ours and of the user's."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["hooked", "manager_environment", "shell_line"]

GUARD = Path(__file__).with_name("loopback.js")
"""What NNI's manager loads before itself: who may talk to it."""

TOKEN_VARIABLE = "NNI_CSSNAS_TOKEN"
"""How the guard is told the secret of a public portal; it is in no process list."""


def manager_environment(environ: Mapping[str, str] = os.environ, *, token: str | None = None) -> dict[str, str]:
    """The environment in which ``nnictl`` starts a manager.

    Trials' ``python`` is the one that runs this, even if its environment is not activated. The manager is guarded: it
    listens on 127.0.0.1 only, or, with a ``token``, refuses what comes from other machines without it.
    """
    environment = {name: value for name, value in environ.items() if name != TOKEN_VARIABLE}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    # pkg_resources, which nnictl imports, announces its own end at every start.
    warnings = "ignore::UserWarning:nni,ignore:pkg_resources is deprecated:UserWarning"
    environment["PYTHONWARNINGS"] = ",".join(filter(None, [environment.get("PYTHONWARNINGS"), warnings]))
    environment["NODE_OPTIONS"] = hooked(environment.get("NODE_OPTIONS", ""))
    if token is not None:
        environment[TOKEN_VARIABLE] = token
    return environment


def hooked(options: str = "") -> str:
    """``NODE_OPTIONS`` with the guard, and with what was there."""
    # Node splits this variable at spaces; within double quotes a backslash escapes.
    path = str(GUARD).replace("\\", "\\\\").replace('"', '\\"')
    hook = f'--require "{path}"'
    return options if hook in options else " ".join(filter(None, [options, hook]))


def shell_line(environ: Mapping[str, str] = os.environ) -> str:
    """What a shell has to evaluate so that plain ``nnictl`` starts guarded managers."""
    return f"export NODE_OPTIONS={shlex.quote(hooked(environ.get('NODE_OPTIONS', '')))}"
