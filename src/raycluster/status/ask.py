"""Looks at everything that `status` shows, once or again and again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING

from raycluster.core import cgroups as limits
from raycluster.core.accelerators.host import by_word
from raycluster.core.accelerators.values import Trouble
from raycluster.core.cgroups import Limits
from raycluster.core.errors import RayclusterError
from raycluster.core.untrusted import Told as Said
from raycluster.observe import health
from raycluster.observe.diagnosis import Health, diagnose
from raycluster.observe.engine_metrics import SERVICE_SERIES, read_service
from raycluster.observe.replica_endpoints import LISTENING, MetricsAddress, http_ports, listening
from raycluster.status import gpus, prometheus
from raycluster.status.figures import (
    HostCost,
    Look,
    ModelFigures,
    ReplicaSample,
    Told,
    cost,
    figures,
)
from raycluster.status.gpus import GpuStatus
from raycluster.tunnel.record import Opened, opened

if TYPE_CHECKING:
    from raycluster.hosts.fleet import Connected, Fleet
    from raycluster.spec import ClusterSpec

WINDOW_S = 10.0
"""What `--watch` shows happened in so many seconds; its first look knows less."""
APART_S = 0.25
"""Between two looks at the counters, where a replica does not tell how they were earlier."""
_Gpus = tuple[tuple[GpuStatus, ...], Trouble | None]
_TIMEOUT_S = 3.0
_GPUS_S = 1.0  # nvidia-smi of an ill GPU may hang


@dataclass(frozen=True)
class Standing:
    """How the cluster stood when the look at it began, `taken` (ISO 8601).

    `figures` are by model, `gpus` by host, as are `gpu_problems`, why GPUs of it do not answer, and
    `limits`, what its control groups leave of it.
    """

    health: Health
    figures: Mapping[str, ModelFigures]
    gpus: Mapping[str, tuple[GpuStatus, ...]]
    tunnels: tuple[Opened, ...]
    cost: HostCost | None
    taken: str
    gpu_problems: Mapping[str, Trouble] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=dict)


class StatusWatcher:
    """Looks at one cluster, and remembers what replicas said; a context manager."""

    def __init__(self, spec: ClusterSpec, fleet: Fleet) -> None:
        self._spec = spec
        self._fleet = fleet
        self._pool = ThreadPoolExecutor(2 * int(spec.cluster.parallel), "figures")
        self._hosts: dict[str, _Host] = {}
        self._lock = Lock()
        self._looks: deque[Look] = deque()
        self._records = bool(spec.monitoring and spec.monitoring.prometheus)

    def __enter__(self) -> StatusWatcher:
        return self

    def __exit__(self, *_: object) -> None:
        """Ask nothing more; the fleet closes the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def look(self) -> Standing:
        """Look at everything now."""
        taken = datetime.now(UTC).isoformat(timespec="milliseconds")
        first = not self._looks
        asked = _Asked(self, self._pool, self._spec, first=first)

        def met(connected: Connected) -> None:
            on_head = connected.host.name == self._spec.head_host.name
            asked.met(connected, prometheus=on_head and first and self._records)

        seen = health.look(self._spec, self._fleet, met, asked.wait)
        if first:
            self._remember(asked.earlier)
        self._remember(asked.look)
        told = asked.told()
        if first and not told and asked.look.keys() - asked.earlier.keys():
            self._look_again(asked)
        models = {
            model.name: figures(list(self._looks), model.name, told.get(model.name))
            for model in self._spec.models
        }
        return Standing(
            _with_fallbacks(seen, asked.look),
            models,
            self._gpus(seen, asked),
            opened(self._spec.cluster.name, self._spec.head_host.address),
            cost(self._spec, models),
            taken,
            {h.name: trouble for h in self._spec.hosts if (trouble := asked.gpus(h.name)[1])},
            {host.name: host.limits for host in asked.hosts if host.limits},
        )

    def _look_again(self, asked: _Asked) -> None:
        earliest = min(seen.at for seen in asked.look.values())
        time.sleep(max(0.0, earliest + APART_S - time.monotonic()))
        again = _Asked(self, self._pool, self._spec)
        again.again(asked.hosts)
        again.wait()
        self._remember(again.look)

    def _remember(self, look: Look) -> None:
        """Keep a look, and those of the window before it."""
        self._looks.append(look)
        now = time.monotonic()
        while len(self._looks) > 2 and _moment(self._looks[1]) <= now - WINDOW_S:
            self._looks.popleft()

    def _gpus(self, seen: Health, asked: _Asked) -> dict[str, tuple[GpuStatus, ...]]:
        found: dict[str, tuple[GpuStatus, ...]] = {}
        for host in self._spec.hosts:
            node = seen.state.node(host)
            usage = seen.usage.get(node.node_id, Said(None)) if node else Said(None)
            found[host.name] = asked.gpus(host.name)[0] or gpus.from_ray(usage["gpus"])
        return found

    def host(self, connected: Connected) -> _Host:
        """Return what is known of a connected host."""
        with self._lock:
            host = self._hosts.get(connected.host.name)
            if host is None or host.connected is not connected:
                host = self._hosts[connected.host.name] = _Host(connected, self._spec)
            return host


def _with_fallbacks(seen: Health, look: Look) -> Health:
    """Return the health in which a model's fallback is known though another replica answered."""
    fell: dict[str, tuple[str, str]] = {}
    for each in look.values():
        if each.service.engine.fell_back:
            fell[each.model] = (each.service.engine.engine, each.service.engine.fell_back)
    if not fell.keys() - {model.name for model in seen.models if model.reason}:
        return seen
    models = tuple(
        m
        if m.reason or m.name not in fell
        else replace(m, engine=fell[m.name][0], reason=f"one of its replicas: {fell[m.name][1]}")
        for m in seen.models
    )
    return replace(
        seen, models=models, problems=diagnose(seen.spec, seen.state, models, seen.gateways)
    )


def _moment(look: Look) -> float:
    return max((seen.at for seen in look.values()), default=-math.inf)


class _Asked:
    """One round of questions to the hosts' replicas and GPUs, beside the look at the cluster."""

    def __init__(
        self,
        watcher: StatusWatcher,
        pool: ThreadPoolExecutor,
        spec: ClusterSpec,
        *,
        first: bool = False,
    ) -> None:
        self.look: dict[str, ReplicaSample] = {}
        self.earlier: dict[str, ReplicaSample] = {}
        self._first = first
        self.hosts: list[_Host] = []
        self._watcher = watcher
        self._pool = pool
        self._models = [model.name for model in spec.models]
        self._futures: list[Future[None]] = []
        self._gpus: dict[str, Future[_Gpus]] = {}
        self._told: Future[Mapping[str, Told]] | None = None
        self._began = time.monotonic()

    def met(self, connected: Connected, *, prometheus: bool = False) -> None:
        """Ask a host; returns at once."""
        host = self._watcher.host(connected)
        self.hosts.append(host)
        self._futures.append(self._pool.submit(self._find, host))
        if connected.host.gpus != 0:
            self._gpus[host.name] = self._pool.submit(host.gpus)
        if prometheus:
            self._told = self._pool.submit(host.prometheus)

    def again(self, hosts: Iterable[_Host]) -> None:
        """Ask the same replicas of hosts that were met in an earlier round."""
        for host in hosts:
            self._read(host)

    def wait(self) -> None:
        """Return when all replicas have answered, or will not."""
        while pending := [future for future in list(self._futures) if not future.done()]:
            wait(pending)  # what finds replicas adds those that ask them

    def told(self) -> Mapping[str, Told]:
        """Return what Prometheus said, nothing where it was not asked."""
        return self._told.result() if self._told else {}

    def gpus(self, name: str) -> _Gpus:
        """Return what the host itself said of its GPUs, nothing where it takes too long."""
        if (future := self._gpus.get(name)) is None:
            return (), None
        try:
            return future.result(max(0.0, self._began + _GPUS_S - time.monotonic()))
        except TimeoutError:
            return (), None

    def _find(self, host: _Host) -> None:
        host.find()
        self._read(host)

    def _read(self, host: _Host) -> None:
        for port in list(host.places):
            self._futures.append(self._pool.submit(self._ask, host, port))

    def _ask(self, host: _Host, port: int) -> None:
        place = f"{host.name}:{port}"
        if seen := host.read(port, self._models):
            self.look[place] = seen
            if self._first and (before := host.read_earlier(port, seen.model)):
                self.earlier[place] = before


class _Host:
    """A connected host: where its replicas are, and how its programs are asked."""

    def __init__(self, connected: Connected, spec: ClusterSpec) -> None:
        from raycluster.hosts.http import http_client

        transport, ports = connected.transport, spec.ports
        self.connected = connected
        self.name = connected.host.name
        self.places: dict[int, MetricsAddress] = {}
        self.limits: Limits | None = None
        self._ports = http_ports(spec)
        self._client = http_client(transport, ports.metrics, timeout=_TIMEOUT_S)
        self._prometheus = http_client(transport, ports.prometheus, timeout=_TIMEOUT_S)

    def find(self) -> None:
        """Find the replicas by the ports on which the host listens."""
        boxed = not self.connected.host.runs_own_programs
        text = self._run(limits.script(boxed=boxed) + LISTENING)
        self.limits = limits.read(by_word(text))
        found = {port: base for port, base in listening(text) if port in self._ports}
        self.places = {
            port: place
            if (place := self.places.get(port)) and place.base == base
            else MetricsAddress(base)
            for port, base in found.items()
        }

    def read(self, port: int, models: Sequence[str]) -> ReplicaSample | None:
        """Return what a replica says, None where it says nothing of any of the models."""
        import httpx

        try:
            text, now = self.places[port].ask(self._client, SERVICE_SERIES)
            for model in models if text else ():
                if service := read_service(text, model, now=now):
                    return ReplicaSample(time.monotonic(), model, service)
        except (httpx.HTTPError, RayclusterError, ValueError):
            pass
        return None

    def read_earlier(self, port: int, model: str) -> ReplicaSample | None:
        """Return what a replica remembers to have said some seconds ago, None where it does not."""
        import httpx

        at = time.monotonic()
        try:
            age, text = self.places[port].ask_earlier(self._client)
            service = read_service(text, model)
        except (httpx.HTTPError, RayclusterError, ValueError, LookupError):
            return None
        if service is None or age < APART_S:
            return None
        return ReplicaSample(at - age, model, service)

    def gpus(self) -> _Gpus:
        """Return what the host says of its GPUs."""
        return gpus.from_smi(self._run(gpus.ASK))

    def prometheus(self) -> Mapping[str, Told]:
        """Return what the Prometheus of this host knows of the models."""
        import httpx

        try:
            return prometheus.ask(self._prometheus)
        except (httpx.HTTPError, RayclusterError):
            return {}

    def _run(self, script: str) -> str:
        try:
            return self.connected.transport.run(("sh", "-c", script), timeout=_TIMEOUT_S).text
        except RayclusterError:
            return ""  # the look at the cluster tells of it
