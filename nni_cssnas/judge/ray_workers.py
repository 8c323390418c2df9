"""Actors of Ray that work in batches: what a dead one had is done by another, and nodes that join get workers.

Whatever happens to actors and nodes, a batch whose result does not arrive is done again by another; a score depends on the
architecture, the images and the settings alone, so that it is the same there.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from nni_cssnas.base.files import one_line
from nni_cssnas.base.workers import DEATHS
from nni_cssnas.errors import ExperimentError
from nni_cssnas.judge.screening import LAG, Screened

__all__ = ["Workers"]

BATCH_SECONDS = 1.0
"""A batch takes about so long: it is what a killed worker costs."""

BATCH_MOST = 100
"""Architectures in a batch."""

ACTORS_PER_SECOND = 16
"""With more workers than this batches last longer, so that the main process has so many a second to hand out."""

LOOK_SECONDS = 5.0
"""Between two looks at which nodes there are."""

PATIENCE = 60.0
"""Seconds without any worker after which it is said what is waited for."""


class Nodes(Protocol):
    """What workers must know of a cluster."""

    ray: Any

    def total(self, resource: str) -> float:
        """How much of a resource all nodes have together."""

    def nodes(self) -> list[Mapping[str, float]]:
        """What each node that is alive has."""

    def alive(self) -> list[dict[str, Any]]:
        """What Ray tells of each node that is alive."""


def _worker_class() -> type:
    """The class of the actors. It is made here so that Ray sends its code: a node without this package can say so."""

    class Worker:
        def about(self) -> dict[str, Any]:
            """What is installed on this node, or the ``problem`` that it has."""
            import os
            import platform
            import socket

            import ray

            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
            context = ray.get_runtime_context()
            found = {
                "node": socket.gethostname(),
                "node_id": context.get_node_id(),
                "Python": platform.python_version(),
            }
            try:
                import torch

                from nni_cssnas import __version__
                from nni_cssnas.spaces.identity import own_sources
            except ImportError as error:
                return found | {"problem": f"{error}; install nni-cssnas in the Python that runs Ray there"}
            return found | {"torch": torch.__version__, "nni-cssnas": __version__, "code of nni-cssnas": own_sources()}

        def begin(self, files: dict[str, bytes], make: bytes, sent: Any) -> str | None:
            """Be ready to work; gives the problem if there is one."""
            import pickle
            import shutil
            import sys
            import tempfile
            from pathlib import Path

            from nni_cssnas.base.files import one_line
            from nni_cssnas.base.paths import make_importable

            self.folder = ""
            if files:
                self.folder = tempfile.mkdtemp(prefix="nni_cssnas-")
                for name, content in files.items():
                    path = Path(self.folder, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                make_importable(Path(self.folder))
            try:
                self.object = pickle.loads(make)(sent)
            except Exception as error:
                shutil.rmtree(self.folder, ignore_errors=True)
                return one_line(error) or type(error).__name__
            sys.stdout.flush()
            return None

        def work(self, name: str, items: list[Any]) -> tuple[float, list[tuple[bool, Any]], list[str]]:
            """Seconds, whether each item was done and its result or error, and what was warned of."""
            import time
            import warnings

            from nni_cssnas.base.files import one_line
            from nni_cssnas.errors import CssnasError, ExperimentError

            start = time.perf_counter()
            results: list[tuple[bool, Any]] = []
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", UserWarning)
                for item in items:
                    try:
                        results.append((True, getattr(self.object, name)(item)))
                    except CssnasError as error:
                        results.append((False, error))
                    except Exception as error:
                        reason = f"{type(error).__name__}: {one_line(error)}"
                        results.append((False, ExperimentError(f"{item} cannot be scored: {reason}")))
            return time.perf_counter() - start, results, [str(one.message) for one in caught]

        def end(self) -> None:
            """Leave nothing behind."""
            import shutil

            if getattr(self, "folder", None):
                shutil.rmtree(self.folder, ignore_errors=True)

    return Worker


@dataclass(eq=False)
class _Job:
    kind: str
    item: Any
    arrived: Callable[[Any], None]
    done: bool = False
    result: Any = None
    error: Exception | None = None
    deaths: int = 0


@dataclass(eq=False)
class _Actor:
    handle: Any
    node: str = "a node"
    node_id: str = ""
    ready: bool = False
    batches: deque[list[_Job]] = field(default_factory=deque)


def _nothing(result: Any) -> None:
    pass


class Workers:
    """Actors that work; when one dies, another one does its batch again.

    Parameters
    ----------
    cluster
        Where.
    make
        Makes, on its node, the object whose methods a worker calls; it gets ``sent``, and raises what is wrong there.
    sent
        What Ray keeps once on each node.
    files
        Modules that are put where they can be imported, by path.
    number
        Of workers; None for as many as there is room for.
    cpus, gpus
        Of each worker.
    """

    def __init__(
        self,
        cluster: Nodes,
        make: Callable[[Any], Any],
        sent: Any = None,
        *,
        files: Mapping[str, bytes] | None = None,
        number: int | None = None,
        cpus: int = 1,
        gpus: float = 0.0,
    ) -> None:
        self._cluster, self._ray = cluster, cluster.ray
        self._number, self._cpus, self._gpus = number, cpus, gpus
        if number is None and not self._room():
            raise ExperimentError(
                f"Ray's cluster has no room for a worker, which asks for {self._asks()}: it has "
                f"{cluster.total('CPU'):g} CPUs and {cluster.total('GPU'):g} GPUs on {len(cluster.nodes())} nodes; "
                "add nodes, or lower threads in proxy.yml"
            )
        kind = _worker_class()
        self._here = kind().about()
        self._kind = self._ray.remote(kind).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        dumps = self._ray.cloudpickle.dumps
        self._arguments = (self._ray.put(dict(files or {})), dumps(make), self._ray.put(sent))
        self._actors: list[_Actor] = []
        self._left_out: list[_Actor] = []
        self._queue: deque[_Job] = deque()
        self._waiting: dict[Any, tuple[_Actor, Callable[[_Actor, Any], None]]] = {}
        self._seconds: float | None = None  # of one item
        self._failed_starts = 0
        self._worked = False
        self._alive_at = self._looked_at = time.monotonic()
        self._grow()

    # ---- what is asked of it ----------------------------------------------------------------------

    def start(self, kind: str, item: Any, arrived: Callable[[Any], None] = _nothing) -> Callable[[], Any]:
        """Begin the method ``kind`` of a worker's object on ``item``; what is returned waits for the result.

        ``arrived`` is called with the result as soon as it is there, before those that were begun earlier. What is returned
        raises what the work raises, and ExperimentError if the worker has died :data:`DEATHS` times of it.
        """
        job = _Job(kind, item, arrived)
        self._queue.append(job)
        if len(self._queue) >= self._batch:
            self._hand_out()
        return partial(self._finish, job)

    def ahead(self) -> int:
        """How many items may be begun before the first is finished, so that every worker has something to do."""
        return max(LAG, 2 * self._slots * self._batch * max(1, len(self._actors)))

    def end(self) -> None:
        """Stop at once; nothing that still runs is waited for."""
        actors = [*self._actors, *self._left_out]
        with suppress(Exception):  # the cluster may be gone
            idle = [actor for actor in actors if actor.ready and not actor.batches]
            self._ray.wait([actor.handle.end.remote() for actor in idle], num_returns=len(idle), timeout=2)
        for actor in actors:
            with suppress(Exception):
                self._ray.kill(actor.handle)
        self._waiting.clear()
        self._actors.clear()

    # ---- batches ----------------------------------------------------------------------------------

    @property
    def _batch(self) -> int:
        if not self._seconds:
            return 1
        seconds = BATCH_SECONDS * max(1.0, len(self._actors) / ACTORS_PER_SECOND)
        return min(BATCH_MOST, max(1, round(seconds / self._seconds)))

    @property
    def _slots(self) -> int:
        """Batches that a worker has at a time. While it does one, the next is on its way, unless they take long."""
        return 2 if (self._seconds or 0.0) < BATCH_SECONDS else 1

    def _finish(self, job: _Job) -> Any:
        while not job.done:
            self._hand_out()
            self._collect()
        if job.error is not None:
            raise job.error
        return job.result

    def _hand_out(self) -> None:
        """Give what is in the queue to workers that have a place for it, those first that have nothing to do.

        What a worker has died of is alone with the next one: a result that was on its way when it died is lost with it, and
        what comes after would be taken for what killed it, or this for what comes after.
        """
        ready = sorted((actor for actor in self._actors if actor.ready), key=lambda actor: len(actor.batches))
        for filled in range(self._slots):
            for actor in ready:
                suspected = any(job.deaths for jobs in actor.batches for job in jobs)
                if filled and (suspected or (self._queue and self._queue[0].deaths)):
                    continue
                if self._queue and len(actor.batches) == filled:
                    # At the end, and of proposals, there are few: everyone gets a part.
                    self._send(actor, min(self._batch, math.ceil(len(self._queue) / len(ready))))

    def _send(self, actor: _Actor, number: int) -> None:
        first = self._queue[0]
        jobs: list[_Job] = []
        while self._queue and len(jobs) < (1 if first.deaths else number):
            if self._queue[0].kind != first.kind or (jobs and self._queue[0].deaths):
                break
            jobs.append(self._queue.popleft())
        actor.batches.append(jobs)
        self._expect(actor, actor.handle.work.remote(first.kind, [job.item for job in jobs]), self._arrived)

    def _expect(self, actor: _Actor, ref: Any, then: Callable[[_Actor, Any], None]) -> None:
        self._waiting[ref] = (actor, then)

    def _collect(self) -> None:
        """Wait for something to arrive, and take all that has."""
        now = time.monotonic()
        if any(actor.ready for actor in self._actors):
            self._alive_at = now
        elif now - self._alive_at > PATIENCE:
            self._alive_at = math.inf  # it is said once
            warnings.warn(
                f"no worker has started on Ray for {PATIENCE:.0f} seconds: each asks for {self._asks()}, and "
                f"{self._ray.available_resources().get('CPU', 0.0):g} CPUs are free; waiting for nodes",
                stacklevel=2,
            )
        if now - self._looked_at >= LOOK_SECONDS:
            self._grow()
        if not self._waiting:
            time.sleep(LOOK_SECONDS / 10)
            return
        refs = list(self._waiting)
        there, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        if not there:
            there, _ = self._ray.wait(refs, num_returns=1, timeout=LOOK_SECONDS)
        arrived = set(there)
        for ref in refs:  # in the order in which they were begun: what a dead worker did before its end counts
            if ref in arrived and ref in self._waiting:
                self._take(ref)

    def _take(self, ref: Any) -> None:
        errors = self._ray.exceptions
        actor, then = self._waiting.pop(ref)
        try:
            value = self._ray.get(ref)
        except errors.RayTaskError as error:
            raise ExperimentError(
                f"a worker of Ray on {actor.node} fails ({one_line(error.cause or error)[:300]}); what was done is kept"
            ) from None
        except errors.RayError as error:
            self._lost(actor, one_line(error))
            return
        then(actor, value)

    def _arrived(self, actor: _Actor, value: tuple[float, list[tuple[bool, Any]], list[str]]) -> None:
        """Results of a batch."""
        seconds, results, warned = value
        jobs = actor.batches.popleft()
        self._worked = True
        each = seconds / len(jobs)
        self._seconds = each if self._seconds is None else 0.8 * self._seconds + 0.2 * each
        for message in warned:
            warnings.warn(message, stacklevel=2)
        for job, (good, result) in zip(jobs, results, strict=True):
            if good:
                # The driver's own choices: one copy of their names instead of one for each result.
                job.result = replace(result, choices=dict(job.item)) if isinstance(result, Screened) else result
                job.arrived(job.result)
            else:
                job.error = result
            job.done = True

    # ---- life and death ---------------------------------------------------------------------------

    def _room(self) -> int:
        """How many workers all nodes have room for."""
        numbers = []
        for resources in self._cluster.nodes():
            room = [resources.get("CPU", 0.0) / self._cpus]
            if self._gpus:
                # A card is not shared across its edge: of 2 GPUs, 0.4 each, there are 4.
                room.append(resources.get("GPU", 0.0) * math.floor(1 / self._gpus + 1e-9))
            numbers.append(math.floor(min(room) + 1e-9))
        return sum(numbers)

    def _asks(self) -> str:
        cpus = f"{self._cpus} CPU{'s' if self._cpus > 1 else ''}"
        return f"{cpus} and {self._gpus:g} GPU" if self._gpus else cpus

    def _grow(self) -> None:
        """Start the workers that are missing."""
        self._looked_at = time.monotonic()
        there = {node["NodeID"] for node in self._cluster.alive()}
        self._left_out = [actor for actor in self._left_out if actor.node_id in there]
        wanted = self._number or self._room()
        for _ in range(wanted - len(self._actors) - len(self._left_out)):
            actor = _Actor(self._kind.remote())
            self._actors.append(actor)
            self._expect(actor, actor.handle.about.remote(), self._met)

    def _met(self, actor: _Actor, about: dict[str, Any]) -> None:
        """An actor runs, and says what its node has."""
        actor.node, actor.node_id = about["node"], about["node_id"]
        problem = about.get("problem")
        if problem is None:
            problem = "; ".join(
                f"{name} is {about[name]} there and {value} here"
                for name, value in self._here.items()
                if name not in ("node", "node_id") and about[name] != value
            )
            problem = problem and f"{problem}; install the same versions on every node"
        if problem:
            self._refuse(actor, problem)
        else:
            files, make, sent = self._arguments
            self._expect(actor, actor.handle.begin.remote(files, make, sent), self._begun)

    def _begun(self, actor: _Actor, problem: str | None) -> None:
        if problem is not None:
            self._refuse(actor, problem)
            return
        actor.ready = True
        self._failed_starts = 0

    def _refuse(self, actor: _Actor, problem: str) -> None:
        """End, if a node cannot be used; but once there are results, only leave out a node that has come since."""
        message = f"node {actor.node} of Ray's cluster cannot be used: {problem}"
        if not self._worked:
            raise ExperimentError(message)
        if all(other.node_id != actor.node_id for other in self._left_out):
            warnings.warn(f"{message}; the search goes on without it", stacklevel=2)
        # It keeps its place, so that no other worker is started there.
        self._actors.remove(actor)
        self._left_out.append(actor)

    def _lost(self, actor: _Actor, reason: str) -> None:
        """An actor is gone: begin what it had once more, first of all."""
        with suppress(Exception):
            self._ray.kill(actor.handle)
        self._waiting = {ref: value for ref, value in self._waiting.items() if value[0] is not actor}
        if actor in self._actors:
            self._actors.remove(actor)
        if not actor.ready:
            self._failed_starts += 1
            if self._failed_starts > DEATHS + len(self._actors):
                raise ExperimentError(
                    f"workers of Ray die as they start, the last on {actor.node} ({reason[:300]}); what was done is kept, "
                    "and the same command goes on"
                )
        batches = list(actor.batches)
        actor.batches.clear()
        for job in batches[0] if batches else ():  # the one that it was at
            job.deaths += 1
            if job.deaths == DEATHS:
                job.done = True
                job.error = ExperimentError(
                    f"a worker of Ray died {DEATHS} times while it worked on {job.item}, the last on {actor.node} "
                    f"(out of memory?: {reason[:300]}); what was done is kept, and the same command goes on"
                )
        self._queue.extendleft(job for jobs in reversed(batches) for job in reversed(jobs) if not job.done)
        self._grow()
