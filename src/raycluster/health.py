"""One look at the whole cluster: what is there, which engine serves, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import httpx

from raycluster.connect import Connected, Fleet
from raycluster.contracts import Secret
from raycluster.dashboard import dashboard
from raycluster.errors import RayclusterError
from raycluster.judge import Health, ModelHealth, judge
from raycluster.observe import observe
from raycluster.plan import still_serving
from raycluster.ray_api import RayApi
from raycluster.replicas import report
from raycluster.serve.settings import ENGINE_PATH, slugs
from raycluster.spec import ClusterSpec
from raycluster.state import App, ClusterState
from raycluster.transports.http import http_client
from raycluster.untrusted import Told, read_json

_READY_S = 15.0  # longer than the replica's own patience


def look(
    spec: ClusterSpec,
    fleet: Fleet,
    met: Callable[[Connected], object] = lambda _: None,
    asking: Callable[[], object] = lambda: None,
) -> Health:
    """Observe the cluster and judge it.

    `met` is called with each host as soon as it is connected and shall return at once; `asking`
    before the models are asked for a token.
    """
    state = observe(spec, fleet, met)
    usage: Mapping[str, Told] = {}
    models = tuple(ModelHealth(m.name, None) for m in spec.models)
    if state.apps is not None and state.token:
        with ThreadPoolExecutor(1 + len(models)) as beside:
            asked = beside.submit(_usage, spec, fleet, state)
            asking()
            models = _models(spec, fleet, state, beside)
            usage = asked.result()
    else:
        asking()
    return Health(spec, state, usage, models, judge(spec, state, models))


def _usage(spec: ClusterSpec, fleet: Fleet, state: ClusterState) -> Mapping[str, Told]:
    head = spec.hosts[0].name
    token = state.token or Secret("")
    with dashboard(fleet[head], spec.ports.dashboard, token) as client:
        try:
            return RayApi(head, client).usage()
        except RayclusterError:
            return {}  # figures only: the nodes themselves were seen


def _models(
    spec: ClusterSpec, fleet: Fleet, state: ClusterState, beside: ThreadPoolExecutor
) -> tuple[ModelHealth, ...]:
    """Ask all models at once."""
    names = slugs([m.name for m in spec.models])
    apps = {a.name: a for a in state.apps or ()}
    transport = fleet[spec.hosts[0].name].transport
    with http_client(transport, spec.ports.api, timeout=5) as client:

        def ask(name: str) -> ModelHealth:
            return _model(client, name, apps.get(names[name]), f"/m/{names[name]}")

        return tuple(beside.map(ask, (m.name for m in spec.models)))


def _model(client: httpx.Client, name: str, app: App | None, route: str) -> ModelHealth:
    if app is None or not (app.running or still_serving(app)) or app.asleep:
        return ModelHealth(name, app)  # asking one that sleeps would start a replica
    try:
        answer = client.get(f"{route}{ENGINE_PATH}").raise_for_status()
        told = report(read_json(answer.content, "a replica"))
    except (httpx.HTTPError, RayclusterError):
        told = {}
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


def _unready(client: httpx.Client, route: str) -> str:
    """Return why a replica did not answer a request for one token, or ""."""
    try:
        answer = client.get(f"{route}/raycluster/ready", timeout=_READY_S)
        if answer.is_success:
            return ""
        said = read_json(answer.content, "a replica")["error"]["message"].text()
    except (httpx.HTTPError, RayclusterError) as error:
        return f"readiness cannot be asked: {error}"
    return said or f"it answers {answer.status_code}"
