from __future__ import annotations

import itertools
import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import nni
import numpy as np
import pytest
import scipy.stats

from nni_cssnas.errors import ConfigError
from nni_cssnas.tuners import rounds
from nni_cssnas.tuners.bohb import Bohb, mend
from nni_cssnas.tuners.hyperband import Hyperband

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NNI calls what ConfigSpace 1 is about to drop


def choices(count: int, size: int) -> dict[str, Any]:
    return {f"c{i}": {"_type": "choice", "_value": [f"v{j}" for j in range(size)]} for i in range(count)}


def total(parameters: dict[str, Any]) -> float:
    """Separable; the names' order says nothing about their worth."""
    return float(
        sum(
            (3, -1, 1, -3, 0)[(int(value[1:]) * (index + 1)) % 5]
            for index, (name, value) in enumerate(sorted(parameters.items()))
            if name != "TRIAL_BUDGET"
        )
    )


def test_the_best_go_on_with_more_epochs(manager: Any) -> None:
    played = manager(Bohb(seed=0), choices(4, 5))
    played.run(13, lambda parameters: {"default": total(parameters), "loss": 1.0})
    assert [parameters["TRIAL_BUDGET"] for parameters, _ in played.done] == [2] * 9 + [6] * 3 + [18]
    parts = (played.done[:9], played.done[9:12], played.done[12:])
    scores = [[total(item) for item, _ in part] for part in parts]
    assert sorted(scores[1]) == sorted(scores[0])[-3:]
    assert scores[2] == [max(scores[1])]


@pytest.mark.parametrize("bad", [None, float("nan"), {"loss": 1.0}])
def test_accidents_are_the_worst_of_their_round_and_bad_to_the_model(bad: Any, manager: Any) -> None:
    played = manager(Bohb(seed=0), choices(4, 5))
    numbers = iter(range(100))
    played.run(13, lambda parameters: total(parameters) if next(numbers) in (4, 7, 9, 10, 11, 12) else bad)
    assert [parameters["TRIAL_BUDGET"] for parameters, _ in played.done] == [2] * 9 + [6] * 3 + [18]
    chosen = [total(parameters) for parameters, _ in played.done[9:12]]
    assert {total(played.done[4][0]), total(played.done[7][0])} <= set(chosen)
    losses = played.advisor.cg.losses
    assert [len(losses[budget]) for budget in (2, 6, 18)] == [9, 3, 1]
    assert sum(math.isinf(loss) for loss in losses[2]) == 7


def test_it_finds_better_candidates_than_hyperband(manager: Any) -> None:
    """NNI's, whose bandwidths make names random, does not."""
    means = {}
    for kind in (Bohb, Hyperband):
        arguments = {"num_samples": 16} if kind is Bohb else {"exec_mode": "serial"}
        scores = []
        for seed in range(2):
            played = manager(kind(seed=seed, **arguments), choices(6, 5))
            played.run(130, total)
            firsts = [score for parameters, score in played.done if parameters["TRIAL_BUDGET"] == 2]
            scores += firsts[len(firsts) // 2 :]
        means[kind] = np.mean(scores)
    assert means[Bohb] > means[Hyperband] + 2


def test_a_model_is_of_one_budget(manager: Any) -> None:
    played = manager(Bohb(seed=0, num_samples=4), choices(2, 3))
    played.run(60, lambda parameters: float(parameters["c0"] == "v1"))
    assert set(played.advisor.cg.configs) == {2, 6, 18}
    assert set(played.advisor.cg.kde_models) <= {2, 6, 18}
    assert played.advisor.cg.kde_models


@pytest.mark.parametrize("column", [[0, 1, 2, 3, 4, 4, 4], [0, 0, 0, 0], [0, 4] * 6])
def test_bandwidths_of_names_are_silvermans_for_differences_of_0_and_1(column: list[int]) -> None:
    data = np.array([column, np.linspace(0, 1, len(column))]).T
    model = SimpleNamespace(data=data, bw=np.array([9.0, 9.0]))
    mend(model, np.array([5, 0]), 1e-3)
    pairs = list(itertools.product(column, repeat=2))
    variance = sum(a != b for a, b in pairs) / len(pairs) / 2
    rule = 1.06 * math.sqrt(variance) * len(column) ** (-1 / 6)
    assert model.bw[0] == pytest.approx(min(max(rule, 1e-3), 0.8))
    assert model.bw[1] == 9.0


def test_the_density_is_the_mean_of_products_of_kernels() -> None:
    rng = np.random.default_rng(0)
    data = np.column_stack([rng.integers(3, size=8), rng.random(8), np.zeros(8), np.zeros(8)])
    model = SimpleNamespace(data=data, bw=np.array([0.0, 0.3, 0.0, 0.0]))
    mend(model, np.array([3, 0, 4, 1]), 1e-3)
    for point in ([0, 0.2, 0, 0], [2, 0.9, 3, 0]):
        products = []
        for row in data:
            bandwidth = model.bw[0]
            product = 1 - bandwidth if row[0] == point[0] else bandwidth / 2
            product *= scipy.stats.norm(row[1], 0.3).pdf(point[1])
            products.append(product * (1 - 1e-3 if point[2] == 0 else 1e-3 / 3))
        assert model.pdf(point) == pytest.approx(np.mean(products))


def test_kernels_of_a_played_search_are_probabilities(manager: Any) -> None:
    played = manager(Bohb(seed=1, num_samples=4), choices(3, 3))
    played.run(50, lambda parameters: float(parameters["c0"] == "v1") + 0.1 * float(parameters["c2"] == "v0"))
    models = [model for pair in played.advisor.cg.kde_models.values() for model in pair.values()]
    assert models
    for model in models:
        densities = [float(model.pdf(list(values))) for values in itertools.product(range(3), repeat=3)]
        assert min(densities) >= 0
        assert sum(densities) == pytest.approx(1)


def test_every_kind_that_it_knows(manager: Any) -> None:
    space = {
        "op": {"_type": "choice", "_value": ["conv", "pool"]},
        "inputs": {"_type": "choice", "_value": ["[0, 1]", '{"a": 2}']},
        "width": {"_type": "choice", "_value": [8, 16, 32]},
        "n": {"_type": "randint", "_value": [2, 9]},
        "x": {"_type": "uniform", "_value": [0, 1]},
        "lr": {"_type": "loguniform", "_value": [1e-4, 1.0]},
    }
    played = manager(Bohb(seed=0, num_samples=4), space)
    played.run(100, lambda parameters: -abs(parameters["x"] - 0.5))
    for parameters, _ in played.done:
        for name in ("op", "inputs", "width"):
            assert parameters[name] in space[name]["_value"]
        assert parameters["n"] in range(2, 9)
        assert 0 <= parameters["x"] <= 1
        assert 1e-4 <= parameters["lr"] <= 1
    assert played.advisor.cg.kde_models


@pytest.mark.parametrize("kind", ["normal", "quniform", "nested"])
def test_what_it_cannot_search_is_said(kind: str, manager: Any) -> None:
    space = {
        "normal": {"x": {"_type": "normal", "_value": [0, 1]}},
        "quniform": {"x": {"_type": "quniform", "_value": [0, 1, 0.1]}},
        "nested": {"x": {"_type": "choice", "_value": [{"_name": "a"}, {"_name": "b"}]}},
    }[kind]
    with pytest.raises(
        ConfigError, match=r"choice x of search_space.json is a .* which BOHB cannot search.*use nni_cssnas"
    ):
        manager(Bohb(), space)


def test_the_seed(manager: Any) -> None:
    first, again, other = (manager(Bohb(seed=seed, num_samples=4), choices(2, 3)) for seed in (1, 1, 2))
    for played in (first, again, other):
        # One after the other: NNI's model draws from numpy's global generator.
        np.random.seed(played.advisor._seed)  # noqa: NPY002
        played.run(60, total)
    assert first.done == again.done
    assert first.done != other.done


def test_what_comes_late_or_twice_or_from_elsewhere_is_survived(manager: Any) -> None:
    played = manager(Bohb(seed=0), choices(4, 5))
    played.run(2, total)
    job = played.next_job()
    metric = {"parameter_id": job["parameter_id"], "trial_job_id": "x", "type": "FINAL", "sequence": 0}
    for _ in range(2):
        played.advisor.handle_report_metric_data(metric | {"value": nni.dump(1.0)})
    played.end(job, 2.0, "x")
    played.advisor.handle_report_metric_data(metric | {"value": nni.dump(1.0)})
    for strange in ("7_7_7", None):
        played.end({"parameter_id": strange}, 1.0)
    assert len(played.advisor.cg.losses[2]) == 3
    played.run(10, total)
    assert [parameters["TRIAL_BUDGET"] for parameters, _ in played.done] == [2] * 8 + [6] * 3 + [18]


def test_a_resumed_search_knows_what_was_found(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = manager(Bohb(seed=0, num_samples=4), choices(2, 3))
    before.run(40, total)
    running = before.next_job()
    monkeypatch.setattr(rounds, "dispatcher_env_vars", rounds.dispatcher_env_vars._replace(NNI_MODE="resume"))
    after = manager(Bohb(seed=0, num_samples=4), choices(2, 3))
    data = [{"parameter": parameters, "value": nni.dump({"default": score})} for parameters, score in before.done]
    after.advisor.handle_import_data([*data, {"parameter": {"other": 1}, "value": "1.0"}, {"parameter": {}}])
    after.advisor.handle_add_customized_trial([running])
    assert {budget: len(found) for budget, found in after.advisor.cg.losses.items()} == {
        budget: len(found) for budget, found in before.advisor.cg.losses.items()
    }
    assert after.advisor.cg.kde_models
    after.end(running, 1.0)
    jobs = [after.next_job() for _ in range(3)]
    assert running["parameter_id"] not in {job["parameter_id"] for job in jobs}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_budget": 0}, "min_budget is 0; it must be a whole number from 1"),
        ({"min_budget": 4, "max_budget": 3}, "max_budget is 3; it must be a whole number from 4"),
        ({"eta": 1}, "eta is 1"),
        ({"top_n_percent": 0}, "top_n_percent is 0; it must be from 1 to 99"),
        ({"random_fraction": 2}, "random_fraction is 2"),
        ({"optimize_mode": "maximise"}, "did you mean 'maximize'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bohb(**arguments)


def test_without_the_extra_it_is_said_what_to_install() -> None:
    code = (
        "import sys; sys.modules['ConfigSpace'] = None\n"
        "from nni_cssnas.tuners.validators import VALIDATORS\n"
        "VALIDATORS['nni_cssnas.tuners.hyperband.Hyperband']().validate_class_args(R=18)\n"
        "VALIDATORS['nni_cssnas.tuners.bohb.Bohb']().validate_class_args(eta=3)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ConfigError: BOHB needs ConfigSpace and statsmodels" in done.stderr
    assert "pip install 'ConfigSpace>=1.2,<2' statsmodels" in done.stderr
