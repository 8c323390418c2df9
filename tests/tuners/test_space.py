from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nni import NoMoreTrialError
from nni.algorithms.hpo.random_tuner import suggest
from nni.common.hpo_utils import deformat_parameters, format_parameters

from nni_cssnas.errors import ConfigError
from nni_cssnas.tuners.hyperopt import Hyperopt
from nni_cssnas.tuners.space import Mutation, check_choices, format_space, num_values
from nni_cssnas.tuners.tpe import Tpe

TUNERS: dict[str, Callable[[int], Any]] = {
    "Tpe": lambda seed: Tpe(seed=seed),
    "Hyperopt": lambda seed: Hyperopt(seed=seed, unique=True),
}


def choice(*values: Any) -> dict[str, Any]:
    return {"_type": "choice", "_value": list(values)}


def number(kind: str, *values: float) -> dict[str, Any]:
    return {"_type": kind, "_value": list(values)}


# Each with all that it holds, found by hand.
FINITE: dict[str, tuple[dict[str, Any], int]] = {
    # quniform: 0, 0.6, and 1.2 cut to 1; the normal distribution has no width
    "NNI's own": ({"x": choice("a", "b"), "y": number("quniform", 0, 1, 0.6), "z": number("normal", 1, 0)}, 6),
    "two quniform": ({"x": number("quniform", 0, 3, 1), "y": number("quniform", 0, 3, 1)}, 16),
    "choice and quniform": ({"x": choice(0, 1), "y": number("quniform", 0, 10, 1)}, 22),
    "randint and quniform": ({"x": number("randint", 0, 5), "y": number("quniform", 0, 9, 1)}, 50),
    "qloguniform and choice": ({"x": number("qloguniform", 1, 64, 1), "y": choice(0, 1, 2)}, 192),
    "steps off the ends": ({"x": number("quniform", 0.3, 2.4, 1), "y": number("quniform", -1, 1, 0.5)}, 3 * 5),
    "nested": (
        {
            "outer": choice(
                {"_name": "a", "k": number("quniform", 1, 3, 1), "inner": choice({"_name": "c", "l": choice(1, 2)}, {"_name": "d"})},
                {"_name": "b"},
            ),
            "n": number("randint", 3, 5),
        },
        2 * (3 * (2 + 1) + 1),
    ),
    "constants": ({"x": number("uniform", 2, 2), "y": number("randint", 3, 4), "z": number("loguniform", 5, 5), "w": choice(1, 2)}, 2),
}  # fmt: skip


def played(tuner: Any, space: dict[str, Any], most: int) -> list[dict[str, Any]]:
    tuner.update_search_space(space)
    proposals: list[dict[str, Any]] = []
    for index in range(most):
        try:
            proposals.append(tuner.generate_parameters(index))
        except NoMoreTrialError:
            break
        tuner.receive_trial_result(index, proposals[-1], float(index % 7))
        tuner.trial_end(index, True)
    return proposals


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("make", TUNERS.values(), ids=TUNERS)
def test_a_space_ends_when_it_is_exhausted_and_not_before(make: Callable[[int], Any], name: str, seed: int) -> None:
    space, size = FINITE[name]
    proposals = played(make(seed), space, size + 5)
    assert len(proposals) == size
    assert len({json.dumps(item, sort_keys=True) for item in proposals}) == size


def test_nnis_own_finite_space_gives_these_six() -> None:
    proposals = played(Tpe(seed=3), FINITE["NNI's own"][0], 9)
    expected = itertools.product("ab", (0.0, 0.6, 1.0), (1.0,))
    assert sorted((item["x"], item["y"], item["z"]) for item in proposals) == list(expected)


@pytest.mark.parametrize(
    "space",
    [
        {name: number("quniform", 0, 10, 1) for name in "abc"},
        {"x": number("qnormal", 0, 1, 1)},
        {"x": number("qlognormal", 0, 1, 1)},
        {"x": number("qnormal", 0, 1, 1000)},
        {"x": number("uniform", 0, 1)},
        {"x": choice(1, 2), "y": number("lognormal", 0, 1)},
        {"outer": choice({"_name": "A", "x": choice("a", "b")}, {"_name": "B", "y": number("uniform", 0, 1)})},
    ],
)
@pytest.mark.parametrize("make", TUNERS.values(), ids=TUNERS)
def test_a_large_space_does_not_end(make: Callable[[int], Any], space: dict[str, Any]) -> None:
    proposals = played(make(0), space, 60)
    assert len({json.dumps(item, sort_keys=True) for item in proposals}) == 60


def test_new_parameters_stay_as_they_are() -> None:
    space = format_space({"x": choice("a", "b"), "y": number("uniform", 0, 1)})
    rng = np.random.default_rng(0)
    mutation = Mutation(space, rng)
    for _ in range(10):
        params = suggest(rng, space)
        assert mutation(params) is params


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (choice(1, 2, 3), 3),
        (number("randint", 2, 9), 7),
        (number("quniform", 8, 64, 8), 8),
        (number("quniform", 0.05, 1, 0.05), 20),
        (number("quniform", 1, 1.2, 1), 1),
        (number("qloguniform", 0.5, 100, 10), 11),
        (number("uniform", 0, 1), math.inf),
        (number("qnormal", 0, 1, 1), math.inf),
        (number("lognormal", 0, 0), 1),
        (number("quniform", 3, 3, 2), 1),
    ],
)
def test_the_number_of_values_is_what_random_draws_find(spec: dict[str, Any], size: float) -> None:
    space = format_space({"x": spec})
    (found,) = space.values()
    assert num_values(found) == size
    if math.isfinite(size):
        rng = np.random.default_rng(0)
        drawn = {deformat_parameters(suggest(rng, space), space)["x"] for _ in range(20_000)}
        assert len(drawn) == size


def test_choices_below_choices_that_are_not_open() -> None:
    deep = FINITE["nested"][0]
    space = format_space(deep)
    rng = np.random.default_rng(0)
    for _ in range(30):
        parameters = deformat_parameters(suggest(rng, space), space)
        again = deformat_parameters(format_parameters(parameters, space), space)
        assert again == parameters


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ([], "search_space.json is a list"),
        ({"x": choice()}, r"choice x of search_space.json has _value \[\]"),
        ({"x": {"_type": "choice"}}, "must be a mapping with _type and _value"),
        ({"x": number("unifrom", 0, 1)}, "has _type 'unifrom'; did you mean 'uniform'"),
        ({"x": number("uniform", 0)}, "must be 2 finite numbers"),
        ({"x": number("uniform", 0, math.inf)}, "must be 2 finite numbers"),
        ({"x": number("quniform", 0, 1)}, "must be 3 finite numbers"),
        ({"x": number("quniform", 0, 1, 0)}, "the third number, the step, must be more than 0"),
        ({"x": number("uniform", 1, 0)}, "the second number must not be smaller"),
        ({"x": number("loguniform", 0, 1)}, "the first number must be more than 0"),
        ({"x": number("normal", 0, -1)}, "the standard deviation, must not be negative"),
        ({"x": number("randint", 0, 0)}, "must be larger than the first"),
        ({"x": number("randint", 0, 2**70)}, "must not have more than"),
        ({"x": {"_type": [], "_value": [1]}}, r"has _type \[\]"),
        ({"x": number("uniform", 0, 10**400)}, "must be 2 finite numbers"),
        ({"x": number("quniform", 0, 1e200, 1e-200)}, "the step, is too small"),
        ({"x": number("lognormal", 0, 1000)}, "10 deviations from the mean"),
        ({"a": choice({"_name": "b", "x": number("randint", 3, 2)})}, "choice a/0/x of search_space.json"),
    ],
)
def test_what_no_tuner_can_search(space: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_choices(space)
    for make in TUNERS.values():
        with pytest.raises(ConfigError, match=message):
            make(0).update_search_space(space)


def test_names_that_hyperopt_cannot_tell_apart() -> None:
    space = {"a/0/x": choice(1, 2), "a": choice({"_name": "b", "x": choice(1, 2)})}
    with pytest.raises(ConfigError, match=r"two choices .* are named a/0/x to hyperopt"):
        Hyperopt().update_search_space(space)
    tuner = Hyperopt(seed=0)
    tuner.update_search_space({"y": choice(1, 2)})
    tuner.update_search_space(space)  # the former stays
    assert tuner.generate_parameters(0).keys() == {"y"}


@pytest.mark.parametrize("make", [Tpe, Hyperopt])
@pytest.mark.parametrize("argument", [{"screen": 3}, {"constraints": [1]}])
def test_sections_that_are_no_mappings(make: Any, argument: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"it must be a mapping, as {proxy: proxy.yml}"):
        make(**argument)


@pytest.mark.parametrize("value", [0, -1, "1", math.nan, 10**9, True, None])
def test_numbers_among_the_arguments(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"n_startup_jobs is .* above 0"):
        Hyperopt(n_startup_jobs=value)
    with pytest.raises(ConfigError, match=r"n_ei_candidates is .* above 0"):
        Tpe(tpe_args={"n_ei_candidates": value})


CONSTANTS = {
    "uniform": number("uniform", 99.9, 99.9),
    "quniform": number("quniform", 3, 3, 2),
    "loguniform": number("loguniform", 0.01, 0.01),
    "qloguniform": number("qloguniform", 8, 8, 4),
    "normal": number("normal", 4, 0),
    "qnormal": number("qnormal", 4, 0, 3),
    "lognormal": number("lognormal", 0, 0),
    "qlognormal": number("qlognormal", 0, 0, 1),
    "randint": number("randint", 7, 8),
    "choice": choice("only"),
}
VALUES = {"uniform": 99.9, "quniform": 3, "loguniform": 0.01, "qloguniform": 8, "normal": 4, "qnormal": 3, "lognormal": 1, "qlognormal": 1, "randint": 7, "choice": "only"}  # fmt: skip


@pytest.mark.parametrize("make", [*TUNERS.values(), lambda seed: Hyperopt(seed=seed)], ids=[*TUNERS, "repeating"])
def test_ranges_without_width_are_constants(make: Callable[[int], Any]) -> None:
    proposals = played(make(0), {**CONSTANTS, "free": number("uniform", 0, 1)}, 40)  # past the random start
    assert len(proposals) == 40
    for parameters in proposals:
        for name, value in VALUES.items():
            assert parameters[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9)), name


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("make", TUNERS.values(), ids=TUNERS)
def test_a_lone_constant_is_proposed_once(make: Callable[[int], Any], name: str) -> None:
    assert len(played(make(0), {name: CONSTANTS[name]}, 3)) == 1
