"""Where the processes of a vLLM engine talk: on loopback, or at the node's address."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from contextlib import suppress

from raycluster.serve.settings import ModelSettings

ADDRESS = "RAYCLUSTER_ADDRESS"
"""The variable with the node's address, which every process of a node inherits."""
LOOPBACK = "127.0.0.1"
OUTWARD = ("kv_transfer_config", "ec_transfer_config")
"""Engine arguments with which an engine talks to others, which may be on other hosts."""

Addresses = Mapping[str, Sequence[str]]
"""The IP addresses of each network interface, by its name."""


def environment(
    settings: ModelSettings, given: Mapping[str, str], there: Addresses
) -> dict[str, str]:
    """Return the variables for the engine's own process, to which what is `given` is preferred.

    `there` are the addresses of its host.
    """
    address = given.get(ADDRESS, "")
    names = {name.replace("-", "_") for name, value in settings.engine_args.items() if value}
    if not settings.spread and names.isdisjoint(OUTWARD):
        address = LOOPBACK
    return talking_at(address, there) if address else {}


def talking_at(address: str, there: Addresses) -> dict[str, str]:
    """Return what makes vLLM, NCCL, Gloo and TensorPipe talk at this address of the host.

    Without an interface that has it, they are left to look for one.
    """
    name = interface_of(address, there)
    if not name:
        return {"VLLM_HOST_IP": address}
    return {
        "VLLM_HOST_IP": address,
        "NCCL_SOCKET_IFNAME": f"={name}",  # NCCL takes a bare name for the beginning of one
        "GLOO_SOCKET_IFNAME": name,
        "TP_SOCKET_IFNAME": name,
    }


def interface_of(address: str, there: Addresses) -> str:
    """Return the interface that has this address, or ""."""
    wanted = _plain(address)
    found = (name for name, own in there.items() if wanted in map(_plain, own))
    return next(found, "") if wanted else ""


def _plain(address: str) -> str:
    """Return an address in its shortest form, without a zone, or "" where it is none."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(address.partition("%")[0]))
    return ""


def interfaces() -> dict[str, list[str]]:
    """Return the addresses of this host's interfaces."""
    import psutil

    return {name: [a.address for a in own] for name, own in psutil.net_if_addrs().items()}
