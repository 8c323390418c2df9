"""What every trial of an experiment would fail of, found before its manager is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nni_cssnas.base.paths import make_importable
from nni_cssnas.bridge.experiment_file import check_experiment

__all__ = ["Rehearsal", "rehearse"]


@dataclass(frozen=True)
class Rehearsal:
    """What was looked at: how many ``trials`` (None: no limit), and the number of ``images`` and name of the ``space``, which
    are None where the trials are not this package's or run on other machines."""

    trials: int | None
    images: int | None = None
    space: str | None = None


def rehearse(config: Path, *, on_stage: Callable[[str, int, int], None] | None = None) -> Rehearsal:
    """Check ``experiment.yml``, then ``proxy.yml``, the space and the images of its trials, as far as they are here.

    Parameters
    ----------
    config
        The file that ``nnictl create`` shall run.
    on_stage
        See :meth:`~nni_cssnas.judge.proxy.Proxy.rehearse`.

    Raises
    ------
    CssnasError
        In one line, that of what is wrong first.
    """
    checked = check_experiment(config)
    if checked.proxy is None or not checked.local:
        return Rehearsal(checked.trials)
    make_importable(checked.code_directory)  # a space of the user's own

    from nni_cssnas.judge.feasibility import Feasibility
    from nni_cssnas.judge.proxy import Proxy, random_candidates
    from nni_cssnas.spaces import make_space

    proxy = Proxy(checked.proxy)
    space = make_space(checked.proxy.scored_space)
    if checked.constraints is not None:
        Feasibility(checked.constraints, checked.proxy).check_possible(checked.proxy.seed)
    proxy.rehearse(on_stage or _nothing, next(random_candidates(space, checked.proxy, checked.proxy.seed)))
    return Rehearsal(checked.trials, len(proxy.images), checked.proxy.space.name)


def _nothing(stage: str, done: int, total: int) -> None:
    pass
