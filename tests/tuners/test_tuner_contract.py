"""The contract of :mod:`nni_cssnas.testing` for our tuners."""

from __future__ import annotations

from typing import Any

from nni_cssnas.testing import TunerContract
from nni_cssnas.tuners.hyperopt import Hyperopt
from nni_cssnas.tuners.tpe import Tpe


class TestTpe(TunerContract):
    def make_tuner(self, seed: int) -> Any:
        return Tpe(seed=seed, tpe_args={"n_startup_jobs": 12})


class TestHyperopt(TunerContract):
    repeats = True

    def make_tuner(self, seed: int) -> Any:
        return Hyperopt(seed=seed, n_startup_jobs=12)


class TestHyperoptUnique(TunerContract):
    def make_tuner(self, seed: int) -> Any:
        return Hyperopt(seed=seed, n_startup_jobs=12, unique=True)
