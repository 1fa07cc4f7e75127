"""What a spec leaves to the hosts: addresses and numbers of GPUs."""

from __future__ import annotations

from ipaddress import ip_address

from raycluster.core.accelerators.choice import named
from raycluster.core.accelerators.values import Accelerators
from raycluster.hosts.fleet import Connected, Fleet, all_or_raise
from raycluster.observe.facts import facts_of
from raycluster.plan.placement import place
from raycluster.plan.preconditions import check_host_gpus, gpus_of
from raycluster.spec import ClusterSpec, ResolvedHost


def look(spec: ClusterSpec, fleet: Fleet) -> tuple[ClusterSpec, dict[str, str], dict[str, int]]:
    """Return the spec with its models placed, each host's address and its number of GPUs.

    Only hosts of which the spec does not say all are connected to. Raises HostError, SpecError.
    """
    kinds = any(model.gpu for model in spec.models)
    addresses = {host.name: _address(spec, host) for host in spec.hosts}
    gpus = {host.name: named(host.gpus) for host in spec.hosts}
    unknown = [h for h in spec.hosts if not addresses[h.name] or h.gpus == "all" or kinds]

    def ask(connected: Connected) -> tuple[str, int, Accelerators]:
        facts = facts_of(connected)
        check_host_gpus(connected.host, facts)
        return connected.address, gpus_of(connected.host, facts), facts.gpus

    seen = all_or_raise(fleet.reach(unknown, ask))
    told = {name: address or seen[name][0] for name, address in addresses.items()}
    counts = {name: seen[name][1] if count is None else count for name, count in gpus.items()}
    spec, _ = place(spec, {name: gpus for name, (_, _, gpus) in seen.items()})
    return spec, told, counts


def _address(spec: ClusterSpec, host: ResolvedHost) -> str:
    """Return the address that the spec fixes, or ""."""
    if host.private_address:
        return host.private_address
    if host.transport == "local" and len(spec.hosts) == 1:
        return "127.0.0.1"
    try:
        return str(ip_address(host.host))
    except ValueError:
        return ""
