"""From a spec and what was seen to what shall be done: decisions only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal

from raycluster.accelerators import choice
from raycluster.accelerators.values import Device, clean
from raycluster.contracts import Facts, Found, Process, Secret
from raycluster.errors import DegradedError, HostError, SpecError
from raycluster.members import Former, former
from raycluster.requirements import GPU_NEEDS, short_of, too_old_for
from raycluster.rollout import Rollout, plan_rollout, restarts, same
from raycluster.room import Memory
from raycluster.services import firewall
from raycluster.services.gateway import GATEWAY, gateway
from raycluster.services.grafana import grafana
from raycluster.services.head import head
from raycluster.services.prometheus import prometheus
from raycluster.services.ray_node import HEAD, RAY_ROLES
from raycluster.services.wiring import Wiring
from raycluster.services.worker import worker
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.gpus import advice, lacking_gpus
from raycluster.state import UNREAD, App, ClusterState, RayNode

ATTEMPT = "attempt"
MOST_ATTEMPTS = 1_000_000
HIDING = (
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
)
"""Variables that take GPUs out of Ray's sight."""
ANEW = "raycluster down and then raycluster up: Ray counts when a node starts"
"""How a node counts its GPUs again; another `up` alone leaves it as it is."""

Service = Callable[[ClusterSpec, ResolvedHost, Wiring], Process | None]
SERVICES: tuple[Service, ...] = (head, worker, gateway, prometheus, grafana)
"""What may run on hosts; each returns None for a host where it does not run."""


@dataclass(frozen=True)
class Start:
    """Start a process on a host, in place of the one that is there if `replaces`."""

    host: str
    process: Process
    reason: str
    replaces: bool = False

    def describe(self) -> str:
        """Return one line for a person."""
        sign = "~ restart" if self.replaces else "+ start"
        return f"{self.host}: {sign} {self.process.role} ({self.reason})"


@dataclass(frozen=True)
class Reload:
    """Hand changed files to a process that runs on, and tell it to read them."""

    host: str
    process: Process
    reason: str = "its files changed"

    def describe(self) -> str:
        """Return one line for a person."""
        return f"{self.host}: ~ reload {self.process.role} ({self.reason})"


@dataclass(frozen=True)
class Guard:
    """Put firewall rules in force on a host, or with none take ours back."""

    host: str
    rules: str
    reason: str

    def describe(self) -> str:
        """Return one line for a person."""
        verb = "~ write firewall rules" if self.rules else "- remove firewall rules"
        return f"{self.host}: {verb} ({self.reason})"


@dataclass(frozen=True)
class Remove:
    """Take a process, or with `role` None all that is ours, off a host of the spec or of before."""

    host: str
    role: str | None
    reason: str

    def describe(self) -> str:
        """Return one line for a person."""
        return f"{self.host}: - remove {self.role or 'everything of this cluster'} ({self.reason})"


@dataclass(frozen=True)
class Deploy:
    """Make Serve's applications those of the spec, in the steps of `rollout`."""

    rollout: Rollout
    reasons: tuple[str, ...]

    def describe(self) -> str:
        """Return one line for a person."""
        return f"app: ~ deploy ({'; '.join(self.reasons)})"

    @property
    def body(self) -> Mapping[str, Any]:
        """What Serve is told in the end."""
        return self.rollout.steps[-1]

    @property
    def costs(self) -> tuple[str, ...]:
        """What the running models' clients will notice, a line for each model."""
        return tuple(f"{name}: {cost}" for name, cost in self.rollout.costs.items())

    @property
    def host(self) -> str:
        """The app is no host; its name stands where a host's would."""
        return "app"


_WHY_RULES = {"": "the cluster's ports are open", UNREAD: "those that are there cannot be read"}
Action = Guard | Start | Reload | Remove | Deploy


@dataclass(frozen=True)
class Only:
    """The part of the cluster that one run is about: a stage, or one host by name."""

    part: Literal["all", "head", "workers", "app", "gateway"] = "all"
    host: str | None = None

    def nodes(self, host: ResolvedHost) -> bool:
        """Return True when this run may touch the host's processes."""
        if self.host:
            return host.name == self.host
        return self.part in ("all", "gateway", host.role, f"{host.role}s")

    def role(self, name: str) -> bool:
        """Return True when this run may touch the process of this role."""
        return self.part != "gateway" or name == GATEWAY

    @property
    def app(self) -> bool:
        """True when this run deploys."""
        return not self.host and self.part in ("all", "app")


EVERYTHING = Only()
APP = Only("app")


def plan_nodes(
    spec: ClusterSpec, state: ClusterState, wiring: Wiring, only: Only = EVERYTHING
) -> tuple[Action, ...]:
    """Return what brings the hosts to the spec: head, workers, other services, removals."""
    check_addresses(spec, wiring.addresses)
    starts: list[Start] = []
    guards: list[Guard] = []
    reloads: list[Reload] = []
    removes: list[Remove] = []
    new_head = False
    for host in (h for h in spec.hosts if only.nodes(h)):
        seen = state.hosts[host.name]
        wanted = tuple(p for p in desired(spec, host, wiring) if only.role(p.role))
        rules, digits = firewall.wanted(spec, host, wiring)
        if digits != seen.firewall and only.part != "gateway":
            why = _WHY_RULES.get(seen.firewall, "the cluster changed")
            guards.append(Guard(host.name, rules, why if rules else "not managed any more"))
        for process in wanted:
            found = seen.role(process.role)
            reason = _why_start(process, found)
            if not reason and new_head and process.role in RAY_ROLES:
                reason = "joins the new head"
            new_head = new_head or (process.role == HEAD and bool(reason))
            if reason:
                starts.append(Start(host.name, process, reason, replaces=found is not None))
            elif process.reload and seen.live.get(process.role) != process.live_id:
                reloads.append(Reload(host.name, process))
        found_roles = [found for found in seen.found if only.role(found.role)]
        removes += _strangers(host.name, found_roles, keep={p.role for p in wanted})
    starts.sort(key=lambda start: start.process.role not in RAY_ROLES)
    if only == EVERYTHING:
        removes += [
            Remove(f.name, None, "has another runtime now") for f in moved_hosts(spec, state)
        ]
        removes += [
            Remove(f.name, None, f"no longer in the spec, at {f.member.address}")
            for f in removed_hosts(spec, state)
        ]
    return (*guards, *starts, *reloads, *removes)


def desired(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> tuple[Process, ...]:
    """Return all that shall run on the host, Ray first."""
    return tuple(p for service in SERVICES if (p := service(spec, host, wiring)))


def roles(spec: ClusterSpec, host: ResolvedHost) -> tuple[str, ...]:
    """Return the roles of all that shall run on the host, Ray's first."""
    anywhere = Wiring({h.name: "" for h in spec.hosts}, Secret(""))
    return tuple(process.role for process in desired(spec, host, anywhere))


def _why_start(desired: Process, found: Found | None) -> str:
    if found is None:
        return "not there"
    if found.fingerprint != desired.fingerprint:
        return "the spec changed"
    if found.health != "running":
        return f"is {found.health}{': ' + found.detail if found.detail else ''}"
    return ""


def _strangers(host: str, found: Iterable[Found], keep: Set[str]) -> list[Remove]:
    unknown = {f.role for f in found} - keep
    return [Remove(host, role, "not in the spec for this host") for role in sorted(unknown)]


def removed_hosts(spec: ClusterSpec, state: ClusterState) -> tuple[Former, ...]:
    """Return the hosts that an earlier `up` recorded and the spec no longer names."""
    return tuple(f for f in former(spec, state.members) if f.host and not f.moved)


def moved_hosts(spec: ClusterSpec, state: ClusterState) -> tuple[Former, ...]:
    """Return hosts of the spec as an earlier `up` recorded them, when with another runtime."""
    return tuple(f for f in former(spec, state.members) if f.host and f.moved)


def stranded_hosts(spec: ClusterSpec, state: ClusterState) -> tuple[Former, ...]:
    """Return the recorded hosts that are to be cleaned, and that no run with this spec can."""
    return tuple(f for f in former(spec, state.members) if not f.host)


def stranded(spec: ClusterSpec, state: ClusterState) -> tuple[HostError, ...]:
    """Return why they stay as they are, one error for each."""
    return tuple(
        HostError(f"stays as it is: it {f.trouble}", where=f.name, hint=f.hint)
        for f in stranded_hosts(spec, state)
    )


def unread(state: ClusterState) -> tuple[DegradedError, ...]:
    """Return what a run does without where no node's records can be read."""
    if state.unread is None:
        return ()
    error = state.unread
    step = "run `raycluster down` with the spec of before for hosts that left it meanwhile"
    what = f"{error.what}: hosts that left the spec are not known"
    return (DegradedError(what, where=error.where, hint=error.hint or step),)


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
                f"{host.name} would be {address} for the other nodes",
                where="private_address",
                hint=f"give {host.name} the address that the other nodes reach it at",
            )
        if address in seen:
            raise SpecError(
                f"{seen[address]} and {host.name} both have {address}",
                where="private_address",
                hint="behind one public address every host needs a private_address of its own",
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
            f"{name} is known by the name {address} alone, and the firewall's rules need addresses",
            where="private_address",
            hint=f"give {name} the address that the other nodes reach it at",
        ) from error
    if found.version == 6 and found.is_link_local:
        raise SpecError(
            f"{name} would be {address} for programs, which cannot use link-local addresses",
            where="private_address",
            hint=f"give {name} an address that is good beyond one link",
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
    head = state.hosts[spec.hosts[0].name].role(HEAD)
    if head is None:
        raise HostError("is not up", where=spec.cluster.name, hint="raycluster up")
    if head.health != "running":
        raise HostError(
            f"the head is {head.health}, and the app needs it",
            where=spec.hosts[0].name,
            hint="raycluster up",
        )


def check_owner(spec: ClusterSpec, state: ClusterState) -> None:
    """Raise HostError where a cluster of this name is there, and is somebody else's."""
    for name, host in state.hosts.items():
        if error := of_another(spec, name, host.found, host.firewall_owner):
            raise error


def of_another(
    spec: ClusterSpec, where: str, found: Iterable[Found], firewall_owner: str = ""
) -> HostError | None:
    """Return the error for a host on which somebody else has a cluster of this name."""
    owners = (*(each.owner for each in found), firewall_owner)
    owner = next((clean(o, 80) for o in owners if o and o != spec.owner), None)
    if owner is None:
        return None
    return HostError(
        f"the cluster {spec.cluster.name} there belongs to {owner}, and this spec is of "
        f"{spec.owner or 'nobody'}",
        where=where,
        hint="give yours another name, with ports of its own; if both are one cluster, let all who "
        f"share the spec have `owner = {json.dumps(owner)}` under [cluster]",
    )


def check_machines(machines: Mapping[str, str]) -> None:
    """Raise SpecError where two hosts, of which `machines` tells what each is, are one machine."""
    seen: dict[str, str] = {}
    for name, machine in machines.items():
        if machine in seen:
            raise SpecError(
                f"{seen[machine]} and {name} are the same machine under two names",
                where="cluster",
                hint="list every machine once",
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
            "the host has AMD's GPUs, and the environment that is made is for NVIDIA's",
            where=host.name,
            hint="name a Python with Ray and vLLM for ROCm in runtime.python, or set gpus = 0",
        )
    if host.runs_own_programs and facts.gpus.denied:
        raise HostError(
            f"user {facts.gpus.denied} may not use /dev/kfd, through which AMD's GPUs are used",
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
        f"driver {oldest} or newer, and the host has {driver}",
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
        hint = f"take {hiding[0]} out of runtime.env, and name GPUs by `gpus`"
    elif host.runs_own_programs:
        hint = (
            f"raycluster exec {host.name} -- nvidia-smi -L; when the driver is whole (Ray counts "
            f"by its libnvidia-ml), {ANEW}"
        )
    else:
        hint = (
            f"raycluster exec {host.name} -- nvidia-smi -L: the container does not see them all; "
            f"look at the container toolkit; after a change of the driver, {ANEW}"
        )
    raise HostError(
        f"Ray counts {counted:g} of the {wanted} GPUs that the cluster uses of this host",
        where=host.name,
        hint=hint,
    )


def check_gpus(spec: ClusterSpec, gpus: Mapping[str, float]) -> None:
    """Raise SpecError where the GPUs, by host, do not hold the models' replicas."""
    if lack := lacking_gpus(spec.models, gpus):
        raise SpecError(lack, where="models", hint="see `num_gpus`, `replicas` and `engine_args`")


def gpu_notes(spec: ClusterSpec, gpus: Mapping[str, float]) -> dict[str, tuple[str, str]]:
    """Return, by model, what to know of how its replicas lie on the GPUs, and the next step."""
    found = {model.name: advice(model, gpus) for model in spec.models}
    return {name: told for name, told in found.items() if told}


def plan_app(
    wanted: Mapping[str, Any],
    apps: tuple[App, ...] | None,
    nodes: tuple[RayNode, ...] = (),
    memory: Mapping[str, Memory] | None = None,
) -> Deploy | None:
    """Return the deployment that is needed, or None when the running one is the wanted one.

    `memory` is what the nodes have of it, by node id.
    """
    by_name = {a.name: a for a in apps or ()}
    body = {
        **wanted,
        "applications": [_attempt(a, by_name.get(a["name"])) for a in wanted["applications"]],
    }
    reasons: list[str] = []
    for want in body["applications"]:
        app = by_name.pop(want["name"], None)
        if app is None:
            reasons.append(f"{want['name']}: not there")
        elif app.status == "NOT_STARTED" or (app.failed and ATTEMPT in want["args"]):
            reasons.append(f"{app.name}: {app.status.lower().replace('_', ' ')}")
        elif not same(app.config, want):
            reasons.append(f"{want['name']}: changed")
    reasons += [f"{name}: not in the spec" for name in by_name]
    if not reasons:
        return None
    return Deploy(plan_rollout(body, apps or (), nodes, memory or {}), tuple(reasons))


def still_serving(app: App) -> str:
    """Return what to tell of the replicas that serve although the newest version failed, or ""."""
    if not app.failed or not app.serving:
        return ""
    count = "1 replica" if app.serving == 1 else f"{app.serving} replicas"
    return f"the version before goes on serving ({count})"


def _attempt(want: Mapping[str, Any], app: App | None) -> Mapping[str, Any]:
    """Return the application with the number of the attempt, where it is not the first.

    Serve never tries a version again that did not start; a new number makes it another version.
    """
    if app is None:
        return want
    told = app.config.get("args", {}).get(ATTEMPT, 0)
    attempt = told if type(told) is int and 0 <= told < MOST_ATTEMPTS else 0
    again = {**want, "args": {**want["args"], ATTEMPT: attempt}} if attempt else want
    if restarts(app.config, again):
        return want
    return {**want, "args": {**want["args"], ATTEMPT: attempt + 1}} if app.failed else again
