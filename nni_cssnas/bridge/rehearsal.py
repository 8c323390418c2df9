"""What every trial of an experiment would fail of, found before its manager is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nni_cssnas.base.paths import make_importable
from nni_cssnas.bridge.experiment_file import Checked, check_experiment
from nni_cssnas.bridge.launch import free_port
from nni_cssnas.bridge.remote import Remote, ask_machines, carry_images, check_source

if TYPE_CHECKING:
    from nni_cssnas.images.pool import Images

__all__ = ["Rehearsal", "rehearse"]


@dataclass(frozen=True)
class Rehearsal:
    """What was looked at: how many ``trials`` (None: no limit), and the number of ``images`` and name of the ``space``, which
    are None where the trials are not this package's or run where this machine cannot look."""

    trials: int | None
    images: int | None = None
    space: str | None = None


def rehearse(
    config: Path,
    *,
    on_stage: Callable[[str, int, int], None] | None = None,
    on_machine: Callable[[str], None] | None = None,
    port: int | None = None,
) -> Rehearsal:
    """Check ``experiment.yml``, then ``proxy.yml``, the space and the images of its trials, as far as they are here.

    On ``platform: remote`` the machines are asked for what they need, and images are carried to them.

    Parameters
    ----------
    config
        The file that ``nnictl create`` shall run.
    on_stage
        See :meth:`~nni_cssnas.judge.proxy.Proxy.rehearse`.
    on_machine
        Told one line for each other machine that can be used.
    port
        On which the manager will listen; by default the first free one from 8080.

    Raises
    ------
    CssnasError
        In one line, that of what is wrong first.
    """
    checked = check_experiment(config)
    machines = None if checked.remote is None else _Machines(checked, checked.remote, on_machine or _nobody)
    if machines is not None:
        machines.ask(port)
    if checked.proxy is None or not (checked.local if machines is None else machines.have_images_here()):
        if machines is not None:
            machines.carry(None)
        return Rehearsal(checked.trials)
    make_importable(checked.code_directory)  # a space of the user's own

    from nni_cssnas.judge.feasibility import Feasibility
    from nni_cssnas.judge.proxy import Proxy, random_candidates
    from nni_cssnas.spaces import make_space

    # Another machine may have the GPU.
    proxy = Proxy(checked.proxy if machines is None else checked.proxy.model_copy(update={"device": "cpu"}))
    space = make_space(checked.proxy.scored_space)
    if checked.constraints is not None:
        Feasibility(checked.constraints, checked.proxy).check_possible(checked.proxy.seed)
    proxy.rehearse(on_stage or _nothing, next(random_candidates(space, checked.proxy, checked.proxy.seed)))
    if machines is not None:
        machines.carry(proxy.images)
    return Rehearsal(checked.trials, len(proxy.images), checked.proxy.space.name)


class _Machines:
    """Those of ``platform: remote``: :meth:`ask` them before anything expensive, then :meth:`carry` the images."""

    def __init__(self, checked: Checked, remote: Remote, tell: Callable[[str], None]) -> None:
        self.remote = remote
        self.tell = tell
        self.section = None if checked.proxy is None else checked.proxy.images
        if checked.source is not None:
            check_source(checked.source, checked.code_directory)
        self.source = self._place(checked.code_directory.resolve())

    def _place(self, code: Path) -> str | None:
        """Where another machine will look for the images; None where they travel with the code or the package."""
        if self.section is None or self.section.source == "tiles":
            return None
        if self.section.source == "cifar10":
            from nni_cssnas.images.sources import CIFAR10_FOLDER

            return "cifar10" if self.section.root is None else str(self.section.root / CIFAR10_FOLDER)
        return None if Path(self.section.source).is_relative_to(code) else self.section.source

    def ask(self, port: int | None) -> None:
        self.asked = ask_machines(
            self.remote, port=port or free_port(), source=self.source, config=self.section, tell=self.tell
        )

    def have_images_here(self) -> bool:
        """Whether this machine can look at the images too; they may lie on the others only."""
        from nni_cssnas.images.sources import is_here

        return self.section is not None and is_here(self.section)

    def carry(self, images: Images | None) -> None:
        carry_images(self.asked, source=self.source, config=self.section, images=images, tell=self.tell)


def _nothing(stage: str, done: int, total: int) -> None:
    pass


def _nobody(line: str) -> None:
    pass
