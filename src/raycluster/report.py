"""Plans, outcomes, health and findings as text for people or as JSON for programs; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from raycluster.errors import AuthError, ConnectionLostError, HostKeyError, UnreachableError
from raycluster.plan import Action, Deploy, Guard, Reload, Remove, Start, roles
from raycluster.services.grafana import HOW_TO_READ, USER
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.services import EVERYWHERE, LOOPBACK
from raycluster.state import HostState

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

    from raycluster.checks import Finding
    from raycluster.health import Health, ModelHealth
    from raycluster.up import Outcome

SCHEMA = 1
UNREACHED = (UnreachableError, HostKeyError, AuthError, ConnectionLostError)


def plan_text(actions: Sequence[Action]) -> str:
    """Return one line per action."""
    if not actions:
        return "nothing to change"
    changes = "1 change" if len(actions) == 1 else f"{len(actions)} changes"
    return "\n".join([*(line for a in actions for line in _lines(a)), changes])


def _lines(action: Action) -> list[str]:
    """Return what an action does, and below that what it costs."""
    costs = action.costs if isinstance(action, Deploy) else ()
    return [action.describe(), *(f"    {cost}" for cost in costs)]


def plan_json(spec: ClusterSpec, actions: Iterable[Action]) -> dict[str, Any]:
    """Return the plan for a program."""
    changes = [_action(a) for a in actions]
    return {"schema": SCHEMA, "cluster": spec.cluster.name, "changes": changes}


def _action(action: Action) -> dict[str, Any]:
    match action:
        case Start(host, process, reason, replaces):
            kind = "restart" if replaces else "start"
            return {"action": kind, "host": host, "role": process.role, "reason": reason}
        case Guard(host, rules, reason):
            kind = "guard" if rules else "unguard"
            return {"action": kind, "host": host, "role": "firewall", "reason": reason}
        case Reload(host, process, reason):
            return {"action": "reload", "host": host, "role": process.role, "reason": reason}
        case Remove(host, role, reason):
            return {"action": "remove", "host": host, "role": role, "reason": reason}
        case Deploy(rollout, reasons):
            return {"action": "deploy", "reasons": list(reasons), "costs": dict(rollout.costs)}


def outcome_text(spec: ClusterSpec, outcome: Outcome, *, private: bool = False) -> str:
    """Return what `up` did, the proof, the endpoints and the next commands.

    Where only a person reads it (`private`), a new Grafana's password is among it.
    """
    count = len(outcome.actions)
    lines = [f"{spec.cluster.name} is up: {count} {'change' if count == 1 else 'changes'}"]
    for proof in outcome.proofs:
        lines.append(f"  {proof.model} ({proof.engine}) answered: {proof.text.strip()!r}")
        if outcome.actions and proof.seconds:
            lines.append(f"    {proof.engine} started in {_start(proof.seconds)}")
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
    return "\n".join([*lines, *_new_password(outcome, private=private)])


def _new_password(outcome: Outcome, *, private: bool) -> list[str]:
    secret = outcome.grafana_password
    if secret is None:
        return []
    if private:
        said = f"{secret.reveal()}, shown this once; to read it again:"
    else:
        said = "one of its own, made on the head; to read it:"
    return [f"Grafana's user is {USER}, the password {said}", f"  {HOW_TO_READ}"]


def _start(seconds: Mapping[str, float]) -> str:
    """Return "23 s: import 9, load 2, warm-up 3", without the parts that round to nothing."""
    parts = {n.replace("_", "-"): s for n, s in seconds.items() if n != "total" and round(s)}
    shown = ", ".join(f"{name} {took:.0f}" for name, took in parts.items())
    return f"{seconds.get('total', sum(parts.values())):.0f} s" + (f": {shown}" if shown else "")


def outcome_json(spec: ClusterSpec, outcome: Outcome) -> dict[str, Any]:
    """Return what `up` did for a program."""
    proofs = [
        {
            "model": p.model,
            "engine": p.engine,
            "text": p.text,
            "fallback_reason": p.reason or None,
            "start_seconds": dict(p.seconds) or None,
        }
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
        "models": [_model(health, m) for m in health.models],
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
    if spec.monitoring and spec.monitoring.grafana:
        found["grafana"] = f"http://127.0.0.1:{spec.ports.grafana}"
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
        "process": _process(seen, host.role),
        "joined": node is not None,
        "services": [
            {"role": role, "process": _process(seen, role)}
            for role in roles(health.spec, host)
            if role != host.role
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


def _process(seen: HostState, role: str) -> str:
    """Return what is known of a process, in one word."""
    if isinstance(seen.problem, UNREACHED):
        return "unreachable"
    found = seen.role(role)
    if found:
        return found.health
    return "unknown" if seen.problem else "absent"


def _gpu(gpu: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": gpu.get("name"),
        "utilization_percent": gpu.get("utilizationGpu"),
        "memory_used_mib": gpu.get("memoryUsed"),
        "memory_total_mib": gpu.get("memoryTotal"),
    }


def _model(health: Health, model: ModelHealth) -> dict[str, Any]:
    app = model.app
    return {
        "name": model.name,
        "status": _status(health, model),
        "engine": model.engine or None,
        "fallback_reason": model.reason or None,
        "start_seconds": dict(model.seconds) or None,
        "replicas": [
            {"id": r.replica_id, "state": r.state.lower(), "address": r.address}
            for r in (app.replicas if app else ())
        ],
    }


def _status(health: Health, model: ModelHealth) -> str:
    if model.app:
        return model.app.status.lower()
    state = health.state
    unseen = state.hosts[health.spec.hosts[0].name].problem or state.head_problem
    return "unknown" if unseen else "absent"


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


class _Fitting:
    """Shows the first of some tables that fits the width, or the last."""

    def __init__(self, *choices: RenderableType) -> None:
        self._choices = choices

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement

        wide = options.update(width=1_000_000)
        for choice in self._choices[:-1]:
            if Measurement.get(console, wide, choice).maximum <= options.max_width:
                yield choice
                return
        yield self._choices[-1]


_NODE_COLUMNS = ("NODE", "ROLE", "ADDRESS", "RUNTIME", "STATE", "RAY", "VLLM", "CPU", "MEM", "GPU")
_LEAST_WANTED = (("RUNTIME",), ("RAY", "VLLM"), ("ADDRESS",), ("CPU", "MEM"), ("GPU",))
"""What a narrow terminal does not show, the first to go first."""


def _node_table(health: Health) -> RenderableType:
    rows = [row for host in health.spec.hosts for row in _node_rows(health, host)]
    dropped = [(), *accumulate(_LEAST_WANTED)]
    choices = [tuple(c for c in _NODE_COLUMNS if c not in less) for less in dropped]
    return _Fitting(*(_table(columns, rows) for columns in choices))


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for title in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(row.get(title, "") for title in columns))
    return table


def _node_rows(health: Health, host: ResolvedHost) -> list[dict[str, str]]:
    node = _node(health, host)
    versions = node["versions"] or {}
    state = node["process"]
    if state == "running" and health.state.nodes is not None:
        state = "ready" if node["joined"] else "not joined"
    row = {
        "NODE": host.name,
        "ROLE": host.role,
        "ADDRESS": node["address"] or "",
        "RUNTIME": host.kind,
        "STATE": state,
        "RAY": versions.get("ray", ""),
        "VLLM": versions.get("vllm", ""),
        "CPU": _percent(node["cpu_percent"]),
        "MEM": _memory(node["memory_bytes"]),
        "GPU": _gpus(node),
    }
    services = [
        {"NODE": host.name, "ROLE": service["role"], "STATE": service["process"]}
        for service in node["services"]
    ]
    return [row, *services]


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


_MODEL_COLUMNS = ("MODEL", "STATE", "ENGINE", "REPLICAS")


def _model_table(health: Health) -> RenderableType:
    from rich.text import Text

    rows = [_model_row(health, model) for model in health.models]
    stacked = ["{MODEL}\n  {STATE}  {ENGINE}  {REPLICAS}".format_map(row).rstrip() for row in rows]
    return _Fitting(_table(_MODEL_COLUMNS, rows), Text("\n".join(stacked)))


def _model_row(health: Health, model: ModelHealth) -> dict[str, str]:
    app = model.app
    counts = Counter(replica.state.lower() for replica in (app.replicas if app else ()))
    asleep = app is not None and app.asleep
    return {
        "MODEL": model.name,
        "STATE": _status(health, model),
        "ENGINE": model.engine,
        "REPLICAS": "asleep" if asleep else ", ".join(f"{n} {s}" for s, n in counts.items()),
    }


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
