"""What the head's dashboard tells and takes: nodes and Serve applications, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raycluster.errors import AppError, HostError
from raycluster.room import Memory
from raycluster.serve.rootcause import root_cause
from raycluster.state import App, RayNode, Replica

if TYPE_CHECKING:
    import httpx

APPLICATIONS = "/api/serve/applications/"


class RayApi:
    """Ray's REST API on the head, through `client`; `host` is the head's name in errors."""

    def __init__(self, host: str, client: httpx.Client) -> None:
        self._host = host
        self._client = client

    def nodes(self) -> tuple[RayNode, ...]:
        """Return every node that Ray's control store knows, dead ones too. Raises HostError."""
        answer = self._json("GET", "/api/v0/nodes?detail=true&limit=1000")
        return tuple(_node(n) for n in answer["data"]["result"]["result"])

    def usage(self) -> Mapping[str, Mapping[str, Any]]:
        """Return each live node's latest figures, as Ray gives them, by node id."""
        answer = self._json("GET", "/nodes?view=summary")
        summary = answer["data"]["summary"]
        return {n["raylet"]["nodeId"]: n for n in summary if n.get("raylet", {}).get("nodeId")}

    def memory(self) -> Mapping[str, Memory]:
        """Return each live node's memory by node id, where Ray tells it. Raises HostError."""
        usage = self.usage().items()
        told: dict[str, list[float]] = {node: list(f.get("mem") or ()) for node, f in usage}
        return {node: Memory(m[3], m[1]) for node, m in told.items() if len(m) == 4}

    def apps(self) -> tuple[App, ...]:
        """Return Serve's applications; none while Serve has not been started. Raises HostError."""
        answer = self._json("GET", APPLICATIONS)
        return tuple(_app(name, a) for name, a in answer.get("applications", {}).items())

    def deploy(self, body: Mapping[str, Any]) -> None:
        """Make Serve's applications those of `body`; returns before they run. Raises AppError."""
        import httpx

        try:
            answer = self._client.put(APPLICATIONS, json=dict(body), timeout=120)
        except httpx.HTTPError as error:
            raise AppError(f"cannot deploy: {error}", where=self._host) from error
        if answer.is_error:
            cause = root_cause(answer.text)[:2000]
            raise AppError(f"Serve refused the deployment: {cause}", where=self._host)

    def _json(self, method: str, path: str) -> Any:  # noqa: ANN401  # JSON
        import httpx

        try:
            answer = self._client.request(method, path)
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            raise HostError(f"Ray's dashboard answered {status}", where=self._host) from error
        except (httpx.HTTPError, ValueError) as error:
            raise HostError(
                f"Ray's dashboard does not answer: {error}",
                where=self._host,
                hint="raycluster logs head",
            ) from error


def _node(data: Mapping[str, Any]) -> RayNode:
    resources = data.get("resources_total") or {}
    return RayNode(
        address=data["node_ip"],
        node_id=data["node_id"],
        alive=data["state"] == "ALIVE",
        is_head=bool(data.get("is_head_node")),
        cpus=resources.get("CPU", 0),
        gpus=resources.get("GPU", 0),
    )


def _app(name: str, data: Mapping[str, Any]) -> App:
    deployments = data.get("deployments") or {}
    messages = [d.get("message", "") for d in deployments.values()] + [data.get("message", "")]
    replicas = [r for d in deployments.values() for r in d.get("replicas") or ()]
    targets = [n for d in deployments.values() if (n := d.get("target_num_replicas")) is not None]
    return App(
        name=name,
        status=data.get("status", "UNKNOWN"),
        message="\n".join(m for m in messages if m),
        config=data.get("deployed_app_config") or {},
        replicas=tuple(_replica(r) for r in replicas),
        wanted=sum(targets) if targets else None,
    )


def _replica(data: Mapping[str, Any]) -> Replica:
    return Replica(
        replica_id=data.get("replica_id", ""),
        state=data.get("state", ""),
        node_id=data.get("node_id") or "",
        address=data.get("node_ip") or "",
        actor_id=data.get("actor_id") or "",
        log_file=data.get("log_file_path") or "",
        pid=data.get("pid") or 0,
    )
