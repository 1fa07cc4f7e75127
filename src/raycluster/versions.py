"""Whether nodes fit together; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from raycluster.contracts import Versions
from raycluster.errors import ImageError, VersionMismatchError
from raycluster.spec import ClusterSpec

SAFE_VLLM = "0.32"


def check_versions(spec: ClusterSpec, versions: Mapping[str, Versions]) -> None:
    """Raise where the nodes differ in Ray, Python (major.minor) or the engine.

    Hosts with `gpus = 0` hold no replicas beside hosts with GPUs, so their engine may differ.
    """
    for name, seen in versions.items():
        if not seen.ray:
            raise ImageError(
                "no ray in the environment", where=name, hint="install ray[serve], or another image"
            )
    _same("Ray", {n: v.ray for n, v in versions.items()})
    _same("Python", {n: ".".join(v.python.split(".")[:2]) for n, v in versions.items()})
    serving = {n: v for n, v in versions.items() if n in _serving(spec)}
    _same("vLLM", {n: v.vllm or "none" for n, v in serving.items()})
    if spec.models and not any(v.vllm or v.transformers for v in serving.values()):
        raise ImageError(
            "neither vllm nor transformers in the environment",
            where=next(iter(serving), "cluster"),
            hint="use an image or requirements that hold an engine",
        )


def old_engines(versions: Mapping[str, Versions]) -> dict[str, str]:
    """Return a sentence for each host whose vLLM is older than the oldest without known holes."""
    return {
        name: f"vLLM {seen.vllm} has known vulnerabilities; use {SAFE_VLLM} or newer"
        for name, seen in versions.items()
        if seen.vllm and _release(seen.vllm) < _release(SAFE_VLLM)
    }


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:2])


def _serving(spec: ClusterSpec) -> set[str]:
    some = {h.name for h in spec.hosts if h.gpus != 0}
    return some or {h.name for h in spec.hosts}


def _same(what: str, versions: Mapping[str, str]) -> None:
    if len(set(versions.values())) > 1:
        listed = ", ".join(f"{name} has {version}" for name, version in versions.items())
        raise VersionMismatchError(
            f"{what} differs between nodes: {listed}",
            where="cluster",
            hint="give every host the same image or the same requirements",
        )
