"""What NNI loads only when it is used, and that it is then the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas
import pytest
from nni.mutable import Numerical

from nni_cssnas.bridge.deferred import _in_place_of, defer_libraries

NUMBERS = """
import json, sys
import {first}
import nni
from nni.mutable import Numerical

loaded = [name for name in ("pandas", "scipy.stats") if name in sys.modules]
number, other = Numerical(1e-4, 1, log_distributed=True, label="x"), Numerical(mu=0, sigma=2, label="y")
facts = [number.random(random_state=0), number.default(), other.random(random_state=0), list(other.grid(granularity=2))]
again = Numerical(mu=0, sigma=2, label="y")
print(json.dumps([loaded, facts, other.equals(again), other.equals(Numerical(mu=0, sigma=3, label="y"))]))
import pandas, scipy
print(nni.load(nni.dump(pandas.DataFrame({{"a": [1, 2]}}))).a.sum(), scipy.stats.norm.cdf(0))
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_nni_does_the_same_without_pandas_and_scipys_distributions() -> None:
    ours, theirs = run(NUMBERS.format(first="nni_cssnas")), run(NUMBERS.format(first="nni"))
    assert json.loads(ours[0])[0] == []
    assert json.loads(theirs[0])[0] == ["pandas", "scipy.stats"]  # else nothing needs to be put off
    assert json.loads(ours[0])[1:] == json.loads(theirs[0])[1:]
    assert ours[1] == theirs[1] == "3 0.5"


def test_lightning_comes_when_something_of_it_is_asked_for() -> None:
    code = """
import sys
import nni_cssnas
from nni.nas.evaluator import Evaluator
import nni_cssnas.bridge.evaluator, nni_cssnas.search.screen, nni_cssnas.judge.ray_workers
from nni_cssnas import CellSpace, NasExperiment, ProxyEvaluator
from nni.nas.strategy import Random

def engine(strategy):
    config = NasExperiment(CellSpace(num_nodes=4, num_cells=3), ProxyEvaluator({}), strategy).config
    return config.execution_engine.name, config.model_format.name

print(engine(Random()))
print([name for name in ("pandas", "scipy.stats", "pytorch_lightning", "torchvision", "lightly") if name in sys.modules])

from nni.nas.evaluator import FunctionalEvaluator, Lightning
import nni.nas.evaluator
from nni.nas.evaluator.pytorch import Trainer
print(Lightning.__module__, "pytorch_lightning" in sys.modules, hasattr(nni.nas.evaluator, "nonsense"))

before = set(dir())
from nni.nas.strategy import *
print(sorted({"DARTS", "ENAS", "GumbelDARTS", "Proxyless", "RandomOneShot"} & (set(dir()) - before)))
print(engine(DARTS()), DARTS.__module__)
import nni.nas.oneshot.pytorch.strategy, nni.nas.strategy.oneshot
print(nni.nas.oneshot.pytorch.strategy.DARTS is nni.nas.strategy.oneshot.DARTS is DARTS)
"""
    found = [line for line in run(code) if not line.startswith("[2")]  # NNI's log
    assert found == [
        "('ts', 'simplified')",
        "[]",
        "nni.nas.evaluator.pytorch.lightning True False",
        "['DARTS', 'ENAS', 'GumbelDARTS', 'Proxyless', 'RandomOneShot']",
        "('sequential', 'raw') nni.nas.oneshot.pytorch.strategy",
        "True",
    ]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A library of two functions."""
    (tmp_path / "slow_library.py").write_text("def double(x): return 2 * x\ndouble.unit = 'm'\nLIMIT = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "slow_library", raising=False)
    return "slow_library"


def imported(name: str) -> ModuleType:
    return __import__(name)


def test_the_library_comes_when_its_function_is_called(library: str) -> None:
    with _in_place_of(library, {"double"}):
        stand_in = imported(library)
        double = stand_in.double
    assert library not in sys.modules
    assert double(4) == 8
    assert library in sys.modules
    assert imported(library) is not stand_in
    assert double.unit == "m"


def test_whoever_else_imports_it_meanwhile_can_use_it(library: str) -> None:
    with _in_place_of(library, {"double"}):
        stand_in = imported(library)
        assert stand_in.LIMIT == 3
        assert imported(library) is not stand_in
    assert imported(library).double(1) == stand_in.double(1) == 2
    with pytest.raises(AttributeError, match="slow_library"):
        _ = stand_in.nonsense
    assert not hasattr(stand_in, "__path__")


def test_what_is_loaded_or_missing_is_as_it_was(library: str) -> None:
    real = imported(library)
    with _in_place_of(library, {"double"}):
        assert imported(library) is real
    assert imported(library) is real
    with _in_place_of("no_such_library", set()), pytest.raises(ModuleNotFoundError):
        imported("no_such_library")


def test_it_is_told_once_and_touches_nothing_that_is_there() -> None:
    before = list(sys.meta_path)
    defer_libraries()
    assert sys.meta_path == before
    assert sys.modules["pandas"] is pandas
    assert Numerical(0, 1, label="x").default() == 0.5
