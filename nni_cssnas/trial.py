"""What ``nnictl`` starts for each trial: ``python -m nni_cssnas.trial [proxy.yml]``.

The trial asks NNI for its parameters before anything heavy is imported. Run outside of NNI it scores one random
architecture, which is a quick check of a ``proxy.yml``. ``TRIAL_BUDGET``, which Hyperband and BOHB add to the choices, is
the number of epochs.

Within NNI, on Linux, the trial is forked from a process that has done the imports (:mod:`nni_cssnas.bridge.forked`).
``--isolated`` starts each trial by itself.

NNI stops a trial (an assessor's decision, ``nnictl stop``) by SIGINT, and by SIGKILL five seconds later.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nni_cssnas.base.fork_server import end_as
from nni_cssnas.base.messages import warning_line
from nni_cssnas.base.signals import raise_once
from nni_cssnas.bridge import forked
from nni_cssnas.bridge.forked import Needs
from nni_cssnas.errors import CssnasError

if TYPE_CHECKING:
    from nni_cssnas.judge.proxy import ProxyResult

__all__ = ["command", "main"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""They stop a trial: NNI sends the first, batch systems the second."""


def command(arguments: Sequence[str] | None = None) -> int:
    """What ``python -m nni_cssnas.trial`` does: :func:`main`, in a forked process where there can be one."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _options(arguments)
    if options.serve is not None:
        return forked.serve(options.serve, arguments, main, _needs)
    _catch_signals()
    try:
        code = None if options.isolated else forked.run("nni_cssnas.trial", arguments)
    except KeyboardInterrupt as error:
        with suppress(CssnasError, OSError):
            _keep(error, {})
        _stop()
    return main(arguments) if code is None else end_as(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate one candidate in this process; gives the exit code, 1 for an error that a user can mend."""
    options = _options(arguments)
    _catch_signals()
    warnings.formatwarning = warning_line
    try:
        return _evaluate(options.config)
    except KeyboardInterrupt:
        _stop()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nni_cssnas.trial", description="Judge one candidate for NNI.")
    parser.add_argument("config", nargs="?", default="proxy.yml", help="the proxy's settings (default: proxy.yml)")
    parser.add_argument(
        "--isolated",
        action="store_true",
        help="start by itself and import all that is needed, in place of a fork of a process that has done so",
    )
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)  # be that process, on this socket
    return parser.parse_args(arguments)


def _needs(arguments: Sequence[str]) -> Needs:
    """What a trial needs of the process that it is forked from, as ``proxy.yml`` says; if that is wrong, the trial tells so."""
    from nni_cssnas.config import ProxyConfig

    try:
        config = ProxyConfig.load(_options(arguments).config)
    except CssnasError:
        return Needs()
    return Needs(config.threads, config.score != "untrained")


def _evaluate(path: str) -> int:
    import nni

    from nni_cssnas.bridge import pairing

    parameters: dict[str, Any] = {}
    try:
        pairing.install()
        parameters = nni.get_next_parameter() or {}
        result = _judge(path, parameters)
    except BaseException as error:
        with suppress(CssnasError, OSError):  # as on a full disk: the trial's own error is told below
            _keep(error, parameters)
        if not isinstance(error, CssnasError):
            raise
        # The whole story is in error.txt beside the record; this line is what trial.stderr shows first.
        print(f"nni_cssnas: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for name, value in {"score": result.score, **result.components}.items():
        print(f"{name}: {value:.6g}")
    return 0


def _judge(path: str, parameters: dict[str, Any]) -> ProxyResult:
    """Score the candidate, and record it."""
    from nni_cssnas.bridge import pairing
    from nni_cssnas.config import ProxyConfig

    config = ProxyConfig.load(path)
    budget = parameters.pop("TRIAL_BUDGET", None)
    if budget is not None:
        config = config.with_epochs(budget)
    threads = pairing.share_cores(config.threads)

    import numpy as np
    import torch

    from nni_cssnas.bridge.evaluator import ProxyEvaluator
    from nni_cssnas.spaces import decode, make_space, random_choices

    torch.set_num_threads(threads)
    space = make_space(config.scored_space)
    if not parameters:
        parameters = random_choices(space, np.random.default_rng())
        print(f"outside of NNI: scoring the random architecture {parameters}")
    sample = decode(space, parameters)
    return ProxyEvaluator(config).run(lambda: space.freeze(sample), parameters)


def _keep(error: BaseException, parameters: dict[str, Any]) -> None:
    """Leave a record of a trial that ended before its evaluation began; that keeps its own."""
    import nni

    from nni_cssnas.results.carried import tell_end
    from nni_cssnas.results.records import RECORD_NAME, TrialRecord

    folder = os.environ.get("NNI_OUTPUT_DIR")
    if folder is None or Path(folder, RECORD_NAME).exists():
        return
    stopped = isinstance(error, KeyboardInterrupt)
    record = TrialRecord(
        experiment=nni.get_experiment_id(),
        trial=nni.get_trial_id(),
        sequence=nni.get_sequence_id(),
        parameter_id=None,
        parameters=parameters,
        status="stopped" if stopped else "failed",
        error=None if stopped else f"{type(error).__name__}: {error}",
        started=time.time(),
        duration=0.0,
    )
    tell_end(record)
    record.write(Path(folder))
    if not stopped:
        record.write_error(Path(folder), error)


def _catch_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    # NNI may send it again while the record is written.
    raise_once(KeyboardInterrupt())


def _stop() -> NoReturn:
    """End by the signal: to NNI an exit code would be a failure."""
    print("nni_cssnas: stopped before the end", file=sys.stderr, flush=True)
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    raise SystemExit(1)  # not reached where signals end processes


if __name__ == "__main__":
    # Back to the module's real name, so that errors and classes are those that others import.
    from nni_cssnas.trial import command as run

    sys.exit(run())
