"""Label-free neural architecture search for NNI (CSNAS, arXiv:2102.10557)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nni_cssnas.base.moved import tell_new_names
from nni_cssnas.bridge.deferred import defer_libraries

if TYPE_CHECKING:
    from nni_cssnas.bridge.evaluator import ProxyEvaluator
    from nni_cssnas.bridge.experiment import NasExperiment
    from nni_cssnas.config import ProxyConfig
    from nni_cssnas.errors import CssnasError
    from nni_cssnas.genotype import Genotype
    from nni_cssnas.spaces import CellSpace
    from nni_cssnas.verbs import best, compare, export, probe, report, retrain, run, screen

__all__ = [
    "CellSpace",
    "CssnasError",
    "Genotype",
    "NasExperiment",
    "ProxyConfig",
    "ProxyEvaluator",
    "__version__",
    "best",
    "compare",
    "export",
    "probe",
    "report",
    "retrain",
    "run",
    "screen",
]
__version__ = "0.1.0"

tell_new_names()
defer_libraries()

# Names are imported when they are first used: the tuner's process and `nni-cssnas --help` need no torch.
_HOME = {
    "CellSpace": "nni_cssnas.spaces",
    "CssnasError": "nni_cssnas.errors",
    "Genotype": "nni_cssnas.genotype",
    "NasExperiment": "nni_cssnas.bridge.experiment",
    "ProxyConfig": "nni_cssnas.config",
    "ProxyEvaluator": "nni_cssnas.bridge.evaluator",
    **dict.fromkeys(("best", "compare", "export", "probe", "report", "retrain", "run", "screen"), "nni_cssnas.verbs"),
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
