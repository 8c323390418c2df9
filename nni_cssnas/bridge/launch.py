"""``nnictl create``, ``resume`` and ``view``, and then what a person does by hand: watch, wait, stop."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from nni_cssnas.bridge.experiment_file import platform_of
from nni_cssnas.bridge.guard import manager_environment
from nni_cssnas.bridge.nnictl import check_libraries
from nni_cssnas.bridge.remote import refuse_closed
from nni_cssnas.errors import ConfigError, ExperimentError
from nni_cssnas.results.experiments import find_experiment
from nni_cssnas.results.profile import read_profile
from nni_cssnas.tuners.base import finite_score
from nni_cssnas.tuners.collector import Collector

__all__ = [
    "Progress",
    "RunningExperiment",
    "check_reach",
    "create",
    "free_port",
    "last_error",
    "manager_environment",
    "manager_error",
    "register_tuners",
    "resume",
    "view",
]


ALMOST_FULL = 2**20
"""Bytes: a disk with less space is full for a manager."""


AFTERWARDS = ("SQLITE_MISUSE: Database is closed", "Worker channel closed unexpectedly: shutdown")
"""What NNI's manager logs as errors while it ends."""


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
    silent: float = 0.0
    """Seconds since the manager's last answer, which the rest is from; 0 where it has just answered."""

    @property
    def ended(self) -> bool:
        """Whether no further trial will run."""
        return self.status in ("DONE", "STOPPED", "ERROR") or (
            self.status == "TUNER_NO_MORE_TRIAL" and not self.running
        )


@dataclass(frozen=True)
class RunningExperiment:
    """A running experiment of ``nnictl``; ``token`` is the secret in the address of a public portal."""

    id: str
    port: int
    token: str | None = None

    @property
    def portal(self) -> str:
        """Address of the web portal on this machine."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def public_portal(self) -> str | None:
        """Address of the web portal for other machines, with its secret; None where it is closed to them."""
        return f"http://{socket.gethostname()}:{self.port}/{self.token}/" if self.token else None

    def get(self, path: str) -> Any:
        """NNI's REST answer, asked for again where a try fails.

        Raises
        ------
        ExperimentError
            If the manager does not answer.
        """
        try:
            answer = _session().get(f"{self.portal}/api/v1/nni/{path}", timeout=(5, 20))
            answer.raise_for_status()
            return answer.json()
        except (requests.RequestException, ValueError) as error:
            raise ExperimentError(
                f"the manager of experiment {self.id} does not answer at {self.portal}: {_first_line(error)}"
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

    def watch(self, interval: float = 1.0, patience: float = 10.0, silence: float = math.inf) -> Iterator[Progress]:
        """Progress again and again, until the experiment has ended.

        Between two rounds of Hyperband or BOHB there are no more trials either: so the tuner must have none for
        ``patience`` seconds. A manager that listens and does not answer is waited for: only its end, or the user's, is one.

        Parameters
        ----------
        interval
            Seconds between two questions.
        patience
            Seconds for which a tuner must have no more trials.
        silence
            Seconds without an answer after which a manager that listens counts as gone; by default never. One whose port
            is closed counts as gone at once.

        Raises
        ------
        ExperimentError
            If the manager is gone; tells its last error, its log, and how to go on.
        """
        idle = 0.0
        answered = time.monotonic()
        progress = Progress("UNKNOWN", succeeded=0, failed=0, stopped=0, running=0, best=None)
        while True:
            try:
                progress = self.progress()
            except ExperimentError as error:
                waited = time.monotonic() - answered
                if waited >= silence or not _is_listening(self.port):
                    raise ExperimentError(self._obituary(error)) from None
                yield dataclasses.replace(progress, silent=waited)
                time.sleep(interval)
                continue
            answered = time.monotonic()
            yield progress
            if progress.ended and (progress.status != "TUNER_NO_MORE_TRIAL" or idle >= patience):
                return
            idle = idle + interval if progress.ended else 0.0
            time.sleep(interval)

    def max_trials(self) -> int | None:
        """How many trials the experiment may have; None where that is not limited, or not told."""
        try:
            number = self.get("experiment")["params"]["maxTrialNumber"]
        except (ExperimentError, KeyError, TypeError):
            return None
        return number if isinstance(number, int) else None

    def collect(self, folder: Path, patience: float = 20.0) -> None:
        """Wait until the records of trials on other machines are in the experiment's folder, and store them there where no
        tuner of ours does.
        """
        if _platform(folder) in ("local", None):
            return
        try:
            collector = Collector(f"{self.portal}/api/v1/nni", folder)
            deadline = time.monotonic() + patience
            while not collector.collect() and time.monotonic() < deadline:
                time.sleep(0.5)
        except (ExperimentError, requests.RequestException) as error:
            warnings.warn(f"records of trials on other machines may be missing: {error}", stacklevel=2)

    def stop(self) -> None:
        """End the manager and its trials, as ``nnictl stop`` does; the records stay."""
        for manager in _managers(self.id):
            with contextlib.suppress(psutil.NoSuchProcess):
                manager.terminate()
                if not _ends(manager, 60):
                    manager.kill()

    def _obituary(self, error: ExperimentError) -> str:
        log = _manager_log(self.id)
        reason = manager_error(log.read_text(encoding="utf-8", errors="replace")) if log else None
        said = (
            f"its last error is: {reason} ({log})" if reason else f"its log tells no error{f' ({log})' if log else ''}"
        )
        # A manager that ends of a full disk cannot write why.
        if log and shutil.disk_usage(log.parent).free < ALMOST_FULL:
            said = f"the disk is full, make space first ({log.parent.parent})"
        return f"{error}; {said}; what has finished is kept, go on with: nni-cssnas resume {self.id}"


def create(config: Path, *, port: int | None = None, public: bool = False) -> RunningExperiment:
    """Run ``nnictl create --config CONFIG``.

    Parameters
    ----------
    config
        An ``experiment.yml``.
    port
        Of the portal, 1 to 65535; by default 8080 or the next free one.
    public
        Let the portal listen on every interface. Its address then has a secret
        (:attr:`RunningExperiment.public_portal`), without which other machines are refused.

    Raises
    ------
    ConfigError
        If there is no such file, the port cannot be used, or trials on other machines could not reach the manager.
    ExperimentError
        If ``nnictl`` does not start the experiment; carries the reason that it gave.
    """
    if not config.is_file():
        raise ConfigError(f"there is no file {config}")
    check_reach(config, public=public)
    return _start(["create", "--config", str(config)], port, public)


def check_reach(config: Path, *, public: bool) -> None:
    """Refuse an experiment whose trials run on machines that the manager would be closed to. Raises ConfigError."""
    refuse_closed(platform_of(config), public)


def resume(experiment_id: str, *, port: int | None = None, public: bool = False) -> RunningExperiment:
    """Run ``nnictl resume ID``, as soon as the tuner of a manager that died is gone too.

    That tuner would connect to the new manager and throw out the new tuner.

    Parameters
    ----------
    experiment_id
        NNI's id of an experiment that is not running, or its folder.
    port, public
        As those of :func:`create`.

    Raises
    ------
    ConfigError
        If the port cannot be used, or trials on other machines could not reach the manager.
    ExperimentError
        If there is no such experiment, it is running, the tuner of its last manager does not end, or ``nnictl`` does
        not start it.
    """
    folder = _stopped(experiment_id)
    refuse_closed(_platform(folder), public)
    _await_dispatchers(folder.name)
    return _start(["resume", folder.name, "--experiment_dir", str(folder.parent)], port, public)


def view(experiment_id: str, *, port: int | None = None, public: bool = False) -> RunningExperiment:
    """Run ``nnictl view ID``: the portal of an experiment that is not running, without going on with it.

    Parameters
    ----------
    experiment_id
        NNI's id of an experiment that is not running, or its folder.
    port, public
        As those of :func:`create`.

    Raises
    ------
    ConfigError
        If the port cannot be used.
    ExperimentError
        If there is no such experiment, it is running, or ``nnictl`` does not start the portal.
    """
    folder = _stopped(experiment_id)
    return _start(["view", folder.name, "--experiment_dir", str(folder.parent)], port, public)


def register_tuners() -> list[str]:
    """Run ``nnictl algo register`` with this package's tuners; gives what it said.

    Raises
    ------
    ExperimentError
        If ``nnictl`` refuses; carries what it said.
    """
    meta = Path(__file__).parents[1] / "tuners" / "meta.yml"
    command = [*_nnictl(), "algo", "register", "--meta", str(meta)]
    done = subprocess.run(command, env=manager_environment(), text=True, capture_output=True, check=False)
    output = _plain(done.stdout + done.stderr).strip()
    if done.returncode or output.count("registered") < 2:
        raise ExperimentError(f"nnictl algo register failed: {last_error(output) or output or 'it said nothing'}")
    return output.splitlines()


def free_port(first: int = 8080) -> int:
    """The first port from ``first`` on which nothing listens on this machine."""
    last = min(first + 1000, 65536)
    for port in range(first, last):
        if _is_free(port):
            return port
    raise ExperimentError(f"no free port from {first} to {last - 1}")


def last_error(text: str) -> str | None:
    """The last line of a log or of ``nnictl``'s output that tells an error; None if none does.

    Of a traceback that is the line that names the exception.
    """
    found = None
    for line in _plain(text).splitlines():
        if re.search(r"(^|\W)(ERROR|CRITICAL|FATAL)\b|^[\w.]*(Error|Exception|Exit)\b", line):
            found = re.sub(r"^\[[\d\-: ,.]+\]\s*|\$\{\w+\}", "", line).strip()
    return found


def manager_error(log: str) -> str | None:
    """The last error of a manager's last life, from ``nnimanager.log``; None if it tells none.

    What only follows from its end, as a question to a database that is closed already, does not count.
    """
    life = log.rpartition("(main) Start NNI manager")[2]
    return last_error("\n".join(line for line in life.splitlines() if not any(text in line for text in AFTERWARDS)))


def _start(arguments: Sequence[str], port: int | None, public: bool) -> RunningExperiment:
    """Run ``nnictl``; what it has begun is ended again if this is interrupted."""
    if port is None:
        return _start_anywhere(arguments, public)
    if not 1 <= port <= 65535:
        raise ConfigError(f"port is {port}; it must be from 1 to 65535, or left out")
    if not _becomes_free(port):
        raise ConfigError(f"port {port} is in use; name another with --port, or leave it out")
    check_libraries()
    token = secrets.token_urlsafe() if public else None
    command = [*_nnictl(), *arguments, "--port", str(port)]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            env=manager_environment(token=token),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches this process only, which knows what to tidy up
        )
        try:
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            if started := _started(output):
                RunningExperiment(started, port).stop()
            raise
        said, started = _read(output), _started(output)
    if process.returncode or not started or not _is_listening(port):
        if started:
            RunningExperiment(started, port).stop()
        raise ExperimentError(f"nnictl {arguments[0]} failed: {_reason(said, started)}")
    return RunningExperiment(started, port, token)


def _start_anywhere(arguments: Sequence[str], public: bool) -> RunningExperiment:
    """On the first free port, or the next, where another process takes that one meanwhile."""
    first = 8080
    while True:
        port = free_port(first)
        try:
            return _start(arguments, port, public)
        except ExperimentError as error:
            if f"Port {port} is not idle" not in str(error) and "EADDRINUSE" not in str(error):
                raise
            first = port + 1


def _started(output: Any) -> str | None:
    found = re.search(r"Experiment ID:\s*(\w+)", _read(output))
    return found.group(1) if found else None


def _read(output: Any) -> str:
    output.seek(0)
    return _plain(output.read().decode(errors="replace"))


def _reason(said: str, experiment_id: str | None) -> str:
    """Why ``nnictl`` failed: its own last error, and its manager's."""
    told = last_error(said) or (said.strip().splitlines() or ["it said nothing"])[-1]
    log = _manager_log(experiment_id) if experiment_id else None
    deeper = manager_error(log.read_text(encoding="utf-8", errors="replace")) if log else None
    return f"{told}; the manager's last error is: {deeper} ({log})" if deeper else told


def _manager_log(experiment_id: str) -> Path | None:
    try:
        path = find_experiment(experiment_id) / "log" / "nnimanager.log"
    except (ExperimentError, OSError):
        return None
    return path if path.is_file() else None


def _stopped(experiment_id: str, patience: float = 5.0) -> Path:
    """The folder of an experiment that is not running.

    nnictl is told this folder and asked nothing of its list of experiments: NNI rewrites that list in place, so that on
    a full disk nothing of it remains, and a manager that was killed stands in it as running.
    """
    folder = find_experiment(experiment_id).resolve()
    if not (folder / "db" / "nni.sqlite").is_file():
        raise ExperimentError(f"{folder} is not the folder of an experiment: there is no db/nni.sqlite in it")
    # One that was just told to stop, or killed, still has its last moments.
    if not all(_ends(manager, patience) for manager in _managers(folder.name)):
        raise ExperimentError(f"experiment {folder.name} is running; stop it first with: nnictl stop {folder.name}")
    return folder


def _await_dispatchers(experiment_id: str, patience: float = 60.0) -> None:
    """Wait until the tuner of an earlier manager, one that was killed, has ended."""
    deadline = time.monotonic() + patience
    while dispatchers := _dispatchers(experiment_id):
        if time.monotonic() > deadline:
            pids = ", ".join(str(process.pid) for process in dispatchers)
            raise ExperimentError(
                f"the tuner of an earlier manager of experiment {experiment_id} still runs (process {pids}); "
                "end that process first"
            )
        time.sleep(0.2)


def _ends(process: psutil.Process, patience: float) -> bool:
    """Wait for a process's end; one that its parent has not asked for yet (a zombie) has ended."""
    deadline = time.monotonic() + patience
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True


def _platform(folder: Path) -> str | None:
    """Where the trials of an experiment run; ``several`` if it has more than one place, None if that is not known."""
    service = read_profile(folder).get("trainingService")
    if isinstance(service, list):
        return "several"
    return service.get("platform") if isinstance(service, dict) else None


def _managers(experiment_id: str) -> list[psutil.Process]:
    """This user's managers of an experiment: one, or none."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "--experiment-id" in words and experiment_id in words and any(word.endswith("main.js") for word in words):
            found.append(process)
    return found


def _dispatchers(experiment_id: str) -> list[psutil.Process]:
    """The processes in which NNI runs tuners of an experiment."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "--exp_params" not in (process.info["cmdline"] or []):
            continue
        with contextlib.suppress(psutil.Error):
            folder = Path(process.environ().get("NNI_LOG_DIRECTORY", ""))
            if folder.parent.name == experiment_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@functools.lru_cache(maxsize=1)
def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # a proxy for the internet does not know this machine's ports
    retry = Retry(total=2, backoff_factor=0.5, status_forcelist=(500, 502, 503, 504), allowed_methods=("GET",))
    session.mount("http://", HTTPAdapter(max_retries=retry))
    return session


def _is_listening(port: int) -> bool:
    """Whether something listens; a listener that is too busy to accept counts."""
    with socket.socket() as probe:
        probe.settimeout(5)
        try:
            probe.connect(("127.0.0.1", port))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def _is_free(port: int) -> bool:
    if _is_listening(port):
        return False
    with socket.socket() as probe:
        # As the manager itself does: what a dead manager's connections have left is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _becomes_free(port: int, patience: float = 2.0) -> bool:
    """Whether a port is free, or soon is: a manager that was killed has it for a moment longer."""
    deadline = time.monotonic() + patience
    while not _is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _nnictl() -> list[str]:
    # Not what PATH has: it may be another Python's, or none.
    return [sys.executable, "-m", "nni_cssnas.bridge.nnictl"]


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _score(metric: Mapping[str, Any]) -> float | None:
    try:
        data = json.loads(metric["data"])
        return finite_score(json.loads(data) if isinstance(data, str) else data)
    except (KeyError, TypeError, ValueError):
        return None
