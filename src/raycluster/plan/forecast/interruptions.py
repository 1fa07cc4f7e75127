"""What clients will notice of a change, and for how long; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raycluster.plan.actions import Action, Deploy, Remove, Start
from raycluster.services.gateway import GATEWAY
from raycluster.services.ray_node import HEAD, WORKER
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState


@dataclass(frozen=True)
class Interruption:
    """What is away: where, in words, for about how many seconds if that is known."""

    where: str
    what: str
    seconds: float | None = None


def interruptions(
    spec: ClusterSpec,
    state: ClusterState,
    actions: Sequence[Action],
    seconds: Mapping[str, float],
) -> tuple[Interruption, ...]:
    """Return what a change interrupts, the worst first; nothing where nothing serves now.

    `seconds` are what the last start of each application's engine took.
    """
    if not any(app.serving for app in state.apps or ()):
        return ()
    restarts = [a for a in actions if isinstance(a, Start) and a.replaces]
    found: list[Interruption] = []
    if head := next((a for a in restarts if a.process.role == HEAD), None):
        found += _all_away(state, head.host, seconds)
    else:
        for action in restarts:
            if action.process.role == WORKER:
                found += _node_away(spec, state, action.host, seconds)
        found += _rolled_out(actions)
    found += _gateways(actions, restarts)
    found += [
        Interruption(
            a.host, "leaves the cluster: its replicas finish their requests first; capacity drops"
        )
        for a in actions
        if isinstance(a, Remove) and a.role is None
    ]
    return tuple(found)


def _all_away(
    state: ClusterState, host: str, seconds: Mapping[str, float]
) -> Iterator[Interruption]:
    names = [app.name for app in state.apps or () if app.serving]
    longest = max((seconds[n] for n in names if n in seconds), default=None)
    yield Interruption(
        host,
        f"a new head restarts every node: all models are unavailable for {_about(longest)}",
        longest,
    )


def _node_away(
    spec: ClusterSpec, state: ClusterState, host: str, seconds: Mapping[str, float]
) -> Iterator[Interruption]:
    node = next((n for h in spec.hosts if h.name == host and (n := state.node(h))), None)
    for app in state.apps or ():
        here = _serving(app, node.node_id if node else "")
        if not here:
            continue
        took = seconds.get(app.name)
        away = (
            "the model is unavailable"
            if here == app.serving
            else f"{here} of {app.serving} replicas are unavailable"
        )
        yield Interruption(app.name, f"{host} restarts: {away} for {_about(took)}", took)


def _serving(app: App, node_id: str) -> int:
    return sum(r.state == "RUNNING" and r.node_id == node_id for r in app.replicas)


def _rolled_out(actions: Sequence[Action]) -> Iterator[Interruption]:
    for action in actions:
        if isinstance(action, Deploy):
            for name, cost in action.rollout.costs.items():
                if not cost.endswith("no interruption"):
                    yield Interruption(name, cost)


def _gateways(actions: Sequence[Action], restarts: Sequence[Start]) -> Iterator[Interruption]:
    for action in restarts:
        if action.process.role == GATEWAY:
            what = "the gateway restarts: clients cannot connect to it for a few seconds"
            yield Interruption(action.host, what)
    for removed in actions:
        if isinstance(removed, Remove) and removed.role == GATEWAY:
            yield Interruption(
                removed.host, "the gateway is removed: its clients can no longer connect"
            )


def _about(seconds: float | None) -> str:
    return f"about {seconds:.0f} s" if seconds else "one start of the engine"
