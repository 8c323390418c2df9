"""The density of trials as a mixture: around each of them a kernel that is a product over all choices, and the prior.

So values that belong together stay together, which the product of each choice's own density forgets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # of which stats is loaded when it is used: many spaces have no numbers
from nni.algorithms.hpo import random_tuner
from numpy.typing import NDArray
from scipy.special import logsumexp

from nni_cssnas.tuners.space import Params, is_constant

__all__ = ["Mixture"]

Numbers = NDArray[np.float64]

WIDTH = 0.2
"""Standard deviation of a kernel as part of a choice's range, times ``n ** (-1 / (d + 4))`` (Scott's rule) for n trials of d
choices; as Optuna 4's multivariate TPE has it."""


class Mixture:
    """A mixture of kernels around trials.

    Parameters
    ----------
    space
        NNI's internal form of the search space.
    columns
        For each choice, its value in each of N trials; NaN where it was not active.
    prior_weight
        How much the prior weighs in a kernel among choices, divided by the number of trials, as in Optuna.
    """

    def __init__(self, space: Mapping[Any, Any], columns: Mapping[Any, Numbers], prior_weight: float) -> None:
        self.space = space
        number = 1 + max((len(column) for column in columns.values()), default=0)
        self.number = number
        shrink = max(number - 1, 1) ** (-1 / (len(space) + 4))
        self._kernels: dict[Any, _Kernel] = {}
        for key, spec in space.items():
            centers = np.append(columns[key], math.nan)  # the last is the prior
            if is_constant(spec):
                self._kernels[key] = _Constant(spec, centers)
            elif spec.categorical:
                self._kernels[key] = _Category(spec, centers, prior_weight / number)
            else:
                self._kernels[key] = _Number(spec, centers, WIDTH * shrink)

    def draw(self, rng: np.random.Generator, number: int) -> list[Params]:
        """Proposals around trials that are drawn at random."""
        drawn = []
        for component in rng.integers(self.number, size=number):
            params: Params = {}
            for key, spec in self.space.items():
                if spec.is_activated_in(params):
                    params[key] = self._kernels[key].draw(rng, int(component))
            drawn.append(params)
        return drawn

    def log_density(self, proposals: Sequence[Params]) -> Numbers:
        """``(N,)``, over the choices that are active in each proposal."""
        total = np.zeros((len(proposals), self.number))
        for key, kernel in self._kernels.items():
            values = np.array([params.get(key, math.nan) for params in proposals], dtype=float)
            active = ~np.isnan(values)
            total[active] += kernel.log_density(values[active])
        return np.asarray(logsumexp(total, axis=1) - math.log(self.number))


class _Kernel(ABC):
    """Of one choice: around each of the centers; the prior where a center is NaN."""

    def __init__(self, spec: Any, centers: Numbers) -> None:
        self.spec, self.centers = spec, centers
        self.known = ~np.isnan(centers)

    def draw(self, rng: np.random.Generator, component: int) -> Any:
        return random_tuner.suggest_parameter(rng, self.spec)

    @abstractmethod
    def log_density(self, values: Numbers) -> Numbers:
        """``(values, centers)``."""


class _Constant(_Kernel):
    def log_density(self, values: Numbers) -> Numbers:
        return np.zeros((len(values), len(self.centers)))


class _Category(_Kernel):
    def __init__(self, spec: Any, centers: Numbers, weight: float) -> None:
        super().__init__(spec, centers)
        self.stays = 1 / (1 + weight * spec.size)
        self.other = (1 - self.stays) / spec.size

    def draw(self, rng: np.random.Generator, component: int) -> Any:
        if self.known[component] and rng.random() < self.stays:
            return int(self.centers[component])
        return super().draw(rng, component)

    def log_density(self, values: Numbers) -> Numbers:
        same = values[:, None] == self.centers[None]
        kernel = np.where(same, self.stays + self.other, self.other)
        return np.asarray(np.log(np.where(self.known[None], kernel, 1 / self.spec.size)))


class _Number(_Kernel):
    """A normal distribution, cut off at the ends of a range."""

    def __init__(self, spec: Any, centers: Numbers, width: float) -> None:
        super().__init__(spec, centers)
        self.low: float = -math.inf if spec.normal_distributed else spec.low
        self.high: float = math.inf if spec.normal_distributed else spec.high
        self.width = width * (spec.sigma if spec.normal_distributed else spec.high - spec.low)

    def draw(self, rng: np.random.Generator, component: int) -> Any:
        if not self.known[component]:
            return super().draw(rng, component)
        center = self.centers[component]
        ends = ((bound - center) / self.width for bound in (self.low, self.high))
        return float(scipy.stats.truncnorm.rvs(*ends, loc=center, scale=self.width, random_state=rng))

    def log_density(self, values: Numbers) -> Numbers:
        norm, spec, found = scipy.stats.norm, self.spec, np.empty((len(values), len(self.centers)))
        centers = self.centers[self.known]
        inside = norm.cdf(self.high, centers, self.width) - norm.cdf(self.low, centers, self.width)
        found[:, self.known] = norm.logpdf(values[:, None], centers, self.width) - np.log(inside)
        prior = (
            norm.logpdf(values, spec.mu, spec.sigma)
            if spec.normal_distributed
            else np.full(len(values), -math.log(spec.high - spec.low))
        )
        found[:, ~self.known] = prior[:, None]
        return found
