"""The firewall's rules, read by nftables itself where it may be asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import pytest
from pydantic import ValidationError

from raycluster.core.interfaces import Secret
from raycluster.plan.planner import plan_nodes
from raycluster.services.firewall import (
    Around,
    cluster_ports,
    exemptions,
    read_script,
    ruleset,
    table,
    wanted,
)
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import ClusterState, HostState

SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
WIRING = Wiring({"head": "10.0.0.1", "b": "fd00::2"}, Secret("t"))


def spec_of(**parts: Any) -> ClusterSpec:
    base = {"cluster": {"name": "my-qwen"}, "head": {"host": "h0"}}
    return ClusterSpec.model_validate({**base, "workers": [{"host": "b", "name": "b"}], **parts})


KEYS: dict[str, Any] = {"gateway": {"api_keys": {"a": "env:A"}}}


MORE: dict[str, Any] = {
    "manage": True,
    "allow_ports": [53],
    "allow_from": ["10.1.0.0/16", "fc00::/7"],
}
ON_ALL: dict[str, Any] = {"gateway": {"on": "all", "listen": "10.0.0.1"}, "firewall": MORE}


@pytest.mark.parametrize("parts", [{}, KEYS, ON_ALL])
def test_nftables_accepts_them(parts: dict[str, Any]) -> None:
    nft = shutil.which("nft", path=SBIN)
    if not nft or os.geteuid():
        pytest.skip("needs nft, and root to ask it")
    spec = spec_of(**parts)
    for host in spec.hosts:
        rules, _ = ruleset(spec, host, WIRING)
        rules += exemptions("my-qwen", Around(frozenset({22, 2222}), frozenset({80}), frozenset()))
        done = subprocess.run(
            [nft, "--check", "-f", "-"], input=rules, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_others_reach_the_gateway_where_it_is_and_no_other_port() -> None:
    spec = spec_of(**KEYS)
    (first, _), (second, _) = (ruleset(spec, host, WIRING) for host in spec.hosts)
    assert "tcp dport 8080 accept" in first
    assert "8080" not in second
    for rules in (first, second):
        assert "ip saddr 10.0.0.1 accept" in rules
        assert "ip6 saddr fd00::2 accept" in rules
        closed = "tcp dport {} tcp flags & (syn | ack) == syn drop"
        assert all(closed.format(p) in rules for p in (6379, 8000, 8265, "30000-30999"))
        assert rules.index("tcp dport 22 accept") < rules.index(" drop\n")


def test_a_port_of_sshd_in_the_spec_is_open_before_any_is_closed() -> None:
    spec = spec_of(head={"host": "h0", "port": 20022})
    rules, _ = ruleset(spec, spec.hosts[0], WIRING)
    assert rules.index("tcp dport 20022 accept") < rules.index("20000-20999")


@pytest.mark.parametrize("network", ["10.0.0.1/8", "anywhere", "", "10.0.0.0/33", "fe80::1%eth0"])
def test_what_is_no_network_is_no_spec(network: str) -> None:
    with pytest.raises(ValidationError):
        spec_of(firewall={"allow_from": [network]})


def test_a_gateway_on_loopback_is_nobody_elses() -> None:
    spec = spec_of(gateway={})
    assert "8080" not in ruleset(spec, spec.hosts[0], WIRING)[0]


@pytest.mark.parametrize(
    ("monitoring", "others"),
    [
        (None, {"prometheus", "grafana"}),
        ({}, {"grafana"}),
        ({"prometheus": False}, {"prometheus", "grafana"}),
        ({"grafana": True}, set()),
    ],
)
def test_every_port_of_what_runs_is_closed(
    monitoring: dict[str, Any] | None, others: set[str]
) -> None:
    spec = spec_of(**({} if monitoring is None else {"monitoring": monitoring}))
    closed = cluster_ports(spec)
    for name, port in spec.ports.single.items():
        inside = name not in {"gateway", *others}
        assert any(a <= port <= b for a, b in closed) == inside, name


def test_what_tells_rules_apart_changes_with_the_hosts() -> None:
    spec = spec_of()
    host = spec.hosts[0]
    rules, digits = ruleset(spec, host, WIRING)
    assert f"chain id_{digits} " in rules
    assert ruleset(spec, host, WIRING)[1] == digits
    other = Wiring({"head": "10.0.0.1", "b": "10.0.0.9"}, Secret("t"))
    assert ruleset(spec, host, other)[1] != digits


def test_without_being_asked_there_are_none() -> None:
    spec = spec_of()
    assert wanted(spec, spec.hosts[0], WIRING) == ("", "")


def test_rules_come_before_anything_starts_and_go_when_they_are_not_wanted() -> None:
    managed, free = spec_of(firewall={"manage": True}), spec_of()
    bare = ClusterState({h.name: HostState(h.name, WIRING.addresses[h.name]) for h in free.hosts})
    assert [a.describe() for a in plan_nodes(managed, bare, WIRING)] == [
        "head: ~ write firewall rules (the cluster's ports are open)",
        "b: ~ write firewall rules (the cluster's ports are open)",
        "head: + start head (not running)",
        "b: + start worker (not running)",
    ]
    digits = {h.name: wanted(managed, h, WIRING)[1] for h in managed.hosts}
    there = ClusterState(
        {n: HostState(n, a, firewall=digits[n]) for n, a in WIRING.addresses.items()}
    )
    assert not [a for a in plan_nodes(managed, there, WIRING) if "firewall" in a.describe()]
    assert [a.describe() for a in plan_nodes(free, there, WIRING)][:2] == [
        "head: - remove firewall rules (no longer managed)",
        "b: - remove firewall rules (no longer managed)",
    ]


def test_a_user_without_rights_is_asked_for_none_where_there_are_no_rules() -> None:
    done = subprocess.run(
        ["sh", "-c", read_script("not-there")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert table("my-qwen") == "raycluster_my_qwen"
