"""``nnictl create``, and then what a person does by hand: watch, wait, stop."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from nni_cssnas.errors import ConfigError, ExperimentError
from nni_cssnas.tuners.base import finite_score

__all__ = ["Experiment", "Progress", "create", "free_port", "manager_environment"]


@dataclass(frozen=True)
class Progress:
    """How far an experiment is: trials by state, the best score so far, and the manager's status and errors."""

    status: str
    succeeded: int
    failed: int
    stopped: int
    running: int
    best: float | None
    errors: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether no further trial will run."""
        return self.status in ("DONE", "STOPPED", "ERROR") or (
            self.status == "TUNER_NO_MORE_TRIAL" and not self.running
        )


@dataclass(frozen=True)
class Experiment:
    """A running experiment of ``nnictl``."""

    id: str
    port: int

    @property
    def portal(self) -> str:
        """Address of the web portal."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        """NNI's REST answer. Raises ExperimentError if the manager does not answer."""
        try:
            answer = requests.get(f"{self.portal}/api/v1/nni/{path}", timeout=20)
            answer.raise_for_status()
            return answer.json()
        except (requests.RequestException, ValueError) as error:
            raise ExperimentError(
                f"the manager of experiment {self.id} does not answer at {self.portal}: {error}; "
                f"see nnimanager.log in {self.id}/log"
            ) from None

    def progress(self) -> Progress:
        """Ask the manager how far the experiment is."""
        status = self.get("check-status")
        trials = self.get("trial-jobs")
        states = [trial["status"] for trial in trials]
        # Not the trials' finalMetricData: NNI withholds it where a trial was killed after it had reported.
        scores = [_score(metric) for metric in self.get("metric-data?type=FINAL")]
        return Progress(
            status=status["status"],
            succeeded=states.count("SUCCEEDED"),
            failed=sum(state in ("FAILED", "SYS_CANCELED") for state in states),
            # NNI 3.0 calls whatever a signal has ended cancelled by the user, early stopping too.
            stopped=sum(state in ("EARLY_STOPPED", "USER_CANCELED") for state in states),
            running=sum(state in ("RUNNING", "WAITING", "UNKNOWN") for state in states),
            best=max((score for score in scores if score is not None), default=None),
            errors=tuple(map(str, status.get("errors", []))),
        )

    def watch(self, interval: float = 1.0, patience: float = 10.0) -> Iterator[Progress]:
        """Progress again and again, every ``interval`` seconds, until the experiment has ended.

        Between two rounds of Hyperband or BOHB there are no more trials either: so the tuner must have none for
        ``patience`` seconds.
        """
        idle = 0.0
        while True:
            progress = self.progress()
            yield progress
            if progress.ended and (progress.status != "TUNER_NO_MORE_TRIAL" or idle >= patience):
                return
            idle = idle + interval if progress.ended else 0.0
            time.sleep(interval)

    def stop(self) -> None:
        """``nnictl stop``; the records stay."""
        subprocess.run([_nnictl(), "stop", self.id], capture_output=True, check=False, timeout=120)


def create(config: Path, *, port: int | None = None, public: bool = False) -> Experiment:
    """Run ``nnictl create --config CONFIG``.

    Parameters
    ----------
    config
        An ``experiment.yml``.
    port
        Of the portal; by default 8080 or the next free one.
    public
        Let the portal listen on every interface, as plain ``nnictl`` does. It has no authentication.

    Raises
    ------
    ConfigError
        If there is no such file, or the port is in use.
    ExperimentError
        If ``nnictl`` does not start the experiment; carries what it said.
    """
    if not config.is_file():
        raise ConfigError(f"there is no file {config}")
    if port is None:
        port = free_port()
    elif not _is_free(port):
        raise ConfigError(f"port {port} is in use; name another with --port, or leave it out")
    command = [_nnictl(), "create", "--config", str(config), "--port", str(port)]
    done = subprocess.run(
        command,
        env=manager_environment(public=public),
        text=True,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    found = re.search(r"Experiment ID:\s*(\w+)", output)
    if done.returncode or not found:
        raise ExperimentError(f"nnictl create failed ({' '.join(command)}):\n{output.strip()}")
    return Experiment(found.group(1), port)


def register_tuners() -> list[str]:
    """Run ``nnictl algo register`` with this package's tuners; gives what it said.

    Raises
    ------
    ExperimentError
        If ``nnictl`` refuses; carries what it said.
    """
    meta = Path(__file__).with_name("tuners") / "meta.yml"
    command = [_nnictl(), "algo", "register", "--meta", str(meta)]
    done = subprocess.run(command, env=manager_environment(), text=True, capture_output=True, check=False)
    output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).strip()
    if done.returncode or output.count("registered") < 2:
        raise ExperimentError(f"nnictl algo register failed ({' '.join(command)}):\n{output}")
    return output.splitlines()


def manager_environment(environ: Mapping[str, str] = os.environ, *, public: bool = False) -> dict[str, str]:
    """The environment in which ``nnictl`` starts a manager.

    Trials' ``python`` is the one that runs this, even if its environment is not activated, and the portal
    listens on 127.0.0.1 only unless ``public``.
    """
    environment = dict(environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    # pkg_resources, which nnictl imports, announces its own end at every start.
    warnings = "ignore::UserWarning:nni,ignore:pkg_resources is deprecated:UserWarning"
    environment["PYTHONWARNINGS"] = ",".join(filter(None, [environment.get("PYTHONWARNINGS"), warnings]))
    if not public:
        hook = f'--require "{Path(__file__).with_name("loopback.js")}"'
        environment["NODE_OPTIONS"] = " ".join(filter(None, [environment.get("NODE_OPTIONS"), hook]))
    return environment


def free_port(first: int = 8080) -> int:
    """The first port from ``first`` on which nothing listens on this machine."""
    for port in range(first, first + 1000):
        if _is_free(port):
            return port
    raise ExperimentError(f"no free port from {first} to {first + 999}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _nnictl() -> str:
    path = Path(sys.executable).with_name("nnictl")
    return str(path) if path.exists() else "nnictl"


def _score(metric: Mapping[str, Any]) -> float | None:
    import json

    try:
        data = json.loads(metric["data"])
        return finite_score(json.loads(data) if isinstance(data, str) else data)
    except (KeyError, TypeError, ValueError):
        return None
