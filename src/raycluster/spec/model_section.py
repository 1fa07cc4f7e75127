"""[[models]]: what is served, with which engine and how often."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from raycluster.core.tested_versions import VLLM
from raycluster.spec.types import (
    AtLeastOne,
    Count,
    Delay,
    EngineArgs,
    Function,
    Gpu,
    ModelName,
    Operand,
    Part,
    PythonVersion,
    Share,
    Text,
    VllmVersion,
    shown,
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
    hosts: Annotated[tuple[Operand, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Names of the hosts that may run its replicas; default: all.",
        examples=[["head"]],
    )
    gpu: Gpu | None = Field(
        default=None,
        description="GPUs that its hosts must have: part of the name, a least memory, or both.",
        examples=["A100 >= 40 GB"],
    )
    max_ongoing_requests: AtLeastOne = Field(
        default=256, description="Maximum concurrent requests per replica."
    )
    max_queued_requests: AtLeastOne | None = Field(
        default=None,
        description="Maximum queued requests; default: four times max_ongoing_requests.",
        examples=[1024],
    )
    routing: Literal["least-busy", "sticky", "prefix"] | None = Field(
        default=None,
        description="How requests are routed to several replicas: `prefix` by the start of the "
        "prompt, `sticky` by the header x-session-id, or `least-busy`. Default: `prefix` where "
        "vLLM caches prefixes, otherwise `least-busy`.",
        examples=["least-busy"],
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
    def _gpu_is_used(self) -> Model:
        if self.gpu and self.num_gpus == 0:
            raise ValueError("num_gpus is 0, but `gpu` asks for GPUs: remove one of them")
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

    def may_run_on(self, host: str) -> bool:
        """Tell whether a replica may be placed on the host of this name."""
        return self.hosts is None or host in self.hosts

    @property
    def routed(self) -> Literal["least-busy", "sticky", "prefix"]:
        """How requests are routed, by default as the engine's cache profits."""
        arguments = self.engine_args
        caches = arguments.get("enable_prefix_caching", True) is not False
        pools = arguments.get("runner") == "pooling"
        profits = self.engine != "transformers" and caches and not pools
        return self.routing or ("prefix" if profits else "least-busy")

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
