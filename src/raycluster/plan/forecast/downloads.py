"""What each host has to fetch, and whether there is room for it; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raycluster.plan.forecast.fits import Problem
from raycluster.serve.model_refs import ModelRef, is_path
from raycluster.state.inventory import Disk, Inventory


@dataclass(frozen=True)
class Download:
    """Something that a host lacks: its bytes, None where nobody tells, and the disk it goes to.

    `stored` are the bytes that it takes there, where they are others. `certain` says that all of it
    is written there: a part of an image, or of what cannot be looked at, may be there.
    """

    host: str
    what: str
    size: int | None
    folder: str
    disk: Disk | None
    certain: bool = True
    stored: int | None = None

    @property
    def room(self) -> int:
        """The bytes that are known to be needed on the disk."""
        return self.stored or self.size or 0


def downloads(seen: Inventory, wanted: Sequence[ModelRef]) -> tuple[Download, ...]:
    """Return what the hosts have to fetch, host by host: images and environments, then models."""
    return tuple(
        download
        for host in seen.hosts
        for download in (*_bases(seen, host), *_models(seen, host, wanted))
    )


def _bases(seen: Inventory, host: str) -> Iterator[Download]:
    """Yield what is brought: a registry tells its size, a host that holds it that unpacked."""
    for base in (b for b in seen.hosts[host].bases if not b.there and not b.withheld):
        others = [b for there in seen.hosts.values() for b in there.bases if b.what == base.what]
        yield Download(
            host=host,
            what=base.what,
            size=base.download_bytes or seen.images.get(base.image),
            folder=base.folder,
            disk=base.disk,
            certain=base.download_bytes is not None,
            stored=base.stored_bytes
            or max((b.held_bytes for b in others if b.held_bytes), default=None),
        )


def _models(seen: Inventory, host: str, wanted: Sequence[ModelRef]) -> Iterator[Download]:
    for each in wanted:
        placed = seen.hosts[host].models.get(each)
        if placed is None or is_path(each.source):
            continue
        if (listed := seen.hub.get(each)) is None:
            if not placed.files.sizes:
                yield Download(host, each.source, None, _above(placed.folder), placed.disk)
            continue
        needed = listed.needed(each).items()
        size = sum(n for name, n in needed if placed.files.sizes.get(name) != n)
        if size:
            folder, seen_there = _above(placed.folder), not placed.hidden
            yield Download(host, each.source, size, folder, placed.disk, certain=seen_there)


def _above(folder: str) -> str:
    return folder.rpartition("/")[0]


def absent(seen: Inventory, wanted: Sequence[ModelRef]) -> tuple[Problem, ...]:
    """Return the hosts where a model that is named by its path is not."""
    return tuple(
        Problem(
            host,
            f"the model {each.source} does not exist",
            "copy it to the host, or mount it",
            certain=True,
        )
        for host, there in seen.hosts.items()
        for each in wanted
        if is_path(each.source)
        and (placed := there.models.get(each))
        and placed.folder
        and not placed.hidden
        and not placed.files.sizes
    )


LOAD = 'load it there with `docker load`, or set `archive` or pull = "missing" under [runtime]'


def missing_image(what: str) -> str:
    """Return that nothing brings what a host needs."""
    return f'{what} is missing, and pull = "never" forbids pulling it'


def withheld(seen: Inventory) -> tuple[Problem, ...]:
    """Return the hosts that lack an image which nothing may bring."""
    return tuple(
        Problem(host, missing_image(what), LOAD)
        for host, there in seen.hosts.items()
        for what in dict.fromkeys(base.what for base in there.bases if base.withheld)
    )


def too_little_room(found: Sequence[Download]) -> tuple[Problem, ...]:
    """Return a problem for each disk that cannot hold what has to be stored there."""
    disks: dict[tuple[str, str], list[Download]] = {}
    for download in found:
        if download.disk and download.size and download.certain:
            disks.setdefault((download.host, download.disk.device), []).append(download)
    return tuple(_problem(host, held) for (host, _), held in disks.items() if _lacks(held))


def tight(found: Sequence[Download]) -> tuple[Problem, ...]:
    """Return a warning for each image that may not find room."""
    return tuple(
        _problem(d.host, [d]) for d in found if not d.certain and d.room and d.disk and _lacks([d])
    )


def _lacks(held: Sequence[Download]) -> bool:
    return sum(d.room for d in held) > min(d.disk.free for d in held if d.disk)


def _problem(host: str, held: Sequence[Download]) -> Problem:
    first = held[0]
    free = min(d.disk.free for d in held if d.disk)
    size = sum(d.room for d in held)
    names = ", ".join(d.what for d in held)
    needs = "needs" if first.certain else "needs up to"
    return Problem(
        host,
        f"{names} {needs} {in_gb(size)}, but only {in_gb(free)} are free in {first.folder}",
        "free some space, or set HF_HOME under [runtime.env] to a folder on a larger disk"
        if first.certain
        else "free some space on the host",
    )


def in_gb(size: float | None) -> str:
    """Return bytes as "2.5 GB", as disks are sold."""
    if size is None:
        return "?"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def by_host(found: Sequence[Download]) -> Mapping[str, tuple[Download, ...]]:
    """Return the downloads of each host that has any."""
    hosts = dict.fromkeys(d.host for d in found)
    return {host: tuple(d for d in found if d.host == host) for host in hosts}
