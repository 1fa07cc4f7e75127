"""What the head's dashboard tells and takes over HTTP: nodes, applications of Serve, jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raycluster.core.errors import AppError, ConnectionLostError, HostError
from raycluster.core.interfaces import Secret
from raycluster.core.untrusted import Told, read_json
from raycluster.hosts.dashboard import dashboard
from raycluster.hosts.fleet import Connected
from raycluster.serve.rootcause import root_cause
from raycluster.serve.settings import HOST_LABEL
from raycluster.state.cluster import App, RayNode, Replica
from raycluster.state.free_capacity import Memory

if TYPE_CHECKING:
    import httpx

MOST_REPLICAS = 100_000
MOST_OF_A_NODE = 65536  # processors, or GPUs
APPLICATIONS = "/api/serve/applications/"


@contextmanager
def open_ray_api(
    head: Connected, port: int, token: Secret, *, timeout: float = 30.0
) -> Iterator[RayApi]:
    """Yield the API of the dashboard at a port of the head; `timeout` is seconds for an answer."""
    with dashboard(head, port, token, timeout=timeout) as client:
        yield RayApi(head.host.name, client)


class RayApi:
    """Ray's REST API on the head, through `client`; `host` is the head's name in errors."""

    def __init__(self, host: str, client: httpx.Client) -> None:
        self._host = host
        self._client = client

    def nodes(self) -> tuple[RayNode, ...]:
        """Return every node that Ray's control store knows, dead ones too. Raises HostError."""
        answer = self._json("GET", "/api/v0/nodes?detail=true&limit=1000")
        return tuple(_node(each) for each in answer["data"]["result"]["result"].listed())

    def usage(self) -> Mapping[str, Told]:
        """Return each live node's latest figures, as Ray gives them, by node id."""
        summary = self._json("GET", "/nodes?view=summary")["data"]["summary"].listed()
        return {name: each for each in summary if (name := each["raylet"]["nodeId"].text(200))}

    def memory(self) -> Mapping[str, Memory]:
        """Return each live node's memory by node id, where Ray tells it. Raises HostError."""
        told = {node: [each.number() for each in f["mem"]] for node, f in self.usage().items()}
        sizes = {node: (m[3], m[1]) for node, m in told.items() if len(m) == 4}
        return {
            node: Memory(used, free)
            for node, (used, free) in sizes.items()
            if used is not None and free is not None
        }

    def apps(self) -> tuple[App, ...]:
        """Return Serve's applications; none while Serve has not been started. Raises HostError."""
        answer = self._json("GET", APPLICATIONS)
        answer.table()
        return tuple(_app(name, told) for name, told in answer["applications"].named())

    def deploy(self, body: Mapping[str, Any]) -> None:
        """Make Serve's applications those of `body`; returns before they run. Raises AppError."""
        import httpx

        try:
            answer = self._client.put(APPLICATIONS, json=dict(body), timeout=120)
        except httpx.HTTPError as error:
            raise AppError(f"cannot deploy: {error}", where=self._host) from error
        if answer.is_error:
            cause = root_cause(answer.text)[:2000]
            taken = "stop the program that listens there, or choose another port under [ports]"
            hint = taken if "Address already in use" in cause else "raycluster logs head"
            raise AppError(f"Serve rejected the deployment: {cause}", where=self._host, hint=hint)

    def _json(self, method: str, path: str) -> Told:
        import httpx

        try:
            answer = self._client.request(method, path)
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            raise HostError(f"Ray's dashboard responded with {status}", where=self._host) from error
        except httpx.HTTPError as error:
            raise HostError(
                f"Ray's dashboard does not respond: {error}",
                where=self._host,
                hint="raycluster logs head",
            ) from error
        return read_json(answer.content, "Ray's dashboard", self._host)


def _node(told: Told) -> RayNode:
    resources = told["resources_total"]
    return RayNode(
        address=told["node_ip"].text(100),
        node_id=told["node_id"].text(200),
        alive=told["state"].text(40) == "ALIVE",
        is_head=told["is_head_node"].flag(),
        cpus=_count(resources["CPU"]),
        gpus=_count(resources["GPU"]),
        label=told["labels"][HOST_LABEL].text(100),
    )


def _count(told: Told) -> float:
    """Return how many there are; a number that no machine has is none."""
    number = told.number() or 0
    return number if 0 <= number <= MOST_OF_A_NODE else 0


def _app(name: str, told: Told) -> App:
    deployments = [each for _, each in told["deployments"].named()]
    messages = [each["message"].text() for each in (*deployments, told)]
    replicas = [replica for each in deployments for replica in each["replicas"]]
    targets = [n for each in deployments if (n := each["target_num_replicas"].whole()) is not None]
    return App(
        name=name,
        status=told["status"].text(40) or "UNKNOWN",
        message="\n".join(m for m in messages if m),
        config=_config(told["deployed_app_config"].value),
        replicas=tuple(map(_replica, replicas)),
        wanted=sum(targets) if targets else None,
    )


def _config(value: object) -> Mapping[str, Any]:
    """Return what an application was deployed from; nothing where that is not as it has to be.

    What is deployed then counts as something else than the spec wants.
    """
    if not isinstance(value, dict):
        return {}
    deployments, args, route = (value.get(k) for k in ("deployments", "args", "route_prefix"))
    right = (
        isinstance(deployments, list | None)
        and all(map(_is_deployment, deployments or ()))
        and _is_args(args)
        and isinstance(route, str | None)
    )
    return {key: each for key, each in value.items() if each is not None} if right else {}


def _is_args(value: object) -> bool:
    if not isinstance(value, dict):
        return value is None
    model = value.get("model") or {}
    hosts = (model.get("hosts") or {}) if isinstance(model, dict) else None
    return isinstance(hosts, dict) and all(isinstance(label, str) for label in hosts.values())


def _is_deployment(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    options = value.get("ray_actor_options") or {}
    scaling = value.get("autoscaling_config") or {}
    if not isinstance(options, dict) or not isinstance(scaling, dict):
        return False
    numbers = [options.get(name) or 0 for name in ("num_cpus", "num_gpus")]
    if scaling:
        numbers += [scaling.get(name) for name in ("min_replicas", "max_replicas")]
        numbers += [scaling.get("initial_replicas") or 0]
    else:
        numbers += [value.get("num_replicas") or 1]
    return all(type(n) in (int, float) and 0 <= n <= MOST_REPLICAS for n in numbers)


def _replica(told: Told) -> Replica:
    return Replica(
        replica_id=told["replica_id"].text(200),
        state=told["state"].text(40),
        node_id=told["node_id"].text(200),
        address=told["node_ip"].text(100),
        pid=told["pid"].whole() or 0,
    )


JOBS = "/api/jobs/"


class RayJobs:
    """Jobs by their submission id, through `client`; `host` is the head's name in errors."""

    def __init__(self, host: str, client: httpx.Client) -> None:
        self._host = host
        self._client = client

    def submit(self, job: str, command: str) -> None:
        """Start a command of the head's shell as a job. Raises HostError."""
        self._ask("POST", JOBS, json={"submission_id": job, "entrypoint": command})

    def status(self, job: str) -> str:
        """Return how the job stands, in Ray's words; nothing for one that Ray does not know."""
        told = self._ask("GET", JOBS + job, missing={})
        return str(told.get("status", ""))

    def said(self, job: str) -> str:
        """Return what the job wrote; nothing for one that Ray does not know."""
        return str(self._ask("GET", f"{JOBS}{job}/logs", missing={}).get("logs", ""))

    def stop(self, job: str) -> None:
        """Ask the job to end; it may run on for a moment."""
        self._ask("POST", f"{JOBS}{job}/stop", missing={})

    def forget(self, job: str) -> None:
        """Remove what Ray keeps of a job that is over."""
        self._ask("DELETE", JOBS + job, missing={})

    def _ask(
        self,
        method: str,
        path: str,
        *,
        json: dict[str, str] | None = None,
        missing: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the answer; `missing` for one that says that there is no such job."""
        import httpx

        try:
            answer = self._client.request(method, path, json=json, timeout=60)
            if missing is not None and answer.status_code == 404:
                return missing
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            said = " ".join(error.response.text.split())[-300:]
            what = f"Ray's Jobs API responded with {error.response.status_code}: {said}"
            raise HostError(what, where=self._host, hint="raycluster logs head") from error
        except httpx.HTTPError as error:
            what = f"Ray's Jobs API does not respond: {error}"
            raise ConnectionLostError(what, where=self._host) from error
        told = read_json(answer.content, "Ray's Jobs API", self._host).value
        return told if isinstance(told, dict) else {}
