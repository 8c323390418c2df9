from __future__ import annotations

from pathlib import Path

import pytest

from nni_cssnas.bridge.experiment_file import check_experiment
from nni_cssnas.errors import ConfigError


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("tuner: {className: nni_cssnas.tuners.tpe.TPE}", "did you mean 'nni_cssnas.tuners.tpe.Tpe'"),
        ("tuner: {className: nni_cssnas.tuners.tpe.Tpe, classArgs: {sed: 1}}", "did you mean 'seed'"),
        ("tuner: {className: nni_cssnas.tuners.hyperopt.Hyperopt, classArgs: {gamma: 0}}", "gamma is 0"),
        ("tuner: {className: nni_cssnas.tuners.tpe.Tpe, classArgs: {screen: {candidates: 0}}}", "candidates is 0"),
        (
            "tuner: {className: nni_cssnas.tuners.tpe.Tpe, classArgs: {constraints: {max_params: 9, proxy: no.yml}}}",
            "cannot read",
        ),
        (
            "advisor: {className: nni_cssnas.tuners.hyperband.Hyperband, classArgs: {R: 9, eta: 3}}",
            r"R 9 and eta 3 give candidates 1 epochs at first.*at least 2 epochs; change them",
        ),
        (
            "advisor: {className: nni_cssnas.tuners.bohb.Bohb, classArgs: {min_budget: 1, max_budget: 9}}",
            "min_budget 1, max_budget 9 and eta 3 give candidates 1 epochs at first",
        ),
        ("advisor: {className: nni_cssnas.tuners.bohb.Bohb, classArgs: {max_budget: 1}}", "max_budget is 1"),
        ("advisor: {name: Hyperband}", "NNI's own Hyperband ends at the first metric .*hyperband.Hyperband"),
        ("tuner: {name: BOHB}", "NNI's own BOHB ends .* advisor: {className: nni_cssnas.tuners.bohb.Bohb"),
        ("tuner: {className: nni_cssnas.tuners.bohb.Bohb}", "write it under advisor:, not under tuner:"),
        ("advisor: {className: nni_cssnas.tuners.hyperband.Hyperband, classArgs: {eta: 1}}", "eta is 1"),
        ("assessor: {className: nni_cssnas.tuners.curvefitting.Curvefitting, classArgs: {gap: 0}}", "gap is 0"),
        (
            "assessor: {className: nni_cssnas.tuners.curvefitting.Curvefitting}",
            "is 20, but trials train 8 .* epoch_num: 8",
        ),
        ("assessor: {name: Curvefitting, classArgs: {epoch_num: 9}}", "epoch_num of the assessor is 9"),
    ],
)
def test_a_wrong_tuner_is_refused_before_a_manager_is_started(algorithm: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yml"
    path.write_text(f"trialCommand: python -m nni_cssnas.trial\nsearchSpaceFile: s.json\n{algorithm}\n")
    (tmp_path / "proxy.yml").write_text("score: contrastive\n")
    with pytest.raises(ConfigError, match=message):
        check_experiment(path)


@pytest.mark.parametrize(
    ("proxy", "assessor", "message"),
    [
        ("score: untrained", "Medianstop", "score is 'untrained', which trains nothing"),
        ("{score: contrastive, contrastive: {criterion: loss}}", "Curvefitting", "criterion is 'loss', .* Medianstop"),
        ("{score: contrastive, contrastive: {criterion: loss}}", "Medianstop", None),
    ],
)
def test_an_assessor_needs_results_that_it_can_judge(
    proxy: str, assessor: str, message: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "experiment.yml"
    path.write_text(
        f"trialCommand: python -m nni_cssnas.trial\nsearchSpaceFile: s.json\nassessor: {{name: {assessor}}}\n"
    )
    (tmp_path / "proxy.yml").write_text(f"{proxy}\n")
    if message is None:
        check_experiment(path)
        return
    with pytest.raises(ConfigError, match=message):
        check_experiment(path)
