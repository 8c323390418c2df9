"""Whether an architecture may become a trial at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from nni_cssnas.config import ConstraintsConfig, ProxyConfig
from nni_cssnas.errors import ConfigError, SpaceError
from nni_cssnas.genotype import Choices
from nni_cssnas.judge.costs import TARGET_COSTS, Costs
from nni_cssnas.judge.latencies import read_table
from nni_cssnas.spaces.encoding import changed_choices, random_choices
from nni_cssnas.spaces.factory import make_space

__all__ = ["Feasibility"]

TRIES, FEW_TRIES = 600, 60
"""Architectures that a bounded search looks at, where costs are counted without building a network, and where not."""


class Feasibility:
    """Whether an architecture keeps the constraints of its space and of the user, before a trial is spent on it.

    Costs are those of the network that will be trained (:class:`~nni_cssnas.judge.costs.Costs`).

    Parameters
    ----------
    limits
        A tuner's ``constraints``, or the options of ``screen``.
    config
        All of ``proxy.yml``.

    Raises
    ------
    CssnasError
        If the space cannot be used, or the table of latencies is of another space, other networks or another device.
    """

    def __init__(self, limits: ConstraintsConfig, config: ProxyConfig) -> None:
        self.config = config
        self.space = make_space(config.scored_space)
        table = None if limits.latency is None else read_table(limits.latency, config)
        self.costs = Costs(config, self.space, table)
        given = {name: getattr(limits, f"max_{name}") for name in TARGET_COSTS}
        self.limits: dict[str, float] = {name: limit for name, limit in given.items() if limit is not None}

    def problem(self, choices: Choices) -> str | None:
        """Which constraint an architecture breaks, and by how much; None if it keeps all. One that cannot be built breaks them."""
        try:
            for name, cost in self._costs(choices):
                if cost > self.limits[name]:
                    return f"max_{name} is {_number(self.limits[name])}, and it has {_number(cost)}"
        except SpaceError as error:
            return str(error)
        except Exception as error:  # a layer's own, out of memory: it must not end the tuner that asks
            return f"the network cannot be built: {type(error).__name__}: {error}"
        return None

    def mended(self, choices: Choices, rng: np.random.Generator) -> dict[str, Any] | None:
        """A near architecture that keeps all constraints: choices are drawn anew, one at a time, and kept where that makes it
        no larger. None if the bounded search finds none."""
        best, excess = self._descend(dict(choices), rng, self._tries)
        return best if excess <= 1 else None

    def check_possible(self, seed: int) -> None:
        """Look for one network that keeps the limits, before anything is spent on a search.

        Raises
        ------
        ConfigError
            If a bounded search finds none; it names the smallest that was found.
        """
        if not self.limits:
            return
        rng = np.random.default_rng(seed)
        draws = max(1, self._tries // 10)
        best: dict[str, Any] = {}
        excess = math.inf
        for _ in range(draws):
            choices = random_choices(self.space, rng)
            found = self._excess(choices)
            if not best or found < excess:
                best, excess = choices, found
            if excess <= 1:
                return
        best, excess = self._descend(best, rng, self._tries - draws)
        if excess <= 1:
            return
        what = self.problem(best) or ""
        broken = next((name for name in self.limits if what.startswith(f"max_{name} is")), None)
        if broken is None:
            raise ConfigError(f"no network of {self.config.space.name} keeps the limits: {what}")
        smallest = dict(self._costs(best))[broken]
        raise ConfigError(
            f"max_{broken} is {_number(self.limits[broken])}, but the smallest network of {self.config.space.name} that a search "
            f"through {self._tries} found has {_number(smallest)} ({self.costs.words}); allow more, or search for a smaller target"
        )

    def _descend(self, choices: dict[str, Any], rng: np.random.Generator, tries: int) -> tuple[dict[str, Any], float]:
        best, excess = choices, self._excess(choices)
        for _ in range(tries):
            if excess <= 1:
                break
            changed = changed_choices(self.space, best, rng)
            found = self._excess(changed)
            if found <= excess:
                best, excess = changed, found
        return best, excess

    def _excess(self, choices: Choices) -> float:
        """The largest cost in units of its limit; infinity for what cannot be built."""
        try:
            cheap = self.costs.of(choices, self._cheap)
            worst = max((cost / self.limits[name] for name, cost in cheap.items()), default=0.0)
            if worst <= 1 and "latency_ms" in self.limits:  # what is too large need not be timed
                worst = max(worst, self.costs.of(choices, ["latency_ms"])["latency_ms"] / self.limits["latency_ms"])
            return worst
        except Exception:  # as for problem()
            return math.inf

    def _costs(self, choices: Choices) -> Iterator[tuple[str, float]]:
        """One after the other, what is cheap first."""
        yield from self.costs.of(choices, self._cheap).items()  # without limits too: the space may forbid it
        if "latency_ms" in self.limits:
            yield "latency_ms", self.costs.of(choices, ["latency_ms"])["latency_ms"]

    @property
    def _cheap(self) -> list[str]:
        return [name for name in self.limits if name != "latency_ms"]

    @property
    def _tries(self) -> int:
        measures = "latency_ms" in self.limits and self.costs.table is None
        return TRIES if self.costs.has_cells and not measures else FEW_TRIES


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
