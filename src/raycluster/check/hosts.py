"""What `check` looks at on every host; changes nothing there."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raycluster.apply.converge import preview
from raycluster.apply.distribution.images import archive_path, archived_layers
from raycluster.apply.look_ahead import disk_of
from raycluster.apply.node_checks import check_facts
from raycluster.apply.preconditions.connectivity import try_neighbours
from raycluster.apply.preconditions.host_requirements import Tried, at_boot, tried
from raycluster.apply.preconditions.shared_folders import check_folders
from raycluster.core.accelerators.choice import WITHOUT, chosen, lack
from raycluster.core.accelerators.values import HANGS, Device, described
from raycluster.core.errors import HostError, ImageError, RayclusterError, apart
from raycluster.core.interfaces import (
    Facts,
    ImageStore,
    PrepareForecast,
    Process,
    RegistryLogin,
    Secret,
)
from raycluster.core.untrusted import is_digest
from raycluster.hosts.dashboard import taken
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.observe.facts import facts_of, machine
from raycluster.observe.image_registry import ImageAnswer, ask_for
from raycluster.plan.actions import Start
from raycluster.plan.forecast.downloads import LOAD, in_gb, missing_image
from raycluster.plan.forecast.fits import Problem
from raycluster.plan.placement import place
from raycluster.plan.preconditions import (
    check_addresses,
    check_gpus,
    check_host_gpus,
    check_machines,
    gpu_notes,
    gpus_of,
)
from raycluster.plan.sizing.memory import in_gib
from raycluster.services.processes import desired
from raycluster.services.ray_node import HEAD, RAY_ROLES
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.models import DEFAULT_IMAGE
from raycluster.spec.secret_values import Secrets
from raycluster.state.images import others
from raycluster.state.members import of_another

CLOCK_S = 5.0
DISK_BYTES = 20 << 30


@dataclass(frozen=True)
class Finding:
    """One check on one host."""

    host: str
    subject: str
    passed: bool
    text: str
    hint: str = ""


def check_hosts(
    spec: ClusterSpec, fleet: Fleet, login: RegistryLogin | None = None
) -> tuple[Finding, ...]:
    """Return every finding, in the order of the spec's hosts; `login` is the registry's."""
    reached = fleet.reach(spec.hosts, lambda connected: connected.address)
    addresses = {n: a for n, a in reached.items() if isinstance(a, str)}
    findings: list[Finding] = []
    facts: dict[str, Facts] = {}

    def look(connected: Connected) -> tuple[Finding, ...]:
        began = time.time()
        seen = facts[connected.host.name] = facts_of(connected)
        clock = _clock(connected.host, seen, began, time.time())
        return (*_look(spec, connected, seen, addresses), clock)

    looked = fleet.each(addresses, look)
    ways = try_neighbours(spec, fleet, addresses)
    for host in spec.hosts:
        result = reached[host.name]
        if isinstance(result, RayclusterError):
            findings.append(Finding(host.name, "connection", False, result.what, result.hint))
            continue
        findings.append(Finding(host.name, "connection", True, f"reached at {result}"))
        seen = looked[host.name]
        if isinstance(seen, RayclusterError):
            findings.append(Finding(host.name, "host", False, seen.what, seen.hint))
        else:
            findings += seen
        findings += [_finding(host, found) for found in ways[host.name]]
    whole = _whole(spec, fleet, addresses)
    findings += _images(spec, fleet, addresses, login)
    findings += _archives(spec, fleet, addresses)
    findings += _folders(spec, fleet, addresses)
    return (*findings, *(whole or _gpus(spec, facts)))


def check_plan(
    spec: ClusterSpec, fleet: Fleet, secrets: Secrets, told: Collection[Finding]
) -> tuple[Finding, ...]:
    """Return what `up` would refuse by its plan, beside what was `told` of the hosts.

    A host that cannot be used leaves nothing to plan with.
    """
    wrong = {finding.host for finding in told if not finding.passed}
    if any(f.subject in ("connection", "host", "owner") for f in told if not f.passed):
        return ()
    if any(HANGS in f.text for f in told if not f.passed):  # it would be waited for once more
        return ()
    every: Sequence[Problem | RayclusterError]
    try:
        _, forecast = preview(spec, fleet, secrets)
        every = (*forecast.problems, *(w for w in forecast.warnings if w.certain))
    except RayclusterError as error:
        every = [each for each in apart([error]) if each.where not in wrong]
    known = {(finding.host, finding.text) for finding in told}
    new = {(each.where or "cluster", each.what): each.hint for each in every}
    return tuple(
        Finding(host, "plan", False, what, hint)
        for (host, what), hint in new.items()
        if (host, what) not in known
    )


def _folders(spec: ClusterSpec, fleet: Fleet, addresses: dict[str, str]) -> list[Finding]:
    try:
        check_folders(spec, fleet, addresses)
    except RayclusterError as error:
        return [Finding(error.where, "folder", False, error.what, error.hint)]
    return []


def _look(
    spec: ClusterSpec, connected: Connected, facts: Facts, addresses: dict[str, str]
) -> Iterator[Finding]:
    host = connected.host
    processes = _processes(spec, host, addresses)
    found = tried(spec, connected)
    stored = not any(each.failed and each.subject == "storage" for each in found)
    usable = _runtime(spec, connected, processes if stored else ())
    yield usable
    yield from (_finding(host, each) for each in found)
    running = _running(connected)
    starts = [
        Start(host.name, process, "", replaces=process.role in running) for process in processes
    ]
    yield _fits(host, facts, starts, connected.runtime.neighbours)
    if usable.passed and host.role == HEAD and (error := taken(connected, spec.ports.dashboard)):
        yield Finding(host.name, "dashboard", False, error.what, error.hint)
    yield _gpus_of(connected, facts, starts, usable=usable.passed)
    yield _disk(host, facts)
    if usable.passed and host.makes_environment:
        yield from _environment(connected, starts)


def _processes(
    spec: ClusterSpec, host: ResolvedHost, addresses: dict[str, str]
) -> tuple[Process, ...]:
    known = {h.name: addresses.get(h.name, "192.0.2.1") for h in spec.hosts}
    return desired(spec, host, Wiring(known, Secret("")))


def _running(connected: Connected) -> set[str]:
    try:
        return {f.role for f in connected.runtime.observe()}
    except HostError:
        return set()


def _runtime(spec: ClusterSpec, connected: Connected, processes: Sequence[Process]) -> Finding:
    host = connected.host
    try:
        theirs = of_another(spec, host.name, connected.runtime.observe())
        told = () if theirs else connected.runtime.verify(processes)
    except HostError as error:
        return Finding(host.name, host.kind, False, error.what, error.hint)
    if theirs:
        return Finding(host.name, "owner", False, theirs.what, theirs.hint)
    return Finding(host.name, host.kind, True, "; ".join(("is usable", *told)))


def _fits(
    host: ResolvedHost,
    facts: Facts,
    starts: list[Start],
    neighbours: Callable[[], Mapping[int, str]] = dict,
) -> Finding:
    try:
        for start in starts:
            check_facts(host, start, facts, neighbours)
    except HostError as error:
        return Finding(host.name, "resources", False, error.what, error.hint)
    return Finding(host.name, "resources", True, f"{_offers(facts)}, ports are free")


def _offers(facts: Facts) -> str:
    """Return a host's processors and memory, beside the machine's where it has but a part."""
    cpus, memory, seen = f"{facts.cpus} CPU", in_gib(facts.memory_bytes), facts.limits
    if seen and seen.of_cpus:
        cpus = f"{seen.cpus:g} of {seen.machine_cpus} CPU"
    if seen and seen.of_memory:
        memory += f" of {in_gib(seen.machine_bytes)}"
    limited = seen is not None and (seen.of_cpus or seen.of_memory)
    return f"{cpus}, {memory}" + (" (control groups limit it)" if limited else "")


def _gpus_of(connected: Connected, facts: Facts, starts: list[Start], *, usable: bool) -> Finding:
    """Try all that `up` needs of the host's GPUs: the driver, the choice, the way into a box."""
    host = connected.host
    if host.gpus == 0:
        return Finding(host.name, "GPUs", True, "none is used: gpus = 0")
    try:
        check_host_gpus(host, facts)
        if usable and starts:
            connected.runtime.outlook(starts[0].process, ())
    except HostError as error:
        return Finding(host.name, "GPUs", False, error.what, error.hint)
    told, doubt = _told(chosen(host.gpus, facts.gpus)), facts.gpus.unseen
    if doubt:
        hint = "; ".join(filter(None, [doubt.hint, WITHOUT]))
        return Finding(host.name, "GPUs", True, f"{told}; {doubt.what}; {hint}", hint)
    return Finding(host.name, "GPUs", True, told)


def _told(devices: Sequence[Device]) -> str:
    if not devices:
        return "none: models run on CPUs"
    driver = f", driver {devices[0].driver}" if devices[0].driver else ""
    return described(devices) + driver


def _disk(host: ResolvedHost, facts: Facts) -> Finding:
    free = facts.disk_free_bytes
    if free is None:
        what = f"could not be checked: {facts.disk_problem}"
        hint = "see the output of `df -Pk /` on the host"
        if HANGS in what:
            hint = "unmount what hangs (a network file system?): see `mount`, `dmesg`"
        return Finding(host.name, "disk", False, what, hint)
    return Finding(
        host.name,
        "disk",
        free >= DISK_BYTES,
        f"{free / 2**30:.0f} GiB free",
        f"images and models need space: free at least {DISK_BYTES >> 30} GiB",
    )


def _environment(connected: Connected, starts: list[Start]) -> Iterator[Finding]:
    """Compare what the environment takes, where it is known and not made yet, with its disk."""
    name = connected.host.name
    node = next((s.process for s in starts if s.process.role in RAY_ROLES), None)
    if node is None:
        return
    try:
        seen = connected.runtime.outlook(node, ())
    except HostError as error:
        yield Finding(name, "environment", False, error.what, error.hint)
        return
    if boot := at_boot(seen):
        yield _finding(connected.host, boot)
    if seen.there:
        yield Finding(name, "environment", True, f"is in {seen.folder}")
    if seen.there or not seen.download_bytes or not seen.stored_bytes:
        return
    disk = disk_of(connected.transport, seen.folder)
    takes = f"{in_gb(seen.download_bytes)} to fetch, {in_gb(seen.stored_bytes)} in {seen.folder}"
    free = f"{in_gb(disk.free)} are free" if disk else "the free space could not be read"
    yield Finding(
        name,
        "environment",
        disk is not None and disk.free >= seen.stored_bytes,
        f"will be created: {takes}, {free}",
        "free some space there, or put HOME on a larger disk",
    )


def _clock(host: ResolvedHost, facts: Facts, began: float, ended: float) -> Finding:
    """Compare the host's clock with this machine's, which told these times around the question."""
    apart = max(0.0, began - facts.epoch, facts.epoch - ended)
    return Finding(
        host.name,
        "clock",
        apart <= CLOCK_S,
        f"{apart:.1f} s off this machine's clock",
        "synchronize the host's clock with NTP: otherwise logs and metrics are misleading",
    )


def _finding(host: ResolvedHost, found: Tried) -> Finding:
    return Finding(host.name, found.subject, not found.failed, found.text, found.hint)


def _images(
    spec: ClusterSpec, fleet: Fleet, addresses: dict[str, str], login: RegistryLogin | None
) -> list[Finding]:
    """Let hosts ask registries for the images that they would pull; else this machine asks.

    Where the spec lets no host pull, an image that nothing brings fails the check.
    """
    there: set[str] = set()
    peer = spec.distribution.images == "peer"

    def lacking(connected: Connected) -> list[tuple[Process, PrepareForecast]]:
        host, found = connected.host, list[tuple[Process, PrepareForecast]]()
        for process in _processes(spec, host, addresses):
            if not (process.role == host.role and host.runtime.archive):
                outlook = connected.runtime.outlook(process, ())
                if outlook.there:
                    there.add(outlook.what)
                elif outlook.image or outlook.withheld:
                    found.append((replace(process, login=login), outlook))
        return found

    named = fleet.each(addresses, lambda connected: _named(spec, connected, addresses))
    looked = fleet.each(addresses, lacking)
    wanted = {n: looks for n, looks in looked.items() if not isinstance(looks, RayclusterError)}
    missing = [
        Finding(host, "image", False, what, LOAD)
        for host, looks in wanted.items()
        for what in dict.fromkeys(
            missing_image(look.what)
            for _, look in looks
            if look.withheld and not (peer and look.what in there)
        )
    ]
    handed_on = {
        (host, look.image)
        for host, looks in wanted.items()
        for _, look in looks
        if peer and "@" not in look.image and look.held_bytes is None
    }
    pulled = {
        host: {
            look.image: process
            for process, look in looks
            if look.image and not ((host, look.image) in handed_on and look.what in there)
        }
        for host, looks in wanted.items()
    }

    def ask(connected: Connected) -> dict[str, bool | ImageError]:
        mine = pulled[connected.host.name]
        return {image: _pullable(connected, process) for image, process in mine.items()}

    asked = fleet.each([host for host, images in pulled.items() if images], ask)
    told = {
        (host, image): False if isinstance(answers, RayclusterError) else answers[image]
        for host, answers in asked.items()
        for image in pulled[host]
    }
    sources = {image for (_, image), answer in told.items() if answer is True}
    told |= {place: True for place in handed_on & told.keys() if place[1] in sources}
    doubtful = sorted({image for (_, image), answer in told.items() if answer is not True})
    here = {image: ask_for(image, login) for image in doubtful}
    return [
        *missing,
        *(_image(host, image, answer, here.get(image)) for (host, image), answer in told.items()),
        *other_images(named, {host.name: host.runtime.pull for host in spec.hosts}),
    ]


def _archives(spec: ClusterSpec, fleet: Fleet, addresses: dict[str, str]) -> list[Finding]:
    """Look for images in the files of this machine that hosts without a node take them from."""
    given: dict[tuple[str, str], list[str]] = {}
    hosts = [h for h in spec.hosts if h.name in addresses and h.runtime.archive]
    runs = fleet.each([h.name for h in hosts], lambda c: c.host.role in _running(c))
    for host in hosts:
        if runs[host.name] is False and not host.runs_own_programs:
            place = (host.runtime.archive or "", host.runtime.image or DEFAULT_IMAGE)
            given.setdefault(place, []).append(host.name)
    found: list[Finding] = []
    for (archive, image), names in given.items():
        try:
            archived_layers(archive_path(archive), image)
        except ImageError as error:
            what = f"{error.where}: {error.what}"
            found += [Finding(name, "image", False, what, error.hint) for name in names]
    return found


def _pullable(connected: Connected, process: Process) -> bool | ImageError:
    runtime = connected.runtime
    try:
        return isinstance(runtime, ImageStore) and runtime.pullable(process)
    except ImageError as error:
        return error


def _named(
    spec: ClusterSpec, connected: Connected, addresses: dict[str, str]
) -> Mapping[str, tuple[str, bool]]:
    """Return image -> the digest that the host has of it, and whether it runs."""
    runtime = connected.runtime
    if not isinstance(runtime, ImageStore):
        return {}
    running = [told for f in runtime.observe() if (told := f.versions.image)]
    runs = {image: digest for image, _, digest in (told.partition("@") for told in running)}
    wanted = [p.image for p in _processes(spec, connected.host, addresses) if "@" not in p.image]
    found = {each: (runs.get(each) or runtime.digest(each), each in runs) for each in wanted}
    return {image: told for image, told in found.items() if is_digest(told[0])}


def other_images(
    named: Mapping[str, Mapping[str, tuple[str, bool]] | RayclusterError],
    pulls: Mapping[str, str | None],
) -> Iterator[Finding]:
    """Yield the hosts that have another image under one name, which fails nothing.

    `named` is host -> image -> its digest, and whether it runs. What runs comes first: what does
    not run yet is brought to it.
    """
    digests: dict[str, dict[str, str]] = {}
    known = {host: told for host, told in named.items() if not isinstance(told, RayclusterError)}
    for runs in (True, False):
        for host, told in known.items():
            for image, (digest, running) in told.items():
                if running == runs:
                    digests.setdefault(image, {})[host] = digest
    for other in others(digests):
        stays = known[other.where][other.image][1] or pulls[other.where] in ("always", "never")
        hint = other.hint if stays else ""
        then = f"; {hint}" if hint else "; `raycluster up` takes the latter here too"
        yield Finding(other.where, "image", True, f"{other.what}{then}", hint)


def _image(host: str, image: str, told: bool | ImageError, here: ImageAnswer | None) -> Finding:
    """Return what a host's Docker was `told` of an image, or this machine where that is nothing."""
    if told is True:
        return Finding(host, "image", True, f"{image} exists in its registry")
    like = f"; it has {', '.join(here.nearest)}" if here and here.nearest else ""
    if isinstance(told, ImageError):
        return Finding(host, "image", False, f"{told.what}{like}", told.hint)
    if here is None or here.there is None:
        why = here.why if here else ""
        return Finding(host, "image", True, f"{image} was not looked up: {why}")
    if here.there:
        return Finding(host, "image", True, f"{image} exists in its registry, as seen from here")
    what = f"the registry has no {image}{like}"
    return Finding(host, "image", False, what, "correct the image name in the spec")


def _whole(spec: ClusterSpec, fleet: Fleet, addresses: dict[str, str]) -> list[Finding]:
    if len(addresses) < len(spec.hosts):
        return []
    machines = fleet.each(addresses, machine)
    try:
        check_addresses(spec, addresses)
        # what a host that does not tell has to say is among its own findings
        check_machines({n: m for n, m in machines.items() if not isinstance(m, RayclusterError)})
    except RayclusterError as error:
        return [Finding("cluster", "addresses", False, error.what, error.hint)]
    return []


def _gpus(spec: ClusterSpec, facts: dict[str, Facts]) -> list[Finding]:
    """Compare the models with all GPUs, where each host has told of its own."""
    if not all(h.name in facts and not lack(h.gpus, facts[h.name].gpus) for h in spec.hosts):
        return []
    gpus = {h.name: gpus_of(h, facts[h.name]) for h in spec.hosts}
    try:
        spec, _ = place(spec, {name: seen.gpus for name, seen in facts.items()})
    except RayclusterError:
        return []  # the plan tells it
    try:
        check_gpus(spec, gpus)
    except RayclusterError as error:
        return [Finding("cluster", "models", False, error.what, error.hint)]
    notes = gpu_notes(spec, gpus).items()
    return [
        Finding("cluster", "models", True, f"{name}: {what}; {hint}", hint)
        for name, (what, hint) in notes
    ]
