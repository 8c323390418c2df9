"""NNI's BOHB, repaired (Falkner et al., BOHB, ICML 2018, arXiv:1807.01774). It needs the extra ``bohb``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nni
import numpy as np
from numpy.typing import NDArray

from nni_cssnas.errors import ConfigError
from nni_cssnas.tuners.rounds import Rounds, check_known, check_numbers, smallest_budget
from nni_cssnas.tuners.space import check_choices

try:
    from nni.algorithms.hpo.bohb_advisor import bohb_advisor
except ImportError as error:
    raise ConfigError(
        f"BOHB needs ConfigSpace and statsmodels ({error}): pip install 'ConfigSpace>=1.2,<2' statsmodels, "
        "or use nni_cssnas.tuners.hyperband.Hyperband"
    ) from None

__all__ = ["Bohb"]

KINDS = ("choice", "randint", "uniform", "loguniform")
"""Of choices: what both NNI's translation and ConfigSpace 1 can do."""

_logger = logging.getLogger("nni.tuner.cssnas")


@dataclass(frozen=True)
class Budgets:
    """Arguments of :class:`Bohb`, checked: raises ConfigError."""

    optimize_mode: str = "maximize"
    min_budget: int = 2
    max_budget: int = 18
    eta: int = 3
    min_points_in_model: int | None = None
    top_n_percent: int = 15
    num_samples: int = 64
    random_fraction: float = 1 / 3
    bandwidth_factor: float = 3.0
    min_bandwidth: float = 1e-3
    seed: int | None = None

    def __post_init__(self) -> None:
        check_known(self, optimize_mode=("maximize", "minimize"))
        check_numbers(self, min_budget=1, eta=2, num_samples=1)
        check_numbers(self, max_budget=self.min_budget)
        for name, least, most in (
            ("top_n_percent", 1, 99),
            ("random_fraction", 0, 1),
            ("bandwidth_factor", 0, np.inf),
            ("min_bandwidth", 0, 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not least <= value <= most:
                raise ConfigError(f"{name} is {value!r}; it must be from {least} to {most}")

    @property
    def smallest(self) -> int:
        """Epochs of the first round of the widest bracket."""
        return smallest_budget(self.max_budget, self.eta, self.min_budget)

    def __str__(self) -> str:
        return f"min_budget {self.min_budget}, max_budget {self.max_budget} and eta {self.eta}"


class Bohb(Rounds, bohb_advisor.BOHB):  # type: ignore[misc]
    """Hyperband whose candidates come from a model of the trials so far. A trial trains for ``TRIAL_BUDGET`` epochs.

    Differences to NNI's own, which cannot be used with NNI 3.0:

    * the first metric of a trial, or a trial that fails, does not end it (:class:`~nni_cssnas.tuners.rounds.Rounds`);
    * trials are modelled by their budget; NNI's makes one model of all, short trials and long ones;
    * choices are modelled as names (:func:`mend`); NNI's takes the spread of their numbers for that of a quantity, and so
      draws the choices of a cell space, of which each has many values, at random;
    * proposals come from ``seed``.

    There is a model as soon as ``2 * (choices + 1)`` trials of one budget are finished, which is much: with 22 choices and
    the budgets below, about 110 trials. Until then candidates are random, as Hyperband's. After ``nnictl resume`` it begins
    new brackets, and the model knows the finished trials.

    Parameters
    ----------
    optimize_mode
        ``maximize`` or ``minimize``.
    min_budget, max_budget
        Epochs that no round goes below, and that the best candidates get.
    eta
        One of so many candidates goes on to the next round, with so many times the epochs.
    min_points_in_model
        Good trials, and bad ones, of which a model is made; one more than there are choices at least, the default.
    top_n_percent
        Share of the good trials.
    num_samples
        Candidates among which a proposal is chosen.
    random_fraction
        Share of proposals that do not come from the model.
    bandwidth_factor, min_bandwidth
        Of the model: by how much proposals of quantities are spread, and the least spread.
    seed
        Of the proposals; it seeds numpy's global generator, from which NNI draws.

    Raises
    ------
    ConfigError
        If an argument is wrong.

    Examples
    --------
    In ``experiment.yml``::

        advisor:
          className: nni_cssnas.tuners.bohb.Bohb
          codeDirectory: .
          classArgs: {min_budget: 2, max_budget: 18, eta: 3, seed: 0}
    """

    cg: Any  # NNI's model; None before the search space is known

    def __init__(
        self,
        optimize_mode: str = "maximize",
        min_budget: int = 2,
        max_budget: int = 18,
        eta: int = 3,
        min_points_in_model: int | None = None,
        top_n_percent: int = 15,
        num_samples: int = 64,
        random_fraction: float = 1 / 3,
        bandwidth_factor: float = 3.0,
        min_bandwidth: float = 1e-3,
        seed: int | None = None,
    ) -> None:
        budgets = Budgets(
            optimize_mode,
            min_budget,
            max_budget,
            eta,
            min_points_in_model,
            top_n_percent,
            num_samples,
            random_fraction,
            bandwidth_factor,
            min_bandwidth,
            seed,
        )
        arguments = asdict(budgets)
        self._seed = arguments.pop("seed")
        super().__init__(**arguments)
        self._judged: set[str] = set()  # whose final metric is known
        self.begin_rounds(bohb_advisor, optimize_mode)

    def handle_update_search_space(self, data: Any) -> None:
        """Take the search space; draw from the seed. Raises ConfigError for what BOHB cannot search."""
        check_choices(data)
        for name, choice in data.items():
            kind, values = choice["_type"], choice["_value"]
            if kind not in KINDS or any(isinstance(value, (dict, list)) for value in values):
                raise ConfigError(
                    f"choice {name} of search_space.json is a {kind} of {values!r}, which BOHB cannot search; "
                    f"it knows {', '.join(KINDS)} of single values; use nni_cssnas.tuners.tpe.Tpe"
                )
        super().handle_update_search_space(data)
        if self.cg is not None:  # NNI's goes on to propose what the former search space had
            names = ("min_points_in_model", "top_n_percent", "num_samples", "random_fraction", "bandwidth_factor")
            self.cg = bohb_advisor.CG_BOHB(
                configspace=self.search_space,
                min_bandwidth=self.min_bandwidth,
                **{name: getattr(self, name) for name in names},
            )
            _logger.warning("the search space has changed, so the model of BOHB starts anew")
        if self._seed is not None:
            self.search_space.seed(self._seed)
            np.random.seed(self._seed)  # noqa: NPY002 - NNI's model draws from there

    def _get_one_trial_job(self) -> Any:
        job = super()._get_one_trial_job()
        if job is not None:
            # NNI's takes the budget out of it.
            self.parameters[job["parameter_id"]] = dict(job["parameters"])
        return job

    def handle_report_metric_data(self, data: Any) -> None:
        """Learn from an intermediate or final metric."""
        name = data["parameter_id"]
        if name not in self._issued or name in self._judged:
            return
        if data["type"] == "FINAL":
            self._judged.add(name)
            # What NNI's takes for the budget is 0 for every final metric.
            data["sequence"] = self.parameters[name]["TRIAL_BUDGET"]
        super().handle_report_metric_data(data)
        self._mend_models()

    def handle_trial_end(self, data: Any) -> None:
        """Learn that a trial has ended; one without a final metric is the worst of its round, and bad to the model."""
        name = nni.load(data["hyper_params"])["parameter_id"]
        if name in self._issued and name not in self._judged:
            metric = {"parameter_id": name, "trial_job_id": data["trial_job_id"], "type": "FINAL"}
            self.handle_report_metric_data(metric | {"value": nni.dump(self._worst)})
        super().handle_trial_end(data)

    def handle_import_data(self, data: Any) -> None:
        """Learn from finished trials that NNI replays on ``nnictl resume``; what does not fit is left out."""
        for trial in data:
            try:
                super().handle_import_data([trial])
            except (ArithmeticError, AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
                _logger.warning("left out a trial that does not fit the search space: %s", error)
        self._mend_models()

    def _mend_models(self) -> None:
        for models in self.cg.kde_models.values():
            for model in models.values():
                mend(model, self.cg.vartypes, self.min_bandwidth)


def mend(model: Any, sizes: NDArray[np.int64], least: float) -> None:
    """Make a kernel density estimate of choices among names one of probabilities.

    Bandwidths follow the rule of the quantities, Silverman's, but two names differ by 0 or 1, whatever their numbers:
    the variance is half of the mean squared difference. A kernel of c names is flat at ``(c - 1) / c`` and negative beyond
    (Aitchison and Aitken, Biometrika 1976); statsmodels counts the names that it has seen, and divides by 0 where
    that is one.

    Parameters
    ----------
    model
        A ``statsmodels.nonparametric.KDEMultivariate``; its ``data`` are ``(trials, choices)``. ``bw`` and ``pdf`` are
        replaced.
    sizes
        Values of each choice, ``(choices,)``; 0 for a quantity, whose bandwidth is left as it is.
    least
        Smallest bandwidth.
    """
    number, width = model.data.shape
    for column in np.flatnonzero(sizes):
        shares = np.bincount(model.data[:, column].astype(int)) / number
        spread = np.sqrt((1 - np.sum(shares**2)) / 2)
        flat = (sizes[column] - 1) / sizes[column]
        model.bw[column] = min(max(1.06 * spread * number ** (-1 / (4 + width)), least), flat)
    names, widths = sizes > 0, np.where(sizes > 0, 1.0, model.bw)
    other = model.bw / np.maximum(sizes - 1, 1)

    def pdf(point: Sequence[float]) -> float:
        # (trials, choices)
        differences = model.data - np.asarray(point)
        of_names = np.where(differences == 0, 1 - model.bw, other)
        of_quantities = np.exp(-((differences / widths) ** 2) / 2) / (np.sqrt(2 * np.pi) * widths)
        return float(np.where(names, of_names, of_quantities).prod(axis=1).mean())

    model.pdf = pdf
