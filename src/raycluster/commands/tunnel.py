"""`raycluster tunnel`: the head's endpoints on 127.0.0.1, until Ctrl-C."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raycluster.commands import _console
from raycluster.commands._arguments import SpecOption, SpecPath
from raycluster.hosts import session

if TYPE_CHECKING:
    from raycluster.spec import ClusterSpec
    from raycluster.tunnel.ports import Forward


def tunnel(spec: SpecPath = None, named: SpecOption = None) -> None:
    """Forward the cluster's endpoints to 127.0.0.1 over SSH, until Ctrl-C."""
    opened = session.open_session(spec, named)
    from raycluster.observe.liveness import check_up
    from raycluster.tunnel.cluster_api import route
    from raycluster.tunnel.record import noted
    from raycluster.tunnel.run import endpoints, run

    check_up(opened.spec)
    console = _console.out()
    name, head = opened.spec.cluster.name, opened.spec.head_host
    run(
        route(head),
        (*endpoints(_on_loopback(opened.spec)), *_gateway(opened.spec)),
        lambda line: console.print(line, markup=False),
        lambda forwards: noted(name, head.address, forwards),
    )


def _on_loopback(spec: ClusterSpec) -> dict[str, int]:
    ports = {"api": spec.ports.api, "dashboard": spec.ports.dashboard}
    if spec.monitoring and spec.monitoring.prometheus:
        ports["prometheus"] = spec.ports.prometheus
    if spec.monitoring and spec.monitoring.grafana:
        ports["grafana"] = spec.ports.grafana
    return ports


def _gateway(spec: ClusterSpec) -> tuple[Forward, ...]:
    from raycluster.tunnel.run import endpoints

    if spec.gateway is None:
        return ()
    gate = spec.gateway
    return endpoints({"gateway": spec.ports.gateway}, address=gate.near, scheme=gate.scheme)
