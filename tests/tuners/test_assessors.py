"""NNI's assessors on what our trials report: the drop after every epoch, with the loss beside it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from nni.algorithms.hpo.curvefitting_assessor import CurvefittingAssessor
from nni.algorithms.hpo.medianstop_assessor import MedianstopAssessor
from nni.assessor import AssessResult

EPOCHS = 20


def reports(drop: float, seed: int) -> list[dict[str, float]]:
    """The intermediate results of a training whose loss falls by ``drop``, fast at first."""
    rng = np.random.default_rng(seed)
    fallen = drop * (1 - np.exp(-np.arange(EPOCHS) / 5)) + 0.005 * rng.standard_normal(EPOCHS)
    return [{"default": float(value), "loss": float(5 - value)} for value in fallen]


def run(assessor: Any, trial: str, told: list[dict[str, float]]) -> int:
    """After how many epochs the trial is ended."""
    history = []
    for item in told:
        history.append(item)
        if assessor.assess_trial(trial, list(history)) == AssessResult.Bad:
            assessor.trial_end(trial, False)
            return len(history)
    assessor.trial_end(trial, True)
    return EPOCHS


@pytest.mark.parametrize("name", ["Medianstop", "Curvefitting"])
def test_bad_trials_end_early_and_good_ones_do_not(name: str) -> None:
    assessor = {
        "Medianstop": lambda: MedianstopAssessor(optimize_mode="maximize", start_step=3),
        "Curvefitting": lambda: CurvefittingAssessor(epoch_num=EPOCHS, start_step=6, gap=6, threshold=0.8),
    }[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # curves that do not fit overflow
        assert run(assessor, "first", reports(1.0, seed=0)) == EPOCHS
        assert run(assessor, "better", reports(1.3, seed=1)) == EPOCHS
        assert run(assessor, "hopeless", reports(0.05, seed=2)) < EPOCHS
