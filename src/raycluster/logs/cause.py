"""Why models do not serve: the root cause, and the host and the replica that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import closing
from typing import Any

from raycluster.core.errors import RayclusterError
from raycluster.core.untrusted import joined, read_json
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.logs.sources import inside
from raycluster.serve.failures import cure
from raycluster.serve.rootcause import root_cause
from raycluster.serve.settings import slugs
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState

_BAD = ("UNHEALTHY", "DEPLOY_FAILED")
_LONGEST = 600


def causes(spec: ClusterSpec, state: ClusterState, fleet: Fleet, apps: Set[str]) -> tuple[str, ...]:
    """Return a line for each model that does not serve: what is wrong, and where it went wrong.

    `apps` are the applications that are meant; "" among them is all.
    """
    bad = [a for a in state.apps or () if _wrong(a) and apps & {"", a.name}]
    if not bad:
        return ()
    models = {slug: name for name, slug in slugs([m.name for m in spec.models]).items()}
    said = _said(spec, state, fleet)
    return tuple(_line(a, models.get(a.name, a.name), said.get(a.name)) for a in bad)


def _wrong(app: App) -> bool:
    return app.status in _BAD or (app.status == "DEPLOYING" and "raycluster root" in app.message)


def _line(app: App, model: str, last: tuple[str, Mapping[str, Any]] | None) -> str:
    state = app.status.lower().replace("_", " ")
    cause = root_cause(app.message) if app.message else ""
    where = ""
    if last:
        host, told = last
        replica = f"replica {told['replica']}, " if told["replica"] else ""
        where = f" ({replica}process {told['pid']} on {host})"
        cause = cause or told["cause"]
    step = cure(cause)
    line = f"{model}: {state}: {(cause or 'Serve gives no reason')[:_LONGEST]}{where}"
    return f"{line}\n  next: {step}" if step else line


def _said(
    spec: ClusterSpec, state: ClusterState, fleet: Fleet
) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return, by application, the replica that last said why it cannot start, and its host."""
    running = [h.name for h in spec.hosts if state.runs(h)]
    last: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for host, found in fleet.each(running, _ask).items():
        for told in found if not isinstance(found, RayclusterError) else ():
            before = last.get(told["app"])
            if before is None or told["at"] > before[1]["at"]:
                last[told["app"]] = host, told
    return last


def _ask(connected: Connected) -> Sequence[Mapping[str, Any]]:
    with closing(inside(connected, {"causes": True})) as stream:
        said = (chunk for channel, chunk in stream if channel == "stdout")
        text = joined(said, "the log reader", connected.host.name)
    told = read_json(text or b"[]", "the log reader", connected.host.name)
    return [
        {
            **{name: each[name].text(2000) for name in ("app", "replica", "cause")},
            "pid": each["pid"].whole() or 0,
            "at": each["at"].number() or 0,
        }
        for each in told
    ]
