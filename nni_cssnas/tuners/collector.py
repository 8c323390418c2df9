"""The records of trials on other machines, stored with the experiment as the trials end.

The tuner's process does it: it runs on the manager's machine, whoever has started the experiment.
"""

from __future__ import annotations

import atexit
import json
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from nni_cssnas.errors import ExperimentError
from nni_cssnas.results.carried import COLLECTED, found_in_metric, found_in_output
from nni_cssnas.results.records import RECORD_NAME, TrialRecord

__all__ = ["Collector"]

TRIES = 3
"""Looks at a trial that has ended before it is taken to have left no record: NNI tells ends and metrics in any order."""

ENDED = ("SUCCEEDED", "FAILED", "EARLY_STOPPED", "USER_CANCELED", "SYS_CANCELED")
"""NNI has more words for those that have not ended than it tells (``ADD_RESUMED``, for one that it runs again)."""

_logger = logging.getLogger("nni.tuner.cssnas")


class Collector:
    """Takes the records from NNI's manager (see :mod:`nni_cssnas.results.carried`).

    Life cycle: :meth:`start` looks again and again in a thread of its own, whenever trials have ended; or :meth:`collect`
    looks once. What was collected in an earlier session is left as it is. A trial that left no record, for it was killed or
    its machine is lost, gets one of what the manager knows, so that no trial is missing.

    Parameters
    ----------
    api
        Address of the manager's REST API: ``http://host:port[/prefix]/api/v1/nni``.
    folder
        Of the experiment.
    """

    def __init__(self, api: str, folder: Path) -> None:
        self.api = api
        self.folder = folder
        self._settled: set[str] = set()
        self._looks: Counter[str] = Counter()
        self._statistics: Any = None
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy for the internet does not know the manager
        self._lock = threading.Lock()

    def start(self, interval: float = 1.0) -> None:
        """Collect until this process ends, and once more then."""
        threading.Thread(target=self._keep_on, args=(interval,), name="collect-records", daemon=True).start()
        atexit.register(self._collect_quietly)

    def collect(self) -> bool:
        """Look once; whether the record of every trial that has ended is stored.

        Raises
        ------
        requests.RequestException
            If the manager does not answer.
        """
        with self._lock:
            waiting = 0
            for trial in self._ask("trial-jobs").json():
                name = str(trial.get("trialJobId"))
                if name in self._settled or not re.fullmatch(r"\w+", name):
                    continue
                if self._settle(name, trial):
                    self._settled.add(name)
                else:
                    waiting += trial.get("status") in ENDED
            return not waiting

    def _settle(self, name: str, trial: Mapping[str, Any]) -> bool:
        """Store what is known of a trial; whether there is nothing more to come."""
        folder = self.folder / COLLECTED / name
        known: TrialRecord | None = None
        with suppress(ExperimentError):
            known = TrialRecord.read(folder / RECORD_NAME)
        if trial.get("status") not in ENDED:
            if known is None and trial.get("startTime"):
                self._sketch(name, trial, "running").write(folder)
            return False
        if known is not None and known.status != "running":
            return True
        record = self._carried(name, trial)
        self._looks[name] += 1
        if record is None and self._looks[name] < TRIES:
            return False
        if record is None and trial.get("status") == "SUCCEEDED":
            # Not a trial of this package, or its metric would have told.
            (folder / RECORD_NAME).unlink(missing_ok=True)
            return True
        record = record or self._sketch(name, trial, "failed")
        record.location = _location(trial)
        record.write(folder)
        return True

    def _carried(self, name: str, trial: Mapping[str, Any]) -> TrialRecord | None:
        """The record that the trial has sent, if it has arrived."""
        try:
            # NNI withholds the metric in its list where the trial was killed after it had reported.
            for metric in trial.get("finalMetricData") or self._ask(f"metric-data/{name}?type=FINAL").json():
                data = json.loads(metric["data"])
                if record := found_in_metric(json.loads(data) if isinstance(data, str) else data, name):
                    return record
            if trial.get("status") == "SUCCEEDED":
                return None
            return found_in_output(self._ask(f"trial-file/{name}/stdout", 60).text, name)
        except requests.HTTPError:
            return None
        except (ExperimentError, ValueError, KeyError, TypeError) as error:
            _logger.warning("%s", error)
            return None

    def _sketch(self, name: str, trial: Mapping[str, Any], status: str) -> TrialRecord:
        """A record of what the manager knows."""
        given: Any = {}
        with suppress(ValueError, IndexError, KeyError, TypeError):
            given = json.loads(trial["hyperParameters"][-1])
        started, ended = float(trial.get("startTime") or 0) / 1000, trial.get("endTime")
        return TrialRecord(
            experiment=self.folder.name,
            trial=name,
            sequence=int(trial.get("sequenceId", -1)),
            parameter_id=given.get("parameter_id"),
            parameters=given.get("parameters") or {},
            status=status,
            error=self._reason(name, trial) if status == "failed" else None,
            started=started,
            duration=float(ended) / 1000 - started if ended and status == "failed" else None,
            location=_location(trial),
        )

    def _reason(self, name: str, trial: Mapping[str, Any]) -> str:
        """Why a trial left no record: what it printed last, as far as NNI has fetched it."""
        said = ""
        with suppress(OSError):
            text = (self.folder / COLLECTED / name / "trial.stderr").read_text(encoding="utf-8", errors="replace")
            said = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
        host = (_location(trial) or "its machine").split(":")[0]
        ended = "it was killed, or its machine was lost" if trial.get("status") != "FAILED" else "it failed"
        return f"no record came from {host}: {ended}" + (f"; the last that it printed: {said}" if said else "")

    def _ask(self, path: str, seconds: float = 10) -> requests.Response:
        answer = self._session.get(f"{self.api}/{path}", timeout=seconds)
        answer.raise_for_status()
        return answer

    def _keep_on(self, interval: float) -> None:
        complete = False
        while True:
            begun = time.monotonic()
            try:
                # A list of ten thousand trials is long; whether anything has changed is told in a few bytes.
                statistics = self._ask("job-statistics").json()
                if not complete or statistics != self._statistics:
                    complete = self.collect()
                    self._statistics = statistics
            except requests.RequestException:
                pass  # the manager is busy, or ends
            except Exception:
                _logger.exception("records of other machines could not be stored; it is tried again")
            time.sleep(max(interval, 10 * (time.monotonic() - begun)))

    def _collect_quietly(self) -> None:
        with suppress(Exception):
            self.collect()


def _location(trial: Mapping[str, Any]) -> str | None:
    """``host:path`` of the trial's files, as NNI tells it; None if they lie on this machine."""
    path = trial.get("logPath")
    return path if isinstance(path, str) and re.match(r"[^/\\]+:", path) else None
