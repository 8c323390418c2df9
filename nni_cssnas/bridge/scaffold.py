"""A ready experiment folder for any model space (``nni-cssnas init``)."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from nni_cssnas.base.files import write_atomically
from nni_cssnas.config import ConstraintsConfig, ProxyConfig
from nni_cssnas.errors import ConfigError
from nni_cssnas.judge.feasibility import Feasibility
from nni_cssnas.judge.proxy import Candidate, Proxy, ProxyResult, random_candidates
from nni_cssnas.spaces import make_space, search_space
from nni_cssnas.spaces.encoding import has_constraints

__all__ = ["Scaffold"]


class Scaffold:
    """The files of an experiment, checked before one of them is written.

    Parameters
    ----------
    folder
        Where the experiment shall lie; made if it is not there.
    settings
        The contents of ``proxy.yml``.
    trials, concurrency
        Architectures to try, and how many at a time.
    limits
        What a network that becomes a trial may cost: the tuner's ``constraints``.

    Raises
    ------
    CssnasError
        If the settings are wrong, the space, its module or the images cannot be used, or a bounded search finds no network that
        keeps the limits.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        *,
        trials: int,
        concurrency: int,
        limits: ConstraintsConfig | None = None,
    ) -> None:
        self.folder = folder
        self.config = ProxyConfig(**settings)
        self.module = _own_module(self.config.space.name, Path.cwd())
        self.space = make_space(self.config.scored_space)
        self.choices = search_space(self.space)
        arguments: dict[str, Any] = {"seed": self.config.seed}
        limits = limits or ConstraintsConfig()
        given = limits.model_dump(mode="json", exclude_none=True, exclude={"proxy"})
        if given:
            Feasibility(limits, self.config).check_possible(self.config.seed)
        if given or has_constraints(self.space):
            arguments["constraints"] = given
        experiment = {
            "experimentName": f"nni_cssnas: {self.config.space.name.split(':')[1]}",
            "searchSpaceFile": "search_space.json",
            "trialCommand": "python -m nni_cssnas.trial proxy.yml",
            "trialCodeDirectory": ".",
            "trialConcurrency": concurrency,
            "maxTrialNumber": trials,
            "tuner": {
                "className": "nni_cssnas.tuners.tpe.Tpe",
                "codeDirectory": ".",
                "classArgs": arguments,
            },
            "trainingService": {"platform": "local"},
        }
        self.files = {
            "experiment.yml": yaml.safe_dump(experiment, sort_keys=False),
            "search_space.json": json.dumps(self.choices, indent=1) + "\n",
            "proxy.yml": yaml.safe_dump(settings, sort_keys=False),
            "README.md": self._readme(),
        }
        if self.module is not None:
            self.files[self.module.name] = self.module.read_text(encoding="utf-8")

    def refuse_to_overwrite(self) -> None:
        """Raise ConfigError if a file of the folder has other contents."""
        for name, text in self.files.items():
            path = self.folder / name
            if path.exists() and path.read_text(encoding="utf-8") != text:
                raise ConfigError(f"{path} is there with other contents; name another folder, or use --force")

    @cached_property
    def judge(self) -> Proxy:
        """What scores as the trials will, but for a contrastive training, which is cut to two steps: a look whether it runs."""
        contrastive = self.config.contrastive.model_copy(update={"steps": 2, "criterion": "loss"})
        return Proxy(self.config.model_copy(update={"contrastive": contrastive}))

    @cached_property
    def candidate(self) -> Candidate:
        """A random architecture."""
        return next(random_candidates(self.space, self.config, self.config.seed))

    def check(self) -> ProxyResult:
        """Score it as a trial would; gives its numbers, or raises what the trial would."""
        return self.judge.judge(self.candidate)

    def write(self) -> list[Path]:
        """Write the files; gives their paths."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            write_atomically(self.folder / name, text)
        return [self.folder / name for name in self.files]

    @property
    def command(self) -> str:
        """What starts the experiment."""
        return f"nni-cssnas run {shlex.quote(str(self.folder / 'experiment.yml'))}"

    def _readme(self) -> str:
        return f"""# Label-free search in {self.config.space.name}

{len(self.choices)} choices, judged by `score: {self.config.score}` on {self.config.images.source}.

    {self.command}

After a break: `nni-cssnas resume EXPERIMENT_ID`. The best again: `nni-cssnas best EXPERIMENT_ID`. Plain `nnictl` opens
the portal to the whole network, unless the shell has evaluated `eval "$(nni-cssnas env)"`.

`proxy.yml` says how a candidate is judged. After a change of the space: `nni-cssnas space proxy.yml --force`.
"""


def _own_module(name: str, folder: Path) -> Path | None:
    """The file that must go with the experiment, since only this folder has the space's module; None if installed.

    Raises
    ------
    ConfigError
        If the module is a package of this folder, which cannot be copied as one file.
    """
    top = name.split(":")[0].split(".")[0]
    # Asked of another process elsewhere, as a trial is one: this folder is on the path of this one, and an editable
    # install may lie below it.
    ask = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({top!r}) is None)"
    with tempfile.TemporaryDirectory() as elsewhere:
        if subprocess.run([sys.executable, "-c", ask], cwd=elsewhere, check=False, capture_output=True).returncode == 0:
            return None
    if (folder / f"{top}.py").is_file():
        return folder / f"{top}.py"
    if (folder / top).is_dir():
        raise ConfigError(
            f"space {name!r} is in a package of {folder}, which trials do not see; install it (pip install -e .), or put "
            "the space into one module file"
        )
    return None  # make_space says that there is no such module
