"""Addresses that a spec takes are such that every file made from them can be made."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raycluster.check.open_ports import open_ports
from raycluster.core.errors import SpecError
from raycluster.core.interfaces import Secret
from raycluster.plan.preconditions import check_addresses
from raycluster.services.firewall import ruleset
from raycluster.services.gateway import gateway, own_certificate
from raycluster.services.prometheus import gateways
from raycluster.services.ray_node import head
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec

plain = st.builds(str, st.builds(IPv4Address, st.integers(0, (1 << 32) - 1)))
long = st.builds(str, st.builds(IPv6Address, st.integers(0, (1 << 128) - 1)))
mapped = plain.map(lambda address: f"::ffff:{address}")
scoped = st.sampled_from(["fe80::1", "fd00::1"]).flatmap(
    lambda address: st.text(max_size=4).map(lambda zone: f"{address}%{zone}")
)
some = st.sampled_from(
    ["::", "0.0.0.0", "::1", "127.0.0.1", "ff02::1", "224.0.0.1", "gpu-1", "[::1"]
)
addresses = plain | long | mapped | scoped | some | long.map(lambda address: f"[{address}]")


def spec_of(head: dict[str, Any], **parts: Any) -> ClusterSpec:
    base = {"cluster": {"name": "q"}, "head": head, "workers": [{"host": "10.9.9.9", "name": "b"}]}
    return ClusterSpec.model_validate({**base, **parts})


@given(listen=addresses, private=addresses, host=addresses)
def test_what_the_spec_takes_can_be_written_everywhere(
    listen: str, private: str, host: str
) -> None:
    gate = {"listen": listen, "on": "all", "tls": {"self_signed": True}}
    try:
        spec = spec_of(
            {"host": host, "private_address": private}, gateway=gate, monitoring={"grafana": True}
        )
    except ValidationError:
        return
    wiring = Wiring({"head": spec.hosts[0].private_address or "", "b": "10.9.9.9"}, Secret("t"))
    for each in spec.hosts:
        assert gateway(spec, each, wiring)
        assert "%" not in ruleset(spec, each, wiring)[0]
    assert gateways(spec, wiring)
    assert own_certificate(spec, wiring)


@pytest.mark.parametrize(
    ("address", "manage", "said"),
    [
        ("fe80::1", False, "cannot use link-local"),
        ("fe80::1%eth0", False, "cannot use link-local"),
        ("gpu-1", True, "only by the name gpu-1"),
        ("gpu-1", False, ""),
        ("10.0.0.1", True, ""),
    ],
)
def test_an_address_that_programs_cannot_use(address: str, manage: bool, said: str) -> None:
    spec = spec_of({"host": "h"}, firewall={"manage": manage})
    if not said:
        check_addresses(spec, {"head": address, "b": "10.9.9.9"})
        return
    with pytest.raises(SpecError, match=said) as caught:
        check_addresses(spec, {"head": address, "b": "10.9.9.9"})
    assert caught.value.where == "private_address"


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("fd00::1", "fd00:0:0::1", "both have fd00::1"),
        ("10.0.0.1", "::ffff:10.0.0.1", "both have 10.0.0.1"),
        ("127.0.0.2", "10.0.0.1", "other nodes would reach head at 127.0.0.2"),
        ("::1", "fd00::1", "other nodes would reach head at ::1"),
        ("::ffff:127.0.0.1", "10.0.0.1", "other nodes would reach head at 127.0.0.1"),
    ],
)
def test_addresses_are_compared_as_addresses(one: str, other: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        check_addresses(spec_of({"host": "h"}), {"head": one, "b": other})


@pytest.mark.parametrize(
    ("address", "flag", "metrics"),
    [("10.0.0.1", "127.0.0.1", None), ("fd00::1", "127.1", "6385")],
)
def test_the_dashboard_is_on_127_0_0_1_whatever_the_host_calls_loopback(
    address: str, flag: str, metrics: str | None
) -> None:
    spec = spec_of({"host": "h"})
    made = head(spec, spec.hosts[0], Wiring({"head": address, "b": "10.9.9.9"}, Secret("t")))
    assert made
    assert f"--dashboard-host={flag}" in made.argv
    assert socket.gethostbyname(flag) == "127.0.0.1"
    assert made.env.get("RAYCLUSTER_METRICS_PORT") == metrics


def test_a_name_that_only_a_jump_host_knows_is_no_public_address() -> None:
    class Behind:
        address = "gpu-1"

    class Reached:
        host = spec_of({"host": "h"}).hosts[0]
        transport = Behind()

    assert open_ports(spec_of({"host": "h"}), Reached()) == ()  # type: ignore[arg-type]
