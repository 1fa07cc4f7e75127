"""Nodes without Ray: a Python, an environment and a folder, where programs of `serve/` can run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raycluster.apply.context import ApplyContext
from raycluster.core.interfaces import Channel, Completed, Shell, Transport
from raycluster.state.cluster import ClusterState, HostState, RayNode


@dataclass(frozen=True)
class Inside:
    """A shell with the environment that a node of Ray has."""

    transport: Transport
    env: Mapping[str, str]

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
    ) -> Completed:
        every = {**self.env, **(env or {})}
        return self.transport.run(argv, input=input, env=every, timeout=timeout)

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        return self.transport.stream(argv, env={**self.env, **(env or {})}, quiet=quiet)

    def put(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        self.transport.put(path, content, mode=mode)


@dataclass(frozen=True)
class Nodes:
    """A runtime whose nodes are there already."""

    shell: Inside

    def inside(self, role: str) -> Shell:
        return self.shell


def state_of(work: ApplyContext) -> ClusterState:
    """Return what Ray would tell: every host is a node with a processor."""
    addresses = {host.name: work.fleet[host.name].address for host in work.spec.hosts}
    nodes = tuple(
        RayNode(addresses[host.name], host.name, alive=True, is_head=host.role == "head", cpus=1)
        for host in work.spec.hosts
    )
    return ClusterState({n: HostState(n, a) for n, a in addresses.items()}, nodes=nodes)
