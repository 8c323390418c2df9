"""Tuners by name: ours after ``nni-cssnas register``, and NNI's own on our search spaces."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nni.tools.package_utils import get_algo_meta, unregister_algo_meta
from nni.tools.package_utils.tuner_factory import create_builtin_class_instance, create_validator_instance

from nni_cssnas.errors import ConfigError
from nni_cssnas.spaces import CellSpace, decode, search_space
from nni_cssnas.tuners.dispatcher import trial_code_directory
from nni_cssnas.tuners.hyperopt import Hyperopt
from nni_cssnas.tuners.tpe import Tpe
from nni_cssnas.tuners.validators import TpeValidator


@pytest.mark.slow
def test_nnictl_knows_them_by_name() -> None:
    before = {name for name in ("CssnasTPE", "CssnasHyperopt") if get_algo_meta(name)}
    try:
        command = [Path(sys.executable).with_name("nni-cssnas"), "register"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "CssnasTPE registered" in done.stdout
        for name, kind in (("CssnasTPE", Tpe), ("CssnasHyperopt", Hyperopt)):
            assert isinstance(create_builtin_class_instance(name, {"seed": 1}, "tuners"), kind)
            validator = create_validator_instance("tuners", name)
            validator.validate_class_args(seed=1, screen={"candidates": 4})
            with pytest.raises(ConfigError, match="unknown key 'sed' in classArgs; did you mean 'seed'"):
                validator.validate_class_args(sed=1)
            with pytest.raises(ConfigError, match="optimize_mode is 'maximise'"):
                validator.validate_class_args(optimize_mode="maximise")
    finally:
        for name in {"CssnasTPE", "CssnasHyperopt"} - before:
            unregister_algo_meta(name)


def test_nnictl_does_not_know_where_the_trials_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside").mkdir()
    screen = {"candidates": 4, "proxy": "beside-the-trials.yml"}
    TpeValidator().validate_class_args(screen=screen)
    with pytest.raises(ConfigError, match="nor in trialCodeDirectory"):
        TpeValidator().check(screen=screen)
    (tmp_path / "beside" / "beside-the-trials.yml").write_text("score: nothing\n")
    settings = {"tuner": {"name": "CssnasTPE"}, "trialCodeDirectory": str(tmp_path / "beside")}
    encoded = base64.b64encode(json.dumps(settings).encode()).decode()
    monkeypatch.setattr(sys, "argv", ["nni", "--exp_params", encoded])
    with pytest.raises(ConfigError, match="score is 'nothing'"):
        TpeValidator().validate_class_args(screen=screen)


@pytest.mark.parametrize(
    "arguments", [["nni"], ["nni", "--exp_params"], ["nni", "--exp_params", "%%"], ["nni", "--exp_params", "e30="]]
)
def test_a_process_that_is_no_dispatcher_has_no_trials(arguments: list[str]) -> None:
    assert trial_code_directory(arguments) is None


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Random", {"seed": 0}),
        ("Evolution", {"population_size": 10, "optimize_mode": "maximize"}),
        ("TPE", {"seed": 0}),
    ],
)
def test_nnis_own_tuners_run_on_our_search_spaces(name: str, arguments: dict[str, Any]) -> None:
    space = CellSpace(num_nodes=4, num_cells=3, channels=4)
    tuner = create_builtin_class_instance(name, arguments, "tuners")
    tuner.update_search_space(search_space(space))
    rng = np.random.default_rng(0)
    for number in range(30):
        parameters = tuner.generate_parameters(number)
        space.genotype_of(decode(space, parameters))
        tuner.receive_trial_result(number, parameters, {"default": float(rng.normal()), "loss": 1.0})
        tuner.trial_end(number, True)
