"""The second door: NNI's NasExperiment with the same evaluator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nni_cssnas.results.records import read_records

from .conftest import PROXY

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SCRIPT = """
import json, sys
from nni.nas.experiment import NasExperiment
from nni.nas.experiment.config import SequentialEngineConfig
from nni.nas.strategy import Random
from nni_cssnas import CellSpace, ProxyEvaluator

config, folder, engine, port = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
if __name__ == "__main__":
    space = CellSpace(**config["space"]["arguments"])
    evaluator = ProxyEvaluator(config, record_dir=folder if engine == "sequential" else None)
    experiment = NasExperiment(space, evaluator, Random(seed=0))
    if engine == "sequential":
        experiment.config.execution_engine = SequentialEngineConfig(continue_on_failure=False)
    else:
        experiment.config.experiment_working_directory = folder
        experiment.config.trial_concurrency = 1
    experiment.config.max_trial_number = 2
    experiment.run(port=port)
    print("TOP", json.dumps(experiment.export_top_models(1, formatter="dict")[0]))
    experiment.stop()
"""


@pytest.mark.parametrize("engine", ["sequential", "training_service"])
def test_the_evaluator_serves_nas_experiments(engine: str, home: Path, tmp_path: Path) -> None:
    import json

    from nni_cssnas.launch import free_port, manager_environment

    script = tmp_path / "search.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, str(script), json.dumps(PROXY), str(folder), engine, str(free_port(18180))]
    done = subprocess.run(
        command, capture_output=True, text=True, env=manager_environment(), cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    top = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("TOP")).removeprefix("TOP"))
    records = read_records(folder)
    assert [record.finished for record in records] == [True, True]
    assert max(records, key=lambda record: record.score or 0.0).parameters == top
