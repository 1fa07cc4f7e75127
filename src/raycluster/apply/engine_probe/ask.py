"""Looks at the environments of nodes with GPUs before replicas start there."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import replace

from raycluster.apply.context import ApplyContext
from raycluster.apply.engine_probe import on_node
from raycluster.apply.engine_probe.judge import ProbeRequest, asked, judge, summary
from raycluster.apply.engine_probe.told import LONGEST, ProbeResult, read
from raycluster.core.accelerators.values import Choice
from raycluster.core.errors import ConnectionLostError, HostError, UnreachableError
from raycluster.core.events import Event
from raycluster.core.interfaces import FIND_PYTHON
from raycluster.hosts.fleet import Connected, all_or_raise
from raycluster.plan.actions import HIDING
from raycluster.serve.settings import ROUTER
from raycluster.state.cluster import ClusterState

ALL_S = 150.0
"""Seconds for the whole look; the program has limits of its own that are below it."""
_RUN = f'{FIND_PYTHON}; "$python" -c "$1" 2>&1 | head -c "$2"'


def check_environments(work: ApplyContext, state: ClusterState, hosts: Collection[str]) -> None:
    """Raise HostError where no engine can start on a host's GPUs; tell what may be in its way.

    A host where replicas run is left alone: its environment has proven itself, and a look would
    take some of its GPUs' memory. Where they start or end, that memory is theirs.
    """
    replicas = [r for app in state.apps or () if app.name != ROUTER for r in app.replicas]
    running = {r.node_id for r in replicas if r.state == "RUNNING"}
    others = {r.node_id for r in replicas}
    questions: dict[str, ProbeRequest] = {}
    for host in work.spec.hosts:
        node = state.node(host)
        if host.name not in hosts or host.gpus == 0 or node is None or node.node_id in running:
            continue
        models = [model for model in work.spec.models if model.may_run_on(host.name)]
        question = asked(models, int(node.gpus), slices=_slices(host.gpus))
        if question:
            questions[host.name] = replace(question, ours=node.node_id in others)

    def check(connected: Connected) -> None:
        name = connected.host.name
        work.listen(Event(name, "checking its GPUs from the environment"))
        seen = look(connected, work.spec.env)
        verdict = judge(seen, questions[name])
        for note in verdict.notes:
            work.listen(Event(name, "; ".join(filter(None, (note.what, note.hint))), "note"))
        if verdict.errors:
            first = verdict.errors[0]
            raise HostError(first.what, where=name, hint=first.hint)
        work.listen(Event(name, summary(seen), "done"))

    all_or_raise(work.fleet.each(questions, check))


def look(connected: Connected, env: Mapping[str, str]) -> ProbeResult:
    """Return what an engine with this environment finds on a host. Raises HostError."""
    host = connected.host
    order = {"env": {name: value for name, value in env.items() if name not in HIDING}}
    argv = ("sh", "-c", _RUN, "sh", inspect.getsource(on_node), str(LONGEST))
    shell = connected.runtime.inside(host.role)
    try:
        done = shell.run(argv, input=json.dumps(order).encode(), timeout=ALL_S)
    except (ConnectionLostError, UnreachableError):
        raise
    except HostError as error:
        raise HostError(
            f"checking its environment failed: {error.what}",
            where=host.name,
            hint="a GPU, its driver or a disk may be hung: see `dmesg` on the host",
        ) from error
    return read(done.stdout or done.stderr[-LONGEST:], host.name)


def _slices(choice: Choice) -> bool:
    return isinstance(choice, tuple) and any(str(each).startswith("MIG-") for each in choice)
