"""Processes that share work: they end with the one that started them, and are replaced when they die."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any

from nni_cssnas.errors import ExperimentError

__all__ = ["DEATHS", "Workers", "end_with_parent", "lagged"]

DEATHS = 3
"""What kills the process that works on it so often is not tried again."""


def end_with_parent() -> None:
    """Let this worker process end as soon as the process that started it is gone, even by ``kill -9``."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


@dataclass
class _Job:
    work: Callable[[Any], Any]
    item: Any
    future: Future[Any] | None = None
    deaths: int = 0


class Workers:
    """Processes that work. When one dies, as under the system's out-of-memory killer, all are started anew.

    Parameters
    ----------
    number
        Of processes.
    begin, arguments
        What each calls first.
    """

    def __init__(self, number: int, begin: Callable[..., None], arguments: tuple[Any, ...] = ()) -> None:
        self._make = partial(
            ProcessPoolExecutor,
            number,
            multiprocessing.get_context("spawn"),
            initializer=begin,
            initargs=arguments,
        )
        self._pool = self._make()
        self._jobs: list[_Job] = []

    def start(self, work: Callable[[Any], Any], item: Any) -> Callable[[], Any]:
        """Begin ``work(item)``; what is returned waits for the result.

        It raises what the work raises, and ExperimentError if its process has died :data:`DEATHS` times.
        """
        job = _Job(work, item)
        self._jobs.append(job)
        self._submit(job)
        return partial(self._finish, job)

    def end(self) -> None:
        """Stop at once; nothing that still runs is waited for."""
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()

    def _submit(self, job: _Job) -> None:
        try:
            job.future = self._pool.submit(job.work, job.item)
        except BrokenProcessPool:
            job.future = None  # _finish begins anew

    def _finish(self, job: _Job) -> Any:
        while True:
            try:
                if job.future is None:
                    raise BrokenProcessPool
                result = job.future.result()
                self._jobs.remove(job)
                return result
            except BrokenProcessPool:
                job.deaths += 1
                if job.deaths == DEATHS:
                    raise ExperimentError(
                        f"a worker process died {DEATHS} times while it worked on {job.item} (out of memory?); "
                        "what was done is kept, and the same command with fewer --workers goes on"
                    ) from None
                self.end()
                self._pool = self._make()
                for waiting in self._jobs:
                    done = waiting.future is not None and waiting.future.done() and not waiting.future.cancelled()
                    if not done or waiting.future is None or waiting.future.exception() is not None:
                        self._submit(waiting)


def lagged(
    start: Callable[[Any], Callable[[], Any]], items: Iterable[Any], lag: int | Callable[[], int]
) -> Iterator[Any]:
    """Start each item and, ``lag`` items later, give its result; a ``lag`` that is called may change."""
    waiting: deque[Callable[[], Any]] = deque()
    for item in items:
        waiting.append(start(item))
        while len(waiting) > (lag() if callable(lag) else lag):
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()
