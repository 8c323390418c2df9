"""Judging many candidates in one process by the untrained score: before trials are spent, or instead of them."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nni_cssnas.config import ProxyConfig, ScreenConfig
from nni_cssnas.errors import ConfigError, SpaceError
from nni_cssnas.genotype import Genotype
from nni_cssnas.proxy import Candidate, Proxy, candidate_seed, references_of
from nni_cssnas.spaces.encoding import decode, random_parameters, search_space
from nni_cssnas.spaces.factory import make_space

__all__ = ["Screened", "Screener"]


@dataclass(frozen=True)
class Screened:
    """One candidate: its choices, its untrained score and the score's components; ``genotype`` if it has cells."""

    parameters: dict[str, Any]
    score: float
    components: dict[str, float]
    genotype: Genotype | None = None


class Screener:
    """Scores architectures of a space by ``untrained``, whatever ``score`` the configuration names for trials.

    Parameters
    ----------
    config
        All of ``proxy.yml``; the image batch and the reference architectures are made once.

    Raises
    ------
    CssnasError
        If the space, the images or the device cannot be used.
    """

    def __init__(self, config: ProxyConfig) -> None:
        self.config = config.model_copy(update={"score": "untrained"})
        self.space = make_space(config.space)
        self.choices = search_space(self.space)
        self.proxy = Proxy(self.config, references_of(self.space, self.config))
        self.proxy.prepare()

    @classmethod
    def of(cls, screen: ScreenConfig) -> Screener:
        """The screener of a tuner; ``screen.proxy`` is looked for in the working folder, then where modules are."""
        for folder in (Path.cwd(), *map(Path, sys.path)):
            path = folder / screen.proxy
            if path.is_file():
                # A space of the user's own lies beside its experiment.
                if str(path.parent.resolve()) not in sys.path:
                    sys.path.append(str(path.parent.resolve()))
                return cls(ProxyConfig.load(path))
        raise ConfigError(
            f"screen: proxy is {str(screen.proxy)!r}, which is neither in {Path.cwd()} nor in codeDirectory"
        )

    def screen(self, parameters: Mapping[str, Any]) -> Screened:
        """Build and score one architecture; one that cannot be built or run has the worst score."""
        chosen = dict(parameters)
        candidate = Candidate(
            partial(self.space.freeze, decode(self.space, chosen)), candidate_seed(self.config, chosen)
        )
        try:
            model = self.proxy.build(candidate)
            genotype = getattr(model, "genotype", None)
            result = self.proxy.score(model, candidate.seed)
        except SpaceError:
            return Screened(chosen, self.proxy.reference_set.worst, {})
        return Screened(chosen, result.score, result.components, genotype)

    def random(self, num: int, seed: int, seconds: float | None = None, workers: int = 1) -> Iterator[Screened]:
        """Screen different random architectures; fewer if the space is small.

        Parameters
        ----------
        num
            How many at most.
        seed
            Of the draw.
        seconds
            Nothing is begun after about that long.
        workers
            Processes, each with its share of the threads; they take some seconds to start. What is found
            does not depend on them.
        """
        drawn = self._draw(num, seed)
        end = math.inf if seconds is None else time.monotonic() + seconds
        if workers == 1:
            yield from (self.screen(item) for item in itertools.takewhile(lambda _: time.monotonic() < end, drawn))
            return
        _ = self.proxy.reference_set  # once, not by all of them at a time
        threads = max(1, torch.get_num_threads() // workers)
        with ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(self.config, threads)
        ) as pool:
            waiting: deque[Future[Screened]] = deque()
            try:
                for item in drawn:
                    if time.monotonic() >= end:
                        break
                    waiting.append(pool.submit(_screen_in_worker, item))
                    if len(waiting) > 2 * workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def default_workers(self, num: int) -> int:
        """One process for each of torch's threads, if ``num`` architectures are worth their start, and on a GPU one."""
        return torch.get_num_threads() if num >= 32 and self.proxy.device.type == "cpu" else 1

    def _draw(self, num: int, seed: int) -> Iterator[dict[str, Any]]:
        """Up to ``num`` different random architectures."""
        rng = np.random.default_rng(seed)
        seen: set[str] = set()
        repeats = 0
        while len(seen) < num and repeats < 1000:
            parameters = random_parameters(self.space, rng)
            key = repr(sorted(parameters.items()))
            if key in seen:
                repeats += 1
                continue
            seen.add(key)
            repeats = 0
            yield parameters


_worker: Screener | None = None


def _start_worker(config: ProxyConfig, threads: int) -> None:
    global _worker
    # Ctrl-C is the main process's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = Screener(config.model_copy(update={"threads": threads}))


def _screen_in_worker(parameters: dict[str, Any]) -> Screened:
    assert _worker is not None
    return _worker.screen(parameters)
