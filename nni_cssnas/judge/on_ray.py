"""Screening on many machines with Ray: the same architectures, scores and files as on one.

Life cycle: :func:`connected` finds what is wrong with the address before any other work, and gives a :class:`Cluster`;
:meth:`Cluster.spread` stands in the place of :meth:`nni_cssnas.judge.screening.Screener.spread`. Ray is imported here only.

A worker is an actor of Ray that holds a screener (:mod:`nni_cssnas.judge.ray_workers`).

The images travel with the actors, once to each node: of the untrained score the few that it looks at, else all that are
kept in memory. Only images that are read from disk all the time, for a score that trains, must lie on every node.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from nni_cssnas.base.files import one_line
from nni_cssnas.base.workers import lagged
from nni_cssnas.config import RAY_ADDRESS, ProxyConfig
from nni_cssnas.errors import ConfigError, DeviceError, ExperimentError, ImagesError
from nni_cssnas.images.pool import Images, SomeImages, StreamedImages, fingerprint
from nni_cssnas.judge.ray_workers import Workers
from nni_cssnas.judge.screening import Memory, Proposals, Screened, Screener, Spread
from nni_cssnas.measures import find_measure
from nni_cssnas.results.screening_log import ScreeningLog
from nni_cssnas.spaces.identity import space_key, users_files

__all__ = ["Cluster", "Standing", "connected", "spread_over"]

ANSWER_SECONDS = 5.0
"""An address that does not answer for so long is taken for a wrong one."""


# ---- the cluster ----------------------------------------------------------------------------------


@contextmanager
def connected(address: str, gpus_per_worker: float | None = None) -> Iterator[Cluster]:
    """A connection to a cluster of Ray.

    Parameters
    ----------
    address
        ``auto`` for the cluster of which this machine is a node, ``host:port`` of its head node, or ``ray://host:port`` of
        a cluster of which this machine is none. A program that is connected already keeps its connection.
    gpus_per_worker
        The part of a GPU that each worker takes; by default 1 where there are GPUs.

    Raises
    ------
    ConfigError
        If an argument cannot be used, or Ray is not installed.
    ExperimentError
        If nothing answers at the address.
    """
    if gpus_per_worker is not None and not 0 < gpus_per_worker <= 1:
        raise ConfigError(
            f"--gpus-per-worker is {gpus_per_worker:g}; it must be above 0 and at most 1, as a worker uses one GPU or a part of it"
        )
    found = RAY_ADDRESS.fullmatch(address)
    if address != "auto" and found is None:
        raise ConfigError(
            f"--ray is {address!r}; give auto, host:port of the head node (`ray start --head` prints it), "
            "or ray://host:10001"
        )
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"--ray is {address!r}, but Ray cannot be imported ({one_line(error)}); "
            "on every node: pip install 'nni-cssnas[ray]'"
        ) from None
    if ray.is_initialized():
        yield Cluster(ray, gpus_per_worker)
        return
    _connect(ray, address)
    try:
        with _silent():
            yield Cluster(ray, gpus_per_worker)
    finally:
        ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Ray from printing to stdout that a worker has died, which is no news here and would be in the way of ``--json``."""
    from ray._private import worker

    printing = getattr(worker, "print_to_stdstream", None)
    if printing is None:  # another version has another name for it
        yield
        return
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = printing


def _connect(ray: Any, address: str) -> None:
    """Connect within seconds, or say that nothing answers."""
    target = _resolved(address)
    if parts := RAY_ADDRESS.fullmatch(target):
        problem = _problem_of(parts["host"].strip("[]"), int(parts["port"]))
        if problem:
            raise ExperimentError(
                f"--ray is {address!r}, but {problem}; start Ray there (`ray start --head`), or correct the address"
            )
    try:
        with _environment("RAY_gcs_server_port_wait_time_s", "1"):  # by itself Ray tries for minutes
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # RuntimeError, ConnectionError, ValueError, TimeoutError, those of gRPC, ...
        reason = one_line(error)[:300]
        remedy = "start Ray (`ray start --head`), or correct the address"
        if "mismatch" in reason:
            remedy = "install the same versions of Ray and Python on every node"
        elif not address.startswith("ray://"):
            remedy += "; a machine that is no node of the cluster connects by ray://host:10001"
        raise ExperimentError(
            f"--ray is {address!r}, but there is no cluster to connect to ({reason}); {remedy}"
        ) from None


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Within the block an environment variable has this value if it had none: a cluster that is started later is to wait longer."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _resolved(address: str) -> str:
    """The address that Ray will try: ``auto`` is where a cluster was last started, which may be long gone."""
    try:
        from ray._private.services import canonicalize_bootstrap_address

        return address if address.startswith("ray://") else str(canonicalize_bootstrap_address(address))
    except Exception:  # there is none, which Ray says best by itself; or another version has other names
        return address


def _problem_of(host: str, port: int) -> str | None:
    """Why no server of gRPC, which Ray's are, can be reached there; None if one answers."""
    try:
        with socket.create_connection((host, port), ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", "", "false"):
                return None
            # The preface of HTTP/2 with empty settings, which a server answers with its own: a frame of type 4.
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        return f"nothing answers at {host}:{port} ({one_line(error)})"
    return None if len(answer) == 9 and answer[3] == 4 else f"what answers at {host}:{port} is not Ray"


class Cluster:
    """The nodes that Ray knows; see :func:`connected`."""

    def __init__(self, ray: Any, gpus_per_worker: float | None) -> None:
        self.ray = ray
        self.gpus_per_worker = gpus_per_worker

    def for_driver(self, config: ProxyConfig) -> ProxyConfig:
        """The settings for this process, which proposes and reads the images but scores nothing."""
        return config.model_copy(update={"device": "cpu"})

    def device(self, config: ProxyConfig) -> str:
        """``cpu`` or ``cuda``: what every worker computes on.

        Raises
        ------
        DeviceError
            If ``cuda`` is asked for and no node has a GPU.
        """
        gpus = self.total("GPU")
        if config.device == "cuda" and not gpus:
            raise DeviceError(
                "device is 'cuda', but Ray knows no GPU in its cluster; "
                "set device: cpu (or auto), or start a node with `ray start --num-gpus`"
            )
        return "cuda" if config.device != "cpu" and gpus else "cpu"

    def total(self, resource: str) -> float:
        """How much of a resource all nodes have together."""
        return sum(resources.get(resource, 0.0) for resources in self.nodes())

    def nodes(self) -> list[Mapping[str, float]]:
        """What each node that is alive has."""
        return [node["Resources"] for node in self.alive()]

    def alive(self) -> list[dict[str, Any]]:
        """What Ray tells of each node that is alive."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    @contextmanager
    def spread(
        self, screener: Screener, config: ProxyConfig, workers: int | None = None, log: ScreeningLog | None = None
    ) -> Iterator[Spread]:
        """As :meth:`nni_cssnas.judge.screening.Screener.spread`, on the cluster; results are kept as they arrive.

        Parameters
        ----------
        screener
            With the settings :meth:`for_driver`.
        config
            The settings by which the workers score. ``threads`` is what each has (by default 1), and takes so many CPUs.
        workers
            How many; by default as many as the nodes have room for, also while nodes come and go.
        log
            What is there is not measured again.

        Raises
        ------
        DeviceError
            If the cluster has no GPU and ``config`` asks for one.
        ExperimentError
            If the cluster has no room for a worker; while it is used: if a node has other versions, another space, no
            images, or if workers die again and again.
        """
        device = self.device(config)
        threads = config.threads or 1
        gpus = (self.gpus_per_worker or 1.0) if device == "cuda" else 0.0
        settings = config.model_copy(update={"device": device, "threads": threads})
        images, key = _sendable(screener.proxy.needed_images(), screener.proxy.images_key)
        pool = Workers(
            self,
            partial(_make_screener, settings, space_key(screener.space), key),
            images,
            files=users_files(screener.space, _own_measures(config)),
            number=workers,
            cpus=threads,
            gpus=gpus,
        )
        try:
            yield spread_over(pool, log)
        finally:
            pool.end()


class Standing:
    """Screening on Ray for a program that asks now and then, as a tuner does, as long as it runs.

    Parameters
    ----------
    config
        All of ``proxy.yml``.
    address, workers, gpus_per_worker
        See :func:`connected` and :meth:`Cluster.spread`.
    """

    def __init__(
        self, config: ProxyConfig, address: str, workers: int | None = None, gpus_per_worker: float | None = None
    ) -> None:
        self._stack = ExitStack()
        with ExitStack() as stack:
            cluster = stack.enter_context(connected(address, gpus_per_worker))
            screener = Screener(cluster.for_driver(config))
            self._spread = stack.enter_context(cluster.spread(screener, config, workers))
            self._stack = stack.pop_all()

    def screen(self, architectures: Iterable[Mapping[str, Any]]) -> list[Screened]:
        """Score them all."""
        return list(self._spread(Screener.screen, architectures))

    def end(self) -> None:
        """Give the workers' places back."""
        self._stack.close()


def spread_over(pool: Workers, log: ScreeningLog | None = None) -> Spread:
    """What applies methods of the workers' objects to many architectures, and keeps the results as they arrive."""
    memory = Memory(log)

    def begin(kind: str, item: Mapping[str, Any]) -> Callable[[], Any]:
        return memory.recall(kind, item) or pool.start(kind, item, partial(memory.keep, kind, item))

    return lambda method, items: lagged(
        partial(begin, method.__name__), items, items.lag if isinstance(items, Proposals) else pool.ahead
    )


def _own_measures(config: ProxyConfig) -> list[Any]:
    """Those of the user's that the score is made of."""
    found = [find_measure(name).function for name in config.untrained.weights]
    return [function for function in found if callable(function)]


# ---- images ---------------------------------------------------------------------------------------


def _sendable(images: Images, key: str) -> tuple[Any, str]:
    """Images as what Ray keeps once on each node, and maps into its workers; None for those that workers read from disk."""
    if isinstance(images, StreamedImages):
        return None, key
    if isinstance(images, SomeImages):
        return (images.total, images.positions.numpy(), images.images.numpy()), key
    return (len(images), None, images.numpy()), key


def _received(sent: Any, key: str) -> Images | None:
    if sent is None:
        return None
    total, positions, array = sent
    with warnings.catch_warnings():
        # The pages are shared by all workers of a node. Nothing writes to them: every batch is a copy.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        images = torch.from_numpy(np.asarray(array))
        return images if positions is None else SomeImages(total, torch.from_numpy(np.array(positions)), images, key)


def _make_screener(config: ProxyConfig, space: str, key: str, sent: Any) -> Screener:
    """What a worker scores with. Raises CssnasError."""
    screener = Screener(config, _received(sent, key))
    if space_key(screener.space) != space:
        raise ExperimentError(
            f"the space {config.space.name!r} is another one there than here; install the same version of it on every node"
        )
    if sent is None and fingerprint(screener.proxy.images) != key:
        raise ImagesError(
            f"the images of {config.images.source!r} are others there than here; put the same files at the same path on "
            "every node, with their times (rsync -a), or raise images.resident_gb, so that they travel with the workers"
        )
    return screener
