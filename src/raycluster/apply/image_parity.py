"""Whether hosts have one image under one name: tags move, and hosts pull at different times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TypeVar

from raycluster.apply.context import ApplyContext
from raycluster.core.errors import RayclusterError
from raycluster.core.events import Event
from raycluster.core.interfaces import ImageStore
from raycluster.hosts.fleet import Connected
from raycluster.observe.facts import facts_of
from raycluster.plan.version_parity import other_images
from raycluster.spec import ResolvedHost

T = TypeVar("T")


def tell_other_images(work: ApplyContext, started: Iterable[str]) -> None:
    """Say where a host that was prepared has another image than the rest, under the same name."""
    named: dict[str, list[ResolvedHost]] = {}
    for host in work.spec.hosts:
        image = host.runtime.image or ""
        if image and "@" not in image:
            named.setdefault(image, []).append(host)
    new = {*started}
    for image, hosts in named.items():
        names = [h.name for h in hosts]
        if len(names) > 1 and new.intersection(names):
            layers = _known(work.fleet.each(names, partial(_layers, image)))
            if len({*filter(None, layers.values())}) > 1:  # of other machines they have to differ
                machines = _known(work.fleet.each(layers, lambda c: facts_of(c).machine))
                for name, words in other_images(image, layers, machines).items():
                    work.listen(Event(name, words, "note"))


def _layers(image: str, connected: Connected) -> tuple[str, ...]:
    runtime = connected.runtime
    return runtime.layers(image) if isinstance(runtime, ImageStore) else ()


def _known(results: Mapping[str, T | RayclusterError]) -> dict[str, T]:
    return {h: r for h, r in results.items() if not isinstance(r, RayclusterError)}
