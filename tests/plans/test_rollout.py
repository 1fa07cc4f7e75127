"""Golden cases: wanted applications, those that run, and nodes -> steps, surge and cost."""

from __future__ import annotations

from typing import Any

import pytest

from raycluster.core.errors import HostError
from raycluster.plan.preconditions import check_up
from raycluster.plan.rollout import Rollout, plan_rollout
from raycluster.serve.settings import Autoscale, ModelSettings, applications
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState, HostState, RayNode, Replica
from raycluster.state.free_capacity import Memory

GIB = 2.0**30
PLENTY = Memory(used=8 * GIB, available=200 * GIB)

NEW_FIRST = "starts each new replica before stopping an old one: no interruption"
IN_PLACE = "changes in place: no interruption"
AWAY = "the model is unavailable while its new replica starts"


def model(name: str = "a", version: int = 1, **more: Any) -> ModelSettings:
    return ModelSettings(name, "/m", engine_args={"max_num_seqs": version}, **more)


def body(*models: ModelSettings) -> dict[str, Any]:
    return applications(models, fingerprint="f")


def on(*nodes: tuple[int, int]) -> list[RayNode]:
    """Live nodes n0, n1, ... with so many CPUs and GPUs."""
    return [RayNode(f"10.0.0.{i}", f"n{i}", True, i == 0, *has) for i, has in enumerate(nodes)]


def run(models: list[ModelSettings], places: dict[str, list[str]], **more: Any) -> list[App]:
    """Apps as Serve shows them, each with replicas on these nodes."""
    return [
        App(
            made["name"],
            more.get("status", "RUNNING"),
            config=made,
            replicas=tuple(
                Replica(f"{made['name']}{i}", more.get("state", "RUNNING"), node)
                for i, node in enumerate(places.get(made["name"], []))
            ),
        )
        for made in body(*models)["applications"]
    ]


def rolled(
    wanted: list[ModelSettings],
    apps: list[App],
    nodes: list[RayNode],
    memory: dict[str, Memory] | None = None,
) -> Rollout:
    have = {n.node_id: PLENTY for n in nodes} if memory is None else memory
    return plan_rollout(body(*wanted), apps, nodes, have)


def surges(rollout: Rollout) -> dict[str, int]:
    apps = rollout.steps[-1]["applications"]
    return {a["name"]: a["deployments"][0]["max_surge_percent"] for a in apps if "deployments" in a}


GPU = {"num_gpus": 1.0}


@pytest.mark.parametrize(
    ("nodes", "places", "more", "cost"),
    [
        ([(8, 0)], ["n0"], {}, NEW_FIRST),
        ([(1, 0)], ["n0"], {}, f"no free CPU for one more replica: {AWAY}"),
        ([(8, 2)], ["n0"], GPU, NEW_FIRST),
        ([(8, 1)], ["n0"], GPU, f"no free GPU for one more replica: {AWAY}"),
        ([(8, 1), (8, 1)], ["n0"], GPU, NEW_FIRST),
        (
            [(8, 3)],
            ["n0", "n0", "n0"],
            GPU,
            "no free GPU for one more replica: "
            "one of 3 replicas at a time is unavailable, and capacity drops by 33%",
        ),
        # a replica must fit on one node: one GPU free on each of two is not two
        ([(8, 3), (8, 1)], ["n0"], {"num_gpus": 2.0}, f"no free GPU for one more replica: {AWAY}"),
        ([(8, 4), (8, 1)], ["n0"], {"num_gpus": 2.0}, NEW_FIRST),
        # CPUs on one node and GPUs on another are no place either
        ([(1, 1), (1, 1), (8, 0)], ["n0", "n1"], GPU,
         "no free GPU for one more replica: "
         "one of 2 replicas at a time is unavailable, and capacity drops by 50%"),
        ([(2, 1), (1, 1)], ["n0"], {"num_gpus": 1.0, "num_cpus": 2.0},
         f"no free CPU for one more replica: {AWAY}"),
        (
            [(8, 1)],
            ["n0"],
            {"num_gpus": 0.5},
            f"GPUs shared by replicas may lack memory for one more: {AWAY}",
        ),
    ],
)  # fmt: skip
def test_a_new_version_starts_first_where_there_is_room(
    nodes: list[tuple[int, int]], places: list[str], more: dict[str, Any], cost: str
) -> None:
    more = {"replicas": len(places), **more}
    rollout = rolled([model(version=2, **more)], run([model(**more)], {"a": places}), on(*nodes))
    assert rollout.costs == {"a": cost}
    assert surges(rollout) == {"a": 1 if cost == NEW_FIRST else 0}
    assert rollout.turns == len(places)


@pytest.mark.parametrize(
    ("memory", "surge"),
    [
        ({"n0": Memory(6 * GIB, 7 * GIB)}, 1),
        ({"n0": Memory(6 * GIB, 5 * GIB)}, 0),
        ({}, 0),  # not told
    ],
)
def test_memory_counts_for_as_much_as_a_replica_can_have(
    memory: dict[str, Memory], surge: int
) -> None:
    rollout = rolled([model(version=2)], run([model()], {"a": ["n0"]}), on((8, 0)), memory)
    assert surges(rollout) == {"a": surge}


def test_two_replicas_share_what_is_used() -> None:
    two = run([model(replicas=2)], {"a": ["n0", "n0"]})
    memory = {"n0": Memory(6 * GIB, 4 * GIB)}
    assert surges(rolled([model(version=2, replicas=2)], two, on((8, 0)), memory)) == {"a": 1}


def test_two_models_do_not_count_on_the_same_room() -> None:
    before = run([model("a"), model("b")], {"a": ["n0"], "b": ["n0"]})
    wanted = [model("a", 2), model("b", 2)]
    assert surges(rolled(wanted, before, on((3, 0)))) == {"a": 1, "b": 0}
    assert surges(rolled(wanted, before, on((4, 0)))) == {"a": 1, "b": 1}


def test_a_new_model_and_a_growing_one_take_their_room_first() -> None:
    before = run([model("a"), model("b")], {"a": ["n0"], "b": ["n0"]})
    new = rolled([model("a", 2), model("b"), model("c")], before, on((3, 0)))
    assert surges(new)["a"] == 0
    grown = rolled([model("a", 2), model("b", replicas=2)], before, on((3, 0)))
    assert surges(grown)["a"] == 0


def test_a_model_that_leaves_makes_room() -> None:
    before = run([model("a"), model("b")], {"a": ["n0"], "b": ["n0"]})
    assert surges(rolled([model("a", 2)], before, on((2, 0)))) == {"a": 1}


def test_only_live_nodes_count() -> None:
    dead = RayNode("10.0.0.9", "n9", alive=False, cpus=64)
    before = run([model()], {"a": ["n0"]})
    assert surges(rolled([model(version=2)], before, [*on((1, 0)), dead])) == {"a": 0}


@pytest.mark.parametrize(
    ("more", "cost"), [({"replicas": 3}, IN_PLACE), ({"max_ongoing_requests": 8}, NEW_FIRST)]
)
def test_counts_change_in_place_and_limits_with_new_replicas(
    more: dict[str, Any], cost: str
) -> None:
    rollout = rolled([model(**more)], run([model()], {"a": ["n0"]}), on((3, 0)))
    assert rollout.costs == {"a": cost}
    assert len(rollout.steps) == 1


def test_a_model_that_does_not_serve_has_nothing_to_lose() -> None:
    before = run([model()], {"a": ["n0"]}, state="STARTING")
    rollout = rolled([model(version=2)], before, on((1, 0)))
    assert rollout.costs == {"a": "no replica is serving now: no interruption"}


def test_a_replica_more_starts_before_the_old_one_ends() -> None:
    """Serve stops no old replica while fewer than wanted run."""
    rollout = rolled([model(version=2, replicas=2)], run([model()], {"a": ["n0"]}), on((2, 0)))
    assert (rollout.costs, surges(rollout)) == ({"a": NEW_FIRST}, {"a": 0})


def test_replicas_that_are_too_many_make_room() -> None:
    before = run([model(replicas=3)], {"a": ["n0"] * 3})
    rollout = rolled([model(version=2)], before, on((3, 0)))
    assert (rollout.costs, surges(rollout)) == ({"a": NEW_FIRST}, {"a": 1})


@pytest.mark.parametrize("more", [{"replicas": 3}, {"replicas": 3, "version": 2}])
def test_replicas_that_find_no_room_are_told(more: dict[str, Any]) -> None:
    rollout = rolled([model(**more)], run([model()], {"a": ["n0"]}), on((2, 0)))
    waits = "no free CPU for one more replica: its new replicas wait for capacity"
    assert rollout.costs == {"a": waits}
    first = rolled([model(), model("b")], run([model()], {"a": ["n0"]}), on((1, 0)))
    assert first.costs == {"a": IN_PLACE, "b": waits}


def test_a_new_model_costs_nothing() -> None:
    assert rolled([model()], [], on((1, 0))).costs == {}


def test_placement_groups_are_not_counted_on() -> None:
    before = run([model()], {"a": ["n0"]})
    config = before[0].config
    config["deployments"][0]["placement_group_bundles"] = [{"GPU": 1}] * 2
    rollout = rolled([model(version=2)], before, on((8, 8)))
    assert surges(rollout) == {"a": 0}


def scaling(step: Any) -> int:
    return int(step["applications"][0]["deployments"][0]["autoscaling_config"]["max_replicas"])


def test_autoscaling_waits_while_a_rollout_counts_on_the_room() -> None:
    before = run([model(replicas=Autoscale(1, 4))], {"a": ["n0", "n0"]})
    rollout = rolled([model(version=2, replicas=Autoscale(1, 4))], before, on((3, 0)))
    assert surges(rollout) == {"a": 1}
    assert [scaling(step) for step in rollout.steps] == [2, 4]


def test_autoscaling_goes_on_where_the_old_replica_ends_first() -> None:
    before = run([model(replicas=Autoscale(1, 4))], {"a": ["n0", "n0"]})
    rollout = rolled([model(version=2, replicas=Autoscale(1, 4))], before, on((2, 0)))
    assert [scaling(step) for step in rollout.steps] == [4]


def routes(rollout: Rollout) -> list[dict[str, str]]:
    return [{a["name"]: a["route_prefix"] for a in s["applications"]} for s in rollout.steps]


def test_a_second_model_takes_the_way_in_only_when_the_router_runs() -> None:
    before = run([model("a")], {"a": ["n0"]})
    assert routes(rolled([model("a"), model("b")], before, on((8, 0)))) == [
        {"a": "/", "b": "/m/b", "router": "/m/router"},
        {"a": "/m/a", "b": "/m/b", "router": "/"},
    ]


def test_the_router_stays_until_the_last_model_has_its_way_in() -> None:
    before = run([model("a"), model("b")], {"a": ["n0"], "b": ["n0"]})
    assert routes(rolled([model("a")], before, on((8, 0)))) == [
        {"a": "/m/a", "router": "/"},
        {"a": "/"},
    ]


def test_a_third_model_moves_nobody() -> None:
    before = run([model("a"), model("b")], {"a": ["n0"], "b": ["n0"]})
    rollout = rolled([model("a"), model("b"), model("c")], before, on((8, 0)))
    assert routes(rollout) == [{"a": "/m/a", "b": "/m/b", "c": "/m/c", "router": "/"}]


def test_another_model_in_place_of_the_only_one() -> None:
    before = run([model("a")], {"a": ["n0"]})
    assert routes(rolled([model("b")], before, on((8, 0)))) == [{"b": "/"}]


def test_without_a_cluster_there_is_nothing_to_deploy_to() -> None:
    spec = ClusterSpec.model_validate({"cluster": {"name": "q"}, "head": {"host": "h"}})
    with pytest.raises(HostError, match="is not up"):
        check_up(spec, ClusterState({"head": HostState("head")}))
