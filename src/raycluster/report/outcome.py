"""Plans, outcomes, health and findings as text for people or as JSON for programs; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raycluster.core.errors import DegradedError
from raycluster.observe import diagnosis
from raycluster.plan.actions import Action, ApplyFirewall, Deploy, Reload, Remove, Start
from raycluster.services.grafana import HOW_TO_READ, USER
from raycluster.spec import ClusterSpec
from raycluster.spec.services import EVERYWHERE, LOOPBACK

if TYPE_CHECKING:
    from rich.console import RenderableType

    from raycluster.apply.converge import Outcome
    from raycluster.check.hosts import Finding
    from raycluster.plan.forecast.whole import Forecast

SCHEMA = 1


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


def plan_json(
    spec: ClusterSpec, actions: Iterable[Action], forecast: Forecast | None = None
) -> dict[str, Any]:
    """Return the plan for a program, with what it needs and costs."""
    from raycluster.report.forecast import forecast_json  # `status` needs none of it

    changes = [_action(a) for a in actions]
    known = forecast_json(forecast) if forecast else {}
    return {"schema": SCHEMA, "cluster": spec.cluster.name, "changes": changes, **known}


def _action(action: Action) -> dict[str, Any]:
    match action:
        case Start(host, process, reason, replaces):
            kind = "restart" if replaces else "start"
            return {"action": kind, "host": host, "role": process.role, "reason": reason}
        case ApplyFirewall(host, rules, reason):
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
    fell = fell_back(outcome)
    state = "is up, but degraded" if fell else "is up"
    lines = [f"{spec.cluster.name} {state}: {count} {'change' if count == 1 else 'changes'}"]
    lines += [f"  ! {error.where}: {error.what}" for error in fell]
    for proof in outcome.proofs:
        lines.append(f"  {proof.model} ({proof.engine}) responded: {proof.text.strip()!r}")
        if outcome.actions and proof.seconds:
            lines.append(f"    {proof.engine} started in {_start(proof.seconds)}")
    if outcome.proofs:
        head = spec.head_host
        here = "on this machine" if head.transport == "local" else "on the head, through the tunnel"
        lines += [
            f"  {name:<10} {url}{f'  ({here})' if name == 'api' else ''}"
            for name, url in endpoints(spec).items()
        ]
        lines += [
            "next: raycluster tunnel | raycluster bench --prompts FILE | raycluster status",
        ]
    return "\n".join([*lines, *_new_password(outcome, private=private)])


def fell_back(outcome: Outcome) -> tuple[DegradedError, ...]:
    """Return an error for each model that another engine serves than the one that comes first."""
    return tuple(
        DegradedError(what, where=proof.model, hint=hint)
        for proof in outcome.proofs
        if proof.fallback
        for what, hint in [diagnosis.fell_back(proof.fallback.engine, proof.fallback.reason)]
    )


def _new_password(outcome: Outcome, *, private: bool) -> list[str]:
    secret = outcome.grafana_password
    if secret is None:
        return []
    if private:
        said = f"{secret.reveal()}, shown only once; to read it again:"
    else:
        said = "generated on the head; to read it:"
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
            "fallback_reason": p.fallback.reason if p.fallback else None,
            "start_seconds": dict(p.seconds) or None,
        }
        for p in outcome.proofs
    ]
    seconds = dict(outcome.seconds)
    return {**plan_json(spec, outcome.actions), "completions": proofs, "seconds": seconds}


def endpoints(spec: ClusterSpec) -> dict[str, str]:
    """Return the URLs of what the cluster offers, by name."""
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
    name = (spec.head_host.host or LOOPBACK) if listen in (EVERYWHERE, "::") else listen
    return f"[{name}]" if ":" in name else name


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
    parts.append(
        Text(f"{failed} of {len(findings)} checks failed" if failed else "all checks passed")
    )
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
