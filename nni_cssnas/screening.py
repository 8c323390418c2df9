"""Judging many candidates in one process by the untrained score: before trials are spent, or instead of them."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nni_cssnas.config import ConstraintsConfig, ProxyConfig, ScreenConfig
from nni_cssnas.errors import ConfigError, SpaceError
from nni_cssnas.genotype import Genotype
from nni_cssnas.proxy import Candidate, Proxy, candidate_seed, references_of
from nni_cssnas.scores.cost import latency, multiply_adds, num_parameters
from nni_cssnas.scores.device import resolve_device
from nni_cssnas.spaces.backbone import Backbone
from nni_cssnas.spaces.encoding import decode, random_parameters, search_space
from nni_cssnas.spaces.factory import make_space

__all__ = ["Feasibility", "Screened", "Screener"]


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
        """The screener of a tuner."""
        return cls(_load_proxy(screen.proxy, "screen"))

    def screen(self, parameters: Mapping[str, Any]) -> Screened:
        """Build and score one architecture; one that its space forbids, or that cannot be run, has the worst score."""
        chosen = dict(parameters)
        try:
            sample = decode(self.space, chosen)
            candidate = Candidate(partial(self.space.freeze, sample), candidate_seed(self.config, chosen))
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
        yield from self.many(self._draw(num, seed), seconds, workers)

    def many(
        self, proposals: Iterable[Mapping[str, Any]], seconds: float | None = None, workers: int = 1
    ) -> Iterator[Screened]:
        """Screen architectures, in their order.

        A proposal is taken up to ``2 * workers`` before its result is given, so a tuner that makes the proposals has that
        many trials running.

        Parameters
        ----------
        proposals, seconds, workers
            As for :meth:`random`.
        """
        end = math.inf if seconds is None else time.monotonic() + seconds
        proposals = itertools.takewhile(lambda _: time.monotonic() < end, proposals)
        if workers == 1:
            yield from map(self.screen, proposals)
            return
        _ = self.proxy.reference_set  # once, not by all of them at a time
        threads = max(1, torch.get_num_threads() // workers)
        with ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(self.config, threads)
        ) as pool:
            waiting: deque[Future[Screened]] = deque()
            try:
                for item in proposals:
                    waiting.append(pool.submit(_screen_in_worker, dict(item)))
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


class Feasibility:
    """Whether an architecture keeps the constraints of its space and of the user, before a trial is spent on it.

    Parameters
    ----------
    limits
        A tuner's ``constraints``.
    config
        All of ``proxy.yml``; by default that which ``limits`` names.

    Raises
    ------
    CssnasError
        If the space cannot be used.
    """

    def __init__(self, limits: ConstraintsConfig, config: ProxyConfig | None = None) -> None:
        self.limits = limits
        self.config = config or _load_proxy(limits.proxy, "constraints")
        self.space = make_space(self.config.space)
        self.size = self.config.views.input_size or self.config.images.size
        self.measured = any((limits.max_params, limits.max_macs, limits.max_latency_ms))

    def problem(self, parameters: Mapping[str, Any]) -> str | None:
        """Which constraint an architecture breaks, and by how much; None if it keeps all."""
        try:
            sample = decode(self.space, parameters)
            if not self.measured:
                return None
            backbone = Backbone(self.space.freeze(sample), self.size, self.config.space.classifier)
            costs: list[tuple[str, float | None, Callable[[], float]]] = [
                ("max_params", self.limits.max_params, lambda: num_parameters(backbone)),
                ("max_macs", self.limits.max_macs, lambda: multiply_adds(backbone, (3, self.size, self.size))),
                ("max_latency_ms", self.limits.max_latency_ms, lambda: self._latency(backbone)),
            ]
            for name, limit, cost in costs:
                if limit is not None and (found := cost()) > limit:
                    return f"{name} is {limit:g}, and it has {found:g}"
        except SpaceError as error:
            return str(error)
        return None

    def _latency(self, backbone: Backbone) -> float:
        device = resolve_device(self.config.device)
        return latency(backbone.to(device), torch.zeros(1, 3, self.size, self.size, device=device))


def _load_proxy(name: Path, setting: str) -> ProxyConfig:
    """A tuner's ``proxy.yml``: looked for in the working folder, then where modules are (``codeDirectory``)."""
    for folder in (Path.cwd(), *map(Path, sys.path)):
        path = folder / name
        if path.is_file():
            # A space of the user's own lies beside its experiment.
            if str(path.parent.resolve()) not in sys.path:
                sys.path.append(str(path.parent.resolve()))
            return ProxyConfig.load(path)
    raise ConfigError(f"{setting}: proxy is {str(name)!r}, which is neither in {Path.cwd()} nor in codeDirectory")


_worker: Screener | None = None


def _start_worker(config: ProxyConfig, threads: int) -> None:
    global _worker
    # Ctrl-C is the main process's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = Screener(config.model_copy(update={"threads": threads}))


def _screen_in_worker(parameters: dict[str, Any]) -> Screened:
    assert _worker is not None
    return _worker.screen(parameters)
