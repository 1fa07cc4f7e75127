"""What a change interrupts and costs, which models it starts, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raycluster.core.errors import HostError, SpecError
from raycluster.core.interfaces import Found, Process
from raycluster.plan.actions import Action, Deploy, Reload, Remove, Start
from raycluster.plan.forecast.fits import Problem
from raycluster.plan.forecast.interruptions import interruptions
from raycluster.plan.forecast.whole import (
    Forecast,
    at_rest,
    cost,
    forecast,
    refuse,
    starting_models,
)
from raycluster.plan.rollout import Rollout
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState, RayNode, Replica
from raycluster.state.inventory import Files, Inventory
from raycluster.state.members import member_of
from tests.unit.plan.forecast.given import CARD, LLAMA, host_seen, spec_of, state_of
from tests.unit.plan.sizing.published import LLAMA_3_8B, MIXTRAL_8X7B


def serving(spec: ClusterSpec, *nodes: str) -> ClusterState:
    """A model with a replica on each of the nodes, of which "n0" is the head's."""
    replicas = tuple(Replica(f"r{i}", "RUNNING", node) for i, node in enumerate(nodes))
    known = tuple(RayNode(f"10.0.0.{i}", f"n{i}", True, i == 0) for i in range(len(spec.hosts)))
    return state_of(spec, nodes=known, apps=(App("llama", "RUNNING", replicas=replicas),))


def restart(host: str, role: str, replaces: bool = True) -> Start:
    return Start(host, Process(role, ("true",)), "the spec changed", replaces)


def roll(**costs: str) -> Deploy:
    return Deploy(Rollout((), costs), ("llama: changed",))


def told(state: ClusterState, *actions: Action, **seconds: float) -> list[str]:
    found = interruptions(spec_of({}), state, actions, seconds)
    return [f"{each.where}: {each.what}" for each in found]


def test_a_worker_that_restarts_takes_its_replicas_away() -> None:
    both, one = serving(spec_of({}), "n0", "n1"), serving(spec_of({}), "n1")
    worker = restart("gpu-1", "worker")
    assert told(both, worker, llama=42.4) == [
        "llama: gpu-1 restarts: 1 of 2 replicas are unavailable for about 42 s"
    ]
    assert told(one, worker) == [
        "llama: gpu-1 restarts: the model is unavailable for one start of the engine"
    ]
    assert told(serving(spec_of({}), "n0"), worker) == [], "no replica is there"


def test_a_new_head_takes_all_away_for_the_longest_start() -> None:
    state = serving(spec_of({}), "n1")
    actions = (restart("head", "head"), restart("gpu-1", "worker"), roll(llama="it is away"))
    assert told(state, *actions, llama=90) == [
        "head: a new head restarts every node: all models are unavailable for about 90 s"
    ]


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (
            roll(llama="no free GPU: the model is unavailable"),
            ["llama: no free GPU: the model is unavailable"],
        ),
        (roll(llama="changes in place: no interruption"), []),
        (Reload("head", Process("gateway", ("true",))), []),
        (
            restart("head", "gateway"),
            ["head: the gateway restarts: clients cannot connect to it for a few seconds"],
        ),
        (restart("gpu-1", "worker", replaces=False), []),
        (restart("head", "prometheus"), []),
        (
            Remove("head", "gateway", "not in the spec"),
            ["head: the gateway is removed: its clients can no longer connect"],
        ),
        (
            Remove("gpu-9", None, "no longer in the spec"),
            ["gpu-9: leaves the cluster: its replicas finish their requests first; capacity drops"],
        ),
    ],
)
def test_what_clients_notice_of_each_action(action: Action, said: list[str]) -> None:
    assert told(serving(spec_of({}), "n1"), action) == said
    assert told(state_of(spec_of({})), action) == [], "no replica is serving now"


def priced(*workers: float | None, head: float | None = 2.0) -> ClusterSpec:
    hosts = [{} if price is None else {"price_per_hour": price} for price in workers]
    table: dict[str, Any] = {"host": "h0"} | ({} if head is None else {"price_per_hour": head})
    return spec_of(*hosts, head=table, cluster={"name": "q", "currency": "EUR"})


def up_with(spec: ClusterSpec, *names: str) -> ClusterState:
    state = state_of(spec)
    found = (Found("worker", "f", "running"),)
    hosts = {
        name: replace(host, found=found) if name in names else host
        for name, host in state.hosts.items()
    }
    return replace(state, hosts=hosts)


def test_the_price_of_the_cluster_and_what_a_new_host_adds() -> None:
    spec = priced(0.1, 0.2)
    found = cost(spec, up_with(spec, "head", "gpu-1"))
    assert found
    assert (found.currency, found.per_hour, found.change) == ("EUR", 2.3, 0.2)
    assert found.unpriced == ()


def test_a_host_that_leaves_no_longer_costs_what_it_was_recorded_with() -> None:
    before = priced(0.5, None)
    spec = priced()
    members = tuple(map(member_of, before.hosts))
    found = cost(spec, replace(up_with(spec, "head"), members=members))
    assert found
    assert (found.per_hour, found.change, found.unpriced) == (2.0, -0.5, ("gpu-2",))


def test_a_record_of_an_earlier_version_has_no_prices() -> None:
    spec = priced()
    (host,) = (h for h in priced(0.5).hosts if h.name == "gpu-1")
    member = member_of(host).model_copy(update={"price_per_hour": None})
    found = cost(spec, replace(up_with(spec, "head"), members=(member,)))
    assert found
    assert (found.change, found.unpriced) == (0, ("gpu-1",))


def test_without_any_price_nothing_is_said_of_cost() -> None:
    spec = spec_of({})
    assert cost(spec, state_of(spec)) is None


def test_models_that_run_on_unchanged_are_not_judged() -> None:
    spec = spec_of({})
    state = serving(spec, "n1")
    assert starting_models(spec, state, ()) == ()
    assert starting_models(spec, state, (roll(llama="in place"),)) == ("llama",)
    assert starting_models(spec, state_of(spec), ()) == ("llama",)
    failed = replace(state, apps=(App("llama", "DEPLOY_FAILED"),))
    assert starting_models(spec, failed, ()) == ("llama",)


def test_a_change_that_works_is_not_refused_and_one_that_cannot_is() -> None:
    spec = spec_of()
    hosts = {"head": host_seen(CARD, free=1)}
    read = {"llama": (LLAMA,)}
    seen = Inventory(hosts, {LLAMA: Files({"config.json": 1}, LLAMA_3_8B)})
    good = forecast(spec, state_of(spec), (), seen, read)
    assert good.problems == ()
    refuse(good, state_of(spec).hosts)
    listed = Files({"config.json": 1, "a.safetensors": 90_000_000_000}, MIXTRAL_8X7B)
    bad = forecast(spec, state_of(spec), (), Inventory(hosts, {LLAMA: listed}), read)
    with pytest.raises(SpecError) as caught:
        refuse(bad, state_of(spec).hosts)
    weights, disk = map(str, caught.value.together)
    assert weights.startswith("llama: does not fit on head: its weights take 83.8 GiB")
    assert disk.startswith(
        "head: meta/llama needs 90.0 GB, but only 0 MB are free in /hub\n  next: free some space"
    )
    assert str(caught.value) == f"{weights}\n{disk}"


def test_a_full_disk_is_the_hosts_and_not_the_specs_fault() -> None:
    problem = Problem("head", "no room", "make room")
    with pytest.raises(HostError, match="head: no room\n  next: make room"):
        refuse(Forecast(problems=(problem,)), {"head"})


def test_nothing_that_starts_needs_no_look() -> None:
    spec = priced()
    state = up_with(spec, "head")
    assert at_rest(spec, state, ()) == Forecast(cost=cost(spec, state))
