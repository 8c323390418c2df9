"""A whole search without an experiment, from the settings to the files: what ``nni-cssnas screen`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import ConfigError
from nni_cssnas.judge.screening import Screened, Screener
from nni_cssnas.results.screened import refuse_to_overwrite, write_screened
from nni_cssnas.results.screening_log import LOG_NAME
from nni_cssnas.search.explore import by_score, choose, explore, open_log
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
    cluster: Cluster | None = None,
    on_step: OnStep = lambda step: None,
) -> SearchResult:
    """See :func:`nni_cssnas.screen`; here all of ``proxy.yml`` is one argument, and the time is in seconds.

    With a ``cluster`` (:func:`nni_cssnas.judge.on_ray.connected`) the architectures are scored there.
    """
    if output is not None and not force and not (output / LOG_NAME).exists():
        refuse_to_overwrite(output, top)
    on_step(Step("images"))
    screener = Screener(config if cluster is None else cluster.for_driver(config))
    log = None if output is None else open_log(screener, output, force=force)
    if log is not None and log.screened:
        on_step(Step("recalled", log.screened))
    found: list[Screened] = []
    ranked: list[Screened] = []
    try:
        with (
            screener.spread(workers or screener.default_workers(num + guided), log)
            if cluster is None
            else cluster.spread(screener, config, workers, log)
        ) as spread:
            best = None
            for item in explore(screener, spread, num, guided, seed=config.seed, seconds=seconds):
                found.append(item)
                best = item.score if best is None else max(best, item.score)
                on_step(Step("screening", len(found), num + guided, best))

            def counted(method: Any, items: Any) -> Iterator[Any]:
                return _counting(spread(method, items), items, on_step, best)

            ranked = choose(found, config, counted)
    except KeyboardInterrupt:
        on_step(Step("interrupted", len(found) if log is None else log.screened))
        if not found:
            raise
    interrupted = not ranked and bool(found)
    ranked = ranked or by_score(found)
    if not ranked:
        raise ConfigError(
            f"nothing was screened in {(seconds or 0) / 60:g} minutes; "
            "the same command goes on from what was begun, or give it more --minutes"
        )
    files = [] if output is None else write_screened(ranked, output, top=top, target=_stated(config))
    return SearchResult.of_screening(ranked, config, folder=output, files=tuple(files), interrupted=interrupted)


def _stated(config: ProxyConfig) -> dict[str, Any] | None:
    return None if config.target is None else config.target.model_dump(mode="json")


def _counting(results: Iterable[T], items: Sized, on_step: OnStep, best: float | None) -> Iterator[T]:
    for number, result in enumerate(results, start=1):
        on_step(Step("finalists", number, len(items), best))
        yield result
