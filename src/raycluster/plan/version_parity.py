"""Whether nodes fit together; pure."""

from __future__ import annotations

from collections.abc import Mapping

from raycluster.core.errors import ImageError, VersionMismatchError
from raycluster.core.interfaces import Versions
from raycluster.core.tested_versions import NEWEST_VLLM, OLDEST_VLLM, VLLM, release, startable
from raycluster.spec import ClusterSpec, Model

SAFE_VLLM = "0.32"
KNOWN = f"{OLDEST_VLLM} to {NEWEST_VLLM}"


def check_versions(
    spec: ClusterSpec,
    versions: Mapping[str, Versions],
    partly: Mapping[str, Versions] | None = None,
    *,
    gpus: bool = False,
) -> None:
    """Raise where the nodes differ in Ray, Python (major.minor) or the engine, or lack the engine.

    Of nodes that are `partly` known, what is not known is empty, and not compared.

    Hosts with `gpus = 0` hold no replicas beside hosts with GPUs, so their engine may differ.
    `gpus` tells that the cluster has GPUs: `auto` is vLLM alone then.
    """
    for name, seen in versions.items():
        if not seen.ray:
            raise ImageError(
                "ray is missing in the environment",
                where=name,
                hint="install ray[serve], or use another image",
            )
    more = partly or {}
    every = {**versions, **more}
    _same("Ray", {n: v.ray for n, v in every.items()})
    _same("Python", {n: ".".join(v.python.split(".")[:2]) for n, v in every.items()})
    serving = {n: v for n, v in versions.items() if n in _serving(spec)}
    coming = {n: v.vllm for n, v in more.items() if n in _serving(spec)}
    engines = {**{n: v.vllm or "none" for n, v in serving.items()}, **coming}
    _same("vLLM", {n: v.partition("+")[0] if coming else v for n, v in engines.items()})
    own = [model for model in spec.models if model.environment is None]
    if own and not coming and not any(v.vllm or v.transformers for v in serving.values()):
        raise ImageError(
            "vllm and transformers are both missing in the environment",
            where=next(iter(serving), "cluster"),
            hint="use an image or requirements with an engine",
        )
    for model in own:
        hosts = [h for h in spec.hosts if model.may_run_on(h.name)]
        on_gpus = gpus and any(host.gpus != 0 for host in hosts)
        if model.engine_on(model.each_gpus if on_gpus else 0) != "vllm":
            continue
        for host in hosts:
            if host.name in serving or (model.hosts and host.name in versions):
                _has_vllm(host.name, versions[host.name].vllm, model)


def _has_vllm(host: str, version: str, model: Model) -> None:
    """Raise ImageError where the model needs a vLLM that is not there, or cannot be started."""
    what = f"vllm is missing in the environment, but {model.name} needs it" if not version else ""
    if version and not startable(version):
        what = f"vLLM {version} is not supported: {OLDEST_VLLM} or newer is needed"
    if what:
        allow = ", or set `fallback = true`" if model.engine == "auto" else ""
        raise ImageError(
            what,
            where=host,
            hint=f"use an image or requirements with vLLM {VLLM}{allow}",
        )


def doubtful_engines(versions: Mapping[str, Versions]) -> dict[str, str]:
    """Return a sentence for each host whose vLLM has known holes, is new, or cannot be started."""
    found: dict[str, str] = {}
    for name, seen in versions.items():
        if seen.vllm and not startable(seen.vllm):
            found[name] = f"vLLM {seen.vllm} is not supported: {OLDEST_VLLM} or newer is needed"
        elif seen.vllm and release(seen.vllm) < release(SAFE_VLLM):
            found[name] = f"vLLM {seen.vllm} has known vulnerabilities; use {VLLM}"
        elif seen.vllm and release(seen.vllm) > release(NEWEST_VLLM):
            found[name] = f"vLLM {seen.vllm} is newer than the tested versions ({KNOWN})"
    return found


def other_images(
    image: str, layers: Mapping[str, tuple[str, ...]], machines: Mapping[str, str]
) -> dict[str, str]:
    """Return a sentence for each host whose image is not that of the first of its kind of machine.

    `layers` are what the hosts have under the image's name, none where they do not have it.
    """
    found, first = dict[str, str](), dict[str, str]()
    for host in (host for host, held in layers.items() if held and host in machines):
        other = first.setdefault(machines[host], host)
        if layers[other] != layers[host]:
            found[host] = (
                f"{image} is not the image that {other} has under this name: its tag has moved, or "
                "the images were built on each host; name it by digest (IMAGE@sha256:...) or use "
                'distribution.images = "peer" to have one on all hosts'
            )
    return found


def _serving(spec: ClusterSpec) -> set[str]:
    some = {h.name for h in spec.hosts if h.gpus != 0}
    return some or {h.name for h in spec.hosts}


def _same(what: str, versions: Mapping[str, str]) -> None:
    known = {name: version for name, version in versions.items() if version}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{name} has {version}" for name, version in known.items())
        raise VersionMismatchError(
            f"{what} differs between nodes: {listed}",
            where="cluster",
            hint="give every host the same image or the same requirements"
            + (", or set runtime.python_version of native hosts" if what == "Python" else ""),
        )
