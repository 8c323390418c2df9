"""``experiment.yml``, checked before a manager is started: what NNI refuses with a traceback, or not at all."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from nni_cssnas.config import ConstraintsConfig, ProxyConfig, ScreenConfig
from nni_cssnas.errors import ConfigError, nearest

__all__ = ["check_experiment"]


def check_experiment(config: Path) -> int | None:
    """Refuse a wrong experiment.yml or proxy.yml before a manager is started; gives the number of trials."""
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {config}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{config} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{config} must be a mapping of NNI's settings, not {type(settings).__name__}")
    proxy: ProxyConfig | None = None
    words = shlex.split(str(settings.get("trialCommand", "")))
    if "nni_cssnas.trial" in words:
        rest = [word for word in words[words.index("nni_cssnas.trial") + 1 :] if not word.startswith("-")]
        folder = config.parent / str(settings.get("trialCodeDirectory", "."))
        proxy = ProxyConfig.load(folder / (rest[0] if rest else "proxy.yml"))
    for section in ("tuner", "advisor", "assessor"):
        algorithm = settings.get(section)
        if not isinstance(algorithm, dict):
            continue
        _refuse_broken(section, algorithm)
        if str(algorithm.get("className", "")).startswith("nni_cssnas."):
            _check_algorithm(algorithm, config.parent / str(algorithm.get("codeDirectory", ".")), proxy)
        if section == "assessor" and proxy is not None:
            _check_assessor(algorithm, proxy)
    number = settings.get("maxTrialNumber")
    return number if isinstance(number, int) else None


def _refuse_broken(section: str, algorithm: dict[str, Any]) -> None:
    """Refuse NNI's own advisors, which end at their first metric, and ours in the wrong place."""
    advisors = {"hyperband": "nni_cssnas.tuners.hyperband.Hyperband", "bohb": "nni_cssnas.tuners.bohb.Bohb"}
    name = str(algorithm.get("name", "")).lower()
    if name in advisors:
        raise ConfigError(
            f"NNI's own {algorithm['name']} ends at the first metric of a trial; "
            f"use advisor: {{className: {advisors[name]}, codeDirectory: .}}"
        )
    if section != "advisor" and algorithm.get("className") in advisors.values():
        raise ConfigError(f"{algorithm['className']} is an advisor; write it under advisor:, not under {section}:")


def _check_algorithm(algorithm: dict[str, Any], folder: Path, proxy: ProxyConfig | None) -> None:
    """Refuse wrong ``classArgs`` of a tuner or advisor of this package, and budgets that ``proxy.yml`` cannot use."""
    from nni_cssnas.tuners.validators import VALIDATORS

    name, arguments = algorithm["className"], algorithm.get("classArgs") or {}
    if name not in VALIDATORS:
        raise ConfigError(f"className is {name!r}{nearest(name, VALIDATORS)}")
    validator = VALIDATORS[name]()
    validator.validate_class_args(**arguments)
    for key, section in (("screen", ScreenConfig), ("constraints", ConstraintsConfig)):
        if arguments.get(key):
            ProxyConfig.load(folder / section(**arguments[key]).proxy)
    if proxy is not None and hasattr(validator.tuner, "smallest"):
        budgets = validator.tuner(**arguments)
        try:
            proxy.with_epochs(budgets.smallest)
        except ConfigError as error:
            raise ConfigError(
                f"{budgets} give candidates {budgets.smallest} epochs at first: {error}; "
                "change them in classArgs, or the proxy's score or criterion"
            ) from None


def _check_assessor(assessor: dict[str, Any], proxy: ProxyConfig) -> None:
    """Refuse an assessor that cannot judge what trials of this ``proxy.yml`` report after each epoch."""
    if proxy.score == "untrained":
        raise ConfigError(
            "an assessor judges trials by their epochs, but score is 'untrained', which trains nothing; "
            "set score: contrastive, or leave the assessor out"
        )
    name = str(assessor.get("name") or assessor.get("className", "").rpartition(".")[2])
    if name.lower() != "curvefitting":
        return
    if proxy.contrastive.criterion != "drop":
        raise ConfigError(
            f"criterion is {proxy.contrastive.criterion!r}, but Curvefitting needs results that are positive and rise; "
            "set criterion: drop, or use Medianstop"
        )
    arguments, epochs = assessor.get("classArgs") or {}, proxy.contrastive.epochs
    number = arguments.get("epoch_num", 20)
    if proxy.contrastive.steps is None and number != epochs:
        raise ConfigError(
            f"epoch_num of the assessor is {number}, but trials train {epochs} epochs; set epoch_num: {epochs}"
        )
