"""What a drill breaks, and by what it tells that this was noticed and is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from raycluster.core.errors import CommandError, HostError, RayclusterError, UsageError
from raycluster.core.interfaces import Completed, Secret
from raycluster.drill.cluster import DrillCluster
from raycluster.drill.partition_fault import partition_script
from raycluster.drill.run import FAULTS, DrillOptions, check
from raycluster.hosts.fleet import Fleet
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState, HostState, RayNode, Replica

NAMES = ("head", "one", "two")
SPEC = ClusterSpec.model_validate(
    {
        "cluster": {"name": "q"},
        "head": {"host": "h0"},
        "workers": [{"host": f"h-{name}", "name": name} for name in NAMES[1:]],
        "models": [{"name": "m"}],
        "gateway": {"api_keys": {"a": "env:KEY"}},
    }
)
NODES = tuple(
    RayNode(f"10.0.0.{at}", f"node-{name}", alive=True, is_head=name == "head")
    for at, name in enumerate(NAMES)
)
REPLICAS = tuple(
    Replica(f"replica-{name}", "RUNNING", f"node-{name}", pid=at) for at, name in enumerate(NAMES)
)
APPS = (App("m", "RUNNING", replicas=REPLICAS[1:]),)
HOSTS = {name: HostState(name, f"10.0.0.{at}") for at, name in enumerate(NAMES)}
STATE = ClusterState(HOSTS, nodes=NODES, apps=APPS)
DONE = Completed(0)
Seen = tuple[tuple[RayNode, ...], tuple[App, ...]]


@dataclass
class Box:
    """Stands for a host and its nodes: notes commands, and answers all of them the same."""

    answer: Completed | HostError = DONE
    ran: list[Sequence[str]] = field(default_factory=list)

    @property
    def runtime(self) -> Box:
        return self

    @property
    def transport(self) -> Box:
        return self

    def inside(self, _role: str) -> Box:
        return self

    def run(self, argv: Sequence[str], **_options: Any) -> Completed:
        self.ran.append(argv)
        if isinstance(self.answer, HostError):
            raise self.answer
        return self.answer


@dataclass(frozen=True)
class Cluster(DrillCluster):
    """A cluster whose Ray says what a test sets."""

    now: list[Seen | None] = field(default_factory=lambda: [(NODES, APPS)])

    def seen(self) -> Seen | None:
        return self.now[-1]


@pytest.fixture
def boxes() -> dict[str, Box]:
    return {name: Box() for name in NAMES}


@pytest.fixture
def cluster(boxes: dict[str, Box]) -> Cluster:
    return Cluster(SPEC, cast(Fleet, boxes), STATE, Secret("t"))


def without(*names: str) -> tuple[RayNode, ...]:
    return tuple(replace(n, alive=n.node_id not in {f"node-{m}" for m in names}) for n in NODES)


def running(*replicas: Replica) -> tuple[App, ...]:
    return (App("m", "RUNNING", replicas=replicas),)


@pytest.mark.parametrize(
    ("apps", "whole"),
    [
        (APPS, True),
        (running(REPLICAS[1], Replica("new", "RUNNING")), True),
        (running(REPLICAS[1]), False),
        (running(*REPLICAS), False),  # the former one has not ended yet
        (running(*REPLICAS[1:], Replica("old", "STOPPING")), True),
        ((App("m", "DEPLOYING", replicas=REPLICAS[1:]),), False),
        ((), False),
    ],
)
def test_a_cluster_is_recovered_with_all_its_replicas(
    cluster: Cluster, apps: tuple[App, ...], whole: bool
) -> None:
    assert cluster.is_recovered(apps) is whole


@pytest.mark.parametrize(
    ("fault", "host", "victim"),
    [
        ("replica", "", "replica replica-one on one"),
        ("hang", "two", "replica replica-two on two"),
        ("worker", "", "the worker on two"),
        ("worker", "one", "the worker on one"),
        ("head", "", "the head on head"),
        ("gateway", "", "the gateway on head"),
        ("partition", "one", "the network between one and the other hosts"),
    ],
)
def test_what_is_broken(cluster: Cluster, fault: str, host: str, victim: str) -> None:
    assert FAULTS[fault](cluster, host).victim == victim


@pytest.mark.parametrize(
    ("fault", "host"),
    [("replica", "head"), ("worker", "head"), ("head", "one"), ("partition", "none")],
)
def test_what_is_not_there_is_not_broken(
    cluster: Cluster, boxes: dict[str, Box], fault: str, host: str
) -> None:
    with pytest.raises(UsageError):
        FAULTS[fault](cluster, host)
    assert [box.ran for box in boxes.values()] == [[], [], []]


def test_a_replica_is_noticed_and_replaced(cluster: Cluster, boxes: dict[str, Box]) -> None:
    fault = FAULTS["hang"](cluster, "one")
    fault.inject()
    assert boxes["one"].ran == [("sh", "-c", "kill -STOP 1")]
    assert not fault.noticed()
    cluster.now.append((NODES, running(REPLICAS[2])))
    assert (fault.noticed(), fault.recovered()) == (True, False)
    cluster.now.append((NODES, running(REPLICAS[2], Replica("new", "RUNNING"))))
    assert fault.recovered()
    fault.revert()
    assert boxes["one"].ran[-1] == ("sh", "-c", "kill -CONT 1")
    boxes["one"].answer = HostError("gone", where="one")
    fault.revert()


@pytest.mark.parametrize("name", ["head", "two"])
def test_a_node_is_noticed_and_comes_back_as_another(cluster: Cluster, name: str) -> None:
    fault = FAULTS["head" if name == "head" else "worker"](cluster, name)
    fault.inject()
    assert not fault.noticed()
    cluster.now.append((without(name), APPS))
    assert (fault.noticed(), fault.recovered()) == (True, False)
    former = NODES[NAMES.index(name)]
    cluster.now.append(((*without(name), replace(former, node_id="new")), APPS))
    assert (fault.noticed(), fault.recovered()) == (True, True)
    cluster.now.append(None)
    assert (fault.noticed(), fault.recovered()) == (True, False)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Completed(0), None),
        (Completed(137), None),
        (HostError("the container ended", where="two"), None),
        (Completed(1, b"", b"no python"), CommandError),
    ],
)
def test_a_command_that_ends_with_what_it_killed_is_no_failure(
    cluster: Cluster,
    boxes: dict[str, Box],
    answer: Completed | HostError,
    error: type[RayclusterError] | None,
) -> None:
    boxes["two"].answer = answer
    fault = FAULTS["worker"](cluster, "two")
    if error is None:
        fault.inject()
        return
    with pytest.raises(error, match="two: no python"):
        fault.inject()


def test_a_partition_is_of_the_other_hosts_and_ends(
    cluster: Cluster, boxes: dict[str, Box]
) -> None:
    fault = FAULTS["partition"](cluster, "two")
    fault.inject()
    [(_, _, script)] = boxes["two"].ran
    assert "ip saddr 10.0.0.0 drop" in script
    assert "ip daddr 10.0.0.1 drop" in script
    assert "10.0.0.2" not in script
    assert "sleep 30;" in script
    cluster.now.append((NODES, APPS))  # it was back before Ray counted it as dead
    assert (fault.noticed(), fault.recovered()) == (False, True)
    fault.revert()
    assert "delete table inet raycluster_drill" in boxes["two"].ran[-1][2]
    boxes["two"].answer = Completed(1, b"", b"sudo: a password is required")
    with pytest.raises(HostError, match="a password is required"):
        fault.inject()


def test_a_partition_knows_both_kinds_of_addresses() -> None:
    script = partition_script(["10.0.0.1", "fd00::1"], 1)
    assert "ip6 saddr fd00::1 drop" in script
    assert "ip saddr 10.0.0.1 drop" in script


@pytest.mark.parametrize(
    "options",
    [
        DrillOptions("earthquake"),
        DrillOptions("head", rate=0.0),
        DrillOptions("head", rate=float("nan")),
        DrillOptions("head", limit=-1.0),
        DrillOptions("head", limit=float("inf")),
    ],
)
def test_options_that_cannot_be(options: DrillOptions) -> None:
    with pytest.raises(UsageError):
        check(options)
