from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nni.algorithms.hpo.curvefitting_assessor import CurvefittingAssessor, model_factory
from nni.assessor import AssessResult

from nni_cssnas.errors import ConfigError
from nni_cssnas.tuners.curvefitting import Curvefitting, _Curves

pytestmark = pytest.mark.filterwarnings("ignore")  # NNI's fits overflow

# What four trials of CellSpace on the tiles reported (20 epochs, criterion drop); the last two learned too slowly (lr).
# fmt: off
GOOD = [
    [0.0, 0.2423, 0.4074, 0.5007, 0.5432, 0.6099, 0.6311, 0.6584, 0.7073, 0.6941, 0.7783, 0.7949, 0.8412, 0.8302, 0.8368, 0.9109, 0.8828, 0.8933, 0.8648, 0.8694],
    [0.0, 0.1644, 0.2938, 0.4554, 0.5531, 0.6426, 0.6701, 0.6783, 0.7787, 0.7692, 0.8486, 0.869, 0.971, 0.9599, 0.9196, 1.0346, 0.9655, 1.0099, 1.0075, 1.0246],
]
BAD = [
    [0.0, -0.0099, 0.0342, 0.0811, 0.1239, 0.1521, 0.1795, 0.1642, 0.1974, 0.2029, 0.2373, 0.2531, 0.2988, 0.2754, 0.2606, 0.2859, 0.253, 0.2966, 0.2552, 0.3072],
    [0.0, -0.0143, -0.0102, 0.0167, 0.0491, 0.018, 0.067, 0.019, 0.0159, 0.0193, 0.0435, 0.0638, 0.0798, 0.04, 0.0244, 0.0679, 0.0514, 0.0487, 0.0344, 0.0807],
]
# fmt: on


def reports(results: list[float]) -> list[dict[str, float]]:
    return [{"default": result, "loss": 4.0 - result} for result in results]


def play(assessor: Any, name: str, results: list[float]) -> int | None:
    """The epoch after which a trial was stopped, or None."""
    for epoch in range(1, len(results) + 1):
        if assessor.assess_trial(name, reports(results[:epoch])) is AssessResult.Bad:
            assessor.trial_end(name, False)
            return epoch
    assessor.trial_end(name, True)
    return None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bad_trials_are_stopped_and_good_ones_are_kept(seed: int) -> None:
    np.random.seed(seed)  # noqa: NPY002 - NNI's draws come from there
    assessor = Curvefitting(epoch_num=20, start_step=10, threshold=0.8)
    assert [play(assessor, f"good{index}", results) for index, results in enumerate(GOOD)] == [None, None]
    for index, results in enumerate(BAD):
        stopped = play(assessor, f"bad{index}", results)
        assert stopped is not None
        assert 10 <= stopped < 20


def test_nothing_is_stopped_before_a_trial_has_finished_or_start_step() -> None:
    assessor = Curvefitting(epoch_num=20, start_step=10, threshold=0.8)
    assert play(assessor, "first", BAD[0]) is None
    assessor.trial_end("never seen", True)
    for epoch in range(1, 10):
        assert assessor.assess_trial("next", reports(BAD[1][:epoch])) is AssessResult.Good


def test_gap_is_the_distance_of_judgements(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []
    monkeypatch.setattr(_Curves, "predict", lambda self, history: judged.append(len(history)))
    assessor = Curvefitting(epoch_num=20, start_step=6, gap=4)
    play(assessor, "first", GOOD[0])
    assert play(assessor, "second", GOOD[1]) is None
    assert judged == [6, 10, 14, 18]


@pytest.mark.parametrize(("expected", "bad"), [(-1.2, False), (-1.21, True), (-0.9, False)])
def test_the_threshold_of_a_negative_best(expected: float, bad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Curves, "predict", lambda self, history: expected + 1e-9)
    assessor = Curvefitting(epoch_num=4, start_step=2, threshold=0.8)
    play(assessor, "first", [-3.0, -2.0, -1.5, -1.0])
    assert (play(assessor, "second", [-3.0, -2.5]) is not None) == bad


@pytest.mark.parametrize("results", [GOOD[0][:16], GOOD[1][:8], BAD[0][:9], BAD[1][:9]])
def test_the_forecast_is_nnis(results: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    forecasts = []
    for model in (model_factory.CurveModel(20), _Curves(20)):
        for name, values in model_factory.model_para.items():
            # NNI's curves that could not be fitted keep what another trial has left there.
            monkeypatch.setitem(model_factory.model_para, name, [float("nan")] * len(values))
        np.random.seed(3)  # noqa: NPY002
        forecasts.append(model.predict(results))
    assert forecasts[0] is not None
    assert forecasts[1] == pytest.approx(forecasts[0], rel=1e-9)


def test_a_forecast_does_not_depend_on_the_trial_before() -> None:
    alone, after = [], []
    for results in (GOOD[0], BAD[0]):
        for forecasts, others in ((alone, []), (after, [GOOD[1], BAD[1]])):
            for other in others:
                _Curves(20).predict(other[:11])
            np.random.seed(0)  # noqa: NPY002
            forecasts.append([_Curves(20).predict(results[:epoch]) for epoch in (7, 9, 12)])
    assert alone == after


def test_trials_side_by_side_are_compared_with_those_that_finished() -> None:
    ours, theirs = Curvefitting(20, 10, 0.8), CurvefittingAssessor(20, 10, 0.8)
    for assessor in (ours, theirs):
        assessor.assess_trial("first", reports(GOOD[0]))
        assessor.assess_trial("second", reports(GOOD[1][:2]))
        assessor.trial_end("first", True)
    assert ours._best == GOOD[0][-1]
    assert theirs.completed_best_performance == GOOD[1][1]  # the reason for ours


def test_results_that_are_none_let_a_trial_run() -> None:
    assessor = Curvefitting(epoch_num=20, start_step=2)
    play(assessor, "first", GOOD[0])
    for bad in (float("nan"), {"loss": 1.0}, "x"):
        assert assessor.assess_trial("second", [0.0, bad, 0.1]) is AssessResult.Good
    assessor.trial_end("second", True)
    assert assessor._best == GOOD[0][-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"epoch_num": 0}, "epoch_num is 0"), ({"gap": 1.5}, "gap is 1.5"), ({"threshold": 2}, "threshold is 2")],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Curvefitting(**arguments)
