"""Plans, outcomes, health and findings as text for people or as JSON for programs; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from raycluster.plan import Action, Deploy, Remove, Start, roles
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.services import EVERYWHERE, LOOPBACK

if TYPE_CHECKING:
    from rich.console import RenderableType

    from raycluster.checks import Finding
    from raycluster.health import Health, ModelHealth
    from raycluster.up import Outcome

SCHEMA = 1


def plan_text(actions: Sequence[Action]) -> str:
    """Return one line per action."""
    if not actions:
        return "nothing to change"
    changes = "1 change" if len(actions) == 1 else f"{len(actions)} changes"
    return "\n".join([*(a.describe() for a in actions), changes])


def plan_json(spec: ClusterSpec, actions: Iterable[Action]) -> dict[str, Any]:
    """Return the plan for a program."""
    changes = [_action(a) for a in actions]
    return {"schema": SCHEMA, "cluster": spec.cluster.name, "changes": changes}


def _action(action: Action) -> dict[str, Any]:
    match action:
        case Start(host, process, reason, replaces):
            kind = "restart" if replaces else "start"
            return {"action": kind, "host": host, "role": process.role, "reason": reason}
        case Remove(host, role, reason):
            return {"action": "remove", "host": host, "role": role, "reason": reason}
        case Deploy(_, reasons):
            return {"action": "deploy", "reasons": list(reasons)}


def outcome_text(spec: ClusterSpec, outcome: Outcome) -> str:
    """Return what `up` did, the proof, the endpoints and the next commands."""
    count = len(outcome.actions)
    lines = [f"{spec.cluster.name} is up: {count} {'change' if count == 1 else 'changes'}"]
    for proof in outcome.proofs:
        lines.append(f"  {proof.model} ({proof.engine}) answered: {proof.text.strip()!r}")
        if proof.reason:
            lines.append(f"    not served by vLLM: {proof.reason}")
    if outcome.proofs:
        head = spec.hosts[0]
        here = "on this machine" if head.transport == "local" else "on the head, through the tunnel"
        lines += [
            f"  {name:<10} {url}{f'  ({here})' if name == 'api' else ''}"
            for name, url in _endpoints(spec).items()
        ]
        lines += [
            "next: raycluster tunnel | raycluster bench --prompts FILE | raycluster status",
        ]
    return "\n".join(lines)


def outcome_json(spec: ClusterSpec, outcome: Outcome) -> dict[str, Any]:
    """Return what `up` did for a program."""
    proofs = [
        {"model": p.model, "engine": p.engine, "text": p.text, "fallback_reason": p.reason or None}
        for p in outcome.proofs
    ]
    return {**plan_json(spec, outcome.actions), "completions": proofs}


def status_json(health: Health) -> dict[str, Any]:
    """Return the whole health for a program."""
    return {
        "schema": SCHEMA,
        "cluster": health.spec.cluster.name,
        "healthy": not health.problems,
        "problems": [{"where": p.where, "what": p.what, "hint": p.hint} for p in health.problems],
        "nodes": [_node(health, host) for host in health.spec.hosts],
        "models": [_model(m) for m in health.models],
        "endpoints": _endpoints(health.spec),
    }


def _endpoints(spec: ClusterSpec) -> dict[str, str]:
    found = {
        "api": f"http://127.0.0.1:{spec.ports.api}/v1",
        "dashboard": f"http://127.0.0.1:{spec.ports.dashboard}",
    }
    if spec.gateway:
        found["gateway"] = f"{spec.gateway.scheme}://{_reached(spec)}:{spec.ports.gateway}/v1"
    if spec.monitoring and spec.monitoring.prometheus:
        found["prometheus"] = f"http://127.0.0.1:{spec.ports.prometheus}"
    return found


def _reached(spec: ClusterSpec) -> str:
    """Return the head as clients of the gateway name it."""
    listen = spec.gateway.address if spec.gateway else ""
    name = (spec.hosts[0].host or LOOPBACK) if listen in (EVERYWHERE, "::") else listen
    return f"[{name}]" if ":" in name else name


def _node(health: Health, host: ResolvedHost) -> dict[str, Any]:
    seen = health.state.hosts[host.name]
    found = seen.role(host.role)
    node = health.state.node(host)
    usage = health.usage.get(node.node_id, {}) if node else {}
    memory = usage.get("mem") or []
    return {
        "name": host.name,
        "role": host.role,
        "runtime": host.kind,
        "address": seen.address or None,
        "process": found.health if found else "absent",
        "joined": node is not None,
        "services": [
            {"role": role, "process": service.health if service else "absent"}
            for role in roles(health.spec, host)
            if role != host.role
            for service in [seen.role(role)]
        ],
        "versions": (
            {"python": v.python, "ray": v.ray, "vllm": v.vllm, "transformers": v.transformers}
            if found and (v := found.versions)
            else None
        ),
        "cpus": node.cpus if node else None,
        "cpu_percent": usage.get("cpu"),
        "memory_bytes": {"used": memory[3], "total": memory[0]} if len(memory) == 4 else None,
        "gpus": [_gpu(g) for g in usage.get("gpus") or ()],
        "gpus_total": node.gpus if node else None,
    }


def _gpu(gpu: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": gpu.get("name"),
        "utilization_percent": gpu.get("utilizationGpu"),
        "memory_used_mib": gpu.get("memoryUsed"),
        "memory_total_mib": gpu.get("memoryTotal"),
    }


def _model(model: ModelHealth) -> dict[str, Any]:
    app = model.app
    return {
        "name": model.name,
        "status": app.status.lower() if app else "absent",
        "engine": model.engine or None,
        "fallback_reason": model.reason or None,
        "replicas": [
            {"id": r.replica_id, "state": r.state.lower(), "address": r.address}
            for r in (app.replicas if app else ())
        ],
    }


def status_view(health: Health) -> RenderableType:
    """Return problems first, then nodes, models and endpoints."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_headline(health)]
    for problem in health.problems:
        parts.append(Text(f"  ! {problem.where}: {problem.what}", style="yellow"))
        if problem.hint:
            parts.append(Text(f"      next: {problem.hint}", style="dim"))
    parts.append(_node_table(health))
    if health.models:
        parts.append(_model_table(health))
    if health.state.apps is not None:
        parts += [Text(f"  {name:<10} {url}") for name, url in _endpoints(health.spec).items()]
    return Group(*parts)


def _headline(health: Health) -> RenderableType:
    from rich.text import Text

    word, style = ("degraded", "bold yellow") if health.problems else ("healthy", "bold green")
    return Text.assemble((health.spec.cluster.name, "bold"), " is ", (word, style))


_NODE_COLUMNS = ["NODE", "ROLE", "ADDRESS", "RUNTIME", "STATE", "RAY", "VLLM", "CPU", "MEM", "GPU"]


def _node_table(health: Health) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for title in _NODE_COLUMNS:
        table.add_column(title, no_wrap=True)
    for host in health.spec.hosts:
        node = _node(health, host)
        versions = node["versions"] or {}
        state = node["process"]
        if state == "running" and health.state.nodes is not None:
            state = "ready" if node["joined"] else "not joined"
        table.add_row(
            host.name,
            host.role,
            node["address"] or "",
            host.kind,
            state,
            versions.get("ray", ""),
            versions.get("vllm", ""),
            _percent(node["cpu_percent"]),
            _memory(node["memory_bytes"]),
            _gpus(node),
        )
        for service in node["services"]:
            table.add_row(host.name, service["role"], "", "", service["process"])
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}%"


def _memory(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['used'] / 2**30:.1f}/{value['total'] / 2**30:.0f}G"


def _gpus(node: dict[str, Any]) -> str:
    if node["gpus"]:
        return "\n".join(_gpu_text(g) for g in node["gpus"])
    return f"{node['gpus_total']:.0f}" if node["gpus_total"] else "-"


def _gpu_text(gpu: dict[str, Any]) -> str:
    used, total = gpu["memory_used_mib"], gpu["memory_total_mib"]
    return f"{_percent(gpu['utilization_percent'])} {used}/{total}M"


def _model_table(health: Health) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("MODEL", "STATE", "ENGINE", "REPLICAS"):
        table.add_column(title, overflow="fold")
    for model in health.models:
        app = model.app
        counts: dict[str, int] = {}
        for replica in app.replicas if app else ():
            counts[replica.state.lower()] = counts.get(replica.state.lower(), 0) + 1
        table.add_row(
            model.name,
            app.status.lower() if app else "absent",
            model.engine,
            ", ".join(f"{n} {state}" for state, n in counts.items()),
        )
    return table


def checks_view(findings: Sequence[Finding]) -> RenderableType:
    """Return one line per finding, and the next step under each that failed."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for finding in findings:
        mark, style = ("✓", "green") if finding.passed else ("✗", "red")
        parts.append(
            Text.assemble((mark, style), f" {finding.host:<12} {finding.subject}: {finding.text}")
        )
        if finding.hint and not finding.passed:
            parts.append(Text(f"    next: {finding.hint}", style="dim"))
    failed = sum(not f.passed for f in findings)
    parts.append(Text(f"{failed} of {len(findings)} checks failed" if failed else "all is well"))
    return Group(*parts)


def checks_json(spec: ClusterSpec, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings for a program."""
    return {
        "schema": SCHEMA,
        "cluster": spec.cluster.name,
        "passed": all(f.passed for f in findings),
        "checks": [
            {
                "host": f.host,
                "subject": f.subject,
                "passed": f.passed,
                "text": f.text,
                "hint": f.hint,
            }
            for f in findings
        ],
    }
