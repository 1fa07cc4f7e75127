"""Reads what replicas and nodes say of themselves while `bench` loads them.

A replica is asked at its own port, through its host's connection: what it says is exact and of
now. What a node of Ray exports is up to 15 s old, but for the GPUs, which only it knows.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from raycluster.bench.server import Look, ServerFigures, summarize
from raycluster.core.errors import RayclusterError
from raycluster.observe.engine_metrics import (
    ENGINE_SERIES,
    GpuSample,
    Reading,
    read_engine,
    read_gpus,
)
from raycluster.observe.replica_endpoints import LISTENING, MetricsAddress, http_ports, listening

if TYPE_CHECKING:
    import httpx

    from raycluster.core.interfaces import Tell
    from raycluster.hosts.fleet import Connected, Fleet
    from raycluster.openai_client.target import Target
    from raycluster.spec import ClusterSpec

T = TypeVar("T")

PERIOD_S = 2.0
_SLOWER = 1000
"""Looks per level, about: in a long one they become rarer."""
_FIND_S = 10.0
_GPU_S = 5.0  # Ray's own period
_TIMEOUT_S = 4.0
_LEAVE_S = 10.0
_THREADS = 2  # a look should take nothing from the loop that measures


class MetricsWatcher:
    """Looks every few seconds from a thread of its own; see bench.server.Watch.

    `look` is told whether it should look closely; the first and the last time it is.
    """

    def __init__(self, look: Callable[[bool], Look], tell: Tell) -> None:
        self._look = look
        self._tell = tell
        self.period = PERIOD_S
        self._looks: list[Look] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Look once; where somebody answers, again and again from then on."""
        self.close()
        self._looks, self._stop = [], threading.Event()
        self._once(closely=True)
        if any(look.replicas for look in self._looks):
            self._thread = threading.Thread(target=self._run, args=(self._stop,), daemon=True)
            self._thread.start()

    def end(self, origin: float, ramp: float = 0.0) -> ServerFigures | None:
        """Stop after a last look."""
        if self._thread is None:
            return None
        self.close()
        self._once(closely=True)
        return summarize(self._looks, origin, ramp)

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LEAVE_S)
            self._thread = None

    def _run(self, stop: threading.Event) -> None:
        began = time.monotonic()
        while not stop.wait(max(self.period, (time.monotonic() - began) / _SLOWER)):
            self._once(closely=False)

    def _once(self, *, closely: bool) -> None:
        try:
            self._looks.append(self._look(closely))
        except Exception as error:  # figures are no reason to end a measurement
            self._tell(f"the servers' metrics cannot be read: {type(error).__name__}: {error}")
            self._stop.set()


@contextmanager
def of_url(target: Target, tell: Tell) -> Iterator[MetricsWatcher]:
    """Yield what looks at the server behind an address, where that tells its metrics."""
    import httpx

    from raycluster.openai_client.target import tls_context

    place = MetricsAddress(target.url(""))
    with httpx.Client(
        headers=dict(target.headers),
        verify=tls_context(target),
        timeout=_TIMEOUT_S,
        trust_env=False,
    ) as client:

        def look(closely: bool) -> Look:  # noqa: ARG001
            at = time.monotonic()
            try:
                reading = _read(place, client, "")
            except (httpx.HTTPError, RayclusterError, ValueError):
                return Look(at, {}, silent=frozenset({target.shown}))
            return Look(at, {target.shown: reading} if reading else {})

        watcher = MetricsWatcher(look, tell)
        try:
            yield watcher
        finally:
            watcher.close()


@contextmanager
def of_cluster(
    spec: ClusterSpec, fleet: Fleet, served: str, tell: Tell
) -> Iterator[MetricsWatcher]:
    """Yield what looks at the replicas of the model that is `served`, and at the cluster's GPUs.

    A host that cannot be reached is told of, and left out.
    """
    from raycluster.hosts.http import http_client

    model = next(m.name for m in spec.models if served in m.names)
    nodes: list[_Node] = []
    for name, reached in fleet.reach(spec.hosts, lambda connected: connected).items():
        if isinstance(reached, RayclusterError):
            tell(f"{name}: its metrics are not collected: {reached.what}")
            continue
        client = http_client(reached.transport, spec.ports.metrics, timeout=_TIMEOUT_S)
        nodes.append(_Node(reached, client, http_ports(spec), has_gpus=reached.host.gpus != 0))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="scrape") as pool:
        watcher = MetricsWatcher(_Cluster(nodes, model, pool, tell).look, tell)
        try:
            yield watcher
        finally:
            watcher.close()
            for node in nodes:
                node.client.close()


def _read(place: MetricsAddress, client: httpx.Client, model: str) -> Reading | None:
    """Return what a place says, None where that is not about the model. Raises httpx's errors."""
    text, now = place.ask(client, ENGINE_SERIES)
    return read_engine(text, model, now=now) if text else None


@dataclass
class _Node:
    """One host: its connection, where its replicas are, and its GPUs as seen last."""

    connected: Connected
    client: httpx.Client
    replica_ports: range
    has_gpus: bool
    places: dict[str, MetricsAddress] = field(default_factory=dict)
    gpus: tuple[GpuSample, ...] = ()
    _found: float = -math.inf
    _asked: float = -math.inf

    @property
    def name(self) -> str:
        return self.connected.host.name

    def refresh(self, at: float, *, closely: bool) -> None:
        """Find replicas that came, and read the GPUs, where it is time. Raises HostError."""
        if closely or at - self._found > _FIND_S:
            self._found = at
            done = self.connected.transport.run(("sh", "-c", LISTENING), timeout=_TIMEOUT_S)
            bases = {p: b for p, b in listening(done.text) if p in self.replica_ports}
            now = {f"{self.name}:{port}": MetricsAddress(base) for port, base in bases.items()}
            self.places = now | {name: p for name, p in self.places.items() if name in now}
        if self.has_gpus and at - self._asked >= _GPU_S:
            self._asked = at
            answer = self.client.get("/metrics").raise_for_status()
            self.gpus = read_gpus(answer.text, self.name)
            self.has_gpus = bool(self.gpus)


@dataclass
class _Cluster:
    nodes: Sequence[_Node]
    model: str
    pool: ThreadPoolExecutor
    tell: Tell
    _told: set[str] = field(default_factory=set)

    def look(self, closely: bool) -> Look:
        """Ask all hosts at once, and then all replicas."""
        at = time.monotonic()
        silent: set[str] = set()

        def asked(name: str, ask: Callable[[], T]) -> T | None:
            import httpx

            try:
                return ask()
            except (httpx.HTTPError, RayclusterError, ValueError) as error:
                silent.add(name)
                self._note(name, error)
                return None

        def refresh(node: _Node) -> None:
            asked(node.name, lambda: node.refresh(at, closely=closely))

        def read(name: str) -> Reading | None:
            node, place = places[name]
            return asked(name, lambda: _read(place, node.client, self.model))

        list(self.pool.map(refresh, self.nodes))
        places = {name: (node, p) for node in self.nodes for name, p in node.places.items()}
        readings = dict(zip(places, self.pool.map(read, places), strict=True))
        for name in readings.keys() - silent:
            if readings[name] is None:  # another model's, or no replica's
                del places[name][0].places[name]
        replicas = {name: reading for name, reading in readings.items() if reading}
        gpus = tuple(gpu for node in self.nodes for gpu in node.gpus)
        return Look(at, replicas, gpus, frozenset(silent))

    def _note(self, name: str, error: Exception) -> None:
        if name not in self._told:
            self._told.add(name)
            self.tell(f"{name}: its metrics cannot be collected: {error}")
