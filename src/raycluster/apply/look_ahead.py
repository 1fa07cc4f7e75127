"""Looks at hosts, and asks the hub, before a change: what it needs, and what is there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from raycluster.apply.context import ApplyContext, wiring
from raycluster.core.accelerators.values import whole
from raycluster.core.errors import AnswerError, RayclusterError
from raycluster.core.interfaces import ROOT, PrepareForecast, Process, Shell
from raycluster.core.untrusted import DF, free_bytes, read_json, text_of
from raycluster.hosts.fleet import Connected, all_or_raise
from raycluster.hosts.http import http_client
from raycluster.observe.facts import facts_of
from raycluster.observe.image_registry import image_sizes
from raycluster.observe.model_hub import read_hub
from raycluster.plan.actions import Action, Start
from raycluster.plan.forecast.whole import Forecast, forecast, starting_models
from raycluster.plan.preconditions import check_host_gpus
from raycluster.serve.model_refs import ModelRef, is_path, model_refs
from raycluster.serve.settings import ENGINE_PATH
from raycluster.services.app import app
from raycluster.services.processes import desired
from raycluster.services.ray_node import RAY_ROLES
from raycluster.spec import ClusterSpec
from raycluster.spec.known_images import RAY_BYTES, lacks_ray
from raycluster.spec.models import DEFAULT_IMAGE
from raycluster.state.cluster import ClusterState
from raycluster.state.inventory import (
    Disk,
    Files,
    HostSeen,
    Inventory,
    ModelLocation,
    RuntimeSource,
)

HUB = "https://huggingface.co"
ASK_S = 5.0
RAY_PART = "Ray"
"""Stands among the images' sizes for what is added to one."""
INDEX = "model.safetensors.index.json"

_LOOK = (
    DF
    + """
case "$1" in
  "{root}"*) p="$RAYCLUSTER_ROOT${1#??????}" ;;
  "~"*) p="$HOME${1#?}" ;;
  *) p="$1" ;;
esac
dir="$p"
[ -z "$2" ] || dir="$p/snapshots/$(cat "$p/refs/$2" 2>/dev/null || echo "$2")"
up="$p"; while [ ! -e "$up" ]; do up=$(dirname "$up"); done
df -Pk "$up" 2>&1 | sed 's/^/free /'
echo "device $(stat -c %d "$up")"
[ -d "$up" ] && [ ! -x "$up" ] && echo hidden
if [ -d "$dir" ]; then
  for each in "$dir"/*; do [ -f "$each" ] && stat -Lc "file %s %n" "$each"; done
  grep -o '"total_size": *[0-9]*' "$dir/INDEX" 2>/dev/null | sed 's/.*: */indexed /'
  echo config; cat "$dir/config.json" 2>/dev/null
fi
true
""".replace("INDEX", INDEX)
)


def look_ahead(
    work: ApplyContext, state: ClusterState, actions: Sequence[Action], *, models: bool = True
) -> Forecast:
    """Return what the actions need and cost; without `models`, of the nodes alone.

    Raises HostError where a host cannot be read.
    """
    spec = work.spec
    starting = starting_models(spec, state, actions) if models else ()
    read = {name: found for name, found in reads(spec).items() if name in starting}
    every = tuple(dict.fromkeys(w for found in read.values() for w in found))
    names = [name for name, host in state.hosts.items() if not host.problem]
    models_by_name = {model.name: model for model in spec.models}

    def look(connected: Connected) -> HostSeen:
        starts = [
            a.process for a in actions if isinstance(a, Start) and a.host == connected.host.name
        ]
        name = connected.host.name
        there = [
            w
            for model, found in read.items()
            if models_by_name[model].may_run_on(name)
            for w in found
        ]
        return _host(work, state, connected, starts, tuple(dict.fromkeys(there)))

    hosts = all_or_raise(work.fleet.each(names, look))
    if spec.distribution.images == "peer":
        hosts = {name: _from_others(host, hosts) for name, host in hosts.items()}
    bases = [base for host in hosts.values() for base in host.bases]
    lacking = {b.image for b in bases if b.image not in ("", RAY_PART) and not b.there}
    archived = _archived(spec)
    seen = Inventory(
        hosts=hosts,
        hub=_from_hub(work, every),
        seconds=_seconds(work, state, actions),
        images={
            RAY_PART: RAY_BYTES,
            **image_sizes(sorted(lacking - archived.keys()), work.secrets.registry),
            **archived,
        },
    )
    return forecast(spec, state, actions, seen, read)


def reads(spec: ClusterSpec) -> dict[str, tuple[ModelRef, ...]]:
    """Return what each model of the spec reads, the model itself first."""
    applications = app(spec, gpus={}, fingerprint="")["applications"]
    models = [a["args"]["model"] for a in applications if "model" in a["args"]]
    return {model["name"]: model_refs(model) for model in models}


def _host(
    work: ApplyContext,
    state: ClusterState,
    connected: Connected,
    starts: Sequence[Process],
    models: Sequence[ModelRef],
) -> HostSeen:
    host = connected.host
    process = next(p for p in desired(work.spec, host, wiring(work, state)) if p.role in RAY_ROLES)
    env = {**process.env, **work.spec.env}
    folders = {w: _folder(w, env) for w in models}
    facts = facts_of(connected)
    if any(p.role in RAY_ROLES for p in starts):
        check_host_gpus(host, facts)
    outlook = connected.runtime.outlook(process, list(folders.values()))
    if host.runtime.archive and outlook.withheld:
        outlook = replace(outlook, withheld=False, image=process.image)
    starts_anew = any(p.role in RAY_ROLES for p in starts)
    # Who runs the daemon may read what the user may not; so a node that runs on is asked. One that
    # starts anew may see other folders then.
    stays = state.runs(host) and not starts_anew
    inside = connected.runtime.inside(host.role) if stays else None
    placed = {
        each: replace(
            _placed(inside or connected.transport, folder if inside else place, each), folder=place
        )
        for each, folder in folders.items()
        for place in (outlook.places[folder],)
    }
    added = _added(connected, outlook) if starts_anew else ()
    others = [connected.runtime.outlook(p, ()) for p in starts if p.role not in RAY_ROLES]
    looks = (*([outlook] if outlook.there or starts_anew else []), *others)
    return HostSeen(facts, placed, (*(_base(connected, seen) for seen in looks), *added))


def _folder(model: ModelRef, env: Mapping[str, str]) -> str:
    """Return where a process with this environment finds the model; it may begin with ROOT."""
    if is_path(model.source):
        return model.source
    home = env.get("HF_HOME") or f"{ROOT}/cache/huggingface"
    cache = model.cache_dir or env.get("HF_HUB_CACHE") or f"{home}/hub"
    return f"{cache}/models--{model.source.replace('/', '--')}"


def _placed(shell: Shell, folder: str, model: ModelRef) -> ModelLocation:
    """Return what lies in a folder of the shell; nothing is known of one in an image."""
    if not folder:
        return ModelLocation(hidden=True)
    revision = "" if is_path(model.source) else model.revision
    done = shell.run(("sh", "-c", _LOOK, "look", folder, revision))
    facts, _, config = text_of(done, f"check {folder}", "").partition("config\n")
    lines = [line.partition(" ") for line in facts.splitlines()]
    values = {key: value for key, _, value in lines if key not in ("file", "free")}
    free = [value for key, _, value in lines if key == "free"]
    files = [value.partition(" ") for key, _, value in lines if key == "file"]
    left = next((size for line in free if (size := free_bytes(line)) is not None), None)
    disk = None if left is None else Disk(left, values.get("device", "")[:100])
    told = {name.rpartition("/")[2]: whole(size, 18) for size, _, name in files}
    sizes = {name: size for name, size in told.items() if size is not None}
    seen = Files(sizes, _config(config), whole(values.get("indexed"), 18) or 0)
    return ModelLocation(seen, disk, folder, "hidden" in values)


def _config(text: str) -> Mapping[str, Any] | None:
    try:
        found = read_json(text, "a model's config.json").value
    except AnswerError:
        return None
    return found if isinstance(found, dict) else None


def _base(connected: Connected, seen: PrepareForecast) -> RuntimeSource:
    """Return what a process runs from, and the disk where it goes if it is not there."""
    disk = None
    if not seen.there and seen.folder:
        disk = disk_of(connected.transport, seen.folder)
    return RuntimeSource(**vars(seen), disk=disk)


def _from_others(host: HostSeen, every: Mapping[str, HostSeen]) -> HostSeen:
    """Return a host that takes from the others what they have."""
    there = {base.what for other in every.values() for base in other.bases if base.there}
    bases = (replace(b, withheld=b.withheld and b.what not in there) for b in host.bases)
    return replace(host, bases=tuple(bases))


def disk_of(shell: Shell, folder: str) -> Disk | None:
    """Return the disk of a folder, or of where it would be made."""
    return _placed(shell, folder, ModelRef("/")).disk


def _added(connected: Connected, seen: PrepareForecast) -> tuple[RuntimeSource, ...]:
    """Return what is added to an image that is still to come and is known to lack Ray."""
    if seen.there or not lacks_ray(seen.image):
        return ()
    disk = _base(connected, seen).disk
    return (RuntimeSource(f"Ray for {seen.image}", False, seen.folder, RAY_PART, disk=disk),)


def _archived(spec: ClusterSpec) -> dict[str, int]:
    """Return the bytes of the images that come from a file of this machine, by name."""
    found: dict[str, int] = {}
    for runtime in (host.runtime for host in spec.hosts):
        with suppress(OSError, RuntimeError):  # what is missing is told when it is sent
            if runtime.archive:
                size = Path(runtime.archive).expanduser().stat().st_size
                found[runtime.image or DEFAULT_IMAGE] = size
    return found


def _from_hub(work: ApplyContext, models: Sequence[ModelRef]) -> dict[ModelRef, Files]:
    """Return what the hub tells; nothing where it does not answer, or must not be asked."""
    runtime = work.head.runtime.env or {}
    env = {**os.environ, **runtime, **work.spec.env}
    asked = [m for m in models if not is_path(m.source)]
    if not asked or env.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return {}
    token = work.secrets.replicas.get("HF_TOKEN")
    return read_hub(env.get("HF_ENDPOINT") or HUB, token, asked)


def _seconds(
    work: ApplyContext, state: ClusterState, actions: Sequence[Action]
) -> dict[str, float]:
    """Return how long the last start of each engine took that the actions start again."""
    restarts = [a for a in actions if isinstance(a, Start) and a.process.role in RAY_ROLES]
    serving = [a.name for a in state.apps or () if a.serving]
    if not restarts or not serving:
        return {}
    transport = work.fleet[work.head.name].transport
    found: dict[str, float] = {}
    with http_client(transport, work.spec.ports.api, timeout=ASK_S) as client:
        for name in serving:
            try:
                answer = client.get(f"/m/{name}{ENGINE_PATH}").raise_for_status()
                seconds = read_json(answer.content, "a replica")["seconds"]["total"].number()
            except (httpx.HTTPError, RayclusterError):
                continue
            if seconds is not None:  # the router, or a replica that tells nothing
                found[name] = seconds
    return found
