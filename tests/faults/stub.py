"""An experiment whose trials score their parameters by a known function, so that whatever was lost or swapped shows."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from nni_cssnas.bridge import launch
from nni_cssnas.errors import ExperimentError
from nni_cssnas.results.best import rank
from nni_cssnas.results.records import TrialRecord, read_records
from nni_cssnas.tuners.journal import NAME, Journal

CHOICES = {f"c{i}": {"_type": "choice", "_value": [f"v{j}" for j in range(8)]} for i in range(8)}

TRIAL = """
import json, os, sys, time
from pathlib import Path

from nni_cssnas.bridge import pairing
from nni_cssnas.results.records import TrialRecord

import nni  # after ours, which puts some of it off

sys.path.append(sys.argv[1])
from stub import score_of

pairing.install()
parameters = nni.get_next_parameter()
folder = Path(os.environ["NNI_OUTPUT_DIR"])
before = TrialRecord.finished_before(folder, parameters, {})
if before is not None:  # as nni_cssnas.bridge.evaluator does
    nni.report_final_result({"default": before.score})
    sys.exit()
record = TrialRecord(
    experiment=nni.get_experiment_id(),
    trial=nni.get_trial_id(),
    sequence=nni.get_sequence_id(),
    parameter_id=nni.trial._params["parameter_id"],
    parameters=parameters,
    started=time.time(),
)
record.write(folder)
time.sleep(float(sys.argv[2]))
record.status, record.score, record.duration = "succeeded", score_of(parameters), time.time() - record.started
record.write(folder)
nni.report_final_result({"default": record.score})
"""

TIMED = '''
import json, os, time
from pathlib import Path

from nni_cssnas.tuners.tpe import Tpe


class TimedTpe(Tpe):
    """Tpe that writes down how many seconds each proposal takes, the journal's line included."""

    def generate_parameters(self, parameter_id, **kwargs):
        begun = time.perf_counter()
        parameters = super().generate_parameters(parameter_id, **kwargs)
        seconds = time.perf_counter() - begun
        with Path(os.environ["NNI_CHECKPOINT_DIRECTORY"], "proposals.txt").open("a") as file:
            file.write(f"{seconds}\\n")
        return parameters
'''


def score_of(parameters: dict[str, str]) -> float:
    """The stub's score: no two choices of :data:`CHOICES` have the same."""
    return float(sum(int(parameters[f"c{i}"][1:]) * 8**i for i in range(len(parameters))))


def key_of(parameters: dict[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)


@dataclass
class Verdict:
    """What the oracle found; the lists hold a line for each finding, ``facts`` what is no fault."""

    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    facts: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> bool:
        return not (self.lost or self.repeated or self.wrong)


class Stub:
    """A running experiment of stub trials, with the processes that can be harmed."""

    def __init__(self, experiment: launch.RunningExperiment, folder: Path, code: Path) -> None:
        self.experiment = experiment
        self.folder = folder
        self.code = code

    @classmethod
    def start(
        cls, code: Path, experiments: Path, *, trials: int, seconds: float = 0.3, startup: int = 20, timed: bool = False
    ) -> Stub:
        """Write the experiment's files and create it.

        Parameters
        ----------
        code
            Folder of the files.
        experiments
            ``experimentWorkingDirectory``.
        trials
            ``maxTrialNumber``.
        seconds
            That a trial works.
        startup
            Random proposals at the beginning.
        timed
            Whether the tuner writes down how long its proposals take.
        """
        code.mkdir(parents=True, exist_ok=True)
        (code / "trial.py").write_text(TRIAL)
        (code / "timed.py").write_text(TIMED)
        (code / "search_space.json").write_text(json.dumps(CHOICES))
        settings = {
            "searchSpaceFile": "search_space.json",
            "trialCommand": f"python trial.py {Path(__file__).parent} {seconds}",
            "trialCodeDirectory": ".",
            "experimentWorkingDirectory": str(experiments),
            "trialConcurrency": 2,
            "maxTrialNumber": trials,
            "tuner": {
                "className": "timed.TimedTpe" if timed else "nni_cssnas.tuners.tpe.Tpe",
                "codeDirectory": ".",
                "classArgs": {"seed": 0, "tpe_args": {"n_startup_jobs": startup}},
            },
            "trainingService": {"platform": "local"},
        }
        (code / "experiment.yml").write_text(yaml.safe_dump(settings))
        experiment = launch.create(code / "experiment.yml", port=launch.free_port(18280))
        return cls(experiment, experiments / experiment.id, code)

    def processes(self, kind: str) -> list[psutil.Process]:
        """``manager``, ``tuner`` or ``trial`` processes of this experiment, and of no other."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                if kind == "manager":
                    mine = self.experiment.id in words and any(word.endswith("main.js") for word in words)
                elif kind == "tuner":
                    mine = "--exp_params" in words and self._is_of_mine(process)
                else:
                    mine = words[1:2] == ["trial.py"] and process.environ().get("NNI_EXP_ID") == self.experiment.id
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def _is_of_mine(self, process: psutil.Process) -> bool:
        return Path(process.environ().get("NNI_LOG_DIRECTORY", "")).parent.name == self.experiment.id

    def signal(self, kind: str, number: signal.Signals) -> psutil.Process | None:
        """Send a signal to one process of a kind; None if there is none, as between two trials."""
        for process in self.processes(kind):
            try:
                process.send_signal(number)
            except psutil.Error:
                continue
            return process
        return None

    def resume(self) -> None:
        launch.resume(self.experiment.id, port=self.experiment.port)

    def end(self) -> None:
        """Stop it, and end what a killed manager or tuner has left."""
        self.experiment.stop()
        for kind in ("manager", "tuner", "trial"):
            for process in self.processes(kind):
                try:
                    process.kill()
                    process.wait(10)
                except psutil.Error:
                    continue

    @property
    def journal(self) -> Path:
        return self.folder / "checkpoint" / NAME

    def records(self) -> list[TrialRecord]:
        return read_records(self.folder)

    def finished(self) -> int:
        """Trials whose score the tuner has."""
        return sum(entry.score is not None for entry in Journal(self.journal).entries) if self.journal.exists() else 0

    def await_more(self, number: int, seconds: float = 60.0) -> bool:
        """Whether ``number`` more scores come to the tuner in time."""
        wanted = self.finished() + number
        return wait(lambda: self.finished() >= wanted or self.status() == "DONE", seconds)

    def status(self) -> str:
        try:
            return self.experiment.progress().status
        except ExperimentError:
            return "silent"

    def verdict(self, disturbed: set[str] | None = None) -> Verdict:
        """Compare journal, records and NNI's listing with each other and with the known scores.

        Parameters
        ----------
        disturbed
            Ids of trials that ran while something of theirs was killed: NNI may know nothing of how they ended.
            Of all others everything must be known.
        """
        found = Verdict()
        records = self.records()
        done = [record for record in records if record.finished]
        for record in done:
            if record.score != score_of(record.parameters):
                found.wrong.append(f"the record of trial {record.sequence} has another's score")
        lines = [json.loads(line) for line in self.journal.read_text().splitlines()]
        proposals = Counter(key_of(line["parameters"]) for line in lines if "proposed" in line)
        found.repeated += [f"proposed {number} times: {key}" for key, number in proposals.items() if number > 1]
        known = {key_of(entry.parameters): entry.score for entry in Journal(self.journal).entries}
        for key, score in known.items():
            if score is not None and score != score_of(json.loads(key)):
                found.wrong.append(f"the journal has another's score for {key}")
        spared = disturbed or set()
        told = Counter(key_of(record.parameters) for record in done)
        for record in done:
            key = key_of(record.parameters)
            if known.get(key) is None and record.trial not in spared:
                found.lost.append(f"the tuner does not know the score of trial {record.sequence}")
        undisturbed = Counter(key_of(record.parameters) for record in done if record.trial not in spared)
        found.repeated += [f"evaluated {number} times: {key}" for key, number in undisturbed.items() if number > 1]
        found.facts["evaluated once more after a kill"] += sum(number - 1 for number in told.values())
        evaluated = set(told)
        found.lost += [
            f"no record of {key}" for key, score in known.items() if score is not None and key not in evaluated
        ]
        if done and rank(records)[0].score != max(score_of(json.loads(key)) for key in evaluated):
            found.wrong.append("the best is not the best")
        found.facts["proposed"] = len(proposals)
        found.facts["finished"] = len(evaluated)
        return found

    def listing(self) -> list[str]:
        """Trials for which NNI's listing has other parameters or another score than their own record."""
        records = {record.trial: record for record in self.records()}
        wrong = []
        for trial in self.experiment.get("trial-jobs"):
            record = records.get(trial["trialJobId"])
            if record is None or not record.finished or not trial.get("hyperParameters"):
                continue
            shown = json.loads(trial["hyperParameters"][-1])["parameters"]
            if key_of(shown) != key_of(record.parameters):
                wrong.append(f"NNI shows other parameters for trial {record.sequence}")
            for metric in trial.get("finalMetricData", []):
                data = json.loads(json.loads(metric["data"]))
                if not math.isclose(data["default"], record.score or math.nan):
                    wrong.append(f"NNI shows another score for trial {record.sequence}")
        return wrong


def wait(condition: Callable[[], bool], seconds: float, interval: float = 0.2) -> bool:
    """Whether a condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(interval)
    return condition()


if __name__ == "__main__":
    sys.exit("this is a module of campaign.py and soak.py")
