"""Refusals before anything changes: what hosts, addresses and GPUs must be for a spec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

from raycluster.core.accelerators import choice
from raycluster.core.accelerators.values import Device
from raycluster.core.errors import HostError, SpecError
from raycluster.core.interfaces import Facts
from raycluster.plan.actions import HIDING, Action, Remove, Start
from raycluster.requirements import GPU_NEEDS, short_of, too_old_for
from raycluster.services.ray_node import HEAD
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.gpus import advice, lacking_gpus
from raycluster.state.cluster import ClusterState
from raycluster.state.members import of_another

ANEW = "raycluster down and then raycluster up: Ray counts GPUs only when a node starts"
"""How a node counts its GPUs again; another `up` alone leaves it as it is."""


def check_addresses(spec: ClusterSpec, addresses: Mapping[str, str]) -> None:
    """Raise SpecError where nodes could not reach each other at the addresses they would use."""
    for host in spec.hosts:
        if address := addresses[host.name]:
            _check_form(spec, host.name, address)
    if len(spec.hosts) == 1:
        return
    seen: dict[str, str] = {}
    for host in spec.hosts:
        address = _written_once(addresses[host.name])
        if not address:
            continue  # it was not reached, and this run does without it
        if is_loopback(address):
            raise SpecError(
                f"the other nodes would reach {host.name} at {address}",
                where="private_address",
                hint=f"set private_address of {host.name} to the address at which other nodes "
                "reach it",
            )
        if address in seen:
            raise SpecError(
                f"{seen[address]} and {host.name} both have {address}",
                where="private_address",
                hint="hosts behind one public address each need their own private_address",
            )
        seen[address] = host.name


def _written_once(address: str) -> str:
    """Return an address as all others that are the same are written; a name as it is."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    mapped = found.ipv4_mapped if found.version == 6 else None
    return str(mapped or found)


def is_loopback(address: str) -> bool:
    """Tell whether an address is one that only its own machine reaches; a name is not."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _check_form(spec: ClusterSpec, name: str, address: str) -> None:
    try:
        found = ip_address(address)
    except ValueError as error:
        if not spec.firewall.manage:
            return
        raise SpecError(
            f"{name} is known only by the name {address}, but firewall rules need IP addresses",
            where="private_address",
            hint=f"set private_address of {name} to the address at which other nodes reach it",
        ) from error
    if found.version == 6 and found.is_link_local:
        raise SpecError(
            f"{name} would have the address {address}, but programs cannot use link-local "
            "addresses",
            where="private_address",
            hint=f"set private_address of {name} to an address that is not link-local",
        )


def folders_to_compare(state: ClusterState, actions: Iterable[Action]) -> set[str]:
    """Return the hosts whose folders have to be told apart before these actions.

    All that are seen, where any is touched: in a folder that both have, what starts or is removed
    on one ends what runs on the other, which itself does not change.
    """
    if not any(isinstance(action, Start | Remove) for action in actions):
        return set()
    return {name for name, host in state.hosts.items() if not host.problem}


def check_up(spec: ClusterSpec, state: ClusterState) -> None:
    """Raise HostError where there is no running head that could take the app."""
    head = state.hosts[spec.head_host.name].role(HEAD)
    if head is None:
        raise HostError("is not up", where=spec.cluster.name, hint="raycluster up")
    if head.health != "running":
        raise HostError(
            f"the head is {head.health}, but the models need it",
            where=spec.head_host.name,
            hint="raycluster up",
        )


def check_owner(spec: ClusterSpec, state: ClusterState) -> None:
    """Raise HostError where a cluster of this name is there, and is somebody else's."""
    for name, host in state.hosts.items():
        if error := of_another(spec, name, host.found, host.firewall_owner):
            raise error


def check_machines(machines: Mapping[str, str]) -> None:
    """Raise SpecError where two hosts, of which `machines` tells what each is, are one machine."""
    seen: dict[str, str] = {}
    for name, machine in machines.items():
        if machine in seen:
            raise SpecError(
                f"{seen[machine]} and {name} are the same machine under two names",
                where="cluster",
                hint="list each machine once",
            )
        seen[machine] = name


def gpus_of(host: ResolvedHost, facts: Facts) -> int:
    """Return how many GPUs of a host the cluster uses."""
    return choice.count(host.gpus, facts.gpus)


def check_host_gpus(host: ResolvedHost, facts: Facts) -> None:
    """Raise HostError where the host cannot give the GPUs that the spec wants of it.

    A driver that does not answer is one: a cluster on its CPUs is nothing to start unasked.
    """
    if trouble := choice.lack(host.gpus, facts.gpus):
        raise HostError(trouble.what, where=host.name, hint=trouble.hint)
    if not gpus_of(host, facts):
        return
    if lacks := _short_of(host, facts):
        raise HostError(lacks[0], where=host.name, hint=lacks[1])
    if facts.gpus.vendor != "amd":
        return
    if host.makes_environment:
        raise HostError(
            "the host has AMD GPUs, but the environment that raycluster creates is for NVIDIA GPUs",
            where=host.name,
            hint="set runtime.python to a Python with Ray and vLLM for ROCm, or set gpus = 0",
        )
    if host.runs_own_programs and facts.gpus.denied:
        raise HostError(
            f"user {facts.gpus.denied} has no permission for /dev/kfd, which AMD GPUs need",
            where=host.name,
            hint="`sudo usermod -aG render,video USER`, then log in again",
        )


def _short_of(host: ResolvedHost, facts: Facts) -> tuple[str, str] | None:
    """Return what a host with NVIDIA's GPUs lacks for its image, or the environment made there."""
    if facts.gpus.vendor != "nvidia":
        return None
    used = choice.chosen(host.gpus, facts.gpus)
    driver = next((device.driver for device in used if device.driver), "")
    if not host.makes_environment:
        return _image_too_new(host, driver, used)
    return short_of(
        GPU_NEEDS,
        machine=facts.machine,
        glibc=facts.glibc,
        driver=driver,
        capabilities={f"GPU {d.index} ({d.name})": d.compute_capability for d in used},
    )


def _image_too_new(
    host: ResolvedHost, driver: str, used: Sequence[Device]
) -> tuple[str, str] | None:
    """Return why the driver is too old for the CUDA of the host's image, with the next step.

    Images bring libraries by which GPUs of data centres run a newer CUDA than their driver knows;
    those do not work with GPUs for desktops.
    """
    oldest = too_old_for(host.image_cuda, driver)
    desktop = next((d.name for d in used if "GeForce" in d.name), "")
    if not oldest or not desktop:
        return None
    return (
        f"its image is built for CUDA {host.image_cuda}, which on a {desktop} needs NVIDIA's "
        f"driver {oldest} or newer, but the host has {driver}",
        "update the driver, or set runtime.image to one for an older CUDA, such as vLLM's -cu129",
    )


def check_counted(host: ResolvedHost, facts: Facts, counted: float) -> None:
    """Raise HostError where Ray counts fewer GPUs of a host than the cluster uses."""
    wanted = gpus_of(host, facts)
    short = counted < wanted
    if host.gpus == "all" and (short or (facts.gpus.problem and not counted)):
        check_host_gpus(host, facts)  # it may know why
    if not short:
        return
    env = host.runtime.env or {}
    hiding = [name for name in HIDING if name in env]
    if hiding:
        hint = f"remove {hiding[0]} from runtime.env, and select GPUs with `gpus`"
    elif host.runs_own_programs:
        hint = (
            f"raycluster exec {host.name} -- nvidia-smi -L; when the driver works again (Ray "
            f"counts with its libnvidia-ml), {ANEW}"
        )
    else:
        hint = (
            f"raycluster exec {host.name} -- nvidia-smi -L: the container does not see all of "
            f"them; check the container toolkit; after a driver change, {ANEW}"
        )
    raise HostError(
        f"Ray sees {counted:g} of the {wanted} GPUs that the cluster uses on this host",
        where=host.name,
        hint=hint,
    )


def check_gpus(spec: ClusterSpec, gpus: Mapping[str, float]) -> None:
    """Raise SpecError where the GPUs, by host, do not hold the models' replicas."""
    if lack := lacking_gpus(spec.models, gpus):
        raise SpecError(lack, where="models", hint="check `num_gpus`, `replicas` and `engine_args`")


def gpu_notes(spec: ClusterSpec, gpus: Mapping[str, float]) -> dict[str, tuple[str, str]]:
    """Return, by model, what to know of how its replicas lie on the GPUs, and the next step."""
    found = {model.name: advice(model, gpus) for model in spec.models}
    return {name: told for name, told in found.items() if told}
