"""Golden cases: a spec and what was seen -> what is planned, as a person reads it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from raycluster.core.errors import HostError, SpecError
from raycluster.core.interfaces import Found, Secret, Versions
from raycluster.plan.actions import EVERYTHING, Only, Start
from raycluster.plan.planner import plan_nodes
from raycluster.plan.preconditions import check_owner, folders_to_compare
from raycluster.services.processes import desired
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import ClusterState, HostState
from raycluster.state.members import member_of

TOKEN = Secret("t" * 64)


def spec_of(*workers: str, **parts: object) -> ClusterSpec:
    hosts = [{"host": w, "name": w} for w in workers]
    return ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h0"}, "workers": hosts, **parts}
    )


def addresses_of(spec: ClusterSpec) -> dict[str, str]:
    return {h.name: f"10.0.0.{i}" for i, h in enumerate(spec.hosts, start=1)}


def running(spec: ClusterSpec) -> ClusterState:
    """Everything as the spec wants it."""
    wiring = Wiring(addresses_of(spec), TOKEN)
    hosts = {}
    for host in spec.hosts:
        found = tuple(
            Found(process.role, process.fingerprint, "running", Versions("3.11.7", "2.60.0"))
            for process in desired(spec, host, wiring)
        )
        hosts[host.name] = HostState(host.name, wiring.addresses[host.name], found)
    members = tuple(map(member_of, spec.hosts))
    return ClusterState(hosts, token=TOKEN, members=members)


def test_a_folder_of_a_host_that_only_runs_is_compared_with_that_of_one_that_starts() -> None:
    spec = spec_of("h1", "h2")
    state = without(running(spec), "h2")
    addresses = {name: host.address for name, host in running(spec).hosts.items()}
    actions = plan_nodes(spec, state, Wiring(addresses, TOKEN))
    assert {a.host for a in actions} == {"h2"}
    assert folders_to_compare(state, actions) == {"head", "h1", "h2"}
    unseen = {**state.hosts, "h1": HostState("h1", problem=HostError("away"))}
    assert folders_to_compare(replace(state, hosts=unseen), actions) == {"head", "h2"}
    assert folders_to_compare(state, ()) == set()


def owned(state: ClusterState, owner: str) -> ClusterState:
    hosts = {
        name: replace(host, found=tuple(replace(f, owner=owner) for f in host.found))
        for name, host in state.hosts.items()
    }
    return replace(state, hosts=hosts)


def test_a_cluster_of_the_same_name_that_is_somebody_else_s_is_refused() -> None:
    spec = spec_of("h1", cluster={"name": "q", "owner": "bob"})
    with pytest.raises(HostError) as caught:
        check_owner(spec, owned(running(spec), "alice"))
    assert caught.value.what == "the cluster q there belongs to alice, but this spec has owner bob"
    assert 'owner = "alice"' in caught.value.hint


def test_firewall_rules_of_somebody_else_are_not_written_over() -> None:
    spec = spec_of("h1", cluster={"name": "q", "owner": "bob"})
    state = running(spec)
    theirs = replace(state.hosts["h1"], found=(), firewall="0" * 12, firewall_owner="alice")
    with pytest.raises(HostError, match="the cluster q there belongs to alice"):
        check_owner(spec, replace(state, hosts={**state.hosts, "h1": theirs}))


@pytest.mark.parametrize("owner", ["bob", ""])
def test_a_cluster_of_one_s_own_or_of_before_there_were_owners_is_taken(owner: str) -> None:
    spec = spec_of("h1", cluster={"name": "q", "owner": "bob"})
    check_owner(spec, owned(running(spec), owner))


def test_who_runs_this_is_the_owner_where_the_spec_names_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOGNAME", "carol")
    here = f"carol@{os.uname().nodename.partition('.')[0]}"
    spec = spec_of("h1")
    with pytest.raises(HostError, match=f"to alice, but this spec names none, and you are {here}"):
        check_owner(spec, owned(running(spec), "alice"))
    assert {host.owner for host in spec.hosts} == {here}


def test_the_same_login_on_another_machine_is_somebody_else_until_the_spec_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOGNAME", "carol")
    spec = spec_of("h1")
    state = owned(running(spec), "carol@" + "other-machine" * 5)
    since = replace(state.hosts["h1"].found[0], started="2026-11-30T12:00:00Z")
    state = replace(state, hosts={"h1": replace(state.hosts["h1"], found=(since,))})
    with pytest.raises(HostError) as caught:
        check_owner(spec, state)
    owner = state.hosts["h1"].found[0].owner
    assert f"belongs to {owner} (running since 2026-11-30T12:00:00Z), but" in caught.value.what
    assert f'`owner = "{owner}"`' in caught.value.hint
    check_owner(spec_of("h1", cluster={"name": "q", "owner": owner}), state)


def test_what_was_started_before_machines_were_noted_is_one_s_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOGNAME", "carol")
    spec = spec_of("h1")
    check_owner(spec, owned(running(spec), "carol"))
    with pytest.raises(HostError, match="belongs to carol, but this spec has owner team"):
        check_owner(
            spec_of("h1", cluster={"name": "q", "owner": "team"}), owned(running(spec), "carol")
        )


def test_an_owner_s_name_cannot_write_into_the_terminal() -> None:
    spec = spec_of("h1")
    with pytest.raises(HostError) as caught:
        check_owner(spec, owned(running(spec), "a\x1b[2J\nb"))
    assert "\x1b" not in str(caught.value)
    assert "\n" not in caught.value.what + caught.value.hint


def without(state: ClusterState, host: str) -> ClusterState:
    bare = replace(state.hosts[host], found=())
    return replace(state, hosts={**state.hosts, host: bare})


def with_found(state: ClusterState, host: str, *found: Found) -> ClusterState:
    return replace(state, hosts={**state.hosts, host: replace(state.hosts[host], found=found)})


def described(spec: ClusterSpec, state: ClusterState, only: Only = EVERYTHING) -> list[str]:
    addresses = {name: host.address for name, host in state.hosts.items()}
    return [a.describe() for a in plan_nodes(spec, state, Wiring(addresses, TOKEN), only)]


def empty(spec: ClusterSpec) -> ClusterState:
    addresses = addresses_of(spec)
    return ClusterState({n: HostState(n, a) for n, a in addresses.items()})


AB = spec_of("a", "b")
START_ALL = [
    "head: + start head (not running)",
    "a: + start worker (not running)",
    "b: + start worker (not running)",
]


def test_from_nothing_everything_is_started_head_first() -> None:
    assert described(AB, empty(AB)) == START_ALL


def test_what_is_as_wanted_is_left_alone() -> None:
    assert described(AB, running(AB)) == []


def test_a_head_alone_is_a_cluster() -> None:
    alone = spec_of()
    assert described(alone, empty(alone)) == ["head: + start head (not running)"]


def test_a_lost_worker_is_started_and_nothing_else() -> None:
    assert described(AB, without(running(AB), "b")) == ["b: + start worker (not running)"]


def test_a_stopped_worker_is_restarted_with_what_it_said() -> None:
    process = running(AB).hosts["a"].found[0]
    state = with_found(running(AB), "a", replace(process, health="stopped", detail="exit 137"))
    assert described(AB, state) == ["a: ~ restart worker (is stopped: exit 137)"]


def test_workers_follow_a_new_head() -> None:
    assert described(AB, without(running(AB), "head")) == [
        "head: + start head (not running)",
        "a: ~ restart worker (joins the new head)",
        "b: ~ restart worker (joins the new head)",
    ]


def test_a_changed_host_is_restarted_alone() -> None:
    changed = ClusterSpec.model_validate(
        {
            **AB.model_dump(by_alias=True),
            "workers": [{"host": "a", "name": "a", "num_cpus": 3}, {"host": "b", "name": "b"}],
        }
    )
    assert described(changed, running(AB)) == ["a: ~ restart worker (the spec changed)"]


def test_an_added_worker_is_started_and_nothing_else() -> None:
    wider = spec_of("a", "b", "c")
    state = running(AB)
    state = replace(state, hosts={**state.hosts, "c": HostState("c", "10.0.0.4")})
    assert described(wider, state) == ["c: + start worker (not running)"]


def test_a_host_that_left_the_spec_is_cleaned() -> None:
    narrower = spec_of("a")
    state = running(AB)
    left = replace(state, hosts={n: h for n, h in state.hosts.items() if n != "b"})
    assert described(narrower, left) == [
        "b: - remove everything of this cluster (no longer in the spec, at b)"
    ]


def test_a_host_that_changed_its_name_is_not_removed() -> None:
    renamed = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h0"}, "workers": [{"host": "a", "name": "x"}]}
    )
    before = running(spec_of("a"))
    state = replace(
        before, hosts={"head": before.hosts["head"], "x": replace(before.hosts["a"], name="x")}
    )
    assert described(renamed, state) == []


def test_another_runtime_on_a_host_removes_the_former_one() -> None:
    native = ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "head": {"host": "h0"},
            "workers": [{"host": "a", "name": "a", "runtime": {"kind": "native"}}],
        }
    )
    state = without(running(spec_of("a")), "a")
    assert described(native, state) == [
        "a: + start worker (not running)",
        "a (before): - remove everything of this cluster (its runtime has changed)",
    ]


def test_a_role_that_the_host_has_no_longer_is_removed() -> None:
    state = running(AB)
    worker = state.hosts["a"].found[0]
    state = with_found(state, "a", worker, replace(worker, role="gateway"))
    assert described(AB, state) == ["a: - remove gateway (not in the spec for this host)"]


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (Only("head"), START_ALL[:1]),
        (Only("workers"), START_ALL[1:]),
        (Only("app"), []),
        (Only(host="b"), START_ALL[2:]),
    ],
)
def test_only_a_part(only: Only, expected: list[str]) -> None:
    assert described(AB, empty(AB), only) == expected


def test_only_never_removes_hosts() -> None:
    left = running(AB)
    left = replace(left, hosts={n: h for n, h in left.hosts.items() if n != "b"})
    assert described(spec_of("a"), left, Only("workers")) == []


def test_another_token_restarts_every_node() -> None:
    state = replace(running(AB), token=None)
    addresses = {name: host.address for name, host in state.hosts.items()}
    actions = plan_nodes(AB, state, Wiring(addresses, Secret("u" * 64)))
    assert [a.host for a in actions] == ["head", "a", "b"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.1"])
def test_addresses_that_nodes_cannot_reach_are_refused(address: str) -> None:
    state = empty(AB)
    state = replace(state, hosts={**state.hosts, "b": HostState("b", address)})
    with pytest.raises(SpecError, match=r"b .*10\.0\.0\.1|would reach b at|have 10\.0\.0\.1"):
        described(AB, state)


OLD = "sha256:" + "1" * 64
TAG = "vllm/vllm-openai:v1"


@pytest.mark.parametrize(
    ("runtime", "digest"),
    [
        ({"image": TAG}, OLD),
        ({"image": TAG, "pull": "always"}, ""),
        ({"image": TAG, "archive": "image.tar"}, ""),
        ({"image": "vllm/vllm-openai:v2"}, ""),
        ({"image": f"vllm/vllm-openai@{OLD}"}, ""),
    ],
)
def test_a_host_that_is_added_gets_the_image_that_the_cluster_runs(
    runtime: dict[str, str], digest: str
) -> None:
    spec = spec_of("h1", "h2", runtime=runtime)
    state = without(running(spec), "h2")
    hosts = {
        name: replace(
            host,
            found=tuple(
                replace(f, versions=replace(f.versions, image=f"{TAG}@{OLD}")) for f in host.found
            ),
        )
        for name, host in state.hosts.items()
    }
    actions = plan_nodes(spec, replace(state, hosts=hosts), Wiring(addresses_of(spec), TOKEN))
    assert [(a.host, a.process.digest) for a in actions if isinstance(a, Start)] == [("h2", digest)]
