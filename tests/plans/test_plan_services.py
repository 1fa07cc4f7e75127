"""Golden cases for what runs beside Ray: the gateway and Prometheus on the head."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from raycluster.commands._options import only_part
from raycluster.core.errors import UsageError
from raycluster.core.interfaces import Found, Secret, Versions
from raycluster.plan.actions import Only
from raycluster.plan.planner import plan_nodes
from raycluster.services.gateway import nginx_conf
from raycluster.services.processes import desired, roles
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from raycluster.state.cluster import ClusterState, HostState
from raycluster.state.members import member_of

KEY = "sk-alice-0123456789"
BESIDE: dict[str, Any] = {"gateway": {"api_keys": {"alice": "env:A"}}, "monitoring": {}}


def spec_of(*workers: str, **parts: Any) -> ClusterSpec:
    hosts = [{"host": w, "name": w} for w in workers]
    return ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h0"}, "workers": hosts, **parts}
    )


def wiring_of(spec: ClusterSpec, key: str = KEY) -> Wiring:
    addresses = {h.name: f"10.0.0.{i}" for i, h in enumerate(spec.hosts, start=1)}
    return Wiring(addresses, Secret("t" * 64), Secrets(api_keys={"alice": Secret(key)}))


def running(spec: ClusterSpec) -> ClusterState:
    wiring = wiring_of(spec)
    hosts = {
        host.name: HostState(
            host.name,
            wiring.addresses[host.name],
            tuple(
                Found(p.role, p.fingerprint, "running", Versions("3.11.7", "2.60.0"))
                for p in desired(spec, host, wiring)
            ),
            {p.role: p.live_id for p in desired(spec, host, wiring) if p.live_id},
        )
        for host in spec.hosts
    }
    members = tuple(map(member_of, spec.hosts))
    return ClusterState(hosts, token=wiring.token, members=members)


def nothing(spec: ClusterSpec) -> ClusterState:
    addresses = wiring_of(spec).addresses
    return ClusterState({name: HostState(name, address) for name, address in addresses.items()})


def described(
    spec: ClusterSpec, state: ClusterState, only: Only | None = None, key: str = KEY
) -> list[str]:
    actions = plan_nodes(spec, state, wiring_of(spec, key), only or Only())
    return [action.describe() for action in actions]


A = spec_of("a", **BESIDE)


def test_from_nothing_ray_comes_first() -> None:
    assert described(A, nothing(A)) == [
        "head: + start head (not running)",
        "a: + start worker (not running)",
        "head: + start gateway (not running)",
        "head: + start prometheus (not running)",
    ]


def test_what_is_as_wanted_is_left_alone() -> None:
    assert described(A, running(A)) == []


def test_beside_a_running_cluster_they_are_all_that_is_started() -> None:
    assert described(A, running(spec_of("a"))) == [
        "head: + start gateway (not running)",
        "head: + start prometheus (not running)",
    ]


def test_without_their_tables_they_are_removed() -> None:
    assert described(spec_of("a"), running(A)) == [
        "head: - remove gateway (not in the spec for this host)",
        "head: - remove prometheus (not in the spec for this host)",
    ]


def test_another_key_is_read_by_the_gateway_and_restarts_nothing() -> None:
    changes = described(A, running(A), key="sk-alice-9876543210")
    assert changes == ["head: ~ reload gateway (its files changed)"]


def test_a_new_worker_restarts_nothing_and_the_gateway_learns_of_it() -> None:
    wider = spec_of("a", "b", **BESIDE)
    state = running(A)
    hosts = {**state.hosts, "b": HostState("b", "10.0.0.3")}
    seen = ClusterState(hosts, token=state.token, members=state.members)
    assert described(wider, seen) == [
        "b: + start worker (not running)",
        "head: ~ reload gateway (its files changed)",
    ]


def test_a_new_head_restarts_neither() -> None:
    state = running(A)
    head = state.hosts["head"]
    left = tuple(f for f in head.found if f.role != "head")
    hosts = {**state.hosts, "head": HostState("head", head.address, left, head.live)}
    assert described(A, ClusterState(hosts, token=state.token, members=state.members)) == [
        "head: + start head (not running)",
        "a: ~ restart worker (joins the new head)",
    ]


@pytest.mark.parametrize(
    ("only", "expected"),
    [(Only("workers"), 1), (Only("head"), 3), (Only(host="a"), 1), (Only("app"), 0)],
)
def test_only_a_part(only: Only, expected: int) -> None:
    assert len(described(A, nothing(A), only)) == expected


@pytest.mark.parametrize("on", ["head", "all"])
def test_only_the_gateway_is_touched(on: str) -> None:
    gate = {**BESIDE, "gateway": {**BESIDE["gateway"], "on": on}}
    spec = spec_of("a", **gate)
    part = only_part(spec, "gateway")
    hosts = ["a", "head"] if on == "all" else ["head"]
    changed = {**gate, "firewall": {"manage": True}, "monitoring": {"retention": "1d"}}
    later = described(spec_of("a", **changed), running(spec), part, key="sk-other-0123456789")
    assert sorted(later) == [f"{host}: ~ reload gateway (its files changed)" for host in hosts]
    first = described(spec, nothing(spec), part)
    assert sorted(first) == [f"{host}: + start gateway (not running)" for host in hosts]
    without = spec_of("a", monitoring={})
    gone = described(without, running(spec), Only("gateway"))
    assert sorted(gone) == [
        f"{host}: - remove gateway (not in the spec for this host)" for host in hosts
    ]


def test_without_a_gateway_there_is_no_such_part() -> None:
    with pytest.raises(UsageError, match="'gateway' is not a part of this cluster"):
        only_part(spec_of("a"), "gateway")


def test_grafana_comes_when_asked_for_after_the_prometheus_that_it_shows() -> None:
    shown = spec_of("a", **BESIDE | {"monitoring": {"grafana": True}})
    assert described(shown, running(A)) == ["head: + start grafana (not running)"]
    assert described(shown, nothing(shown))[-2:] == [
        "head: + start prometheus (not running)",
        "head: + start grafana (not running)",
    ]
    assert described(shown, running(shown)) == []
    assert described(A, running(shown)) == [
        "head: - remove grafana (not in the spec for this host)"
    ]


def test_roles_need_neither_addresses_nor_keys() -> None:
    assert [roles(A, host) for host in A.hosts] == [("head", "gateway", "prometheus"), ("worker",)]


@pytest.mark.parametrize("on", ["head", "workers", "all", None])
@pytest.mark.parametrize("monitoring", [None, {"grafana": True}, {"prometheus": False}])
def test_roles_are_those_of_all_processes(on: str | None, monitoring: Any) -> None:
    parts = {"gateway": on and {"on": on}, "monitoring": monitoring}
    try:
        spec = spec_of("a", "b", **{name: part for name, part in parts.items() if part is not None})
    except ValidationError:
        assert on == "workers", "no such place"
        return
    for host in spec.hosts:
        processes = desired(spec, host, wiring_of(spec))
        assert roles(spec, host) == tuple(process.role for process in processes)


def test_a_gateway_of_a_large_cluster_knows_the_head_and_hosts_behind_its_own() -> None:
    spec = spec_of(*(f"w{n}" for n in range(1, 41)), gateway={"on": "all"})
    wiring = wiring_of(spec)
    turned_to: dict[str, int] = {}
    for at, host in enumerate(spec.hosts):
        text = nginx_conf(spec, host, wiring).decode()
        servers = re.findall(r"^ +server ([0-9.]+):", text, re.MULTILINE)
        assert servers[0] == "127.0.0.1"
        assert len(servers) == 1 + 16
        assert wiring.addresses[host.name] not in servers
        assert at == 0 or servers[1] == wiring.addresses["head"]
        for server in servers:
            turned_to[server] = turned_to.get(server, 0) + 1
    workers = [turned_to[wiring.addresses[f"w{n}"]] for n in range(1, 41)]
    assert max(workers) - min(workers) <= 1, "none is asked by many more than another"


def test_a_gateway_of_a_small_cluster_knows_all_hosts_in_the_order_of_the_spec() -> None:
    spec = spec_of("a", "b", "c", gateway={"on": "all"})
    text = nginx_conf(spec, spec.hosts[2], wiring_of(spec)).decode()
    servers = re.findall(r"^ +server ([0-9.]+):", text, re.MULTILINE)
    assert servers == ["127.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.4"]
