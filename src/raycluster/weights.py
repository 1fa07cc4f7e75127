"""Brings the models to the nodes that may hold replicas, before any starts; compares the nodes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from raycluster.connect import Connected, all_or_raise
from raycluster.contracts import Shell
from raycluster.errors import AppError, CommandError, HostError
from raycluster.events import Event
from raycluster.serve.rootcause import last_exception
from raycluster.serve.wanted import Wanted, differences, order, wanted
from raycluster.spec import ClusterSpec
from raycluster.state import ClusterState
from raycluster.work import Work

Results = Mapping[str, Mapping[str, Any]]
"""What each source came to on one node, see `serve.fetch`."""


def bring(
    work: Work,
    state: ClusterState,
    body: Mapping[str, Any],
    *,
    hosts: Collection[str] | None = None,
    verify: bool = False,
) -> None:
    """Fetch, check and compare what the models of `body` read, on `hosts` or all.

    What was checked before and has not changed is not read again, unless `verify`. Raises
    HostError with what is wrong on which host, and AppError where hosts hold different files.
    """
    models = [app["args"]["model"] for app in body["applications"] if "model" in app["args"]]
    by_host = {
        name: needed
        for name, needed in holders(work.spec, state, models).items()
        if needed and (hosts is None or name in hosts)
    }
    if not by_host:
        return
    secrets_path = models[0]["secrets_path"]

    def fetch(connected: Connected) -> Results:
        name = connected.host.name
        ask = order(by_host[name], verify=verify, secrets_path=secrets_path)
        shell = connected.runtime.inside(connected.host.role)
        return _carried_out(work, name, _lines(shell, name, ask, work.spec.env))

    compare(all_or_raise(work.fleet.each(by_host, fetch)))


def holders(
    spec: ClusterSpec, state: ClusterState, models: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[Wanted, ...]]:
    """Return what every live node needs: a model for GPUs only where there are any."""
    found: dict[str, dict[Wanted, None]] = {}
    for host in spec.hosts:
        node = state.node(host)
        if node is None or not node.cpus:
            continue
        held = [m for m in models if not m["num_gpus"] or node.gpus]
        found[host.name] = dict.fromkeys(w for model in held for w in wanted(model))
    return {name: tuple(needed) for name, needed in found.items()}


def _lines(shell: Shell, host: str, ask: str, env: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield what `fetch` says, line by line. Raises HostError with its last words if it breaks."""
    rest = {"stdout": b"", "stderr": b""}
    try:
        for channel, data in shell.stream(("python", "-m", "raycluster.serve.fetch", ask), env=env):
            rest[channel] += data
            *whole, rest["stdout"] = rest["stdout"].split(b"\n")
            yield from (json.loads(line) for line in whole if line.startswith(b"{"))
    except CommandError as error:
        cause = last_exception(rest["stderr"].decode("utf-8", "replace")) or error.what
        raise HostError(f"the models cannot be looked at: {cause}", where=host) from error


def _carried_out(work: Work, host: str, lines: Iterable[dict[str, Any]]) -> Results:
    """Tell the progress and return the results. Raises HostError with what `fetch` found wrong."""
    results: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        if "error" in line:
            raise HostError(line["error"], where=host, hint=line["hint"])
        if "result" in line:
            results[line["model"]] = line["result"]
        work.listen(Event(host, _told(line), "done" if "result" in line else "step"))
        if note := line.get("result", {}).get("note"):
            work.listen(Event(host, f"{line['model']}: {note}", "note"))
    return results


def _told(line: Mapping[str, Any]) -> str:
    result = line.get("result")
    if result is None:
        return f"{line['model']}: {_in_mb(line['done'])} of {_in_mb(line['total'])} MB"
    if "files" in result:
        return f"{line['model']}: is there, {len(result['files'])} files"
    how = "fetched and checked" if result["fetched"] else "is there and checked"
    return f"{line['model']}: {_in_mb(result['bytes'])} MB {how}"


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
                f"the hosts hold different commits: {told}",
                where=source,
                hint="set `revision` under engine_args to one of them",
            )
        if found := differences({h: r.get("files") or {} for h, r in seen.items()}):
            raise AppError(found, where=source, hint="copy the same model to all hosts")
