"""A whole search without an experiment, from the settings to the files: what ``nni-cssnas screen`` does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nni_cssnas.base.device import resolve_device
from nni_cssnas.config import ConstraintsConfig, ProxyConfig
from nni_cssnas.errors import ConfigError, SpaceError
from nni_cssnas.genotype import Choices
from nni_cssnas.judge.costs import Costs
from nni_cssnas.judge.feasibility import Feasibility
from nni_cssnas.judge.screening import Screened, Screener
from nni_cssnas.results.front import write_front
from nni_cssnas.results.screened import refuse_to_overwrite, write_screened
from nni_cssnas.results.screening_log import LOG_NAME, ScreeningLog
from nni_cssnas.search.evolve import choices_key
from nni_cssnas.search.explore import by_score, choose, explore, open_log
from nni_cssnas.search.objectives import Deferred, Objectives, check_objectives
from nni_cssnas.search.result import SearchResult

if TYPE_CHECKING:
    from nni_cssnas.judge.on_ray import Cluster

__all__ = ["OnStep", "Step", "screen"]

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """How far a search is.

    Attributes
    ----------
    stage
        ``images`` (they are read), ``checked`` (space and images are: ``done`` images), ``recalled`` (``done`` architectures were scored by an earlier run of this search),
        ``screening``, ``finalists`` (the best are looked at once more), ``interrupted`` (``done`` are kept in the log).
    done, total
        Of the stage; 0 where nothing is counted.
    best
        The best score so far, or None.
    """

    stage: str
    done: int = 0
    total: int = 0
    best: float | None = None


OnStep = Callable[[Step], None]


def screen(
    config: ProxyConfig,
    *,
    num: int = 1000,
    guided: int = 0,
    seconds: float | None = None,
    workers: int | None = None,
    output: Path | None = None,
    top: int = 1,
    force: bool = False,
    objectives: Sequence[str] = (),
    limits: ConstraintsConfig | None = None,
    origin: Choices | None = None,
    cascade: int = 1,
    cluster: Cluster | None = None,
    on_step: OnStep = lambda step: None,
) -> SearchResult:
    """See :func:`nni_cssnas.screen`; here all of ``proxy.yml`` is one argument, the limits of costs are one, the known
    architecture is given by its choices, and the time is in seconds.

    With a ``cluster`` (:func:`nni_cssnas.judge.on_ray.connected`) the architectures are scored there.
    """
    names = check_objectives(objectives, config)
    _check_cascade(cascade, names, origin, num)
    if output is not None and not force and not (output / LOG_NAME).exists():
        refuse_to_overwrite(output, top)
    on_step(Step("images"))
    within = Feasibility(limits or ConstraintsConfig(), config)
    within.check_possible(config.seed)
    screener = Screener(config if cluster is None else cluster.for_driver(config))
    log = None if output is None else open_log(screener, output, force=force)
    if log is not None:
        _keep_latencies(within.costs, log)
        if log.screened:
            on_step(Step("recalled", log.screened))
    judged = Objectives(names, within.costs)
    found: list[Screened] = []
    ranked: list[Screened] = []
    try:
        with (
            screener.spread(workers or screener.default_workers(num + guided), log)
            if cluster is None
            else cluster.spread(screener, config, workers, log)
        ) as spread:
            best = None
            for item in explore(
                screener,
                spread,
                num,
                guided,
                seed=config.seed,
                seconds=seconds,
                allowed=lambda choices: not within.limits or within.problem(choices) is None,
                mend=within.mended,
                values=judged.values if names else None,
                origin=origin,
                cascade=cascade,
                size=partial(_macs, within.costs),
            ):
                found.append(item)
                best = item.score if best is None else max(best, item.score)
                on_step(Step("screening", len(found), math.ceil(num / cascade) + math.ceil(guided / cascade), best))

            def counted(method: Any, items: Any) -> Iterator[Any]:
                return _counting(spread(method, items), items, on_step, best)

            ranked = choose(_not_worse(found, origin, judged, within), config, counted)
    except KeyboardInterrupt:
        on_step(Step("interrupted", len(found) if log is None else log.screened))
        if not found:
            raise
    interrupted = not ranked and bool(found)
    ranked = ranked or by_score(_not_worse(found, origin, judged, within))
    if not ranked:
        raise ConfigError(
            f"nothing was screened in {(seconds or 0) / 60:g} minutes; "
            "the same command goes on from what was begun, or give it more --minutes"
        )
    result = SearchResult.of_screening(
        ranked,
        config,
        [Deferred(partial(judged.costs, item)) for item in ranked],
        folder=output,
        interrupted=interrupted,
        objectives=names or ("params",),
        order=_order(found, ranked),
    )
    if output is None:
        return result
    files = write_screened(ranked, output, top=top, target=_stated(config))
    if names:
        files += write_front(result.front_view(), output)
    return replace(result, files=tuple(files))


def _check_cascade(cascade: int, objectives: Sequence[str], origin: Choices | None, num: int) -> None:
    """Raises ConfigError if it cannot be, or asks for the largest networks where small ones are wanted."""
    if not 1 <= cascade <= max(1, num):
        raise ConfigError(f"--cascade is {cascade}; it must be from 1 to --num, {num}")
    if cascade > 1 and origin is not None:
        raise ConfigError(f"--cascade is {cascade}, which chooses among random architectures; leave out --from")
    if cascade > 1 and objectives:
        raise ConfigError(
            f"--cascade is {cascade}, which scores the architectures with the most multiply-adds only, and --objective "
            f"{objectives[0]} asks for a trade-off; leave one of them out, or set a budget, as --max-macs"
        )


def _macs(costs: Costs, choices: Choices) -> float:
    """Multiply-adds of the network that will be trained; what cannot be built is smallest."""
    try:
        return costs.of(choices, ["macs"])["macs"]
    except SpaceError:
        return -math.inf


def _keep_latencies(costs: Costs, log: ScreeningLog) -> None:
    """Measure each latency once, also where the search goes on after an interruption."""
    device = resolve_device(costs.config.device).type

    def keep(choices: Choices, value: float) -> None:
        log.keep("cost", choices, measured={"latency_ms": value}, device=device)

    before = costs.measured
    for row in log.rows("cost"):
        if row.get("device") == device and row["measured"].get("latency_ms") is not None:
            costs.remember(row["cost"], row["measured"]["latency_ms"])
    for choices, value in before:
        if log.recall("cost", choices) is None:
            keep(choices, value)
    costs.on_measured = keep


def _not_worse(
    found: Sequence[Screened], origin: Choices | None, judged: Objectives, within: Feasibility
) -> list[Screened]:
    """What is not worse in every objective than the architecture that the search began with.

    Where that one breaks a limit, which all others keep, it is left out itself.
    """
    if origin is None or not found:
        return list(found)
    key = choices_key(origin)
    known = next((item for item in found if choices_key(item.choices) == key), None)
    if known is None or within.problem(origin) is not None:
        return [item for item in found if item is not known]
    least = judged.values(known)

    def is_kept(item: Screened) -> bool:
        values = judged.values(item)
        worse = math.isnan(values[0]) or all(value < bound for value, bound in zip(values, least, strict=True))
        return item is known or not worse

    return [item for item in found if is_kept(item)]


def _order(found: Sequence[Screened], ranked: Sequence[Screened]) -> tuple[int, ...]:
    """The ranks in the order in which the architectures were screened."""
    ranks = {id(item.choices): rank for rank, item in enumerate(ranked, start=1)}
    return tuple(ranks[id(item.choices)] for item in found if id(item.choices) in ranks)


def _stated(config: ProxyConfig) -> dict[str, Any] | None:
    return None if config.target is None else config.target.model_dump(mode="json")


def _counting(results: Iterable[T], items: Sized, on_step: OnStep, best: float | None) -> Iterator[T]:
    for number, result in enumerate(results, start=1):
        on_step(Step("finalists", number, len(items), best))
        yield result
