#!/usr/bin/env python3
"""What does screening on Ray cost, and how far does it go?

    python experiments/benchmarks/ray_overhead.py

prints, for a cluster of Ray of one node that it starts on this machine:

overhead
    architectures per second with the default score, two workers of Ray against two processes, in turns;
stub
    architectures that only sleep, on two workers: the part of the ideal speed, and by how much the main process grows;
driver
    processor time of the main process for each batch and for each architecture in it: drawing, handing out, the log;
resume
    a search of so many architectures whose scores are all in its log: read, ranked and written, in a process of its own;
paper
    no run but a simulation with the times of ``driver``: how busy the main process is, and how much of the workers' time is
    used, when it serves so many GPUs.

``--parts`` takes some of them, ``--short`` small numbers.
"""

from __future__ import annotations

import argparse
import heapq
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from nni_cssnas.config import ProxyConfig
from nni_cssnas.judge import on_ray, ray_workers
from nni_cssnas.judge.screening import Memory, Screened, Screener
from nni_cssnas.measures import DEFAULT_WEIGHTS
from nni_cssnas.search.explore import explore, open_log
from nni_cssnas.spaces.encoding import decode
from nni_cssnas.spaces.factory import make_space

PARTS = ("overhead", "stub", "driver", "resume", "paper")
GPUS, ARCHITECTURES = 64, 10**6


class Stub:
    """In the place of a screener: it waits, and gives a result of the usual size whose score is the architecture's own."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.space = make_space(ProxyConfig().scored_space)

    def screen(self, choices: Mapping[str, Any]) -> Screened:
        time.sleep(self.seconds)
        score = zlib.crc32(json.dumps(dict(choices), sort_keys=True).encode()) / 2**32
        components = {name: score * number for number, name in enumerate((*DEFAULT_WEIGHTS, "params", "macs"), start=1)}
        return Screened(dict(choices), score, components, self.space.genotype_of(decode(self.space, choices)))


def make_stub(seconds: float, sent: Any) -> Stub:
    """What a worker works with."""
    return Stub(seconds)


@contextmanager
def cluster() -> Iterator[on_ray.Cluster]:
    """Ray on this machine alone."""
    import ray

    before = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.2",
            _temp_dir=folder,
        )
        if __name__ != "__main__":  # the workers cannot import this file
            ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        try:
            with on_ray.connected("auto") as found:
                yield found
        finally:
            ray.shutdown()
            os.environ.clear()  # Ray writes its own into it
            os.environ.update(before)


@contextmanager
def stubs(found: on_ray.Cluster, seconds: float) -> Iterator[ray_workers.Workers]:
    """Two workers that are ready."""
    pool = ray_workers.Workers(found, partial(make_stub, seconds), number=2)
    try:
        for finish in [pool.start("screen", choices) for choices in Screener(small()).random(4, 1)]:
            finish()
        while not all(actor.ready for actor in pool._actors):
            pool._collect()
        yield pool
    finally:
        pool.end()


def small() -> ProxyConfig:
    """The default space and score, and few images."""
    return ProxyConfig(images={"num_images": 256}, threads=1)


def megabytes() -> float:
    return psutil.Process().memory_info().rss / 1e6


def per_second(spread: Any, screener: Screener, number: int) -> float:
    """Architectures per second; the workers are at work already."""
    list(spread(Screener.screen, screener.random(4, 1)))
    start = time.perf_counter()
    done = sum(bool(item.components) for item in explore(screener, spread, number, seed=0))
    if done != number:
        raise RuntimeError(f"{done} architectures of {number} have a score: nothing was measured")
    return number / (time.perf_counter() - start)


def overhead(found: on_ray.Cluster, number: int, rounds: int) -> dict[str, float]:
    """Both ways in turns: whatever else the machine does meets both."""
    screener = Screener(small())
    local, on_cluster = [], []
    for _ in range(rounds):
        with screener.spread(2) as spread:
            local.append(per_second(spread, screener, number))
        with found.spread(screener, small(), 2) as spread:
            on_cluster.append(per_second(spread, screener, number))
    ratios = [ray / here for ray, here in zip(on_cluster, local, strict=True)]
    return {
        "two processes": statistics.median(local),
        "two workers of Ray": statistics.median(on_cluster),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def stub(found: on_ray.Cluster, number: int, seconds: float) -> dict[str, float]:
    """How near two workers come to doing nothing but their work."""
    with stubs(found, seconds) as pool, tempfile.TemporaryDirectory() as folder:
        screener = Screener(small())
        spread = on_ray.spread_over(pool, open_log(screener, Path(folder)))
        grown = []
        start = time.perf_counter()
        for place, _ in enumerate(explore(screener, spread, number, seed=0)):
            if place % (number // 10) == 0:
                grown.append(megabytes())
        spent = time.perf_counter() - start
    return {"part of the ideal": number * seconds / 2 / spent, "grown by MB": grown[-1] - grown[1]}


def driver(found: on_ray.Cluster, number: int) -> dict[str, float]:
    """Milliseconds of processor time of the main process, from batches of two sizes."""
    spent, sizes = [], (1, 50)
    screener = Screener(small())
    with stubs(found, 0.0) as pool:
        for size in sizes:
            ray_workers.BATCH_MOST = size
            with tempfile.TemporaryDirectory() as folder:
                spread = on_ray.spread_over(pool, open_log(screener, Path(folder)))
                start = time.process_time()
                done = sum(1 for _ in explore(screener, spread, number, seed=0))
                spent.append((time.process_time() - start) / done)
    batch = (spent[0] - spent[1]) / (1 / sizes[0] - 1 / sizes[1])
    return {"a batch": 1000 * batch, "an architecture": 1000 * (spent[0] - batch)}


def resume(number: int) -> dict[str, float]:
    """A search that finds all its scores in its log."""
    settings = {**small().model_dump(mode="json", exclude_unset=True), "images": {"num_images": 256}}
    with tempfile.TemporaryDirectory() as folder:
        screener = Screener(small())
        memory = Memory(open_log(screener, Path(folder)))
        known = Stub()
        for choices in screener.random(number, 0):
            memory.keep("screen", choices, known.screen(choices))
        command = [sys.executable, __file__, "--search", folder, "--architectures", str(number)]
        done = subprocess.run(
            command, input=json.dumps(settings), stdout=subprocess.PIPE, text=True, check=True, cwd=folder
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def search(folder: Path, number: int, settings: Mapping[str, Any]) -> dict[str, float]:
    """What :func:`resume` measures: ``nni-cssnas screen`` on a whole log."""
    import nni_cssnas

    def unexpected(self: Screener, choices: Any) -> Any:
        raise RuntimeError(f"{choices} is not in the log: nothing was measured")

    next(Screener(ProxyConfig(**settings)).random(1, 0))
    before = megabytes()
    unexpected.__name__ = "screen"
    Screener.screen = unexpected  # type: ignore[method-assign]
    start = time.perf_counter()
    result = nni_cssnas.screen(config=settings, num=number, workers=1, output=folder)
    spent = time.perf_counter() - start
    if len(result.found) != number or not (folder / "screen.csv").is_file():
        raise RuntimeError(f"{len(result.found)} of {number} architectures were found: nothing was measured")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return {"seconds": spent, "grown by MB": peak - before, "peak MB": peak}


def simulate(
    workers: int, number: int, seconds: float, size: int, batch_cost: float, item_cost: float, slots: int = 2
) -> tuple[float, float]:
    """The part of the time that the main process works, and the part of their time that the workers do.

    Each worker has up to ``slots`` batches, one of which it works on; the main process serves one batch after the other, and
    takes ``batch_cost`` and ``item_cost`` for each architecture in it (seconds) to take its results and hand out the next.
    """
    cost = batch_cost + size * item_cost
    work = size * seconds
    left = max(1, number // size)
    given = busy = driver_free = end = 0.0
    free = [0.0] * workers  # when each is done with what it has
    asked: list[tuple[float, int]] = []  # when a result arrives, of whom
    total = left
    for _ in range(slots):
        for worker in range(workers):
            if left:
                driver_free += cost
                free[worker] = max(free[worker], driver_free) + work
                heapq.heappush(asked, (free[worker], worker))
                left -= 1
    busy = driver_free
    while asked:
        arrived, worker = heapq.heappop(asked)
        driver_free = max(driver_free, arrived) + cost
        busy += cost
        given += work
        end = max(end, driver_free)
        if left:
            left -= 1
            free[worker] = max(free[worker], driver_free) + work
            heapq.heappush(asked, (free[worker], worker))
    if round(given / work) != total:
        raise RuntimeError("the simulation lost a batch")
    return busy / end, given / (workers * end)


def paper(batch_cost: float, item_cost: float, number: int) -> list[dict[str, float]]:
    """The simulation, in milliseconds, for scores of three lengths."""
    rows = []
    for seconds in (0.05, 0.3, 1.5):
        for size in (1, 5, 20, 100):
            busy, used = simulate(GPUS, number, seconds, size, batch_cost / 1000, item_cost / 1000)
            rows.append({"seconds each": seconds, "batch": size, "driver busy": busy, "workers busy": used})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--short", action="store_true", help="small numbers, which say nothing")
    parser.add_argument("--driver-cost", nargs=2, type=float, metavar="MS", help="for paper, in place of a measurement")
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--architectures", type=int, default=100_000, help="of resume")
    args = parser.parse_args(arguments)
    if args.search is not None:
        print(json.dumps(search(args.search, args.architectures, json.loads(sys.stdin.read()))))
        return 0
    short = args.short
    cost = args.driver_cost
    on_a_cluster: dict[str, Callable[[on_ray.Cluster], dict[str, float]]] = {
        "overhead": lambda nodes: overhead(nodes, 4, 1) if short else overhead(nodes, 60, 3),
        "stub": lambda nodes: stub(nodes, 200, 0.01) if short else stub(nodes, 10_000, 0.05),
        "driver": lambda nodes: driver(nodes, 200 if short else 5000),
    }
    found: dict[str, Any] = {}

    def tell(name: str, numbers: dict[str, float]) -> None:
        found[name] = numbers
        print(f"{name}: " + ", ".join(f"{what} {value:.4g}" for what, value in numbers.items()), flush=True)

    if wanted := [name for name in on_a_cluster if name in args.parts]:
        with cluster() as nodes:
            for name in wanted:
                tell(name, on_a_cluster[name](nodes))
    if "resume" in args.parts:
        tell("resume", resume(500 if short else args.architectures))
    if "paper" in args.parts:
        if cost is None and "driver" not in found:
            parser.error("paper needs the times of a main process: --parts driver paper, or --driver-cost 1.0 0.5")
        batch_cost, item_cost = cost or found["driver"].values()
        print(f"paper: {GPUS} GPUs, {ARCHITECTURES if not short else 10_000} architectures, ", end="")
        print(f"{batch_cost:.3g} ms a batch and {item_cost:.3g} ms an architecture")
        for row in paper(batch_cost, item_cost, ARCHITECTURES if not short else 10_000):
            print(
                f"  {row['seconds each']:g} s each, batches of {row['batch']:.0f}: the main process is busy "
                f"{row['driver busy']:.1%} of the time, the GPUs {row['workers busy']:.1%}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
