"""Brings the app to the cluster: code and secrets to the nodes, applications to Serve, a proof."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from raycluster.connect import Connected, all_or_raise
from raycluster.errors import AppError, HostError
from raycluster.events import Event
from raycluster.observe import push_files
from raycluster.payload import app_fingerprint, code_files, secret_files
from raycluster.plan import Deploy, plan_app
from raycluster.poll import wait_for
from raycluster.ray_api import RayApi
from raycluster.serve.rootcause import root_cause
from raycluster.services.app import app
from raycluster.spec import Model
from raycluster.state import App, ClusterState
from raycluster.transports.http import http_client
from raycluster.work import Work

PROMPT = "The capital of France is"


@dataclass(frozen=True)
class Proof:
    """A completion that the cluster gave: the model, the engine that served it, and its text."""

    model: str
    engine: str
    text: str
    reason: str = ""


def plan_deploy(work: Work, state: ClusterState) -> Deploy | None:
    """Return the deployment that the spec's models need, given the nodes that are there."""
    if not work.spec.models and not state.apps:
        return None
    if state.nodes is None and state.head_problem:
        raise state.head_problem  # without the nodes, GPUs would seem to be gone
    gpus = any(n.gpus for n in state.nodes or () if n.alive)
    fingerprint = app_fingerprint(work.token, work.secrets.replicas)
    wanted = app(work.spec, gpus=gpus, fingerprint=fingerprint)
    return plan_app(wanted, state.apps)


def deploy(work: Work, action: Deploy) -> None:
    """Make the applications those of the spec, and wait until they run. Raises AppError."""
    files = {**secret_files(work.token, work.secrets.replicas), **code_files()}

    def push(connected: Connected) -> None:
        push_files(connected.runtime.inside(connected.host.role), files)

    all_or_raise(work.fleet.each((h.name for h in work.spec.hosts), push))
    with _api(work) as api:
        work.listen(Event("app", "deploying: " + "; ".join(action.reasons)))
        _when_ready(api, action.body)
        _wait_until_running(work, api, {a["name"] for a in action.body["applications"]})


def recover(work: Work, apps: Iterable[App]) -> None:
    """Wait until applications that lost replicas run again. Raises AppError."""
    names = {a.name for a in apps}
    if names and not all(a.running for a in apps):
        with _api(work) as api:
            _wait_until_running(work, api, names)


def _when_ready(api: RayApi, body: Mapping[str, Any]) -> None:
    """Deploy as soon as the dashboard answers: on a new head that is after its control store."""

    def answers() -> bool | None:
        try:
            api.apps()
        except HostError:
            return None
        return True

    if wait_for(answers, timeout=60) is None:
        api.apps()  # raises what is wrong
    api.deploy(body)


def _wait_until_running(work: Work, api: RayApi, names: set[str]) -> None:
    """Wait until Serve runs these applications; raise AppError with the root cause if one fails."""
    told: dict[str, str] = {}

    def settled() -> bool | None:
        try:
            apps = {a.name: a for a in api.apps() if a.name in names}
        except HostError:
            return None  # a busy dashboard answers the next time
        for app_ in apps.values():
            if app_.status == "DEPLOY_FAILED":
                raise _failure(app_)
            line = _progress(app_)
            if told.get(app_.name) != line:
                told[app_.name] = line
                work.listen(Event("app", line, "done" if app_.running else "step"))
        return True if len(apps) == len(names) and all(a.running for a in apps.values()) else None

    if wait_for(settled, timeout=work.spec.cluster.app_timeout, interval=0.5) is None:
        late = [a for a in api.apps() if a.name in names and not a.running]
        detail = root_cause(late[0].message) if late and late[0].message else "still starting"
        raise AppError(
            f"not serving after {work.spec.cluster.app_timeout:.0f} s: {detail}",
            where=late[0].name if late else "app",
            hint="raycluster logs app, or raise cluster.app_timeout",
        )


def _progress(app_: App) -> str:
    states: dict[str, int] = {}
    for replica in app_.replicas:
        states[replica.state.lower()] = states.get(replica.state.lower(), 0) + 1
    counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    return f"{app_.name}: {app_.status.lower()}" + (f" (replicas: {counts})" if counts else "")


def _failure(app_: App) -> AppError:
    return AppError(
        root_cause(app_.message) or "the replicas do not start",
        where=app_.name,
        hint="raycluster logs app shows all that the replicas wrote",
    )


def prove(work: Work) -> tuple[Proof, ...]:
    """Ask every model for a completion; return what came back. Raises AppError."""
    transport = work.fleet[work.head.name].transport
    with http_client(transport, work.spec.ports.api, timeout=120) as client:
        return tuple(_complete(client, model) for model in work.spec.models)


def _complete(client: httpx.Client, model: Model) -> Proof:
    body = {"model": model.name, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    end = time.monotonic() + 60
    while True:
        try:
            answer = client.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            raise AppError(f"no completion: {error}", where=model.name) from error
        if answer.status_code not in (404, 429, 503) or time.monotonic() > end:
            break
        time.sleep(0.25)  # the proxy learns its routes a moment after the replicas run
    if answer.is_error:
        raise AppError(
            f"answered {answer.status_code} to a completion: {answer.text[:500]}",
            where=model.name,
            hint="raycluster logs app",
        )
    engine = answer.headers.get("x-raycluster-engine", "")
    text = str(answer.json()["choices"][0]["text"])
    return Proof(model.name, engine, text, _fallback_reason(client, model, engine))


def _fallback_reason(client: httpx.Client, model: Model, engine: str) -> str:
    if model.engine != "auto" or engine in ("vllm", ""):
        return ""
    try:
        answer = client.get("/raycluster/engine", params={"model": model.name})
        return str(answer.json().get("reason") or "")
    except (httpx.HTTPError, ValueError):
        return ""


@contextmanager
def _api(work: Work) -> Iterator[RayApi]:
    transport = work.fleet[work.head.name].transport
    with http_client(transport, work.spec.ports.dashboard, token=work.token.reveal()) as client:
        yield RayApi(work.head.name, client)
