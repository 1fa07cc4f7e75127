"""Tries from here what the cluster listens at, as anybody could who reaches the hosts."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address

import httpx

from raycluster.core.errors import DegradedError, RayclusterError
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.hosts.http import http_client
from raycluster.observe.listening_ports import read_listeners
from raycluster.services.firewall import cluster_ports
from raycluster.spec import ClusterSpec

_CONNECT_S = 2.0
_AT_ONCE = 64


@dataclass(frozen=True)
class ReachablePort:
    """A port of a host that can be reached from here and should not be."""

    host: str
    address: str
    port: int


def exposed(spec: ClusterSpec, fleet: Fleet) -> tuple[DegradedError, ...]:
    """Return an error if more than SSH and the gateway is reachable from outside."""
    if spec.firewall.check == "never":
        return ()
    found = fleet.each((h.name for h in spec.hosts), lambda c: open_ports(spec, c))
    reached = [port for ports in found.values() if isinstance(ports, tuple) for port in ports]
    unseen = [each for each in found.values() if isinstance(each, RayclusterError)]
    lines = [f"{o.host}: port {o.port} of {o.address} can be reached from here" for o in reached]
    if unguarded(spec, fleet):
        lines.append(f"{spec.head_host.name}: Ray's dashboard accepts jobs from anyone")
    blind = tuple(
        DegradedError(
            f"could not check which ports are reachable from outside: {each.what}",
            where=each.where,
            hint=each.hint,
        )
        for each in unseen
    )
    if not lines:
        return blind
    error = DegradedError(
        "the cluster serves, but more than SSH and the gateway is reachable:\n" + "\n".join(lines),
        where=spec.cluster.name,
        hint="set set [firewall] manage = true, or close them in your provider's firewall",
    )
    return (error, *blind)


def open_ports(spec: ClusterSpec, connected: Connected) -> tuple[ReachablePort, ...]:
    """Return which of the cluster's ports answer at the address where the host was reached.

    Those are the ones of the spec, and whatever else its processes listen at. Raises HostError.
    """
    address = connected.transport.address
    if connected.host.transport == "local":
        return ()
    if spec.firewall.check == "public" and not _is_public(address):
        return ()
    ranges = cluster_ports(spec)
    every = read_listeners(connected.transport)
    own = connected.runtime.sockets()
    ours = sorted(
        {
            each.port
            for each in every
            if each.protocol == "tcp"
            and each.port != spec.ports.gateway
            and (each.inode in own or any(first <= each.port <= last for first, last in ranges))
        }
    )
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        answers = pool.map(lambda port: _answers(address, port), ours)
        return tuple(
            ReachablePort(connected.host.name, address, port)
            for port, answered in zip(ours, answers, strict=True)
            if answered
        )


def _is_public(address: str) -> bool:
    try:
        return ip_address(address).is_global
    except ValueError:  # a name that only the jump host knows
        return False


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def unguarded(spec: ClusterSpec, fleet: Fleet) -> bool:
    """Tell whether Ray's Jobs API answers somebody without the token."""
    head = fleet[spec.head_host.name]
    with http_client(head.transport, spec.ports.dashboard, timeout=5) as client:
        try:
            return client.get("/api/jobs/").is_success
        except (httpx.HTTPError, RayclusterError):
            return False
