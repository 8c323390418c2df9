"""``experiment.yml``, checked before a manager is started: what NNI refuses with a traceback, or not at all."""

from __future__ import annotations

import dataclasses
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
from nni_cssnas.bridge.algorithms import OWN_NAMES, check_algorithm, check_choice
from nni_cssnas.bridge.nnictl import check_libraries
from nni_cssnas.bridge.remote import Remote, check_code_folder
from nni_cssnas.bridge.settings import Settings, path_of, plain
from nni_cssnas.config import ConstraintsConfig, ProxyConfig
from nni_cssnas.errors import ConfigError, nearest

__all__ = ["Checked", "check_experiment", "count_gpus", "platform_of"]


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
    ExperimentError
        If NNI cannot start with the libraries that are installed.
    """
    check_libraries()
    raw = _read(config)
    settings = plain(raw)
    proxy = _proxy_of(settings, config.parent)
    trials = _code_directory(settings, config.parent)
    for section in ("tuner", "advisor", "assessor"):
        if settings.get(section) is not None:
            check_algorithm(section, settings[section], config.parent, trials, proxy)
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
        return _service(plain(_read(config))).get("platform")
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
    tuner = plain(settings.get("tuner") or {})
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
    return path_of("trialCommand", name, _code_directory(settings, base))


def _code_directory(settings: Settings, base: Path) -> Path:
    folder = path_of("trialCodeDirectory", settings.get("trialcodedirectory", "."), base)
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
    folder = (
        Path.home() / "nni-experiments" if working is None else path_of("experimentWorkingDirectory", working, base)
    )
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
        space = _read_search_space(path_of("searchSpaceFile", name, base))
    if space == {}:
        raise ConfigError("the search space is empty; write it with: nni-cssnas space proxy.yml")
    check_choices(space)
    tuner = settings.get("tuner")
    kind = tuner.get("name") if isinstance(tuner, dict) else None
    for name, choice in space.items():
        check_choice(name, choice, str(kind))


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


def _local_service(settings: Settings) -> Settings | None:
    """The ``trainingService`` if it is this machine; None if trials run elsewhere."""
    service = _service(settings)
    return service if service.get("platform") == "local" else None


def _service(settings: Settings) -> Settings:
    """The ``trainingService``; nothing where it is a list of several."""
    service = settings.get("trainingservice")
    return plain(service) if isinstance(service, dict) else {}


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
