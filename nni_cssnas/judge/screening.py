"""Judging many candidates in one process: before trials are spent, or instead of them."""

from __future__ import annotations

import hashlib
import math
import signal
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from nni_cssnas.base.device import derive_seed
from nni_cssnas.base.workers import Workers, end_with_parent, lagged
from nni_cssnas.config import ProxyConfig
from nni_cssnas.errors import DivergenceError, GenotypeError, MeasureError, SpaceError
from nni_cssnas.genotype import Choices, Genotype
from nni_cssnas.images.pool import Images
from nni_cssnas.judge.proxy import Candidate, Proxy, candidate_seed
from nni_cssnas.results.screening_log import ScreeningLog
from nni_cssnas.scores.combine import DEAD
from nni_cssnas.spaces.encoding import decode, random_choices, search_space
from nni_cssnas.spaces.factory import make_space
from nni_cssnas.spaces.operations import SpareLayers

__all__ = ["LAG", "Memory", "Proposals", "Screened", "Screener", "Spread"]

FINAL_DRAWS = 4
"""A second look is the mean over so many trainings."""

LAG = 8
"""Architectures that are taken before the first result is given, at least."""

Spread = Callable[[Callable[["Screener", Choices], Any], Iterable[Mapping[str, Any]]], Iterator[Any]]
"""``spread(Screener.screen, architectures)`` gives their results in order."""


@dataclass(frozen=True)
class Proposals:
    """Architectures of which each depends on the results so far: ``lag`` of them are taken before the first result is given,
    neither more nor fewer, so that they are the same whatever the number of workers is."""

    items: Iterable[Mapping[str, Any]]
    lag: int = LAG

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.items)


@dataclass(frozen=True)
class Screened:
    """One candidate: its choices, its score and what was measured (nothing where it cannot be run); ``genotype`` if it has
    cells; ``second_look`` is what the finalists of a score with training are ranked by."""

    choices: dict[str, Any]
    score: float
    components: dict[str, float]
    genotype: Genotype | None = None
    second_look: float | None = None


class Screener:
    """Scores architectures of a space as a trial would.

    Parameters
    ----------
    config
        All of ``proxy.yml``; the image batch is made once.
    images
        Those that it names, where they are at hand already.

    Raises
    ------
    CssnasError
        If the space, the images or the device cannot be used.
    """

    def __init__(self, config: ProxyConfig, images: Images | None = None) -> None:
        self.config = config
        self.space = make_space(config.scored_space)
        self.search_space = search_space(self.space)
        self.proxy = Proxy(config, images)
        self.proxy.prepare()
        self._final: dict[int, Proxy] = {}
        # Only the weights of what is trained are those that it was built with.
        self._layers = SpareLayers() if config.score == "untrained" else None

    def screen(self, choices: Choices) -> Screened:
        """Build and score one architecture; one that its space forbids, or that cannot be run, has the worst score."""
        chosen = dict(choices)
        try:
            sample = decode(self.space, chosen)
            candidate = Candidate(partial(self.space.freeze, sample), candidate_seed(self.config, chosen))
            with nullcontext() if self._layers is None else self._layers.used():
                model = self.proxy.build(candidate)
            genotype = getattr(model, "genotype", None)
            result = self.proxy.score(model, candidate.seed)
        except (SpaceError, DivergenceError, MeasureError) as error:
            if isinstance(error, MeasureError):  # the user's to mend; one network need not end the search
                warnings.warn(f"{error}; {chosen} counts as the worst", stacklevel=2)
            worst = -math.inf if self.config.score == "contrastive" else DEAD
            return Screened(chosen, worst, {})
        if self._layers is not None:
            self._layers.take_back()
        return Screened(chosen, result.score, result.components, genotype)

    def finalist(self, choices: Choices) -> dict[str, float]:
        """A second look at one architecture: its ``score`` as the mean over :data:`FINAL_DRAWS` trainings of other weights and
        views."""
        build = partial(self.space.freeze, decode(self.space, choices))
        scores = []
        for number in range(FINAL_DRAWS):
            proxy = self._another(number)
            try:
                scores.append(proxy.judge(Candidate(build, candidate_seed(proxy.config, choices))).score)
            except DivergenceError:
                return {"score": -math.inf}
        return {"score": statistics.fmean(scores)}

    def _another(self, number: int) -> Proxy:
        """The same judge with another seed."""
        if number not in self._final:
            seed = derive_seed(self.config.seed, f"finalists {number}")
            self._final[number] = Proxy(self.config.model_copy(update={"seed": seed}), self.proxy.images)
        return self._final[number]

    def random(self, num: int, seed: int) -> Iterator[dict[str, Any]]:
        """Up to ``num`` different random architectures, as choices; fewer if the space is small."""
        rng = np.random.default_rng(seed)
        seen: set[bytes] = set()
        repeats = 0
        while len(seen) < num and repeats < 1000:
            choices = random_choices(self.space, rng)
            key = hashlib.blake2b(repr(sorted(choices.items())).encode(), digest_size=16).digest()
            if key in seen:
                repeats += 1
                continue
            seen.add(key)
            repeats = 0
            yield choices

    @contextmanager
    def spread(self, workers: int = 1, log: ScreeningLog | None = None) -> Iterator[Spread]:
        """A function that applies a method to many architectures, in so many processes; they take some seconds to start.

        Each process has its share of the threads. Results come in the order of the architectures. Of :class:`Proposals` as
        many are taken before the first result is given as they say: what a tuner learns while it proposes does not depend
        on the number of workers. What is in the ``log`` is not measured again, and what is measured is written there. A
        process that dies is replaced, and its work is done again.
        """
        memory = Memory(log)
        if workers == 1:
            yield lambda method, items: lagged(
                memory.recalling(method, lambda item: partial(method, self, item)), items, _lag(items, LAG)
            )
            return
        threads = max(1, torch.get_num_threads() // workers)
        pool = Workers(workers, _start_worker, (self.config, threads))
        try:
            yield lambda method, items: lagged(
                memory.recalling(method, partial(pool.start, partial(_work, method))),
                items,
                _lag(items, max(LAG, 2 * workers)),
            )
        finally:
            pool.end()

    def default_workers(self, num: int) -> int:
        """One process for each core that torch may use, if ``num`` architectures are worth their start.

        Also on a GPU: what an untrained network of small layers waits for is the Python that sends it off. Of 16 processes
        on one H200 each does .6 of what one does alone. A training keeps the GPU busy by itself.
        """
        if self.proxy.device.type != "cpu":
            return torch.get_num_threads() if num >= 64 and self.config.score == "untrained" else 1
        return torch.get_num_threads() if num >= (32 if self.config.score == "untrained" else 4) else 1


def _lag(items: Iterable[Any], otherwise: int) -> int:
    return items.lag if isinstance(items, Proposals) else otherwise


class Memory:
    """Reads from a log what was measured before, and writes to it what is measured."""

    def __init__(self, log: ScreeningLog | None) -> None:
        self.log = log

    def recall(self, kind: str, item: Mapping[str, Any]) -> Callable[[], Any] | None:
        """What gives the result of an architecture that is in the log, or None."""
        row = None if self.log is None else self.log.recall(kind, item)
        if row is None:
            return None
        try:
            result = _from_row(kind, row, item)
        except GenotypeError as error:
            warnings.warn(f"a line of the log is damaged, and measured again: {error}", stacklevel=2)
            return None
        return lambda: result

    def keep(self, kind: str, item: Mapping[str, Any], result: Any) -> None:
        """Write a result to the log, if there is one."""
        if self.log is not None:
            self.log.keep(kind, item, **_to_row(result))

    def recalling(self, method: Callable[..., Any], start: Callable[[Mapping[str, Any]], Callable[[], Any]]) -> Any:
        """``start`` for the architectures that are not in the log; their results are kept as they are given."""
        kind = method.__name__

        def begin(item: Mapping[str, Any]) -> Callable[[], Any]:
            known = self.recall(kind, item)
            if known is not None:
                return known
            finish = start(item)

            def end() -> Any:
                result = finish()
                self.keep(kind, item, result)
                return result

            return end

        return begin


def _to_row(result: Screened | dict[str, float]) -> dict[str, Any]:
    if isinstance(result, Screened):
        genotype = result.genotype.to_dict() if result.genotype else None
        score = result.score if math.isfinite(result.score) else None  # JSON has no infinity
        return {"score": score, "components": result.components, "genotype": genotype}
    return {"measured": {name: value if math.isfinite(value) else None for name, value in result.items()}}


def _from_row(kind: str, row: Mapping[str, Any], item: Mapping[str, Any]) -> Screened | dict[str, float]:
    if kind == "finalist":
        return {name: -math.inf if value is None else value for name, value in row["measured"].items()}
    genotype = Genotype.from_dict(row["genotype"]) if row["genotype"] else None
    score = -math.inf if row["score"] is None else row["score"]
    # Of very many results each name is kept once.
    components = {sys.intern(name): value for name, value in row["components"].items()}
    return Screened(dict(item), score, components, genotype)


_worker: Screener | None = None


def _start_worker(config: ProxyConfig, threads: int) -> None:
    global _worker
    end_with_parent()
    # Ctrl-C is the main process's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = Screener(config.model_copy(update={"threads": threads}))


def _work(method: Callable[[Screener, Choices], Any], choices: Choices) -> Any:
    assert _worker is not None
    return method(_worker, choices)
