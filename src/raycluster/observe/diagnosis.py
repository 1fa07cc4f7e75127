"""What is wrong with a cluster that was looked at: where, what, and the next step; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raycluster.core.untrusted import Told
from raycluster.serve.failures import cure
from raycluster.serve.rootcause import root_cause
from raycluster.services.gateway import GATEWAY
from raycluster.services.processes import roles
from raycluster.services.ray_node import HEAD, RAY_ROLES
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState


@dataclass(frozen=True)
class Issue:
    """Something that is wrong: where, what, and the next step."""

    where: str
    what: str
    hint: str = ""


@dataclass(frozen=True)
class ModelHealth:
    """A model of the spec, its application and the engine that serves it.

    `unready` says why it did not answer a request for one token; `seconds` are the parts of the
    start of one of its replicas.
    """

    name: str
    app: App | None
    engine: str = ""
    reason: str = ""
    unready: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Health:
    """All that `status` shows; `usage` is Ray's figures by node id.

    `gateways` says, by host, why a gateway that runs does not answer.
    """

    spec: ClusterSpec
    state: ClusterState
    usage: Mapping[str, Told]
    models: tuple[ModelHealth, ...]
    problems: tuple[Issue, ...]
    gateways: Mapping[str, str] = field(default_factory=dict)


def diagnose(
    spec: ClusterSpec,
    state: ClusterState,
    models: tuple[ModelHealth, ...],
    gateways: Mapping[str, str] | None = None,
) -> tuple[Issue, ...]:
    """Return what is wrong, the worst first."""
    if not state.exists and not any(h.problem for h in state.hosts.values()):
        return (Issue(spec.cluster.name, "is not up", "raycluster up"),)
    problems = [p for host in spec.hosts if (p := _host_problem(state, host.name, host.role))]
    problems += [
        p
        for host in spec.hosts
        if not state.hosts[host.name].problem
        for role in roles(spec, host)
        if role != host.role and (p := _host_problem(state, host.name, role))
    ]
    if state.head_problem:
        hint = state.head_problem.hint or "raycluster logs head"
        problems.append(Issue(spec.head_host.name, state.head_problem.what, hint))
    head = state.hosts[spec.head_host.name].role(HEAD)
    if error := state.unread:
        problems.append(Issue(error.where, error.what, error.hint or "raycluster up"))
    elif head and head.health == "running" and state.nodes is None and not state.head_problem:
        problems.append(Issue(spec.head_host.name, "its records cannot be read", "raycluster up"))
    if state.nodes is not None:
        problems += [
            Issue(h.name, "runs, but Ray does not list it as alive", f"raycluster logs {h.name}")
            for h in spec.hosts
            if state.runs(h) and state.node(h) is None
        ]
    problems += [
        Issue(host, why, f"raycluster logs {host}/{GATEWAY}")
        for host, why in (gateways or {}).items()
    ]
    if state.apps is not None:
        problems += [p for m in models if (p := _model_problem(m))]
    return tuple(problems)


def _host_problem(state: ClusterState, name: str, role: str) -> Issue | None:
    host = state.hosts[name]
    if host.problem:
        return Issue(name, host.problem.what, host.problem.hint)
    found = host.role(role)
    if found is None:
        return Issue(name, f"has no {role}", "raycluster up")
    if found.health != "running":
        detail = f": {found.detail}" if found.detail else ""
        target = name if role in RAY_ROLES else f"{name}/{role}"
        return Issue(name, f"the {role} is {found.health}{detail}", f"raycluster logs {target}")
    return None


def _model_problem(model: ModelHealth) -> Issue | None:
    if model.app is None:
        return Issue(model.name, "is not deployed", "raycluster up")
    if not model.app.running:
        cause = root_cause(model.app.message) if model.app.message else ""
        what = f"is {model.app.status.lower().replace('_', ' ')}"
        if before := model.app.still_serving:
            what = f"its new version did not start, {before}"
        told = f"{what}: {cause}" if cause else what
        return Issue(model.name, told, cure(cause) or "raycluster logs app")
    if model.unready:
        return Issue(model.name, model.unready, "raycluster logs app")
    if model.reason:
        return Issue(model.name, *fell_back(model.engine, model.reason))
    return None


def fell_back(engine: str, reason: str) -> tuple[str, str]:
    """Return what is wrong, and the next step, where another engine than vLLM serves a model."""
    return (
        f"is served by {engine}, not by vLLM: {reason}",
        f"{cure(reason) or 'fix that'}; then run `raycluster deploy`; or "
        'set engine = "transformers" if that is meant',
    )
