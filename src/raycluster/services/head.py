"""The head: Ray's control store, the dashboard, Serve's HTTP, and replicas like any node."""

from __future__ import annotations

from dataclasses import replace

from raycluster.core.interfaces import ROOT, Process
from raycluster.services.ray_node import HEAD, NEW_FILE, STATE_FOLDER, ray_node
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost

_OWN_PORTS = ("dashboard", "gcs", "ray_client", "ingress_fallback")

_RUN = f"""\
[ ! -e "$0/{NEW_FILE}" ] || rm -rf "$0/{STATE_FOLDER}" "$0/{NEW_FILE}" || exit 1
exec "$@"
"""
"""A head that `up` starts knows nothing; one that comes back by itself knows what it knew."""


def dashboard_host(address: str) -> str:
    """Return 127.0.0.1 as Ray takes it on a node of this address.

    On a host without an IPv4 address Ray makes ::1 of each name of loopback that it knows.
    """
    return "127.1" if ":" in address else "127.0.0.1"


def head(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> Process | None:
    """Return the head's process; the dashboard listens on loopback alone."""
    if host.role != HEAD:
        return None
    ports = spec.ports
    node = ray_node(
        spec,
        host,
        wiring,
        HEAD,
        (
            "--head",
            f"--port={ports.gcs}",
            "--include-dashboard=true",
            f"--dashboard-host={dashboard_host(wiring.addresses[host.name])}",
            f"--dashboard-port={ports.dashboard}",
            f"--ray-client-server-port={ports.ray_client}",
        ),
    )
    own = {name: ports.single[name] for name in _OWN_PORTS}
    argv = ("sh", "-c", _RUN, ROOT, *node.argv)
    return replace(node, argv=argv, ports={**node.ports, **own})
