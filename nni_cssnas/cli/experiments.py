"""Experiments: run one, write one, prepare one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nni_cssnas.cli.app import app, console, mapping, short

if TYPE_CHECKING:
    from nni_cssnas.config import ProxyConfig


Port = Annotated[int | None, typer.Option(help="Port of the portal; default: 8080 or the next free one.")]
Public = Annotated[
    bool, typer.Option("--public", help="Open the portal to other machines, at an address with a secret in it.")
]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the manager and the portal running at the end.")]
Top = Annotated[int, typer.Option("--top", "-k", min=1, help="How many of the best trials to list.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="NNI's id of an experiment that is not running.")]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The experiment.yml that nnictl shall run.")],
    port: Port = None,
    public: Public = False,
    keep: Keep = False,
    top: Top = 3,
) -> None:
    """Run an experiment with nnictl, wait for it with a progress bar, and show the best architecture."""
    from nni_cssnas import launch
    from nni_cssnas.cli.watching import follow

    check_experiment(config)
    follow(lambda: launch.create(config, port=port, public=public), keep=keep, top=top)


@app.command()
def resume(experiment: Id, port: Port = None, public: Public = False, keep: Keep = False, top: Top = 3) -> None:
    """Go on with an experiment that was stopped or killed, as run does."""
    from nni_cssnas import launch
    from nni_cssnas.cli.watching import follow

    follow(lambda: launch.resume(experiment, port=port, public=public), keep=keep, top=top)


@app.command()
def view(experiment: Id, port: Port = None, public: Public = False) -> None:
    """Open the portal of an experiment that is not running."""
    from nni_cssnas import launch
    from nni_cssnas.cli.watching import announce

    with console.status("starting the NNI manager"):
        started = launch.view(experiment, port=port, public=public)
    announce(started)
    console.print(f"stop it with: nnictl stop {started.id}", highlight=False)


@app.command()
def env() -> None:
    """Print what protects plain nnictl too: eval "$(nni-cssnas env)"."""
    from nni_cssnas.guard import shell_line

    print(shell_line())


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the experiment; made if it is not there.")],
    space: Annotated[
        str, typer.Option("--space", help="module:attribute of an NNI model space.")
    ] = "nni_cssnas.spaces:CellSpace",
    images: Annotated[str, typer.Option("--images", help="A folder, an .npz, cifar10 or tiles.")] = "tiles",
    arguments: Annotated[str, typer.Option(help="Arguments of the space, as YAML: '{width: 16}'.")] = "",
    size: Annotated[int | None, typer.Option(min=8, help="Edge of the images in pixels.")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Layer that gives the logits, where it cannot be found; '' for none.")
    ] = None,
    score: Annotated[str, typer.Option(help="untrained, contrastive or combined.")] = "untrained",
    preset: Annotated[str, typer.Option(help="cpu, gpu or paper.")] = "cpu",
    trials: Annotated[int, typer.Option(min=1, help="Architectures to try.")] = 100,
    concurrency: Annotated[int, typer.Option(min=1, help="Trials at a time.")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace files that lie there.")] = False,
) -> None:
    """Write a ready experiment for any model space, after scoring one of its architectures."""
    settings: dict[str, object] = {"preset": preset, "score": score, "seed": seed}
    given = mapping(arguments)
    settings["space"] = {
        "name": space,
        **({"arguments": given} if given else {}),
        **({} if classifier is None else {"classifier": classifier}),
    }
    source = images if images in ("tiles", "cifar10") else str(Path(images).expanduser().resolve())
    settings["images"] = {"source": source, **({"size": size} if size else {})}
    if size is not None:
        # A preset's views are smaller than its images, which may be too small for the space.
        settings["views"] = {"input_size": size}

    from nni_cssnas.scaffold import Scaffold

    sys.path.insert(0, str(Path.cwd()))  # a space of the user's own
    scaffold = Scaffold(folder, settings, trials=trials, concurrency=concurrency)
    if not force:
        scaffold.refuse_to_overwrite()
    with console.status("scoring one random architecture"):
        result = scaffold.check()
    cost = f"{short(result.components['params'])} parameters, {short(result.components['macs'])} multiply-adds"
    console.print(f"a random architecture of {space} was scored: {cost}", highlight=False)
    for path in scaffold.write():
        console.print(f"  {path}", soft_wrap=True, highlight=False)
    console.print(f"start the search with:\n  {scaffold.command}", soft_wrap=True, highlight=False)


@app.command()
def space(
    config: Annotated[Path, typer.Argument(help="The proxy.yml that names the space.")] = Path("proxy.yml"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: search_space.json beside the config.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file with other contents.")] = False,
) -> None:
    """Write search_space.json for an experiment."""
    from nni_cssnas.config import ProxyConfig
    from nni_cssnas.errors import ConfigError
    from nni_cssnas.results.records import write_atomically

    settings = ProxyConfig.load(config)
    from nni_cssnas.spaces import make_space, search_space

    sys.path.insert(0, str(config.parent.resolve()))  # a space of the user's own lies beside its experiment
    choices = search_space(make_space(settings.space))
    path = output or config.parent / "search_space.json"
    text = json.dumps(choices, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text and not force:
        raise ConfigError(f"{path} has other contents; use --force to replace it")
    write_atomically(path, text)
    console.print(f"{path}: {len(choices)} choices", soft_wrap=True)


@app.command()
def register() -> None:
    """Make the tuners known to nnictl by name: CssnasTPE and CssnasHyperopt."""
    from nni_cssnas import launch

    for line in launch.register_tuners():
        console.print(line, highlight=False)


def check_experiment(config: Path) -> int | None:
    """Refuse a wrong experiment.yml or proxy.yml before a manager is started; gives the number of trials."""
    import shlex

    import yaml

    from nni_cssnas.config import ProxyConfig
    from nni_cssnas.errors import ConfigError

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
    from nni_cssnas.errors import ConfigError

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
    from nni_cssnas.config import ConstraintsConfig, ProxyConfig, ScreenConfig
    from nni_cssnas.errors import ConfigError, nearest
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
    from nni_cssnas.errors import ConfigError

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
