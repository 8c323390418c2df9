"""The second door: NasExperiment with the same evaluator, on both engines, with strategies of NNI's and ours, resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nni_cssnas.bridge.launch import free_port, manager_environment
from nni_cssnas.results.records import TrialRecord, read_records

from .conftest import PROXY

LONG = "CSSNAS_KILLS" in os.environ
"""The long version, for which CI asks."""

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SCRIPT = """
import json, sys
from nni_cssnas import ProxyConfig, ProxyEvaluator
from nni_cssnas.spaces import make_space
from nni.nas.experiment.config import SequentialEngineConfig  # after ours, which puts some of it off
from nni.nas.strategy import Random, RegularizedEvolution

settings = json.loads(sys.argv[1])
config, folder = settings["proxy"], settings["folder"]
if __name__ == "__main__":
    if settings["mended"]:
        from nni_cssnas import NasExperiment
        from nni_cssnas.bridge.strategies import TPE
    else:
        from nni.nas.experiment import NasExperiment
    strategy = {
        "random": lambda: Random(seed=0),
        "evolution": lambda: RegularizedEvolution(population_size=4, sample_size=2, seed=0),
        "tpe": lambda: TPE(seed=0, tpe_args={"n_startup_jobs": 3}),
    }[settings["strategy"]]()
    sequential = settings["engine"] == "sequential"
    evaluator = ProxyEvaluator(config, record_dir=folder if sequential else None)
    space = make_space(ProxyConfig(**config).space)
    experiment = NasExperiment(space, evaluator, strategy, id=settings["id"])
    experiment.config.experiment_working_directory = folder
    if sequential:
        experiment.config.execution_engine = SequentialEngineConfig(max_model_count=settings["trials"])
    else:
        experiment.config.trial_concurrency = settings["concurrency"]
        experiment.config.max_trial_number = settings["trials"]
    print("ID", experiment.id, flush=True)
    (experiment.resume if settings["id"] else experiment.run)(port=settings["port"])
    print("TOP", json.dumps([[model.sample, model.metric] for model in experiment.export_top_models(3)], default=str))
    print("TRIED", json.dumps([model.sample for model in strategy.list_models(sort=False)], default=str))
    experiment.stop()
"""


class Search:
    """The script in a process, which may be killed and started again."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder / "out"
        self.folder.mkdir()
        self.script = folder / "search.py"
        self.script.write_text(SCRIPT)
        self.settings = {
            "proxy": PROXY,
            "folder": str(self.folder),
            "id": None,
            "port": free_port(18700),
            "mended": True,
            "concurrency": 1,
            **settings,
        }

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self.script), json.dumps(self.settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=manager_environment(),
            cwd=self.script.parent,
        )

    def finish(self) -> dict[str, Any]:
        process = self.start()
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 0, output[-3000:]
        return {name: json.loads(re.findall(rf"^{name} (.*)$", output, re.MULTILINE)[0]) for name in ("TOP", "TRIED")}

    def kill_after(self, number: int) -> None:
        """SIGKILL the process, and its manager and trials, when so many trials have finished."""
        process = self.start()
        try:
            assert process.stdout is not None
            line = ""
            while not line.startswith("ID"):
                line = process.stdout.readline()
                assert line, "the process ended"
            self.settings["id"] = line.split()[1]
            deadline = time.monotonic() + 240
            while len(self.finished()) < number:
                assert time.monotonic() < deadline
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.1)
        finally:
            import psutil

            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for member in family:
                try:
                    member.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(family, 10)
            process.wait(10)
            process.stdout.close()

    def finished(self) -> list[TrialRecord]:
        return [record for record in read_records(self.folder) if record.finished]


def check(search: Search, found: dict[str, Any], trials: int) -> None:
    """What is exported is what the records say, best first, and nothing was tried twice."""
    records = [record for record in search.finished() if record.parameters in found["TRIED"]]
    assert len(records) >= trials
    # A kill comes as the third record is written: NNI may not have heard of what ran then, and goes on without it.
    assert len(search.finished()) - len(records) <= search.settings["concurrency"]
    best = sorted(records, key=lambda record: -(record.score or 0.0))
    for (sample, metric), record in zip(found["TOP"], best, strict=False):
        score = metric["default"] if isinstance(metric, dict) else metric
        assert score == pytest.approx(record.score)
        assert sample == record.parameters
    tried = [json.dumps(sample, sort_keys=True) for sample in found["TRIED"]]
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize("engine", ["training_service", *["sequential"] * LONG])
def test_nnis_own_experiment_runs_the_evaluator(engine: str, home: Path, tmp_path: Path) -> None:
    search = Search(tmp_path, engine=engine, strategy="random", trials=1, mended=False)
    check(search, search.finish(), 1)


def test_a_hub_space_with_cells(home: Path, tmp_path: Path) -> None:
    space = {
        "name": "nni.nas.hub.pytorch:DARTS",
        "arguments": {"width": 4, "num_cells": 3, "dataset": "cifar"},
    }
    search = Search(tmp_path, engine="sequential", strategy="tpe", trials=2, proxy=PROXY | {"space": space})
    found = search.finish()
    assert len(search.finished()) == 2
    assert len(found["TOP"]) == 2


# All of them in the long version; two that differ in everything otherwise. Of two trials at a time each
# may be given the other's architecture.
RESUMED = [("sequential", "evolution", 1), ("training_service", "tpe", 2)]
if LONG:
    RESUMED += [("sequential", "tpe", 1), ("training_service", "random", 1), ("training_service", "evolution", 2)]


@pytest.mark.parametrize(("engine", "strategy", "concurrency"), RESUMED)
def test_killed_and_resumed(engine: str, strategy: str, concurrency: int, home: Path, tmp_path: Path) -> None:
    search = Search(tmp_path, engine=engine, strategy=strategy, trials=6, concurrency=concurrency)
    search.kill_after(3)
    before = {record.seed for record in search.finished()}
    found = search.finish()
    # What was running when it was killed may have been begun again.
    assert 6 <= len(search.finished()) <= 6 + concurrency
    assert before <= {record.seed for record in search.finished()}
    assert len(found["TRIED"]) >= 6
    check(search, found, 6)
