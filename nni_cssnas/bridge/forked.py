"""Trials that start in tenths of a second: each is forked from a process that has imported torch and NNI.

The process belongs to one experiment. It holds modules only: no images, no network, no module of the user's. It ends a
second after the experiment's manager, or after a minute without a trial. What a trial dies of harms no other one.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from nni_cssnas.base import fork_server
from nni_cssnas.base.fork_server import Job

__all__ = ["Needs", "run", "serve"]

OWN_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "NNI_OUTPUT_DIR",
    "NNI_SYS_DIR",
    "NNI_TRIAL_COMMAND_CHANNEL",
    "NNI_TRIAL_JOB_ID",
    "NNI_TRIAL_SEQ_ID",
)
"""In which the environments of one experiment's trials differ. Libraries may read all others when they are imported."""

MODULES = ("nni_cssnas.bridge.evaluator", "nni_cssnas.spaces", "torch.utils.flop_counter")
TRAINING_MODULES = ("lightly.loss.ntx_ent_loss", "lightly.models.modules.heads", "lightly.utils.scheduler")
"""What a trial imports. Nothing of it starts a thread or asks for a GPU, which would not survive a fork."""

ISOLATED = "NNI_CSSNAS_ISOLATED"
"""In the environment of the manager, with any value: every trial starts by itself."""

IDLE = 60.0
"""Seconds without a trial after which the process ends."""


def run(module: str, arguments: Sequence[str]) -> int | None:
    """Run ``python -m module`` in a process forked from the experiment's server; see :func:`serve`.

    Returns
    -------
    int or None
        Its exit code, negative for a signal; None if it has to be run here: outside of NNI, with :data:`ISOLATED`, or elsewhere than on
        Linux.

    Raises
    ------
    KeyboardInterrupt
        If this process is told to end before the forked one has begun.
    """
    if "NNI_PLATFORM" not in os.environ or os.environ.get(ISOLATED) or sys.platform != "linux":
        return None
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    command = [sys.executable, *options, "-m", module, *arguments, "--serve"]
    try:
        name = _name(command)
    except OSError:  # no /proc
        return None
    return fork_server.run(name, arguments, command)


@dataclass(frozen=True)
class Needs:
    """What a trial needs of the process that it is forked from.

    Parameters
    ----------
    threads
        How many it computes with; 0 for its share of the cores.
    trains
        Whether it trains a network.
    """

    threads: int = 0
    trains: bool = False


def serve(
    descriptor: int,
    arguments: Sequence[str],
    main: Callable[[list[str]], int],
    needs: Callable[[Sequence[str]], Needs] = lambda _: Needs(),
) -> int:
    """Be the server of an experiment, on the listening socket of that number.

    Parameters
    ----------
    descriptor
        Number of the socket.
    arguments
        Those of the first trial.
    main
        What a trial does with its arguments; gives the exit code.
    needs
        What a trial with these arguments needs.
    """
    platform = os.environ["NNI_PLATFORM"]
    os.environ["NNI_PLATFORM"] = "unittest"  # NNI then opens no log
    from nni_cssnas.bridge import pairing

    os.environ["NNI_PLATFORM"] = platform
    # The libraries read the number of threads when they are imported, and the last bits of a score depend on it.
    first = needs(arguments)
    threads = pairing.share_cores(first.threads)
    for name in MODULES + first.trains * TRAINING_MODULES:
        importlib.import_module(name)

    def work(arguments: list[str]) -> int:
        _adopt()
        return main(arguments)

    gc.collect()
    gc.freeze()  # a collection in a trial would copy the pages that it shares
    fork_server.serve(
        socket.socket(fileno=descriptor),
        work,
        suits=lambda job: pairing.share_cores(needs(job.arguments).threads) == threads,
        needed=_manager_answers,
        idle=IDLE,
    )
    return 0


def _name(command: Sequence[str]) -> str:
    """The same for two trials if they would import the same in the same way."""
    environ = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    # Abstract sockets belong to the network, which containers may share.
    inside = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid")]
    content = json.dumps([command, sys.path, inside, environ], sort_keys=True)
    return f"nni_cssnas-{hashlib.sha256(content.encode()).hexdigest()}"


def _adopt() -> None:
    """Let NNI read the environment again, which it does once, when it is imported."""
    import nni.trial
    import numpy as np
    from nni.runtime import env_vars, log

    before = env_vars.trial_env_vars
    importlib.reload(env_vars)
    for name, module in list(sys.modules.items()):
        if name.startswith("nni.") and vars(module).get("trial_env_vars") is before:
            module.trial_env_vars = env_vars.trial_env_vars  # type: ignore[attr-defined]
    importlib.reload(nni.trial)
    log._init_logger()
    np.random.seed()  # noqa: NPY002 - else all trials would share one state
    importlib.invalidate_caches()


def _manager_answers(job: Job | None) -> bool:
    """Whether the manager of the latest trial still listens; True where that cannot be told."""
    url = urlsplit((os.environ if job is None else job.environ).get("NNI_TRIAL_COMMAND_CHANNEL", ""))
    if not url.hostname or not url.port:
        return True
    # Of two addresses of one name, Python tells the error of the first, which is another one where there is no IPv6.
    host = "127.0.0.1" if url.hostname == "localhost" else url.hostname
    try:
        socket.create_connection((host, url.port), timeout=1.0).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True
