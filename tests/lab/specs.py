"""A `cluster.toml` for hosts of the lab."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tests.lab.hosts import Host, Lab
from tests.lab.image import IMAGE

MODEL, TINY = "smollm2-135m", "tiny"
# Gigabytes, for vLLM takes a share of the whole machine by itself; and its threads are not bound,
# for hosts that share this machine's cores would all bind to the same ones.
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
NODE_TIMEOUT = 360  # Ray gives up a start after 30 s, and begins anew
ENGINE_ARGS = {"max_model_len": 1024, "enforce_eager": True}


def cluster_toml(
    lab: Lab,
    hosts: Sequence[Host],
    *,
    name: str = "lab",
    replicas: int | Mapping[str, int] = 1,
    model: bool = True,
    tiny: bool = False,
    engine: str = "auto",
    served: Mapping[str, object] | None = None,
    own: Mapping[str, Mapping[str, object]] | None = None,
    extra: str = "",
) -> str:
    """Return a spec whose head is the first host; `extra` is TOML to add at the end.

    `served` are more keys of the model, `own` those of hosts by their names.
    """
    head, *workers = hosts
    own = own or {}
    tables: list[tuple[str, Mapping[str, object]]] = [
        ("[cluster]", {"name": name, "node_timeout": NODE_TIMEOUT}),
        (
            "[ssh]",  # with the user of native hosts: the last of them may leave
            {"user": "ubuntu", "identity_file": str(lab.key), "known_hosts": str(lab.known_hosts)},
        ),
        (
            "[runtime]",
            {"image": IMAGE, "pull": "never", "volumes": lab.volumes, "shm_size": "1g"},
        ),
        ("[env]", ENV),
        ("[head]", {**_host(lab, head), **own.get(head.name, {})}),
    ]
    for host in workers:
        keys = {"name": host.name, **_host(lab, host), **own.get(host.name, {})}
        tables.append(("[[workers]]", keys))
    if model:
        name, source = (TINY, lab.tiny) if tiny else (MODEL, lab.model)
        table: dict[str, object] = {"name": name, "source": str(source), "replicas": replicas}
        table |= {"engine": engine, **(served or {})}
        known = {"max_model_len"} if engine == "transformers" else {*ENGINE_ARGS}
        arguments = {name: value for name, value in ENGINE_ARGS.items() if name in known}
        tables.append(("[[models]]", table | {"engine_args": arguments}))
    return "schema = 1\n" + "".join(map(_table, tables)) + extra


def _host(lab: Lab, host: Host) -> dict[str, object]:
    facts: dict[str, object] = {"host": host.address, "port": host.ssh_port, "gpus": 0}
    if host.kind == "docker":
        return facts | {"user": "root"}
    return facts | {"user": "ubuntu", "runtime": {"kind": "native", "python": lab.node_python}}


def _table(table: tuple[str, Mapping[str, object]]) -> str:
    title, values = table
    return f"\n{title}\n" + "".join(f"{key} = {_value(value)}\n" for key, value in values.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)  # what JSON writes for the rest is TOML too
