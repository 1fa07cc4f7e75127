"""How every run that changes a cluster begins: reach the hosts, hold the lock, observe."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

from raycluster.core.errors import (
    HostError,
    NewerRecordError,
    PortInUseError,
    RayclusterError,
    SpecError,
)
from raycluster.core.events import Event, Listener
from raycluster.core.interfaces import Facts, ImageStore, Secret
from raycluster.hosts.fleet import Fleet, all_or_raise
from raycluster.hosts.lock import holding
from raycluster.observe.cluster import observe
from raycluster.observe.facts import facts_of, machine
from raycluster.plan.actions import Only
from raycluster.plan.forecast.fits import Problem
from raycluster.plan.placement import place
from raycluster.plan.preconditions import check_machines, check_owner
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import ClusterState


def reach(spec: ClusterSpec, fleet: Fleet, only: Only) -> None:
    """Connect; raise one error for all hosts that this run needs and cannot reach."""
    reached = fleet.reach(spec.hosts, lambda connected: connected.address)
    _refuse(spec, only, {n: r for n, r in reached.items() if isinstance(r, RayclusterError)})


@contextmanager
def locked(spec: ClusterSpec, fleet: Fleet, command: str, listen: Listener) -> Iterator[None]:
    """Hold the cluster's lock over a connection that nothing else uses."""
    name, head = spec.cluster.name, spec.head_host.name
    tell = lambda text: listen(Event(name, text))  # noqa: E731
    runtime = fleet[head].runtime
    docker = runtime.socket_path() if isinstance(runtime, ImageStore) else ""
    with (
        closing(fleet.new_connection(head)) as own,
        holding(own, name, command, tell, docker) as lease,
        fleet.under(lease),
    ):
        yield


def observed(spec: ClusterSpec, fleet: Fleet, only: Only) -> ClusterState:
    """Observe; raise one error for all hosts that this run needs and cannot see."""
    state = observe(spec, fleet)
    _refuse(spec, only, {name: host.problem for name, host in state.hosts.items()})
    check_owner(spec, state)
    if isinstance(state.unread, NewerRecordError):  # it is not overwritten
        raise state.unread
    if isinstance(state.head_problem, PortInUseError):
        raise state.head_problem
    seen = [name for name, host in state.hosts.items() if not host.problem]
    if len(seen) > 1:
        check_machines(all_or_raise(fleet.each(seen, machine)))
    return state


def placed(
    spec: ClusterSpec, fleet: Fleet, state: ClusterState, only: Only
) -> tuple[ClusterSpec, tuple[Problem, ...]]:
    """Return the spec with the hosts that have the GPUs its models ask for, and notes on them.

    Hosts tell their GPUs anew. Raises SpecError where none has them and a model is to be deployed.
    """
    if not any(model.gpu for model in spec.models):
        return spec, ()
    seen = [name for name, host in state.hosts.items() if not host.problem]
    told = fleet.each(seen, facts_of)
    gpus = {name: each.gpus for name, each in told.items() if isinstance(each, Facts)}
    try:
        return place(spec, gpus, state.apps or ())
    except SpecError:
        if only.app:
            raise
        return spec, ()


def token_of(state: ClusterState) -> Secret:
    """Return the cluster's token, or a new one where there is no cluster yet."""
    return state.token or Secret(randomness.token_hex(32))


def _refuse(spec: ClusterSpec, only: Only, problems: Mapping[str, RayclusterError | None]) -> None:
    needed = [h.name for h in spec.hosts if only.nodes(h) or h.role == "head"]
    errors = [problem for name in needed if (problem := problems.get(name))]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        lines = "\n".join(str(error) for error in errors)
        whole = HostError(f"{len(errors)} hosts cannot be used\n{lines}")
        whole.together = tuple(errors)
        raise whole
