"""One look at the whole cluster: what is there, which engine serves, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import httpx

from raycluster.core.errors import HostError, RayclusterError
from raycluster.core.interfaces import Secret
from raycluster.core.untrusted import Told, read_json
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.hosts.http import http_client
from raycluster.hosts.ray_api import open_ray_api
from raycluster.observe.cluster import observe
from raycluster.observe.diagnosis import Health, ModelHealth, diagnose
from raycluster.observe.replica_endpoints import report
from raycluster.serve.settings import ENGINE_PATH, slugs
from raycluster.services.gateway import GATEWAY, REFUSED_PATH
from raycluster.spec import ClusterSpec
from raycluster.spec.types import bracketed
from raycluster.state.cluster import App, ClusterState

INGRESS_PATH = "/-/healthz"
"""What Serve's ingress answers itself, for better or worse."""
_ANSWER_S = 5.0
_READY_S = 15.0  # longer than the replica's own patience


def look(
    spec: ClusterSpec,
    fleet: Fleet,
    met: Callable[[Connected], object] = lambda _: None,
    asking: Callable[[], object] = lambda: None,
) -> Health:
    """Observe the cluster and diagnose it.

    `met` is called with each host as soon as it is connected and should return at once; `asking`
    before the models are asked for a token.
    """
    state = observe(spec, fleet, met)
    usage: Mapping[str, Told] = {}
    models = tuple(ModelHealth(m.name, None) for m in spec.models)
    with ThreadPoolExecutor(2 + len(models)) as beside:
        gateways = beside.submit(_silent_gateways, spec, fleet, state)
        if state.apps is not None and state.token:
            asked = beside.submit(_usage, spec, fleet, state)
            asking()
            models = _models(spec, fleet, state, beside)
            usage = asked.result()
        else:
            asking()
        silent = gateways.result()
    return Health(spec, state, usage, models, diagnose(spec, state, models, silent), silent)


def _silent_gateways(spec: ClusterSpec, fleet: Fleet, state: ClusterState) -> dict[str, str]:
    """Return why gateways that run do not answer, by host."""
    gate = spec.gateway
    if gate is None:
        return {}
    url = f"http://{bracketed(gate.near)}:{spec.ports.gateway}{REFUSED_PATH}"

    def ask(connected: Connected) -> str:
        with http_client(connected.transport, spec.ports.gateway, timeout=_ANSWER_S) as client:
            try:
                client.get(url)  # with TLS it says that it wants TLS
            except httpx.HTTPError as error:
                return f"the gateway does not respond at {url}: {error}"
        return ""

    running = [
        name
        for name, host in state.hosts.items()
        if (found := host.role(GATEWAY)) and found.health == "running"
    ]
    told = fleet.each(running, ask)
    return {name: why for name, why in told.items() if isinstance(why, str) and why}


def _usage(spec: ClusterSpec, fleet: Fleet, state: ClusterState) -> Mapping[str, Told]:
    token = state.token or Secret("")
    with open_ray_api(fleet[spec.head_host.name], spec.ports.dashboard, token) as api:
        try:
            return api.usage()
        except RayclusterError:
            return {}  # figures only: the nodes themselves were seen


def _models(
    spec: ClusterSpec, fleet: Fleet, state: ClusterState, beside: ThreadPoolExecutor
) -> tuple[ModelHealth, ...]:
    """Ask all models at once."""
    names = slugs([m.name for m in spec.models])
    apps = {a.name: a for a in state.apps or ()}
    transport = fleet[spec.head_host.name].transport
    with http_client(transport, spec.ports.api, timeout=_ANSWER_S) as client:

        def ask(name: str) -> ModelHealth:
            return _model(client, name, apps.get(names[name]), f"/m/{names[name]}")

        return tuple(beside.map(ask, (m.name for m in spec.models)))


def _model(client: httpx.Client, name: str, app: App | None, route: str) -> ModelHealth:
    if app is None or not (app.running or app.still_serving):
        return ModelHealth(name, app)
    try:
        # a question to one that sleeps would start a replica
        answer = client.get(INGRESS_PATH if app.asleep else f"{route}{ENGINE_PATH}")
        told = {} if app.asleep else report(_answered(answer))
    except httpx.HTTPError as error:
        return ModelHealth(name, app, unready=f"its endpoint does not respond: {error}")
    except RayclusterError as error:
        return ModelHealth(name, app, unready=f"its endpoint {error.what}")
    if not told:
        return ModelHealth(name, app)
    return ModelHealth(
        name,
        app,
        told["engine"],
        told["reason"],
        unready=_unready(client, route),
        seconds=told["seconds"],
    )


def _answered(answer: httpx.Response) -> Told:
    """Return what a model's endpoint said. Raises HostError."""
    if not answer.is_success:
        raise HostError(f"responds with {answer.status_code}")
    try:
        return read_json(answer.content, "a replica")
    except RayclusterError as error:
        raise HostError(f"responds, but {error.what}") from error


def _unready(client: httpx.Client, route: str) -> str:
    """Return why a replica did not answer a request for one token, or ""."""
    try:
        answer = client.get(f"{route}/raycluster/ready", timeout=_READY_S)
        if answer.is_success:
            return ""
        said = read_json(answer.content, "a replica")["error"]["message"].text()
    except (httpx.HTTPError, RayclusterError) as error:
        return f"readiness check failed: {error}"
    return said or f"it responds with {answer.status_code}"
