"""The tables of a spec, with every default in one place."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    model_validator,
)

from raycluster.spec.runtime_section import Runtime
from raycluster.spec.types import (
    AtLeastOne,
    Count,
    Currency,
    GpuCount,
    HostKey,
    HostKeys,
    HostName,
    JumpHosts,
    Label,
    NodeAddress,
    Operand,
    Part,
    Port,
    Price,
    Seconds,
    Text,
    UserName,
)


class Cluster(Part):
    """The cluster as a whole."""

    name: Label = Field(
        description="Used in all names and labels on the hosts.", examples=["my-cluster"]
    )
    owner: Text | None = Field(
        default=None,
        description="Owner of the cluster: a person or team. Clusters with the same name and "
        "another owner are left alone. Default: your user name and machine, `user@machine`.",
        examples=["ml-team"],
    )
    parallel: AtLeastOne = Field(
        default=16, description="How many hosts to work on at the same time."
    )
    node_timeout: Seconds = Field(
        default=180, description="Seconds to wait for a started node to join the cluster."
    )
    app_timeout: Seconds = Field(
        default=1800, description="Seconds to wait for the models to load and respond."
    )
    price_per_hour: Price | None = Field(
        default=None,
        description="Price of a host per hour; each host can override it.",
        examples=[2.5],
    )
    currency: Currency = Field(default="USD", description="Currency of all prices.")


class Ssh(Part):
    """How to reach the hosts; each host can override these."""

    user: UserName | None = Field(
        default=None, description="Default: ssh config, then your user name.", examples=["root"]
    )
    port: Port | None = Field(
        default=None, description="Default: ssh config, then 22.", examples=[22]
    )
    identity_file: Operand | None = Field(
        default=None, description="Default: ssh config and agent.", examples=["~/.ssh/id_ed25519"]
    )
    known_hosts: Operand | None = Field(
        default=None, description="Default: ssh config.", examples=["~/.ssh/known_hosts"]
    )
    host_keys: HostKeys | None = Field(
        default=None,
        description="`strict` (default), or `accept-new` to trust the key of a new host.",
        examples=["strict"],
    )
    proxy_jump: JumpHosts | None = Field(
        default=None,
        description="`[user@]host[:port]`, several separated by commas; default: ssh config.",
        examples=["me@bastion.example.org:22"],
    )
    connect_timeout: Seconds | None = Field(
        default=None, description="Seconds; default 10.", examples=[10]
    )
    ssh: Literal["auto", "system", "library"] | None = Field(
        default=None,
        description="`system` uses this machine's `ssh`; `auto` (default) does so only where "
        "necessary.",
        examples=["auto"],
    )


class Host(Ssh):
    """One machine."""

    host: HostName | None = Field(
        default=None, description="Name, ssh alias or address.", examples=["203.0.113.10"]
    )
    transport: Literal["ssh", "local"] = Field(
        default="ssh", description="`local` is this machine, without SSH."
    )
    host_key: HostKey | None = Field(
        default=None,
        description="Pinned host key: `SHA256:...`.",
        examples=["SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"],
    )
    private_address: NodeAddress | None = Field(
        default=None,
        description="Address at which the other nodes reach this host; default: the address of "
        "`host`.",
        examples=["10.0.0.1"],
    )
    gpus: GpuCount = Field(
        default="all",
        description="`all`, a number (the first N, or 0), or a list of indices or UUIDs (MIG "
        "slices too).",
    )
    num_cpus: Count | None = Field(
        default=None, description="CPUs for Ray; default: what Ray detects.", examples=[8]
    )
    price_per_hour: Price | None = Field(
        default=None,
        description="Price of this host per hour; default: `cluster.price_per_hour`.",
        examples=[2.5],
    )
    runtime: Runtime = Field(default=Runtime(), description="Overrides of `[runtime]`.")

    @model_validator(mode="after")
    def _has_a_place(self) -> Host:
        if self.transport == "ssh" and not self.host:
            raise ValueError('`host` is missing (or set `transport = "local"` for this machine)')
        return self


class Worker(Host):
    """One machine besides the head."""

    name: Label | None = Field(
        default=None, description="Default: worker-1, worker-2, ...", examples=["gpu-1"]
    )


LEAST_REPLICA_PORTS = 6
"""Ray leaves out the last port of the HTTP part, so that this is one replica."""


class Ports(Part):
    """Every port that the cluster listens on, the same on all hosts."""

    api: Port = Field(default=8000, description="Serve's HTTP, on the head's loopback.")
    dashboard: Port = Field(default=8265, description="Ray's dashboard, on the head's loopback.")
    gateway: Port = Field(default=8080, description="The gateway, on the head.")
    prometheus: Port = Field(default=9090, description="Prometheus, on the head's loopback.")
    grafana: Port = Field(default=3000, description="Grafana, on the head's loopback.")
    gcs: Port = Field(default=6379, description="Ray's control store (GCS), on the head.")
    node_manager: Port = Field(default=6380, description="Ray's raylet, on every node.")
    object_manager: Port = Field(default=6381, description="Ray's object manager, on every node.")
    dashboard_agent_grpc: Port = Field(default=6382, description="Ray's agent, on every node.")
    dashboard_agent_http: Port = Field(default=6383, description="Ray's agent, on every node.")
    runtime_env_agent: Port = Field(default=6384, description="Ray's agent, on every node.")
    metrics: Port = Field(default=6385, description="Ray's Prometheus metrics, on every node.")
    transfer: Port = Field(
        default=6386, description="File transfers between hosts, while they run."
    )
    ray_client: Port = Field(default=10001, description="Ray's client server, on the head.")
    ingress_metrics: Port = Field(
        default=9101, description="Metrics of Serve's HAProxy, on the head."
    )
    ingress_stats: Port = Field(default=8404, description="Statistics of HAProxy, on the head.")
    ingress_fallback: Port = Field(
        default=8500,
        description="Fallback for models without replicas, on the head's loopback.",
    )
    worker_min: Port = Field(default=20000, description="First port of Ray's worker processes.")
    worker_max: Port = Field(default=20999, description="Last port of Ray's worker processes.")
    replica_min: Port = Field(default=30000, description="First port of the replicas, for HTTP.")
    replica_max: Port = Field(
        default=30999,
        description="Last port of the replicas, for their engines and gRPC.",
    )

    @model_validator(mode="after")
    def _apart(self) -> Ports:
        for name, (first, last) in self.ranges.items():
            if first > last:
                raise ValueError(f"{name}_min ({first}) is above {name}_max")
        if self.replica_max - self.replica_min + 1 < LEAST_REPLICA_PORTS:
            raise ValueError(
                "a replica takes three ports: replica_min to replica_max must span at least "
                f"{LEAST_REPLICA_PORTS} ports"
            )
        if self.worker_min <= self.replica_max and self.replica_min <= self.worker_max:
            raise ValueError("worker_min to worker_max and replica_min to replica_max overlap")
        seen: dict[int, str] = {}
        for name, port in self.single.items():
            if port in seen:
                raise ValueError(f"{seen[port]} and {name} are both {port}")
            for ranged, (first, last) in self.ranges.items():
                if first <= port <= last:
                    raise ValueError(f"{name} ({port}) lies between {ranged}_min and {ranged}_max")
            seen[port] = name
        return self

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """First and last port of what takes many, by the name before `_min` and `_max`."""
        return {
            "worker": (self.worker_min, self.worker_max),
            "replica": (self.replica_min, self.replica_max),
        }

    @property
    def replica_parts(self) -> tuple[range, range, range]:
        """The ports of replicas' own HTTP, of their engines' servers, and of their gRPC.

        A replica's engine listens as far above the replica as the parts begin above each other.
        """
        third = (self.replica_max - self.replica_min + 1) // 3
        first, second, last = (self.replica_min + n * third for n in range(3))
        return range(first, second), range(second, last), range(last, self.replica_max + 1)

    @property
    def single(self) -> dict[str, int]:
        """All ports but the ranges, by name."""
        ranged = {f"{name}_{end}" for name in self.ranges for end in ("min", "max")}
        return {k: v for k, v in self.model_dump().items() if k not in ranged}
