"""Which of the images that a tag has named a cluster runs: noted by each host where it started one.

A tag moves. What a host's processes were started from is part of what is seen of it, so that a host
that is added later gets the same image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raycluster.core.untrusted import is_digest
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import ClusterState

SHORT = len("sha256:") + 12


@dataclass(frozen=True)
class OtherImage:
    """A host whose `image` is another than that of the `first`, which is before it in the spec."""

    where: str
    image: str
    digest: str
    first: str
    firsts: str

    @property
    def what(self) -> str:
        """What a person should know."""
        mine, other = self.digest[:SHORT], self.firsts[:SHORT]
        return f"{self.image} is {mine} here, and {other} on {self.first}: the tag has moved"

    @property
    def hint(self) -> str:
        """How all hosts get one."""
        repository = self.image.rpartition("/")
        name = repository[2].partition(":")[0]
        return f'name one by digest: image = "{"".join(repository[:2])}{name}@{self.firsts}"'


def started_from(spec: ClusterSpec, state: ClusterState) -> dict[str, dict[str, str]]:
    """Return image -> host -> digest, as the processes of the spec's hosts were started from."""
    found: dict[str, dict[str, str]] = {}
    for host in spec.hosts:
        for process in state.hosts[host.name].found:
            image, _, digest = process.versions.image.partition("@")
            if is_digest(digest):
                found.setdefault(image, {}).setdefault(host.name, digest)
    return found


def others(digests: Mapping[str, Mapping[str, str]]) -> tuple[OtherImage, ...]:
    """Return the hosts that differ from the first, given image -> host -> digest."""
    return tuple(
        OtherImage(host, image, digest, first, firsts)
        for image, by_host in digests.items()
        for first, firsts in list(by_host.items())[:1]
        for host, digest in by_host.items()
        if digest != firsts
    )
