"""What tests of the forecast are given: a spec, hosts that were seen, a model's files."""

from __future__ import annotations

from typing import Any

from raycluster.core.accelerators.values import Accelerators, Device
from raycluster.core.interfaces import Facts
from raycluster.serve.model_refs import ModelRef
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import ClusterState, HostState
from raycluster.state.inventory import Disk, Files, HostSeen, ModelLocation, RuntimeSource

GIB = 1 << 30
LLAMA = ModelRef("meta/llama")
CARD = Device("0", "GPU-aaaa", "NVIDIA A100-SXM4-80GB", 81920 << 20)
SMALL_CARD = Device("1", "GPU-bbbb", "NVIDIA L4", 23034 << 20)


def spec_of(*workers: dict[str, Any], **parts: Any) -> ClusterSpec:
    hosts = [{"name": f"gpu-{i}", "host": f"h{i}", **w} for i, w in enumerate(workers, start=1)]
    return ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "head": {"host": "h0"},
            "workers": hosts,
            "models": [{"name": "llama", "source": "meta/llama"}],
            **parts,
        }
    )


def state_of(spec: ClusterSpec, **parts: Any) -> ClusterState:
    """Nothing runs on any host."""
    hosts = {host.name: HostState(host.name, f"10.0.0.{i}") for i, host in enumerate(spec.hosts)}
    return ClusterState(hosts, **parts)


def host_seen(
    *gpus: Device,
    memory: int = 64 * GIB,
    free: int = 10**12,
    sizes: dict[str, int] | None = None,
    config: dict[str, Any] | None = None,
    hidden: bool = False,
    bases: tuple[RuntimeSource, ...] = (),
) -> HostSeen:
    files = Files(sizes or {}, config)
    placed = ModelLocation(files, Disk(free, "8:1"), "/hub/models--meta--llama", hidden)
    return HostSeen(Facts(Accelerators(gpus), 8, memory), {LLAMA: placed}, bases)
