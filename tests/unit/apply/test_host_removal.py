"""A host that leaves: what cannot be taken off it is said, and it is not forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest

from raycluster.apply import host_removal, node_checks, nodes
from raycluster.apply.context import ApplyContext
from raycluster.core.errors import RayclusterError, UnreachableError
from raycluster.core.events import Event
from raycluster.core.interfaces import Completed, Runtime, Secret, Transport
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.plan.actions import Remove
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.secret_values import Secrets
from raycluster.state.cluster import ClusterState, HostState
from raycluster.state.members import Former, Member

WHOLE = ClusterSpec.model_validate(
    {"cluster": {"name": "q"}, "head": {"host": "h0"}, "workers": [{"host": "h1", "name": "gpu"}]}
)
ALONE = ClusterSpec.model_validate({"cluster": {"name": "q"}, "head": {"host": "h0"}})


class Host:
    """A host of the cluster whose firewall cannot be changed; its runtime removes what it has."""

    address = "10.0.0.2"

    def run(self, argv: Any, **_: Any) -> Completed:
        if "nft" in argv[-1]:
            return Completed(1, b"", b"sudo: a password is required")
        return Completed(0, b"0" if argv[0] == "id" else b"one machine")

    def remove(self, role: str | None, *, purge: bool = False) -> tuple[str, ...]:
        return ()

    def read(self, path: str) -> bytes:
        return b"t"


class OneHost:
    """A fleet whose host that leaves answers, or does not."""

    def __init__(self, *, away: bool) -> None:
        self.away = away

    def each(self, names: Iterable[str], work: Callable[..., Any]) -> dict[str, Any]:
        return dict.fromkeys(names, "another machine")

    def __getitem__(self, name: str) -> Connected:
        [head] = ALONE.hosts
        return Connected(head, cast("Transport", Host()), cast("Runtime", Host()))

    def check(self) -> None:
        """Nobody else has the lock."""

    def reach(self, hosts: Iterable[ResolvedHost], then: Callable[..., Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for host in hosts:
            it = Host()
            try:
                if self.away:
                    raise UnreachableError("no route", where=host.name)
                found[host.name] = then(Connected(host, cast("Transport", it), cast("Runtime", it)))
            except RayclusterError as error:
                found[host.name] = error
        return found


@pytest.mark.parametrize("away", [False, True])
def test_rules_that_stay_on_a_host_that_left_fail_the_run(
    monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    said: list[Event] = []
    noted: list[tuple[Former, ...]] = []
    work = ApplyContext(
        ALONE, cast("Fleet", OneHost(away=away)), Secret("t"), Secrets(), said.append
    )
    [host] = WHOLE.hosts[1:]
    gone = Former(Member(name="gpu", host="h1", kind="docker"), "gpu", host)
    monkeypatch.setattr(nodes, "removed_hosts", lambda *_: (gone,))
    for module in (nodes, node_checks):
        monkeypatch.setattr(module, "moved_hosts", lambda *_: ())
    monkeypatch.setattr(nodes, "stranded_hosts", lambda *_: ())
    monkeypatch.setattr(host_removal, "drain", lambda *_, **__: None)
    monkeypatch.setattr(nodes, "observe", lambda *_: None)
    monkeypatch.setattr(nodes, "record", lambda _work, _state, former: noted.append(former))
    state = ClusterState({"head": HostState("head", "10.0.0.1")})
    errors = nodes.apply_nodes(work, state, (Remove("gpu", None, "no longer in the spec"),))
    assert [former.name for former in noted[-1]] == ["gpu"]
    assert [event.subject for event in said] == ["gpu"]
    if away:
        assert errors == ()
    else:
        assert ["a password is required" in str(error) for error in errors] == [True]
