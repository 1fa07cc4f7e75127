"""One image for one name on all hosts: tags move, and hosts pull at different times."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from raycluster.apply.context import ApplyContext
from raycluster.apply.distribution.image_staging import store
from raycluster.core.errors import RayclusterError
from raycluster.core.events import Event
from raycluster.core.interfaces import ImageStore
from raycluster.hosts.fleet import Connected
from raycluster.observe.facts import facts_of
from raycluster.plan.actions import Start
from raycluster.plan.version_parity import other_images
from raycluster.spec import ResolvedHost
from raycluster.state.cluster import ClusterState
from raycluster.state.images import started_from

T = TypeVar("T")


def settled(work: ApplyContext, starts: Iterable[Start]) -> list[Start]:
    """Return the starts with the digest of each image that is named by tag, where one is known.

    What the cluster's processes were started from stands in the plan. Else it is what the first
    host has under the name; and where a host has nothing, what the registry has: it is asked once,
    so that a tag that moves meanwhile is one image on all hosts.
    """
    every, open_ = list(starts), dict[str, list[str]]()
    hosts = {host.name: host for host in work.spec.hosts}
    for start in every:
        if _open(work, start, hosts[start.host]):
            open_.setdefault(start.process.image, []).append(start.host)
    digests = {image: _digest(work, image, dict.fromkeys(on)) for image, on in open_.items()}
    return [
        replace(s, process=replace(s.process, digest=digests[s.process.image]))
        if _open(work, s, hosts[s.host])
        else s
        for s in every
    ]


def _open(work: ApplyContext, start: Start, host: ResolvedHost) -> bool:
    process = start.process
    given = host.runtime.archive and process.role == host.role
    free = not (process.digest or "@" in process.image or given or host.runtime.pull == "never")
    return free and isinstance(work.fleet[start.host].runtime, ImageStore)


def _digest(work: ApplyContext, image: str, starting: Collection[str]) -> str:
    """Return what hosts have under a name by digest, or what the registry has, "" if unknown."""
    users = {host.name: host for host in work.spec.hosts if host.image == image}
    names = [h.name for h in work.spec.hosts if h.name in users or h.name in starting]
    anew = [n for n in starting if work.fleet[n].host.runtime.pull == "always"]
    if not anew:
        held = _known(work.fleet.each(names, partial(_held, image)))
        if digest := next((digest for digest, _ in held.values() if digest), ""):
            return digest
        there = [n for n, (_, layers) in held.items() if layers]
        if len(there) == len(names) or (there and work.spec.distribution.images == "peer"):
            return ""
        anew = [n for n in starting if n not in there]
    login = work.secrets.registry
    asked = _known(work.fleet.each(anew[:1], lambda c: store(c).registry_digest(image, login)))
    return next(iter(asked.values()), "")


def _held(image: str, connected: Connected) -> tuple[str, tuple[str, ...]]:
    runtime = connected.runtime
    if not isinstance(runtime, ImageStore):
        return "", ()
    return runtime.digest(image), runtime.layers(image)


def tell_other_images(work: ApplyContext, state: ClusterState, starts: Iterable[Start]) -> None:
    """Say where a host that was prepared runs another image than the rest, under the same name."""
    named: dict[str, list[ResolvedHost]] = {}
    for host in work.spec.hosts:
        if host.image and "@" not in host.image:
            named.setdefault(host.image, []).append(host)
    new = {start.host: start.process.digest for start in starts}
    runs = started_from(work.spec, state)
    for image, hosts in named.items():
        names = [h.name for h in hosts]
        if len(names) > 1 and new.keys() & {*names}:
            layers = _known(
                work.fleet.each(names, partial(_layers, image, {**runs.get(image, {}), **new}))
            )
            if len({*filter(None, layers.values())}) > 1:  # of other machines they have to differ
                machines = _known(work.fleet.each(layers, lambda c: facts_of(c).machine))
                for name, words in other_images(image, layers, machines).items():
                    work.listen(Event(name, words, "note"))


def _layers(image: str, digests: Mapping[str, str], connected: Connected) -> tuple[str, ...]:
    runtime = connected.runtime
    return (
        runtime.layers(image, digests.get(connected.host.name, ""))
        if isinstance(runtime, ImageStore)
        else ()
    )


def _known(results: Mapping[str, T | RayclusterError]) -> dict[str, T]:
    return {h: r for h, r in results.items() if not isinstance(r, RayclusterError)}
