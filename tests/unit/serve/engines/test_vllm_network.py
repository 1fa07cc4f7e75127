from __future__ import annotations

from collections.abc import Mapping

import pytest

from raycluster.serve.engines.vllm_network import environment, interface_of, talking_at
from raycluster.serve.settings import ModelSettings

THERE = {
    "lo": ["127.0.0.1", "::1", "00:00:00:00:00:00"],
    "eth0": ["203.0.113.7", "fe80::1%eth0"],
    "ens1f0": ["10.0.0.1", "fd00::0001"],
}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("127.0.0.1", "lo"),
        ("10.0.0.1", "ens1f0"),
        ("fd00::1", "ens1f0"),
        ("FD00:0::1", "ens1f0"),
        ("fe80::1", "eth0"),
        ("10.0.0.2", ""),
        ("", ""),
        ("gpu-1", ""),
    ],
)
def test_the_interface_that_has_an_address(address: str, name: str) -> None:
    assert interface_of(address, THERE) == name


def test_an_address_that_no_interface_has_leaves_the_interfaces_alone() -> None:
    assert talking_at("198.51.100.1", THERE) == {"VLLM_HOST_IP": "198.51.100.1"}


def test_a_name_is_meant_whole() -> None:
    assert talking_at("10.0.0.1", THERE) == {
        "VLLM_HOST_IP": "10.0.0.1",
        "NCCL_SOCKET_IFNAME": "=ens1f0",
        "GLOO_SOCKET_IFNAME": "ens1f0",
        "TP_SOCKET_IFNAME": "ens1f0",
    }


@pytest.mark.parametrize(
    ("spread", "engine_args", "given", "expected"),
    [
        (0, {}, {}, "127.0.0.1"),
        (0, {}, {"RAYCLUSTER_ADDRESS": "10.0.0.1"}, "127.0.0.1"),
        (0, {"kv_transfer_config": None}, {"RAYCLUSTER_ADDRESS": "10.0.0.1"}, "127.0.0.1"),
        (0, {"kv-transfer-config": {"a": 1}}, {"RAYCLUSTER_ADDRESS": "10.0.0.1"}, "10.0.0.1"),
        (0, {"kv_transfer_config": {"a": 1}}, {}, None),
        (2, {}, {"RAYCLUSTER_ADDRESS": "10.0.0.1"}, "10.0.0.1"),
        (2, {}, {}, None),
    ],
)
def test_where_an_engine_talks(
    spread: int,
    engine_args: Mapping[str, object],
    given: Mapping[str, str],
    expected: str | None,
) -> None:
    settings = ModelSettings("a", "a", engine_args=engine_args, spread=spread)
    made = environment(settings, given, THERE)
    assert made.get("VLLM_HOST_IP") == expected
    assert ("NCCL_SOCKET_IFNAME" in made) is (expected is not None)
