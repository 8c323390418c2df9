"""``experiment.yml``, checked before a manager is started: what NNI refuses with a traceback, or not at all."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nni_cssnas.base.files import one_line, read_mapping
from nni_cssnas.base.paths import importable
from nni_cssnas.bridge.remote import Remote, check_code_folder
from nni_cssnas.config import ConstraintsConfig, ProxyConfig
from nni_cssnas.errors import ConfigError, nearest
from nni_cssnas.measures import COSTS

__all__ = ["Checked", "check_experiment", "count_gpus", "platform_of"]

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

Settings = Mapping[str, Any]
"""A mapping of ``experiment.yml``; its keys are lower case without underscores, since NNI takes every spelling."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """What :func:`check_experiment` read: the number of ``trials`` (None: no limit), the ``proxy.yml`` of the trials (None if
    they are not this package's), their ``code_directory``, whether they run on this machine (``local``), the machines on which
    they run by SSH (``remote``), the ``constraints`` of a tuner of this package, and ``source``, the trials' ``images.source``
    as their ``proxy.yml`` has it."""

    trials: int | None
    proxy: ProxyConfig | None
    code_directory: Path
    local: bool
    constraints: ConstraintsConfig | None = None
    remote: Remote | None = None
    source: str | None = None


def check_experiment(config: Path) -> Checked:
    """Refuse a wrong ``experiment.yml``, or the ``proxy.yml`` of its trials, before a manager is started.

    Nothing is written or started; a tuner of the user's own is imported.

    Parameters
    ----------
    config
        The file that ``nnictl create`` shall run.

    Raises
    ------
    ConfigError
        If a setting cannot be used; names the setting, its value and the remedy.
    """
    raw = _read(config)
    settings = _plain(raw)
    proxy = _proxy_of(settings, config.parent)
    trials = _code_directory(settings, config.parent)
    for section in ("tuner", "advisor", "assessor"):
        if settings.get(section) is not None:
            _check_algorithm(section, settings[section], config.parent, trials, proxy)
    _check_numbers(settings)
    _check_paths(settings, config.parent)
    _check_search_space(settings, config.parent)
    _check_gpus(settings)
    canonical = _check_by_nni(raw, config)
    remote = None
    if _service(settings).get("platform") == "remote":
        check_code_folder(trials)
        remote = Remote.of(canonical.training_service)
    number = settings.get("maxtrialnumber")
    return Checked(
        trials=number if isinstance(number, int) else None,
        proxy=proxy,
        code_directory=trials,
        local=_local_service(settings) is not None,
        constraints=_constraints(settings),
        remote=remote,
        source=None if proxy is None else _source_of(settings, config.parent),
    )


def platform_of(config: Path) -> str | None:
    """The ``platform`` that an ``experiment.yml`` names; None if it names several, or is to be refused anyway."""
    try:
        return _service(_plain(_read(config))).get("platform")
    except ConfigError:
        return None


def count_gpus() -> int:
    """NVIDIA GPUs of this machine, counted as NNI counts them: by the driver, which takes no import of torch."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


def _constraints(settings: Settings) -> ConstraintsConfig | None:
    """What the tuner refuses, if it is one of this package, whose arguments are checked."""
    tuner = _plain(settings.get("tuner") or {})
    given = (tuner.get("classargs") or {}).get("constraints")
    own = str(tuner.get("classname") or "").startswith("nni_cssnas.") or tuner.get("name") in OWN_NAMES
    return ConstraintsConfig(**given) if own and given else None


# ---- the file ---------------------------------------------------------------------------------------


def _read(config: Path) -> dict[str, Any]:
    settings = read_mapping(config, "NNI's settings")
    if "trainingServicePlatform" in settings:
        return _of_nni_1(settings, config)
    return settings


def _of_nni_1(settings: dict[str, Any], config: Path) -> dict[str, Any]:
    from nni.experiment.config import convert

    try:
        return dict(convert.to_v2(settings))
    except Exception:
        raise ConfigError(
            f"{config} is in the form of NNI 1 (trainingServicePlatform) and cannot be converted; write it in that of "
            "NNI 3, with trialCommand and trainingService: {platform: local}"
        ) from None


def _plain(settings: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key).lower().replace("_", ""): value for key, value in settings.items()}


def _path(name: str, value: Any, base: Path) -> Path:
    """What a setting names, relative to the file."""
    try:
        path = base / Path(str(value)).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path  # whoever needs it says so
    except (OSError, RuntimeError, ValueError) as error:  # too long, an unknown user, characters that no name has
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"{name} is {str(value)[:80]!r}: {one_line(reason)}") from None
    return path


def _proxy_of(settings: Settings, base: Path) -> ProxyConfig | None:
    """The settings of the trials; None if they are not this package's."""
    path = _proxy_file(settings, base)
    return None if path is None else ProxyConfig.load(path)


def _source_of(settings: Settings, base: Path) -> str | None:
    """``images.source`` as the ``proxy.yml`` of the trials has it: as they will read it on another machine."""
    path = _proxy_file(settings, base)
    images = None if path is None else read_mapping(path).get("images")
    source = images.get("source") if isinstance(images, dict) else None
    return source if isinstance(source, str) else None


def _proxy_file(settings: Settings, base: Path) -> Path | None:
    """The ``proxy.yml`` that the trials' command names; None if they are not this package's."""
    command = str(settings.get("trialcommand", ""))
    try:
        shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"trialCommand is {command!r}: {error}") from None
    trial = re.search(r"nni_cssnas\.trial\b(\s+--isolated\b)?", command)
    if trial is None:
        return None
    # The command is a shell's: other commands may follow, and quotes may surround it all.
    argument = re.match(r"""\s+(?![-0-9]*[<>])(?:"([^"]+)"|'([^']+)'|([^\s"'<>|&;()#]+))""", command[trial.end() :])
    name = next(filter(None, argument.groups())) if argument else "proxy.yml"
    return _path("trialCommand", name, _code_directory(settings, base))


def _code_directory(settings: Settings, base: Path) -> Path:
    folder = _path("trialCodeDirectory", settings.get("trialcodedirectory", "."), base)
    if not folder.is_dir():
        raise ConfigError(
            f"trialCodeDirectory is {settings['trialcodedirectory']!r}, and {folder} is no folder; "
            "name the folder with proxy.yml, relative to experiment.yml"
        )
    return folder


def _check_numbers(settings: Settings) -> None:
    """What NNI only asserts, without a word."""
    for key, name in (("trialconcurrency", "trialConcurrency"), ("maxtrialnumber", "maxTrialNumber")):
        number = settings.get(key)
        if number is None and key == "maxtrialnumber":
            continue
        if number is None:
            raise ConfigError(f"{name} is missing; write how many trials shall run at a time, as {name}: 1")
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigError(f"{name} is {number!r}; it must be a whole number from 1")
    for key, name in (("maxexperimentduration", "maxExperimentDuration"), ("maxtrialduration", "maxTrialDuration")):
        if settings.get(key) is not None:
            _check_duration(name, settings[key])
    levels = ("fatal", "error", "warning", "info", "debug", "trace")
    if settings.get("loglevel", "info") not in levels:
        raise ConfigError(f"logLevel is {settings['loglevel']!r}{nearest(settings['loglevel'], levels)}")


def _check_duration(name: str, value: Any) -> None:
    from nni.experiment.config.utils import parse_time

    try:
        seconds = parse_time(value)
    except (ValueError, TypeError, AttributeError):
        seconds = 0
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ConfigError(f"{name} is {value!r}; it must be a time as 90s, 30m, 2h or 1d")


def _check_paths(settings: Settings, base: Path) -> None:
    _code_directory(settings, base)
    working = settings.get("experimentworkingdirectory")
    folder = Path.home() / "nni-experiments" if working is None else _path("experimentWorkingDirectory", working, base)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    problem = "cannot be written" if there.is_dir() else "is a file"
    if working is None:
        raise ConfigError(
            f"experimentWorkingDirectory is not given, and its default is {folder}, but {there} {problem}; "
            "name a folder that can be written"
        )
    raise ConfigError(
        f"experimentWorkingDirectory is {str(working)!r}, but {there} {problem}; "
        "name a folder that can be written, or leave it out for ~/nni-experiments"
    )


def _check_search_space(settings: Settings, base: Path) -> None:
    """Refuse a search space that is missing, broken, or of another tuner's kind."""
    from nni_cssnas.tuners.space import check_choices

    space = settings.get("searchspace")
    if space is None:
        name = settings.get("searchspacefile")
        if name is None:
            raise ConfigError(
                "searchSpaceFile is missing; write it with: nni-cssnas space proxy.yml, "
                "and name it as searchSpaceFile: search_space.json"
            )
        space = _read_search_space(_path("searchSpaceFile", name, base))
    if space == {}:
        raise ConfigError("the search space is empty; write it with: nni-cssnas space proxy.yml")
    check_choices(space)
    tuner = settings.get("tuner")
    kind = tuner.get("name") if isinstance(tuner, dict) else None
    for name, choice in space.items():
        _check_kind(name, choice, str(kind))


def _read_search_space(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"searchSpaceFile: cannot read {path}: {getattr(error, 'strerror', None) or error}; "
            "write it with: nni-cssnas space proxy.yml"
        ) from None
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = one_line(error)
        raise ConfigError(f"searchSpaceFile: {path} is neither JSON nor YAML: {reason}") from None


def _check_kind(name: str, choice: Mapping[str, Any], tuner: str) -> None:
    meta = _registered(tuner)
    if meta is None or meta.name not in ONLY_NUMBERS or choice["_type"] != "choice":
        return
    text = next((value for value in choice["_value"] if not isinstance(value, (int, float))), None)
    if text is not None:
        raise ConfigError(
            f"tuner {tuner} searches only among numbers, but choice {name} has the value {text!r}; "
            f"use tuner: {OWN_TUNER}"
        )


def _local_service(settings: Settings) -> Settings | None:
    """The ``trainingService`` if it is this machine; None if trials run elsewhere."""
    service = _service(settings)
    return service if service.get("platform") == "local" else None


def _service(settings: Settings) -> Settings:
    """The ``trainingService``; nothing where it is a list of several."""
    service = settings.get("trainingservice")
    return _plain(service) if isinstance(service, dict) else {}


def _check_gpus(settings: Settings) -> None:
    local = _local_service(settings)
    if local is None:
        return  # the GPUs are another machine's
    number = local.get("trialgpunumber", settings.get("trialgpunumber"))
    if number is None or number == 0:
        return
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ConfigError(f"trialGpuNumber is {number!r}; it must be a whole number from 0")
    found = count_gpus()
    if number > found:
        there = "no NVIDIA GPU was" if found == 0 else f"only {found} {'was' if found == 1 else 'were'}"
        remedy = "0, and with device: cpu in proxy.yml trials run on the CPU" if found == 0 else f"at most {found}"
        raise ConfigError(
            f"trialGpuNumber is {number}, but {there} found on this machine; set trialGpuNumber: {remedy}"
        )
    if local.get("useactivegpu") is None:
        raise ConfigError(
            "useActiveGpu is missing, which NNI demands with trialGpuNumber; write trainingService: {platform: local, "
            "useActiveGpu: true} if a display uses the GPU, else false"
        )
    _check_gpu_indices(local.get("gpuindices"), found)


def _check_gpu_indices(indices: Any, found: int) -> None:
    items = str(indices).split(",") if isinstance(indices, (str, int)) else indices
    for item in items or ():
        if not str(item).strip().isdecimal() or int(item) >= found:
            raise ConfigError(
                f"gpuIndices is {indices!r}; it must be numbers from 0 to {found - 1}, separated by commas"
            )


def _check_by_nni(raw: Mapping[str, Any], config: Path) -> Any:
    """Ask NNI itself, whose exceptions ``nnictl`` shows as tracebacks; gives its own form of the settings."""
    from nni.experiment.config import ExperimentConfig, utils

    try:
        utils.set_base_path(config.parent)
        try:
            found = ExperimentConfig(**raw)
            found.validate()
            return found.canonical_copy()
        finally:
            utils.unset_base_path()
    except Exception as error:
        reason = one_line(error) or "a value that it does not allow"
        raise ConfigError(f"{config}: NNI refuses it: {reason}{_misspelt(raw)}") from None


def _misspelt(raw: Mapping[str, Any]) -> str:
    from nni.experiment.config import ExperimentConfig, utils

    known = {utils.camel_case(field.name) for field in dataclasses.fields(ExperimentConfig)}
    plain = {utils.case_insensitive(name) for name in known}
    wrong = [str(key) for key in raw if utils.case_insensitive(str(key)) not in plain]
    return nearest(wrong[0], known) if wrong else ""


# ---- tuner, advisor and assessor --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Algorithm:
    """What NNI would make: an object of the class of that full name, with these arguments."""

    section: str
    shown: str
    class_name: str
    arguments: Mapping[str, Any]
    folder: Path


def _check_algorithm(section: str, given: Any, base: Path, trials: Path, proxy: ProxyConfig | None) -> None:
    if not isinstance(given, dict):
        raise ConfigError(f"{section} is {given!r}; write {section}: {OWN_TUNER}")
    algorithm = _resolve(section, _plain(given), base, trials)
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
        folder = _path(f"codeDirectory of the {section}", directory, base)
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
    trained = () if proxy.score == "untrained" else ("loss", "drop", "alignment", "uniformity")
    known = (*scores, *COSTS, "latency_ms", *measures, *trained)
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
