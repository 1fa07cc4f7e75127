from __future__ import annotations

import pytest

from raycluster.core.interfaces import Found
from raycluster.observe.diagnosis import ModelHealth, diagnose
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState, HostState, RayNode, Replica

SPEC = ClusterSpec.model_validate(
    {"cluster": {"name": "q"}, "head": {"host": "h"}, "models": [{"name": "m"}]}
)
AWAKE = (Replica("r", "RUNNING"),)


@pytest.mark.parametrize(
    ("app", "asleep", "problems"),
    [
        (App("m", "RUNNING"), True, []),
        (App("m", "RUNNING", replicas=AWAKE), False, []),
        (App("m", "DEPLOYING"), False, ["is deploying"]),
        (App("m", "UNHEALTHY"), False, ["is unhealthy"]),
    ],
)
def test_a_model_without_replicas_is_asleep_and_not_ill(
    app: App, asleep: bool, problems: list[str]
) -> None:
    head = Found("head", "1", "running")
    state = ClusterState(
        {"head": HostState("head", "h", (head,))},
        nodes=(RayNode("h", "n", alive=True, is_head=True),),
        apps=(app,),
    )
    found = diagnose(SPEC, state, (ModelHealth("m", app),))
    assert app.asleep is asleep
    assert [problem.what for problem in found] == problems
