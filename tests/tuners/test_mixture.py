from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from nni_cssnas.tuners.mixture import Mixture
from nni_cssnas.tuners.space import format_space

CHOICES: dict[str, Any] = {
    "a": {"_type": "choice", "_value": list("xyz")},
    "b": {"_type": "choice", "_value": list("uv")},
}
A, B = ("a",), ("b",)


def test_the_density_is_the_formula() -> None:
    trials = [(0, 1), (2, 1), (0, 0)]
    columns = {A: np.array([0.0, 2.0, 0.0]), B: np.array([1.0, 1.0, 0.0])}
    mixture = Mixture(format_space(CHOICES), columns, 0.8)
    weight = 0.8 / 4  # three trials and the prior

    def kernel(value: int, center: int, size: int) -> float:
        return ((value == center) + weight) / (1 + weight * size)

    for a in range(3):
        for b in range(2):
            expected = (sum(kernel(a, x, 3) * kernel(b, y, 2) for x, y in trials) + 1 / 6) / 4
            assert mixture.log_density([{A: a, B: b}])[0] == pytest.approx(math.log(expected))


def test_draws_follow_the_density() -> None:
    columns = {A: np.array([0.0, 2.0]), B: np.array([1.0, 0.0])}
    mixture = Mixture(format_space(CHOICES), columns, 1.0)
    drawn = mixture.draw(np.random.default_rng(0), 20_000)
    for a in range(3):
        for b in range(2):
            share = np.mean([params == {A: a, B: b} for params in drawn])
            assert share == pytest.approx(math.exp(mixture.log_density([{A: a, B: b}])[0]), abs=0.012)


@pytest.mark.parametrize(
    "choice",
    [
        {"_type": "uniform", "_value": [-1, 4]},
        {"_type": "normal", "_value": [1, 2]},
        {"_type": "loguniform", "_value": [1, 9]},
    ],
    ids=lambda choice: choice["_type"],
)
def test_a_density_of_numbers_has_the_integral_1_and_its_draws(choice: dict[str, Any]) -> None:
    mixture = Mixture(format_space({"a": choice}), {A: np.array([0.1, 2.0, math.nan])}, 1.0)
    low, high = {"uniform": (-1, 4), "normal": (-12, 14), "loguniform": (0, math.log(9))}[choice["_type"]]

    def density(value: float) -> float:
        return math.exp(mixture.log_density([{A: value}])[0])

    assert quad(density, low, high, limit=200)[0] == pytest.approx(1, abs=1e-4)
    drawn = np.array([params[A] for params in mixture.draw(np.random.default_rng(0), 5000)])
    assert ((low <= drawn) & (drawn <= high)).all()
    middle = (low + high) / 2
    assert (drawn < middle).mean() == pytest.approx(quad(density, low, middle, limit=200)[0], abs=0.03)


def test_a_choice_that_is_not_active_counts_nothing() -> None:
    nested = {
        "block": {
            "_type": "choice",
            "_value": [{"_name": "a", "k": {"_type": "choice", "_value": [3, 5]}}, {"_name": "b"}],
        }
    }
    space = format_space(nested)
    block, inner = space
    mixture = Mixture(space, {block: np.array([0.0, 1.0]), inner: np.array([1.0, math.nan])}, 1.0)
    drawn = mixture.draw(np.random.default_rng(0), 300)
    assert all((inner in params) == (params[block] == 0) for params in drawn)
    found = mixture.log_density([{block: 0, inner: 0}, {block: 0, inner: 1}, {block: 1}])
    assert np.exp(found).sum() == pytest.approx(1)


def test_without_trials_it_is_the_prior() -> None:
    mixture = Mixture(format_space(CHOICES), {A: np.zeros(0), B: np.zeros(0)}, 1.0)
    assert mixture.log_density([{A: 1, B: 1}])[0] == pytest.approx(-math.log(6))
