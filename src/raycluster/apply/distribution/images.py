"""Brings images to hosts from a file of this machine, or from one host that has pulled them."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from raycluster.apply.context import ApplyContext
from raycluster.apply.distribution.image_staging import Archive, StagingArea, open_staging, store
from raycluster.apply.distribution.peer_transfer import all_private, exchange
from raycluster.core.errors import ImageError
from raycluster.core.events import Event
from raycluster.core.interfaces import ImageStore, Process
from raycluster.core.untrusted import Told, not_understood
from raycluster.hosts.fleet import Connected, all_or_raise
from raycluster.observe.facts import facts_of
from raycluster.spec import ResolvedHost

Pieces = Callable[[], Iterator[bytes]]
"""Yields an archive from its beginning, each time that it is called."""
HERE = "this machine"
WRONG = "wrong SHA-256"
_NO_ARCHIVE = (
    *(tarfile.TarError, LookupError, TypeError, ValueError, AttributeError, EOFError),
    *(RecursionError, lzma.LZMAError, zlib.error),
)


def bring_images(work: ApplyContext, wanted: Mapping[str, Sequence[Process]]) -> None:
    """Bring the images of `wanted` (host -> processes) to hosts that lack them.

    Only those that the spec gives an archive for, or wants handed on: the rest is pulled by each
    host. Raises ImageError and HostError.
    """
    asked: dict[tuple[str, str], dict[str, Process]] = {}
    for host, processes in wanted.items():
        connected = work.fleet[host]
        if isinstance(connected.runtime, ImageStore):
            for process in processes:
                own = process.role == connected.host.role
                archive = (connected.host.runtime.archive or "") if own else ""
                asked.setdefault((process.image, archive), {}).setdefault(host, process)
    for (image, archive), hosts in asked.items():
        given = _given(work, image, archive, hosts)
        if given is not None:
            given.bring()


def _given(
    work: ApplyContext, image: str, archive: str, hosts: Mapping[str, Process]
) -> _FromFile | _FromHost | None:
    """Return how an image comes to hosts, or None where each pulls it."""
    if archive:
        path = archive_path(archive)
        return _FromFile(Errand(work, image, archived_layers(path, image)), path, tuple(hosts))
    if work.spec.distribution.images == "peer" and "@" not in image:
        others = [h.name for h in work.spec.hosts if h.name not in hosts and _uses(work, h, image)]
        if len(hosts) + len(others) > 1:
            return _FromHost(work, image, hosts, tuple(others))
    return None


def _uses(work: ApplyContext, host: ResolvedHost, image: str) -> bool:
    keeps = isinstance(work.fleet[host.name].runtime, ImageStore)
    return keeps and host.image == image


@dataclass(frozen=True)
class Errand:
    """An image that is brought to hosts; its layers tell whether it is the right one."""

    work: ApplyContext
    image: str
    layers: tuple[str, ...]

    def tell(self, host: str, text: str) -> None:
        """Say how far it is on a host."""
        self.work.listen(Event(host, f"{self.image}: {text}"))

    def areas(self, hosts: Sequence[str]) -> dict[str, StagingArea]:
        """Make the hosts' folders. Raises HostError."""
        base, cluster = self.work.spec.distribution.folder, self.work.spec.cluster.name
        return all_or_raise(self.work.fleet.each(hosts, lambda c: open_staging(c, base, cluster)))

    def hand_on(
        self,
        archive: Archive,
        first: StagingArea,
        others: Sequence[StagingArea],
        feed: Callable[[], None] | None = None,
    ) -> dict[str, str]:
        """Let others take an archive from the first; return why not, where it failed.

        `feed` writes the first one's while they take it.
        """

        def told(host: str, line: Told) -> None:
            if host != first.name:
                here, total = line["here"].whole() or 0, line["total"].whole() or 0
                self.tell(host, f"{_of(here, total)} from other hosts")

        return exchange(
            [first.party(archive, alone=not others)],
            [area.party(archive, alone=False) for area in others],
            self.work.spec.ports.transfer,
            {"grows": feed is not None},
            told,
            feed=feed or (lambda: None),
        )

    def load(self, archive: Archive, areas: Sequence[StagingArea]) -> None:
        """Give an archive to the Docker of each host, and compare. Raises ImageError."""
        by_host = {area.name: area for area in areas}

        def load(connected: Connected) -> None:
            self.tell(connected.host.name, "loading")
            by_host[connected.host.name].load(archive)
            self._check(connected)

        all_or_raise(self.work.fleet.each(by_host, load))

    def relay(self, target: Connected, pieces: Pieces, source: str, why: str) -> None:
        """Send an archive through this machine to a host's Docker, with a loud word on why."""
        name = target.host.name
        what = f"{self.image} cannot be copied between the hosts: {why}"
        self.work.listen(Event(name, f"{what}; copying it through this machine", "note"))
        self.tell(name, f"loading from {source}")
        store(target).load(pieces())
        self._check(target)

    def _check(self, connected: Connected) -> None:
        found = store(connected).layers(self.image)
        if found != self.layers:
            what = "differs from the image that was sent" if found else "was not in the archive"
            raise ImageError(
                f"image {self.image} {what}",
                where=connected.host.name,
                hint="create the archive again: docker save -o FILE IMAGE",
            )
        done = Event(connected.host.name, f"{self.image}: loaded and checked", "done")
        self.work.listen(done)


@dataclass(frozen=True)
class _FromFile:
    """A file of this machine for hosts that lack the image in it."""

    errand: Errand
    path: Path
    hosts: tuple[str, ...]

    def bring(self) -> None:
        errand, fleet = self.errand, self.errand.work.fleet
        there = all_or_raise(fleet.each(self.hosts, lambda c: store(c).layers(errand.image)))
        lacking = [h for h in self.hosts if there[h] != errand.layers]
        if not lacking:
            return
        errand.tell(lacking[0], f"reading {self.path}")
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        archive = Archive(self.path.stat().st_size, digest, errand.layers)
        areas = errand.areas(lacking)
        try:
            for row in self._rows([s for s in areas.values() if s.python]):
                self._send(archive, row)
        finally:
            for area in areas.values():
                area.close()
        for area in areas.values():
            if not area.python:
                errand.relay(area.host, self._pieces, HERE, "the host has no python3 (3.8)")

    def _rows(self, able: list[StagingArea]) -> list[list[StagingArea]]:
        """Return which hosts hand it on to one another: all, or none over a public network."""
        direct = self.errand.work.spec.distribution.images == "peer"
        if direct or all_private(s.host.address for s in able):
            return [able] if able else []
        return [[area] for area in able]

    def _send(self, archive: Archive, row: Sequence[StagingArea]) -> None:
        """Send it to the first of a row, and let the others take it while it comes."""
        errand, (first, *others) = self.errand, row

        def feed() -> None:
            for here in first.upload(self.path, archive):
                errand.tell(first.name, f"{_of(here, archive.size)} sent")

        problems = errand.hand_on(archive, first, others, feed)
        if WRONG in problems.get(first.name, ""):  # what an earlier run left there; it is gone
            problems = errand.hand_on(archive, first, others, feed)
        errand.load(archive, [s for s in row if s.name not in problems])
        for area in row:
            if why := problems.get(area.name):
                errand.relay(area.host, self._pieces, HERE, why)

    def _pieces(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while piece := file.read(1 << 20):
                yield piece


@dataclass(frozen=True)
class _FromHost:
    """A host that has the image, or pulls it, for hosts that lack it; `others` run already."""

    work: ApplyContext
    image: str
    hosts: Mapping[str, Process]
    others: tuple[str, ...] = ()

    def bring(self) -> None:
        each = self.work.fleet.each
        there = all_or_raise(each(self.hosts, lambda c: store(c).layers(self.image)))
        lacking = [host for host in self.hosts if not there[host]]
        if not lacking:
            return
        first = next((h for h in self.hosts if there[h]), None) or self._running(lacking[0])
        if first is None and len(lacking) == 1:
            return  # it pulls by itself
        if first is None:
            first = self._pulled(lacking)
            lacking.remove(first)
        source = store(self.work.fleet[first])
        errand = Errand(self.work, self.image, source.layers(self.image))
        areas = errand.areas([first, *lacking])
        try:
            problems = self._handed_on(errand, areas[first], [areas[h] for h in lacking])
        finally:
            for area in areas.values():
                area.close()
        for host, why in problems.items():
            pieces = lambda: source.save(self.image)  # noqa: E731
            errand.relay(self.work.fleet[host], pieces, first, why)

    def _running(self, lacking: str) -> str | None:
        """Return a host that runs, and has under this name what is meant for one that lacks it."""
        digest = self.hosts[lacking].digest

        def look(connected: Connected) -> str:
            held = store(connected)
            same = not digest or held.digest(self.image) in ("", digest)
            return facts_of(connected).machine if same and held.layers(self.image) else ""

        found = self.work.fleet.each(self.others, look) if self.others else {}
        machine = facts_of(self.work.fleet[lacking]).machine if found else ""
        return next((h for h, told in found.items() if told == machine), None)

    def _pulled(self, hosts: Sequence[str]) -> str:
        """Let the first host pull that can, and return its name. Raises ImageError."""
        for host in hosts:
            try:
                self.work.fleet[host].runtime.prepare(self.hosts[host], self.work.tell(host))
            except ImageError as error:
                if host == hosts[-1]:
                    raise
                self.work.listen(Event(host, f"{error.what}; trying another host", "note"))
            else:
                return host
        raise ImageError(f"no host has the image {self.image}")

    def _handed_on(
        self, errand: Errand, first: StagingArea, others: Sequence[StagingArea]
    ) -> dict[str, str]:
        """Hand it on over the hosts' network; return why not, where it failed."""
        problems = {
            area.name: "it needs python3 (3.8 or newer) on both hosts"
            for area in others
            if not (area.python and first.python)
        }
        direct = [area for area in others if area.name not in problems]
        if not direct:
            return problems
        end = Told(None)
        for end in first.save(self.image):
            here = end["here"].whole() or end["size"].whole() or 0
            errand.tell(first.name, f"{here / 1e6:,.0f} MB saved")
        size, digest = end["size"].whole(), end["digest"].text(64)
        if not size or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise not_understood("the program that saves an image", first.name)
        archive = Archive(size, digest, errand.layers)
        first.keep_saved(archive)
        failed = errand.hand_on(archive, first, direct)
        errand.load(archive, [s for s in direct if s.name not in failed])
        first.remove(archive)
        lost = {s.name: failed[s.name] for s in direct if s.name in failed}
        return {**problems, **lost}


def _of(here: int, total: int) -> str:
    return f"{here / 1e6:,.0f} of {total / 1e6:,.0f} MB"


def archive_path(archive: str) -> Path:
    """Return the file of this machine that the spec's `archive` names."""
    return Path(os.path.expanduser(archive))  # noqa: PTH111  # never raises


def archived_layers(path: Path, image: str) -> tuple[str, ...]:
    """Return the layers of an image in a file of `docker save`. Raises ImageError."""
    where = str(path)
    try:
        with tarfile.open(path) as tar:
            told = json.load(_member(tar, "manifest.json"))
            named = {name: each for each in told for name in each.get("RepoTags") or ()}
            full = image if ":" in image.rpartition("/")[2] else f"{image}:latest"
            if full not in named:
                raise ImageError(
                    f"the archive contains {', '.join(sorted(named)) or 'no image with a name'}, "
                    f"not {full}",
                    where=where,
                    hint="correct runtime.image, or create the archive with: docker save -o FILE "
                    "IMAGE",
                )
            config = json.load(_member(tar, named[full]["Config"]))
            return tuple(config["rootfs"]["diff_ids"])
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}", where=where) from error
    except _NO_ARCHIVE as error:
        raise ImageError(
            "is not an archive written by `docker save`",
            where=where,
            hint="create it with: docker save -o FILE IMAGE",
        ) from error


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file
