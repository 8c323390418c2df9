from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hyperopt
import numpy as np
import pytest
from hyperopt import hp, tpe

from nni_cssnas.errors import ConfigError
from nni_cssnas.tuners.hyperopt import Hyperopt, hyperopt_space
from nni_cssnas.tuners.journal import NAME, Journal

CHOICES: dict[str, Any] = {f"c{i}": {"_type": "choice", "_value": [f"v{j}" for j in range(5)]} for i in range(7)}


def objective(parameters: dict[str, str]) -> float | None:
    """Separable; a few architectures fail."""
    total = sum((3 + int(label[1:])) * int(value[1:]) % 7 for label, value in parameters.items())
    return None if total % 11 == 3 else float(total)


def run(tuner: Any, number: int) -> list[dict[str, Any]]:
    proposals = []
    for index in range(number):
        parameters = tuner.generate_parameters(index)
        proposals.append(parameters)
        score = objective(parameters)
        if score is not None:
            tuner.receive_trial_result(index, parameters, score)
        tuner.trial_end(index, score is not None)
    return proposals


@pytest.mark.parametrize(
    "arguments",
    [{}, {"gamma": 0.5, "n_startup_jobs": 5, "n_EI_candidates": 8, "prior_weight": 0.5}],
    ids=["defaults", "others"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_proposes_what_fmin_proposes(arguments: dict[str, Any], seed: int) -> None:
    tuner = Hyperopt(seed=seed, **arguments)
    tuner.update_search_space(CHOICES)
    ours = run(tuner, 50)
    theirs: list[dict[str, str]] = []

    def loss(parameters: dict[str, str]) -> dict[str, Any]:
        theirs.append(dict(parameters))
        score = objective(parameters)
        return {"status": hyperopt.STATUS_FAIL} if score is None else {"status": hyperopt.STATUS_OK, "loss": -score}

    # Written by hand, as a user of hyperopt would.
    space = {label: hp.choice(label, choice["_value"]) for label, choice in CHOICES.items()}
    hyperopt.fmin(
        loss,
        space,
        algo=lambda *args: tpe.suggest(*args, **arguments),
        max_evals=50,
        rstate=np.random.default_rng(seed),
        show_progressbar=False,
    )
    assert ours == theirs


@pytest.mark.parametrize("unique", [False, True])
def test_every_kind_of_choice(unique: bool, mixed: dict[str, Any]) -> None:
    tuner = Hyperopt(seed=3, n_startup_jobs=8, unique=unique)
    tuner.update_search_space(mixed)
    for index in range(40):
        parameters = tuner.generate_parameters(index)
        assert 1e-4 <= parameters["lr"] <= 1.0
        assert parameters["width"] in range(8, 65, 8)
        assert parameters["n"] in range(2, 9)
        block = parameters["block"]
        assert block["k"] in (3, 5, 7) if block["_name"] == "a" else set(block) == {"_name"}
        tuner.receive_trial_result(index, parameters, -abs(parameters["x"] - 1))
    assert abs(parameters["x"]) < 5


def test_mixed_choices_are_fmins(mixed: dict[str, Any]) -> None:
    tuner = Hyperopt(seed=4, n_startup_jobs=8)
    tuner.update_search_space(mixed)
    ours = []
    for index in range(30):
        parameters = tuner.generate_parameters(index)
        ours.append(parameters["x"])
        tuner.receive_trial_result(index, parameters, -abs(parameters["x"] - parameters["lr"]))
    theirs = []

    def loss(parameters: dict[str, Any]) -> float:
        theirs.append(parameters["x"])
        return abs(parameters["x"] - parameters["lr"])

    hyperopt.fmin(
        loss,
        hyperopt_space(mixed),
        algo=lambda *args: tpe.suggest(*args, n_startup_jobs=8),
        max_evals=30,
        rstate=np.random.default_rng(4),
        show_progressbar=False,
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_resumes_from_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    first = Hyperopt(seed=0, n_startup_jobs=5, unique=True)
    first.update_search_space(CHOICES)
    before = run(first, 20)
    running = first.generate_parameters(20)
    second = Hyperopt(seed=0, n_startup_jobs=5, unique=True)
    second.update_search_space(CHOICES)

    def learned(tuner: Hyperopt) -> list[Any]:
        return [(trial.values, trial.loss) for trial in tuner._trials]

    assert learned(second) == learned(first)
    seen = [json.dumps(item) for item in [*before, running, *run(second, 15)]]
    assert len(set(seen)) == len(seen)
    assert len(Journal(tmp_path / NAME).entries) == 36


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0}, "gamma is 0; it must be a number above 0"),
        ({"n_startup_jobs": 0}, "n_startup_jobs is 0; it must be a whole number above 0"),
        ({"n_EI_candidates": "x"}, "n_EI_candidates is 'x'"),
        ({"optimize_mode": "maximise"}, "did you mean 'maximize'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Hyperopt(**arguments)


def test_an_unknown_type_of_choice() -> None:
    with pytest.raises(ConfigError, match=r"choice x of search_space.json has _type 'chioce'"):
        hyperopt_space({"x": {"_type": "chioce", "_value": [1]}})
