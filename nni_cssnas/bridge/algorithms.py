"""The sections ``tuner``, ``advisor`` and ``assessor`` of ``experiment.yml``, checked before a manager is started."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_cssnas.base.files import one_line
from nni_cssnas.base.paths import importable
from nni_cssnas.bridge.settings import Settings, path_of, plain
from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.measures import COSTS

__all__ = ["OWN_NAMES", "check_algorithm", "check_choice"]

ADVISORS = {"Hyperband": "nni_cssnas.tuners.hyperband.Hyperband", "BOHB": "nni_cssnas.tuners.bohb.Bohb"}
"""NNI's own, which end at the first metric of a trial, and ours in their place."""

OWN_NAMES = ("CssnasTPE", "CssnasHyperopt")
"""Names that ``nni-cssnas register`` gives."""

OWN_TUNER = "{className: nni_cssnas.tuners.tpe.Tpe, codeDirectory: .}"

UNSUITABLE = {
    "PBT": "changes settings of one training while it runs, and a trial here judges one architecture",
    "NetworkMorphism": "proposes networks of its own instead of choices from search_space.json",
    "RegularizedEvolutionTuner": "knows only the layer_choice and input_choice of NNI 1",
    "PPO": "knows only the layer_choice and input_choice of NNI 1",
}
"""NNI's tuners that cannot propose an architecture of ``search_space.json``, and why."""

ONLY_NUMBERS = ("Metis", "GP", "DNGO")
"""NNI's tuners that end at a choice among texts."""


@dataclasses.dataclass(frozen=True)
class _Algorithm:
    """What NNI would make: an object of the class of that full name, with these arguments."""

    section: str
    shown: str
    class_name: str
    arguments: Mapping[str, Any]
    folder: Path


def check_algorithm(section: str, given: Any, base: Path, trials: Path, proxy: ProxyConfig | None) -> None:
    """Refuse a ``tuner``, ``advisor`` or ``assessor`` that NNI cannot make, or that does not suit the trials.

    Parameters
    ----------
    section, given
        Name and content of the section.
    base, trials
        Folder of ``experiment.yml``, and that of the trials' code.
    proxy
        Of the trials; None if they are not this package's.

    Raises
    ------
    ConfigError
        Names the key, its value and the remedy.
    """
    if not isinstance(given, dict):
        raise ConfigError(f"{section} is {given!r}; write {section}: {OWN_TUNER}")
    algorithm = _resolve(section, plain(given), base, trials)
    if algorithm is None:
        return
    if section != "advisor" and algorithm.class_name in ADVISORS.values():
        raise ConfigError(f"{algorithm.class_name} is an advisor; write it under advisor:, not under {section}:")
    if algorithm.class_name.startswith("nni_cssnas."):
        _check_own(algorithm, proxy)
    else:
        _check_arguments(algorithm)
    if proxy is not None:
        _check_mode(algorithm)
        _check_objectives(algorithm.arguments.get("objectives"), proxy)
        if section == "assessor":
            _check_assessor(algorithm, proxy)


def _resolve(section: str, given: Settings, base: Path, trials: Path) -> _Algorithm | None:
    """Find the class that is meant, by NNI's name or its own; the former has no folder but that of the trials."""
    arguments = given.get("classargs") or {}
    if not isinstance(arguments, dict):
        raise ConfigError(f"classArgs of the {section} is {arguments!r}; it must be a mapping")
    for key in arguments:
        if not isinstance(key, str):
            raise ConfigError(f"classArgs of the {section}: its key {key!r} is not a text; put it in quotes")
    if given.get("classname"):
        directory = given.get("codedirectory", ".")
        folder = path_of(f"codeDirectory of the {section}", directory, base)
        if not folder.is_dir():
            raise ConfigError(f"codeDirectory of the {section} is {str(directory)!r}, and {folder} is no folder")
        name = str(given["classname"])
        if "." not in name:
            raise ConfigError(f"className is {name!r}; it must be module.Class, as in {section}: {OWN_TUNER}")
        return _Algorithm(section, name, name, arguments, folder)
    name = str(given.get("name"))
    if name == "_none_":
        return None
    for nnis, ours in ADVISORS.items():
        if name.lower() == nnis.lower():
            raise ConfigError(
                f"NNI's own {name} ends at the first metric of a trial; "
                f"use advisor: {{className: {ours}, codeDirectory: .}}"
            )
    meta = _registered(name)
    kind = "assessor" if section == "assessor" else "tuner"
    if meta is None or meta.algo_type != kind:
        raise ConfigError(f"name of the {section} is {name!r}, which NNI does not know{nearest(name, _names(kind))}")
    if meta.name in UNSUITABLE:
        raise ConfigError(f"tuner {name} {UNSUITABLE[meta.name]}; use tuner: {OWN_TUNER}")
    return _Algorithm(section, name, str(meta.class_name), {**(meta.class_args or {}), **arguments}, trials)


def _registered(name: str) -> Any:
    """What NNI knows by a name of its own, or by one that ``nnictl algo register`` was told; None if nothing."""
    from nni.tools.package_utils.config_manager import get_algo_meta

    return get_algo_meta(name)


def _names(kind: str) -> list[str]:
    from nni.tools.package_utils.config_manager import get_all_algo_meta

    return [meta.name for meta in get_all_algo_meta() if meta.algo_type == kind]


def _check_own(algorithm: _Algorithm, proxy: ProxyConfig | None) -> None:
    """Refuse wrong ``classArgs`` of an algorithm of this package, and budgets that ``proxy.yml`` cannot use."""
    from nni_cssnas.tuners.validators import VALIDATORS

    name, arguments = algorithm.class_name, algorithm.arguments
    if name not in VALIDATORS:
        raise ConfigError(f"className is {name!r}{nearest(name, VALIDATORS)}")
    validator = VALIDATORS[name]()
    with importable(algorithm.folder, Path.cwd()):
        validator.check(**arguments)
    if proxy is not None and hasattr(validator.tuner, "smallest"):
        budgets = validator.tuner(**arguments)
        try:
            proxy.with_epochs(budgets.smallest)
        except ConfigError as error:
            raise ConfigError(
                f"{budgets} give candidates {budgets.smallest} epochs at first: {error}; "
                "change them in classArgs, or the proxy's score or criterion"
            ) from None


def _check_arguments(algorithm: _Algorithm) -> None:
    """Refuse ``classArgs`` that the class does not take."""
    signature = _signature(algorithm)
    if signature is None:
        return
    free = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in signature.parameters.values())
    for name in algorithm.arguments:
        if name not in signature.parameters and not free:
            known = nearest(name, signature.parameters) if signature.parameters else "; it takes none"
            raise ConfigError(f"unknown key {name!r} in classArgs of {algorithm.section} {algorithm.shown}{known}")
    for name, item in signature.parameters.items():
        required = item.default is inspect.Parameter.empty and item.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        # A missing optimize_mode is told with its value.
        if required and name not in algorithm.arguments and name != "optimize_mode":
            raise ConfigError(
                f"classArgs of {algorithm.section} {algorithm.shown} lacks {name!r}, which has no default"
            )


def _check_mode(algorithm: _Algorithm) -> None:
    """Refuse an algorithm that looks for the worst architecture: scores here are better when they are larger."""
    signature = _signature(algorithm)
    known = {} if signature is None else signature.parameters
    if "optimize_mode" not in known and "optimize_mode" not in algorithm.arguments:
        return
    default = known["optimize_mode"].default if "optimize_mode" in known else inspect.Parameter.empty
    if default is None:
        return  # Random and GridSearch take it for others' sake, and ignore it
    mode = algorithm.arguments.get("optimize_mode", default)
    if mode != "maximize":
        why = "" if "optimize_mode" in algorithm.arguments else " by default"
        value = "missing" if mode is inspect.Parameter.empty else f"{mode!r}{why}"
        raise ConfigError(
            f"optimize_mode of {algorithm.section} {algorithm.shown} is {value}, but the score of a trial is better when it "
            "is larger; write classArgs: {optimize_mode: maximize}"
        )


def _check_objectives(objectives: Any, proxy: ProxyConfig) -> None:
    """Refuse objectives of a tuner that the trials of this package do not report, or that want the worst network."""
    if not isinstance(objectives, dict):
        return
    scores = ("score", "default")
    measures = () if proxy.score == "contrastive" else tuple(proxy.untrained.weights)
    known = [*scores, *COSTS, "latency_ms", *measures]
    if proxy.score != "untrained":
        known += ["loss", "drop"] + (["held_out", "alignment", "uniformity"] if proxy.contrastive.held_out else [])
    for name, mode in objectives.items():
        if name not in known:
            raise ConfigError(f"objectives names {name!r}, which no trial reports{nearest(name, known)}")
        if name in scores and mode != "maximize":
            raise ConfigError(
                f"objectives: {name} is {mode!r}, but the score of a trial is better when it is larger; write maximize"
            )


def _signature(algorithm: _Algorithm) -> inspect.Signature | None:
    """What the class takes; None if it cannot be told. Raises ConfigError if there is no such class."""
    module_name, _, name = algorithm.class_name.rpartition(".")
    what = f"{algorithm.section} {algorithm.shown}"
    try:
        with importable(algorithm.folder, Path.cwd()):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = one_line(error) or type(error).__name__
        if algorithm.shown == algorithm.class_name:
            remedy = f"its module must be installed or lie in codeDirectory ({algorithm.folder})"
        else:
            remedy = f"pip install 'nni[{algorithm.shown}]' or what is missing, or use tuner: {OWN_TUNER}"
        raise ConfigError(f"{what} cannot be imported: {reason}; {remedy}") from None
    if not hasattr(module, name):
        names = [
            key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module_name
        ]
        raise ConfigError(f"{what}: module {module_name} has no class {name!r}{nearest(name, names)}")
    try:
        return inspect.signature(getattr(module, name))
    except (TypeError, ValueError):
        return None


def _check_assessor(assessor: _Algorithm, proxy: ProxyConfig) -> None:
    """Refuse an assessor that cannot judge what trials of this ``proxy.yml`` report after each epoch."""
    if proxy.score == "untrained":
        raise ConfigError(
            "an assessor judges trials by their epochs, but score is 'untrained', which trains nothing; "
            "set score: contrastive, or leave the assessor out"
        )
    if assessor.class_name.rpartition(".")[2] not in ("Curvefitting", "CurvefittingAssessor"):
        return
    if proxy.contrastive.criterion != "drop":
        raise ConfigError(
            f"criterion is {proxy.contrastive.criterion!r}, but Curvefitting needs results that are positive and rise; "
            "set criterion: drop, or use Medianstop"
        )
    number, epochs = assessor.arguments.get("epoch_num", 20), proxy.contrastive.epochs
    if proxy.contrastive.steps is None and number != epochs:
        raise ConfigError(
            f"epoch_num of the assessor is {number}, but trials train {epochs} epochs; set epoch_num: {epochs}"
        )


def check_choice(name: str, choice: Mapping[str, Any], tuner: str) -> None:
    """Refuse a choice of the search space that the tuner of this name ends at. Raises ConfigError."""
    meta = _registered(tuner)
    if meta is None or meta.name not in ONLY_NUMBERS or choice["_type"] != "choice":
        return
    text = next((value for value in choice["_value"] if not isinstance(value, (int, float))), None)
    if text is not None:
        raise ConfigError(
            f"tuner {tuner} searches only among numbers, but choice {name} has the value {text!r}; "
            f"use tuner: {OWN_TUNER}"
        )
