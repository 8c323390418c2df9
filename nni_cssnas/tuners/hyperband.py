"""NNI's Hyperband, repaired (Li et al., Hyperband, JMLR 2018, arXiv:1603.06560)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nni.algorithms.hpo import hyperband_advisor

from nni_cssnas.tuners.rounds import Rounds, check_known, check_numbers, smallest_budget
from nni_cssnas.tuners.space import check_choices

__all__ = ["Hyperband"]


@dataclass(frozen=True)
class Budgets:
    """Arguments of :class:`Hyperband`, checked: raises ConfigError."""

    optimize_mode: str = "maximize"
    R: int = 18
    eta: int = 3
    exec_mode: str = "parallelism"
    seed: int | None = None

    def __post_init__(self) -> None:
        check_known(self, optimize_mode=("maximize", "minimize"), exec_mode=("parallelism", "serial"))
        check_numbers(self, R=1, eta=2)

    @property
    def smallest(self) -> int:
        """Epochs of the first round of the widest bracket."""
        return smallest_budget(self.R, self.eta)

    def __str__(self) -> str:
        return f"R {self.R} and eta {self.eta}"


class Hyperband(Rounds, hyperband_advisor.Hyperband):  # type: ignore[misc]
    """NNI's advisor that ends a round in spite of accidents. A trial trains for ``TRIAL_BUDGET`` epochs.

    Differences to NNI's own, which cannot be used with NNI 3.0:

    * the first metric of a trial, or a trial that fails, does not end it (:class:`~nni_cssnas.tuners.rounds.Rounds`);
    * proposals come from ``seed``.

    After ``nnictl resume`` it begins new brackets, as NNI's; finished trials are kept in the records.

    Parameters
    ----------
    optimize_mode
        ``maximize`` or ``minimize``.
    R
        Epochs that the best candidates get.
    eta
        One of so many candidates goes on to the next round, with so many times the epochs.
    exec_mode
        ``parallelism``: a bracket may begin while another one runs. ``serial``: one after the other.
    seed
        Of the proposals.

    Raises
    ------
    ConfigError
        If an argument is wrong.

    Examples
    --------
    In ``experiment.yml``::

        advisor:
          className: nni_cssnas.tuners.hyperband.Hyperband
          codeDirectory: .
          classArgs: {R: 18, eta: 3, seed: 0}
    """

    def __init__(
        self,
        optimize_mode: str = "maximize",
        R: int = 18,  # noqa: N803 - the paper's name, and NNI's
        eta: int = 3,
        exec_mode: str = "parallelism",
        seed: int | None = None,
    ) -> None:
        Budgets(optimize_mode, R, eta, exec_mode, seed)
        super().__init__(optimize_mode, R, eta, exec_mode)
        self._seed = seed
        self.begin_rounds(hyperband_advisor, optimize_mode)

    def handle_update_search_space(self, data: Any) -> None:
        """Take the search space; draw from the seed. Raises ConfigError if it cannot be searched."""
        check_choices(data)
        super().handle_update_search_space(data)
        if self._seed is not None:
            self.random_state = np.random.RandomState(self._seed)
