"""A node that was killed and started again; Ray and Serve learn of it some seconds late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import pytest

from raycluster.apply import applications, node_waits
from raycluster.apply.context import ApplyContext
from raycluster.core.events import Event
from raycluster.core.interfaces import Process, Secret
from raycluster.hosts.fleet import Fleet
from raycluster.plan.actions import Start
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.secret_values import Secrets
from raycluster.state.cluster import App, ClusterState, HostState, RayNode, Replica

SPEC = ClusterSpec.model_validate(
    {"cluster": {"name": "q"}, "head": {"host": "h0"}, "workers": [{"host": "h1", "name": "gpu"}]}
)
HEAD = RayNode("10.0.0.1", "head-id", alive=True, is_head=True)
KILLED = RayNode("10.0.0.2", "killed", alive=True)
NEW = RayNode("10.0.0.2", "new", alive=True)
STATE = ClusterState(
    {"head": HostState("head", "10.0.0.1"), "gpu": HostState("gpu", "10.0.0.2")},
    nodes=(HEAD, KILLED),
)
FORMER = frozenset({"killed"})


@dataclass(frozen=True)
class Member:
    """A reached host, of which only its part of the spec is asked."""

    host: ResolvedHost


@pytest.fixture
def told() -> list[Event]:
    """What the work of these tests told."""
    return []


@pytest.fixture
def work(told: list[Event]) -> ApplyContext:
    """The work of an `up` that has reached both hosts."""
    fleet = cast("Fleet", {host.name: Member(host) for host in SPEC.hosts})
    return ApplyContext(SPEC, fleet, Secret("t"), Secrets(), told.append)


def test_only_started_workers_are_replaced(work: ApplyContext) -> None:
    head = Start("head", Process("head", ()), "")
    worker = Start("gpu", Process("worker", ()), "")
    assert node_waits.former_nodes(work, STATE, [head]) == frozenset()
    assert node_waits.former_nodes(work, STATE, [head, worker]) == FORMER
    assert node_waits.former_nodes(work, replace(STATE, nodes=None), [worker]) == frozenset()


def test_a_killed_node_that_still_counts_has_not_joined(
    work: ApplyContext, told: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = replace(KILLED, alive=False)
    seen = [(HEAD, KILLED), (HEAD, KILLED, NEW), (HEAD, dead), (HEAD, dead, NEW)]
    left = len(seen)

    def observe(*_: object) -> ClusterState:
        nonlocal left
        left -= 1
        return replace(STATE, nodes=seen[-1 - left])

    monkeypatch.setattr(node_waits, "observe", observe)
    monkeypatch.setattr(node_waits, "raise_if_dead", lambda *_: None)
    node_waits.wait_for_nodes(work, SPEC.hosts[1:], FORMER)
    assert left == 0
    assert told == [Event("gpu", "has joined", "done")]


def test_a_replica_on_a_lost_node_is_waited_for_though_serve_counts_it(
    work: ApplyContext, told: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = App("m", "RUNNING", replicas=(Replica("1", "RUNNING", "killed"),))
    starting = App("m", "DEPLOYING", replicas=(Replica("2", "STARTING", "new"),))
    after = App("m", "RUNNING", replicas=(Replica("2", "RUNNING", "new"),))
    answers = [before, starting, after]

    class Api:
        """Serve's records, which follow."""

        def apps(self) -> tuple[App, ...]:
            return (answers.pop(0),)

    @contextmanager
    def api(_: ApplyContext) -> Iterator[Api]:
        yield Api()

    monkeypatch.setattr(applications, "ray_api", api)
    whole = replace(STATE, apps=(before,))
    applications.recover(work, whole)
    assert len(answers) == 3  # nothing is lost, so nobody is asked
    dead = (HEAD, replace(KILLED, alive=False), NEW)
    applications.recover(work, replace(whole, nodes=dead))
    assert answers == []
    assert told[-1] == Event("app", "m: running (replicas: 1 running)", "done")
