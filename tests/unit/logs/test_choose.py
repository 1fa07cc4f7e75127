"""Which processes and replicas a word stands for."""

from __future__ import annotations

import pytest

from raycluster.core.errors import UsageError
from raycluster.core.interfaces import Found
from raycluster.logs.choose import (
    Chosen,
    ReplicaChoice,
    choose,
    ids,
    numbered,
    seconds_ago,
    targets,
)
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState, HostState, Replica

SPEC = ClusterSpec.model_validate(
    {
        "schema": 1,
        "cluster": {"name": "c"},
        "head": {"host": "a"},
        "workers": [{"host": "b", "name": "b"}],
        "models": [{"name": "Org/Big"}, {"name": "tiny"}],
        "gateway": {"on": "all"},
        "monitoring": {"prometheus": True},
    }
)
STATE = ClusterState(
    {"head": HostState("head", "10.0.0.1", (Found("head", "", "running"),))},
    apps=(
        App("tiny", "RUNNING"),
        App(
            "org-big",
            "RUNNING",
            replicas=(
                Replica("aaaa1111", "RUNNING", address="10.0.0.1", pid=7),
                Replica("bbbb2222", "RUNNING", address="10.0.0.2", pid=8),
            ),
        ),
    ),
)


def processes(chosen: Chosen) -> list[tuple[str, str]]:
    """Return the names alone."""
    return [(host.name, role) for host, role in chosen.processes]


@pytest.mark.parametrize(
    ("word", "there", "replicas"),
    [
        ("head", [("head", "head")], []),
        ("b", [("b", "worker")], []),
        ("gateway", [("head", "gateway"), ("b", "gateway")], []),
        ("b/gateway", [("b", "gateway")], []),
        ("b/worker", [("b", "worker")], []),
        ("prometheus", [("head", "prometheus")], []),
        ("app", [], [ReplicaChoice()]),
        ("Org/Big", [], [ReplicaChoice("org-big")]),
        ("Org/Big#2", [], [ReplicaChoice("org-big", "#2")]),
        ("aaaa1111", [], [ReplicaChoice(replica="aaaa1111")]),
    ],
)
def test_a_word_stands_for_processes_or_replicas(
    word: str, there: list[tuple[str, str]], replicas: list[ReplicaChoice]
) -> None:
    chosen = choose(SPEC, [word])
    assert processes(chosen) == there
    assert list(chosen.replicas) == replicas


def test_all_is_every_process_and_every_replica() -> None:
    chosen = choose(SPEC, ["all", "head"])
    assert processes(chosen) == [
        ("head", "head"),
        ("head", "gateway"),
        ("head", "prometheus"),
        ("b", "worker"),
        ("b", "gateway"),
    ]
    assert chosen.replicas == (ReplicaChoice(),)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("b/head", "one of b/worker, b/gateway"),
        ("c/x", "all, app, head, b, gateway, prometheus, head/gateway"),
        ("x", "one of all, app"),
        ("tiny#0", "tiny#1 is the first"),
        ("tiny#first", "tiny#1 is the first"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(word: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(SPEC, [word])
    assert hint in caught.value.hint


def test_every_target_that_a_shell_completes_is_taken() -> None:
    for word in targets(SPEC):
        assert choose(SPEC, [word]) != Chosen(), word


def test_a_number_is_the_place_in_the_list_of_status() -> None:
    assert numbered(SPEC, STATE, ReplicaChoice("org-big", "#2")) == ReplicaChoice(
        "org-big", "bbbb2222"
    )
    with pytest.raises(UsageError, match="#3: Org/Big has 2 replicas"):
        numbered(SPEC, STATE, ReplicaChoice("org-big", "#3"))


def test_replicas_are_known_by_the_processes_of_their_node() -> None:
    assert ids(STATE.apps or (), "10.0.0.2") == {"8": "bbbb2222"}


NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("10m", 600),
        ("1h30m", 5400),
        ("2d", 172800),
        ("2025-12-31T23:59:00Z", 60),
        ("2026-01-01T00:59:30+01:00", 30),
        (" 10s ", 10),
    ],
)
def test_durations_and_moments(text: str, seconds: float) -> None:
    assert seconds_ago(text, NOW) == seconds


@pytest.mark.parametrize("text", ["", "ten", "10x", "-5", "m", "2026-13-01T00:00:00Z", "1h 30m"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a valid time"):
        seconds_ago(text, NOW)


def test_what_is_still_to_come_is_refused() -> None:
    with pytest.raises(UsageError, match="is in the future"):
        seconds_ago("2027-01-01T00:00:00Z", NOW)
