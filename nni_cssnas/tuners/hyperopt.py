"""hyperopt's TPE, with which the paper searched (Bergstra et al., NeurIPS 2011; arXiv:2102.10557)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hyperopt
import numpy as np
from hyperopt import hp, pyll, rand, tpe
from hyperopt.base import miscs_update_idxs_vals

from nni_cssnas.errors import ConfigError
from nni_cssnas.tuners.base import SearchTuner, check_number
from nni_cssnas.tuners.space import Params, check_choices, is_constant, is_nested

__all__ = ["Hyperopt", "hyperopt_space"]


class Hyperopt(SearchTuner):
    """``hyperopt.tpe.suggest`` as an NNI tuner.

    With one trial at a time it proposes what ``hyperopt.fmin(algo=tpe.suggest, rstate=numpy.random.default_rng(seed))``
    proposes in :func:`hyperopt_space` for the same scores; failed trials are hyperopt's ``STATUS_FAIL``.
    Concurrency, resuming, constraints and screening are those of :class:`~nni_cssnas.tuners.base.SearchTuner`.

    Parameters
    ----------
    optimize_mode, seed, screen, constraints
        As in :class:`~nni_cssnas.tuners.base.SearchTuner`.
    gamma
        Share of good trials: ``gamma * sqrt(n)`` of n.
    n_startup_jobs
        Random proposals at the start.
    n_EI_candidates
        Candidates among which each choice is made.
    prior_weight
        Weight of the search space beside the trials.
    unique
        Change a suggestion that was seen before, as :class:`~nni_cssnas.tuners.tpe.Tpe` does; ``fmin`` tries it again.

    Raises
    ------
    ConfigError
        If an argument is wrong.
    """

    def __init__(
        self,
        optimize_mode: str = "maximize",
        seed: int | None = None,
        gamma: float = 0.25,
        n_startup_jobs: int = 20,
        n_EI_candidates: int = 24,  # noqa: N803 - hyperopt's name
        prior_weight: float = 1.0,
        unique: bool = False,
        screen: dict[str, Any] | None = None,
        constraints: dict[str, Any] | None = None,
    ) -> None:
        check_number("gamma", gamma)
        check_number("n_startup_jobs", n_startup_jobs, whole=True)
        check_number("n_EI_candidates", n_EI_candidates, whole=True)
        check_number("prior_weight", prior_weight)
        super().__init__(optimize_mode, seed, screen, constraints, unique=unique)
        self.gamma = gamma
        self.n_startup_jobs = n_startup_jobs
        self.n_EI_candidates = n_EI_candidates
        self.prior_weight = prior_weight
        self._forget_all()

    def begin(self, space: Mapping[str, Any]) -> None:
        """Translate the search space, and let hyperopt build its estimator for it."""
        labels = Counter(map(_label, self.space))
        if repeated := [label for label, number in labels.items() if number > 1]:
            raise ConfigError(
                f"two choices of search_space.json are named {repeated[0]} to hyperopt; rename one without '/'"
            )
        self._domain = hyperopt.Domain(lambda _: 0.0, hyperopt_space(space))
        self._forget_all()
        self._observed, self._losses, self._posterior = tpe.build_posterior_wrapper(
            self._domain, self.prior_weight, self.gamma
        )

    def _forget_all(self) -> None:
        self._trials: list[_Trial] = []
        self._number = 0
        self._numbers: dict[str, int] = {}  # of proposals that were not judged yet, as hyperopt orders trials by it

    def suggest(self, running: list[tuple[Params, float]]) -> Params:
        """Ask hyperopt, to which trials that run look finished."""
        lies = [
            self._trial(params, loss, self._numbers.get(repr(params), self._number + index))
            for index, (params, loss) in enumerate(running)
        ]
        trials = sorted([*self._trials, *lies], key=lambda trial: trial.number)
        number = self._number + len(lies)
        self._number = number + 1
        seed = int(self.rng.integers(2**31 - 1))
        if len(trials) < self.n_startup_jobs:
            [found] = rand.suggest([number], self._domain, hyperopt.Trials(), seed)
            values = found["misc"]["vals"]
        else:
            values = self._estimate(trials, number, seed)
        params: Params = {}
        for key, spec in self.space.items():
            value = values[_label(key)]
            if value:
                params[key] = _internal(spec, value[0])
        self._numbers[repr(params)] = number
        return params

    def _estimate(self, trials: list[_Trial], number: int, seed: int) -> Any:
        """What ``tpe.suggest`` does, 4 times faster with 5,000 trials: its estimator is built once, and gets arrays.

        ``tpe.suggest`` builds it anew for each proposal, walks through a document for each trial and choice, and
        converts the same lists for every choice.
        """
        first = max(trials[-1].number, number) + 2
        candidates = list(range(first, first + self.n_EI_candidates))
        # hyperopt looks up each number in a set, which for Python's own is faster than for numpy's.
        numbers = np.array([trial.number for trial in trials], dtype=object)
        idxs, vals = {}, {}
        columns = zip(*(trial.values for trial in trials), strict=True)
        for label, column in zip(map(_label, self.space), columns, strict=True):
            values = np.array(column, dtype=object)
            active = [value is not None for value in column] if None in column else slice(None)
            idxs[label], vals[label] = numbers[active], values[active]
        memo = {
            self._domain.s_new_ids: candidates,
            self._domain.s_rng: np.random.default_rng(seed),
            self._losses["idxs"]: numbers,
            self._losses["vals"]: np.array([trial.loss for trial in trials]),
            self._observed["idxs"]: idxs,
            self._observed["vals"]: vals,
        }
        found_idxs, found_vals = pyll.rec_eval(self._posterior, memo=memo, print_node_on_error=False)
        misc = {"tid": number, "cmd": self._domain.cmd, "workdir": None}
        miscs_update_idxs_vals(
            [misc], found_idxs, found_vals, idxs_map={candidates[0]: number}, assert_all_vals_used=False
        )
        return misc["vals"]

    def learn(self, params: Params, loss: float) -> None:
        """Remember a finished trial in hyperopt's form."""
        self._trials.append(self._trial(params, loss, self._numbers.pop(repr(params), None)))

    def forget(self, params: Params) -> None:
        """Take out what was learned of these parameters."""
        values = self._trial(params, math.inf, 0).values
        self._trials = [trial for trial in self._trials if trial.values != values]

    def _trial(self, params: Params, loss: float, number: int | None) -> _Trial:
        if number is None:  # changed after it was suggested, or from an earlier session
            number, self._number = self._number, self._number + 1
        values = (_external(spec, params[key]) if key in params else None for key, spec in self.space.items())
        return _Trial(number, loss, tuple(values))


@dataclass(frozen=True)
class _Trial:
    """What hyperopt learns from: ``number`` is its order, an infinite loss a failure, None a choice that is not open."""

    number: int
    loss: float
    values: tuple[int | float | None, ...]


def hyperopt_space(space: Mapping[str, Any], parent: tuple[Any, ...] = ()) -> dict[str, Any]:
    """A ``search_space.json`` in hyperopt's terms: ``{"op": hp.choice("op", [...]), ...}``.

    The label of a nested choice is its path, as ``block/0/kernel``. Values of a choice are their numbers; that of a
    range without any width is 0.

    Raises
    ------
    ConfigError
        As :func:`~nni_cssnas.tuners.space.check_choices`.
    """
    check_choices(space, parent)
    result: dict[str, Any] = {}
    for name, choice in space.items():
        if name == "_name":
            continue
        key = (*parent, name)
        label, kind, values = _label(key), choice["_type"], choice["_value"]
        if kind == "choice":
            nested = is_nested(values)
            options = [hyperopt_space(value, (*key, index)) if nested else index for index, value in enumerate(values)]
            result[name] = hp.choice(label, options)
        elif kind == "randint":
            low, high = (math.ceil(float(value)) for value in values)
            result[name] = hp.randint(label, high - low)
        elif values[1] == (0 if "normal" in kind else values[0]):
            # hyperopt raises at a range without any width; one value is what it is.
            result[name] = hp.choice(label, [0])
        elif kind in ("loguniform", "qloguniform"):
            result[name] = getattr(hp, kind)(label, math.log(values[0]), math.log(values[1]), *values[2:])
        else:
            result[name] = getattr(hp, kind)(label, *values)
    return result


def _label(key: tuple[Any, ...]) -> str:
    return "/".join(map(str, key))


def _internal(spec: Any, value: Any) -> int | float:
    """NNI's internal number of what hyperopt drew."""
    if spec.categorical:
        return int(value)
    if is_constant(spec):
        return float(spec.mu if spec.normal_distributed else spec.low)
    # A quantised logarithmic choice may be rounded to 0.
    return math.log(max(float(value), np.finfo(float).tiny)) if spec.log_distributed else float(value)


def _external(spec: Any, value: Any) -> int | float:
    """What hyperopt would have drawn for NNI's internal number."""
    if spec.categorical:
        return int(value)
    if is_constant(spec):
        return 0
    return math.exp(value) if spec.log_distributed else float(value)
