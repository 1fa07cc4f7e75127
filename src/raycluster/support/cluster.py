"""What this machine and the head tell of the cluster as a whole."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from raycluster import __version__
from raycluster.apply.converge import preview
from raycluster.core.interfaces import Secret
from raycluster.core.tested_versions import TESTED
from raycluster.core.untrusted import read_json
from raycluster.hosts.dashboard import dashboard
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.http import http_client
from raycluster.hosts.ray_api import APPLICATIONS
from raycluster.observe.diagnosis import Health
from raycluster.report.outcome import plan_json, plan_text
from raycluster.spec import ClusterSpec
from raycluster.spec.layers import read_dotenv
from raycluster.spec.secret_values import Secrets
from raycluster.status.ask import StatusWatcher
from raycluster.status.json import status_json
from raycluster.support.archive import FILE, ArchiveParts
from raycluster.support.redact import is_secret_name, secret_values, shown_variables

_PACKAGES = ("typer", "rich", "pydantic", "paramiko", "docker", "httpx", "jinja2", "cryptography")
_RAY = {
    "applications.json": APPLICATIONS,
    "nodes.json": "/api/v0/nodes?detail=true&limit=1000",
    "actors.json": "/api/v0/actors?detail=true&limit=1000",
    "placement-groups.json": "/api/v0/placement_groups?detail=true&limit=1000",
    "jobs.json": "/api/jobs/",
    "usage.json": "/nodes?view=summary",
    "events.json": "/events",
    "demand.json": "/api/cluster_status",
}
_UNWANTED = frozenset(
    {"cmdline", "entrypoint", "env_vars", "environ", "runtime_env", "runtime_env_json"}
    | {"serialized_runtime_env", "metadata", "driver_info", "config"}
)
"""Fields of Ray's answers that hold command lines, environments and what users say of jobs."""
_PROMETHEUS = ("alerts", "rules", "targets", "status/tsdb")
_TIMEOUT_S = 10.0


def gather(
    spec: ClusterSpec, fleet: Fleet, secrets: Secrets | Exception, dotenv: Path
) -> tuple[ArchiveParts, Health | None]:
    """Return what is known of the cluster, and its health where the hosts could be looked at.

    `secrets` are those of the spec, or why they cannot be read.
    """
    parts = ArchiveParts()
    parts.known |= set(own_secrets(spec, dotenv))
    parts.add("versions.json", _json(_versions()))
    parts.add("spec.json", _json(_spec(spec)))
    health: Health | None = None
    with parts.trying("status.json"):
        with StatusWatcher(spec, fleet) as watcher:
            standing = watcher.look()
        health = standing.health
        parts.add("status.json", _json(status_json(standing)))
        parts.add("members.json", _json([m.model_dump(mode="json") for m in health.state.members]))
    with parts.trying("plan.txt"):
        _plan(parts, spec, fleet, secrets, health)
    if health and health.state.token:
        parts.known.add(health.state.token.reveal())
        _head(parts, spec, fleet, health.state.token)
    if isinstance(secrets, Secrets):
        parts.known |= set(_values(secrets))
    return parts, health


def own_secrets(spec: ClusterSpec, dotenv: Path) -> Iterator[str]:
    """Yield what is secret on this machine and in the spec, as far as names and URLs tell."""
    tables: list[Mapping[str, str]] = [os.environ, read_dotenv(dotenv), spec.env]
    tables += [host.runtime.env for host in spec.hosts if host.runtime.env]
    for table in tables:
        yield from secret_values(table)


def _values(value: object) -> Iterator[str]:
    """Yield every secret in tables and dataclasses, however deep."""
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _values(each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _values(getattr(value, field.name))


def _versions() -> dict[str, Any]:
    return {
        "raycluster": __version__,
        "tested_with": dict(TESTED),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _spec(spec: ClusterSpec) -> dict[str, Any]:
    """Return the spec with all defaults; of secrets' sources only the kind and a file's path."""
    shown: dict[str, Any] = _masked(spec.model_dump(mode="json", by_alias=True))
    return shown


def _masked(value: Any, name: str = "") -> Any:  # noqa: ANN401  # JSON
    if isinstance(value, dict) and name == "env":
        return shown_variables(value)
    if isinstance(value, dict):
        return {key: _masked(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_masked(each) for each in value]
    if isinstance(value, str) and value.startswith("cmd:"):
        return "cmd:***"
    if isinstance(value, str) and is_secret_name(name) and not value.startswith(("env:", "file:")):
        return "***"
    return value


def _plan(
    parts: ArchiveParts,
    spec: ClusterSpec,
    fleet: Fleet,
    secrets: Secrets | Exception,
    health: Health | None,
) -> None:
    if isinstance(secrets, Exception):
        raise ValueError(f"left out: the secrets to remove are not known: {secrets}")
    hosts = health.state.hosts if health else {}
    if unseen := [name for name, host in hosts.items() if host.problem]:
        raise ValueError(f"left out: not available: {', '.join(unseen)}")
    actions, forecast = preview(spec, fleet, secrets)
    parts.add("plan.txt", plan_text(actions).encode() + b"\n")
    parts.add("plan.json", _json(plan_json(spec, actions, forecast)))


def _head(parts: ArchiveParts, spec: ClusterSpec, fleet: Fleet, token: Secret) -> None:
    """Take what Ray's dashboard and Prometheus tell."""
    head = fleet[spec.head_host.name]
    with dashboard(head, spec.ports.dashboard, token, timeout=_TIMEOUT_S) as client:
        for name, path in _RAY.items():
            with parts.trying(f"ray/{name}"):
                answer = client.get(path).raise_for_status()
                told = read_json(answer.content, "Ray's dashboard").value
                parts.add(f"ray/{name}", _json(_wanted(told)), limit=4 * FILE)
    if not (spec.monitoring and spec.monitoring.prometheus):
        return
    with http_client(head.transport, spec.ports.prometheus, timeout=_TIMEOUT_S) as client:
        for name in _PROMETHEUS:
            path = f"prometheus/{name.replace('/', '-')}.json"
            with parts.trying(path):
                parts.add(path, client.get(f"/api/v1/{name}").raise_for_status().content)


def _wanted(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Return an answer of Ray without what may hold anybody's secrets."""
    if isinstance(value, dict):
        return {key: _wanted(each) for key, each in value.items() if key not in _UNWANTED}
    return [_wanted(each) for each in value] if isinstance(value, list) else value


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, default=str).encode() + b"\n"
