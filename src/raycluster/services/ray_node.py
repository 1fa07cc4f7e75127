"""The head and the workers, as nodes of Ray."""

from __future__ import annotations

from dataclasses import replace

from raycluster.core.accelerators.choice import named
from raycluster.core.cgroups import Limits
from raycluster.core.interfaces import ROOT, BoxOptions, Process, Volume
from raycluster.serve.settings import HOST_LABEL, METRICS_PORT
from raycluster.services.data_path import data_path
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.models import DEFAULT_IMAGE
from raycluster.spec.types import bracketed

TOKEN_FILE = "token"  # noqa: S105  # a name, no token
SECRETS_FILE = "secrets.json"
MEMBERS_FILE = "members.json"
CODE_FOLDER = "code"

CACHES = {
    "HF_HOME": "huggingface",
    "VLLM_CACHE_ROOT": "vllm",
    "XDG_CACHE_HOME": "",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
}
"""Variable -> folder under the cluster's `cache/`: weights, and all that engines compile.

vLLM has its compile cache under its own root; the others are for kernels compiled outside of it,
whose defaults lie in /tmp or the home folder, which a container loses.
"""

STATE_FOLDER = "gcs"
NEW_FILE = "gcs.new"
"""What `up` lays beside a head's state that it starts anew; the head begins without it then."""

LASTING = {
    # The control store's state is on the head's disk, and nodes wait for it to come back.
    "RAY_gcs_storage": "rocksdb",
    "RAY_gcs_storage_path": f"{ROOT}/{STATE_FOLDER}",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
    # A node that is gone without a word counts as dead after half a minute; by default after 65 s.
    # Requests do not wait for that, and a busy node has to have the time to answer.
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
}

ORDERED = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""CUDA counts GPUs as nvidia-smi does, by place, and not the fastest first."""

HEAD, WORKER = "head", "worker"
RAY_ROLES = (HEAD, WORKER)
OBJECT_STORE_BYTES = 1 << 30  # serving moves no large objects between nodes
LEAST_STORE_BYTES = 80 << 20
"""Ray refuses to start with less than 75 MiB."""


def ray_node(
    spec: ClusterSpec, host: ResolvedHost, wiring: Wiring, role: str, arguments: tuple[str, ...]
) -> Process:
    """Return the process that makes `host` a node of Ray; `arguments` are the role's own."""
    ports = node_ports(spec)
    runtime = host.runtime
    own_env = dict(runtime.env or {})
    path = f":{own_env['PYTHONPATH']}" if own_env.get("PYTHONPATH") else ""
    counts: tuple[str, ...] = ()
    if host.num_cpus is not None:
        counts += (f"--num-cpus={host.num_cpus}",)
    if (gpus := named(host.gpus)) is not None:
        counts += (f"--num-gpus={gpus}",)
    return Process(
        role=role,
        argv=(
            *("ray", "start", "--block", "--disable-usage-stats"),
            f"--node-ip-address={wiring.addresses[host.name]}",
            f"--labels={HOST_LABEL}={host.label}",
            *arguments,
            *(f"{flag}={ports[name]}" for flag, name in _PORT_FLAGS.items()),
            f"--min-worker-port={spec.ports.worker_min}",
            f"--max-worker-port={spec.ports.worker_max}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            *counts,
        ),
        env={
            **data_path(spec.ports),
            **ORDERED,
            **{name: f"{ROOT}/cache/{folder}".rstrip("/") for name, folder in CACHES.items()},
            **own_env,
            "PYTHONPATH": f"{ROOT}/{CODE_FOLDER}{path}",
            "RAYCLUSTER_ROOT": ROOT,
            **_own_address(spec, wiring.addresses[host.name]),
            **LASTING,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": f"{ROOT}/{TOKEN_FILE}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAYCLUSTER_TOKEN_ID": wiring.token_id,
        },
        gpus=host.gpus,
        ports=ports,
        volumes=tuple(parse_volume(v) for v in runtime.volumes or ()),
        image=runtime.image or DEFAULT_IMAGE,
        shm_size=runtime.shm_size or "8g",
        box=BoxOptions(
            devices=runtime.devices or (),
            ulimits=runtime.ulimits or {},
            capabilities=runtime.cap_add or (),
            ipc=runtime.ipc or "",
        ),
    )


def _own_address(spec: ClusterSpec, address: str) -> dict[str, str]:
    """Return what HTTP of a node's processes is told of its address."""
    own = {"RAYCLUSTER_ADDRESS": address}
    return {**own, METRICS_PORT: str(spec.ports.metrics)} if ":" in address else own


def within(process: Process, host: ResolvedHost, limits: Limits | None) -> Process:
    """Return a node's process as it is started on a host of which it may take so much.

    Ray counts the processors of the whole machine, and knows limits of a container's own group
    alone.
    """
    if limits is None:
        return process
    store = min(OBJECT_STORE_BYTES, max(LEAST_STORE_BYTES, limits.memory_bytes * 3 // 10))
    more: tuple[str, ...] = ()
    if limits.of_cpus and host.num_cpus is None:
        more += (f"--num-cpus={limits.whole_cpus}",)
    if store < OBJECT_STORE_BYTES:
        more += (f"--object-store-memory={store}",)
    if limits.of_memory:
        more += (f"--memory={max(0, limits.memory_bytes - store)}",)
    return replace(process, limits=limits, more=more)


_PORT_FLAGS = {
    "--node-manager-port": "node_manager",
    "--object-manager-port": "object_manager",
    "--dashboard-agent-grpc-port": "dashboard_agent_grpc",
    "--dashboard-agent-listen-port": "dashboard_agent_http",
    "--runtime-env-agent-port": "runtime_env_agent",
    "--metrics-export-port": "metrics",
}


def node_ports(spec: ClusterSpec) -> dict[str, int]:
    """Return what every node listens on, by its name under `[ports]`."""
    own = (*_PORT_FLAGS.values(), "api", "ingress_metrics", "ingress_stats")
    return {name: spec.ports.single[name] for name in own}


def parse_volume(text: str) -> Volume:
    """Return the volume that `SOURCE:/TARGET[:ro]` names."""
    source, target, *mode = text.split(":")
    return Volume(source, target, read_only=mode == ["ro"])


def worker(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> Process | None:
    """Return the process that joins `host` to the head."""
    if host.role != WORKER:
        return None
    head = bracketed(wiring.addresses[spec.head_host.name])
    return ray_node(spec, host, wiring, WORKER, (f"--address={head}:{spec.ports.gcs}",))


_OWN_PORTS = ("dashboard", "gcs", "ray_client", "ingress_fallback")

_RUN = f"""\
[ ! -e "$0/{NEW_FILE}" ] || rm -rf "$0/{STATE_FOLDER}" "$0/{NEW_FILE}" || exit 1
exec "$@"
"""
"""A head that `up` starts knows nothing; one that comes back by itself knows what it knew."""


def dashboard_host(address: str) -> str:
    """Return 127.0.0.1 as Ray takes it on a node of this address.

    On a host without an IPv4 address Ray makes ::1 of each name of loopback that it knows.
    """
    return "127.1" if ":" in address else "127.0.0.1"


def head(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> Process | None:
    """Return the head's process; the dashboard listens on loopback alone."""
    if host.role != HEAD:
        return None
    ports = spec.ports
    node = ray_node(
        spec,
        host,
        wiring,
        HEAD,
        (
            "--head",
            f"--port={ports.gcs}",
            "--include-dashboard=true",
            f"--dashboard-host={dashboard_host(wiring.addresses[host.name])}",
            f"--dashboard-port={ports.dashboard}",
            f"--ray-client-server-port={ports.ray_client}",
        ),
    )
    own = {name: ports.single[name] for name in _OWN_PORTS}
    argv = ("sh", "-c", _RUN, ROOT, *node.argv)
    return replace(node, argv=argv, ports={**node.ports, **own})
