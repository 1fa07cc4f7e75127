"""Brings the models to the nodes that may hold replicas, before any starts; compares the nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from raycluster.apply.context import ApplyContext
from raycluster.apply.distribution.peer_transfer import TransferPeer, all_private, exchange, spoken
from raycluster.core.errors import AppError, CommandError, HostError, RayclusterError
from raycluster.core.events import Event
from raycluster.core.interfaces import FIND_PYTHON, PYTHON
from raycluster.core.untrusted import Told, not_understood
from raycluster.hosts.fleet import Connected, all_or_raise
from raycluster.hosts.remote_files import push_live
from raycluster.serve.model_refs import ModelRef, differences, is_path, model_refs, order
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import ClusterState

T = TypeVar("T")
Results = Mapping[str, Mapping[str, Any]]
"""What each source came to on one node, see `serve.fetch`."""


def bring(
    work: ApplyContext,
    state: ClusterState,
    body: Mapping[str, Any],
    *,
    verify: bool = False,
) -> None:
    """Fetch, check and compare what the models of `body` read, on all nodes that may need it.

    What was checked before and has not changed is not read again, unless `verify`. Raises
    HostError with what is wrong on which host, and AppError where hosts hold different files.
    """
    models = [app["args"]["model"] for app in body["applications"] if "model" in app["args"]]
    by_host = {name: needed for name, needed in holders(work.spec, state, models).items() if needed}
    if not by_host:
        return
    work.fleet.check()
    asking = Asking(work, models[0]["secrets_path"], verify=verify)
    brought: dict[tuple[str, ModelRef], Mapping[str, Any]] = {}
    if work.spec.distribution.models != "hub" and len(by_host) > 1:
        for source in dict.fromkeys(w for needed in by_host.values() for w in needed):
            if not is_path(source.source):
                found = _hand_on(asking, source, [h for h, n in by_host.items() if source in n])
                brought.update({(host, source): result for host, result in found.items()})
    results: dict[str, dict[str, Any]] = {host: {} for host in by_host}
    for (host, source), result in brought.items():
        results[host][source.source] = result
    left = {h: [w for w in needed if (h, w) not in brought] for h, needed in by_host.items()}
    asked = [host for host, needed in left.items() if needed]
    fetched = work.fleet.each(asked, lambda c: asking.fetch(c, left[c.host.name]))
    for host, more in all_or_raise(fetched).items():
        results[host].update(more)
    compare(results)


@dataclass(frozen=True)
class Asking:
    """One run's questions to the programs on the nodes."""

    work: ApplyContext
    secrets_path: str
    verify: bool

    def fetch(self, connected: Connected, needed: Sequence[ModelRef]) -> Results:
        """Bring what a node needs from the hub, and check it. Raises HostError."""
        name = connected.host.name
        ask = order(needed, verify=self.verify, secrets_path=self.secrets_path)
        argv = (*PYTHON, "-m", "raycluster.serve.fetch", ask)
        try:
            shell = connected.runtime.inside(connected.host.role)
            with closing(spoken(shell, argv, self.work.spec.env)) as lines:
                return _carried_out(self.work, name, lines)
        except CommandError as error:
            what = f"the model files cannot be listed: {error.what}"
            raise HostError(what, where=name) from error

    def order(self, wanted: ModelRef, listed: object = None) -> dict[str, Any]:
        """Return what `serve.share` is told, but for its place among the others."""
        return {
            "secrets_path": self.secrets_path,
            "model": asdict(wanted),
            "listed": listed,
        }

    def party(self, connected: Connected) -> TransferPeer:
        """Return a node as one that takes part in an exchange."""
        shell = connected.runtime.inside(connected.host.role)
        return TransferPeer(
            connected.host.name,
            connected.address,
            shell,
            _SHARE,
            self.work.spec.env,
            lambda content: push_live(shell, {ORDER_FILE: content}),
        )

    def held(self, connected: Connected, wanted: ModelRef) -> Any:  # noqa: ANN401  # JSON
        """Return what the files of a model are where all are on the node, else None."""
        party = self.party(connected)
        party.deliver(json.dumps(self.order(wanted)).encode())
        with closing(spoken(party.shell, party.argv, party.env)) as lines:
            told = next((line["held"] for line in lines if "held" in line), None)
        return _listed(told, connected.host.name) if told and told.value is not None else None


def _listed(told: Told, host: str) -> dict[str, Any]:
    """Return a model's listing as other nodes are told it, of the parts that it has to have."""
    files = []
    for file in told["files"].listed():
        name, size, digest = file["name"].text(1000), file["size"].whole(), file["digest"].text(64)
        if not name or size is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
            raise not_understood("the listing of a model", host)
        files.append({"name": name, "size": size, "digest": digest})
    return {"commit": told["commit"].text(100), "files": files}


ORDER_FILE = "share.json"
_SHARE = (
    "sh",
    "-c",
    f'{FIND_PYTHON}; exec "$python" -m raycluster.serve.share "$RAYCLUSTER_ROOT/{ORDER_FILE}"',
)


def _hand_on(
    asking: Asking, wanted: ModelRef, hosts: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    """Let hosts take a model from one of them that has it, or that fetches it.

    Returns what it came to on the hosts where it did. Where it failed a note says so, and the host
    is left to fetch for itself.
    """
    work = asking.work
    fleet, auto = work.fleet, work.spec.distribution.models == "auto"
    if len(hosts) < 2 or (auto and not all_private(fleet[h].address for h in hosts)):
        return {}
    held = _held(asking, wanted, hosts)
    if held.keys() >= {*hosts}:
        return {}
    done = _fetched(asking, wanted, hosts, [h for h in hosts if h in held])
    held = _held(asking, wanted, done)
    if not held:
        return done
    listed = next(iter(held.values()))
    holders = [h for h in held if held[h] == listed]
    takers = [h for h in hosts if h not in holders]

    def told(host: str, line: Told) -> None:
        if host in takers:
            _tell_taken(work, host, wanted.source, line)

    problems = exchange(
        [asking.party(fleet[h]) for h in holders],
        [asking.party(fleet[h]) for h in takers],
        work.spec.ports.transfer,
        asking.order(wanted, listed),
        told,
    )
    for host in (h for h in takers if h in problems):
        what = f"{wanted.source} could not be copied from {', '.join(holders)}: {problems[host]}"
        work.listen(Event(host, f"{what}; downloading from the hub", "note"))
    size = sum(file["size"] for file in listed["files"])
    taken = {"version": listed["commit"], "bytes": size, "fetched": True, "note": ""}
    return {**done, **{h: taken for h in takers if h not in problems}}


def _held(asking: Asking, wanted: ModelRef, hosts: Iterable[str]) -> dict[str, Any]:
    """Return what the files of a model are on the hosts that hold all of them."""
    found = _known(asking.work.fleet.each(hosts, lambda c: asking.held(c, wanted)))
    return {host: listed for host, listed in found.items() if listed}


def _fetched(
    asking: Asking, wanted: ModelRef, hosts: Sequence[str], ready: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    """Let the hosts that have a model ask the hub, or one fetch it; return what it came to."""
    first = ready or hosts[:1]
    for some in (first, [h for h in hosts if h not in first]):
        done = _known(asking.work.fleet.each(some, lambda c: asking.fetch(c, [wanted])))
        if done:  # or else others may have a way to the hub
            found = {h: results.get(wanted.source) for h, results in done.items()}
            return {host: result for host, result in found.items() if result is not None}
    return {}


def _known(results: Mapping[str, T | RayclusterError]) -> dict[str, T]:
    """Return what came without an error: what is wrong is told by what is done afterwards."""
    return {h: r for h, r in results.items() if not isinstance(r, RayclusterError)}


def _tell_taken(work: ApplyContext, host: str, source: str, line: Told) -> None:
    done, here, total = line["done"].flag(), line["here"].whole() or 0, line["total"].whole() or 0
    if done:
        text = f"{source}: {_in_mb(total)} MB copied from other hosts and verified"
    else:
        text = f"{source}: {_in_mb(here)} of {_in_mb(total)} MB from other hosts"
    work.listen(Event(host, text, "done" if done else "step"))


def holders(
    spec: ClusterSpec, state: ClusterState, models: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[ModelRef, ...]]:
    """Return what every live node needs: a model for GPUs only where there are any."""
    held = holding(spec, state, models)
    return {
        h: tuple(dict.fromkeys(w for m in those for w in model_refs(m)))
        for h, those in held.items()
    }


def holding(
    spec: ClusterSpec, state: ClusterState, models: Iterable[Mapping[str, Any]]
) -> dict[str, list[Mapping[str, Any]]]:
    """Return, for every live node, the models of which it may get replicas."""
    listed, found = list(models), dict[str, list[Mapping[str, Any]]]()
    for host in spec.hosts:
        node = state.node(host)
        if node is not None and node.cpus:
            found[host.name] = [
                m
                for m in listed
                if (not m["num_gpus"] or node.gpus) and host.name in (m.get("hosts") or [host.name])
            ]
    return found


def _carried_out(work: ApplyContext, host: str, lines: Iterable[Told]) -> Results:
    """Tell the progress and return the results. Raises HostError with what `fetch` found wrong."""
    results: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        if "error" in line:
            raise HostError(line["error"].text(), where=host, hint=line["hint"].text())
        model = line["model"].text(1000)
        if "result" not in line:
            done, total = line["done"].whole() or 0, line["total"].whole() or 0
            text = f"{model}: {_in_mb(done)} of {_in_mb(total)} MB"
            work.listen(Event(host, text, "step"))
            continue
        result = results[model] = _result(line["result"])
        work.listen(Event(host, f"{model}: {_came_to(result)}", "done"))
        if note := result.get("note"):
            work.listen(Event(host, f"{model}: {note}", "note"))
    return results


def _result(told: Told) -> Mapping[str, Any]:
    """Return what one source came to, of the parts that `serve.fetch` tells."""
    if "files" in told:
        return {"files": {name: mark.text(200) for name, mark in told["files"].named()}}
    return {
        "version": told["version"].text(100),
        "bytes": told["bytes"].whole() or 0,
        "fetched": told["fetched"].flag(),
        "note": told["note"].text(2000),
    }


def _came_to(result: Mapping[str, Any]) -> str:
    if "files" in result:
        return f"already present, {len(result['files'])} files"
    how = "downloaded and verified" if result["fetched"] else "already present and verified"
    return f"{_in_mb(result['bytes'])} MB {how}"


def _in_mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def compare(by_host: Mapping[str, Results]) -> None:
    """Raise AppError where two hosts hold a model's files in different versions."""
    for source in dict.fromkeys(source for results in by_host.values() for source in results):
        seen = {h: results[source] for h, results in by_host.items() if source in results}
        versions = {result.get("version") for result in seen.values()}
        if len(versions) > 1:
            told = ", ".join(f"{h} {str(r.get('version'))[:8]}" for h, r in seen.items())
            raise AppError(
                f"the hosts have different commits: {told}",
                where=source,
                hint="set `revision` under engine_args to one of them",
            )
        if found := differences({h: r.get("files") or {} for h, r in seen.items()}):
            raise AppError(found, where=source, hint="copy the same model to all hosts")
