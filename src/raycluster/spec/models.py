"""The whole of a spec: its tables together, and every host with its defaults filled in."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from getpass import getuser
from hashlib import sha256
from typing import Annotated, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from raycluster.core.accelerators.choice import named
from raycluster.spec.explain import suggest
from raycluster.spec.gpus import lacking_gpus
from raycluster.spec.known_images import DEFAULT_IMAGE, cuda_in, python_in
from raycluster.spec.model_section import EngineEnvironment, Model, Replicas
from raycluster.spec.runtime_section import CPU_REQUIREMENTS, GPU_REQUIREMENTS, RAY_VERSION, Runtime
from raycluster.spec.sections import Cluster, Host, Ports, Ssh, Worker
from raycluster.spec.services import Distribution, Firewall, Gateway, Monitoring, Registry, Tls
from raycluster.spec.types import (
    EnvName,
    GpuCount,
    Line,
    Part,
    Price,
    SecretSource,
)

__all__ = [
    "CPU_REQUIREMENTS",
    "DEFAULT_IMAGE",
    "GPU_REQUIREMENTS",
    "RAY_VERSION",
    "Cluster",
    "ClusterSpec",
    "EngineEnvironment",
    "Gateway",
    "Host",
    "Model",
    "Monitoring",
    "Ports",
    "Replicas",
    "ResolvedHost",
    "Runtime",
    "Ssh",
    "Tls",
    "Worker",
]

SCHEMA_VERSION: Literal[1] = 1
_P = TypeVar("_P", bound=BaseModel)


def _version(value: object) -> object:
    if isinstance(value, bool):  # which equals 1
        raise ValueError(f"{SCHEMA_VERSION} is expected, not true or false")
    return int(value) if isinstance(value, str) and value == str(SCHEMA_VERSION) else value


class ClusterSpec(BaseSettings):
    """A whole `cluster.toml`, checked and frozen."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="RAYCLUSTER__",
        env_nested_delimiter="__",
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    schema_version: Annotated[Literal[1], BeforeValidator(_version)] = Field(
        default=SCHEMA_VERSION, alias="schema", description="The version of this file's schema."
    )
    cluster: Cluster = Field(description="The cluster as a whole.")
    ssh: Ssh = Field(
        default=Ssh(), description="How to reach the hosts; each host can override these."
    )
    runtime: Runtime = Field(
        default=Runtime(),
        description="How processes run on the hosts; each host can override these.",
    )
    head: Host = Field(
        description="The host that runs the Ray head; it also runs replicas, like the others."
    )
    workers: tuple[Worker, ...] = Field(default=(), description="The other machines, if any.")
    models: tuple[Model, ...] = Field(default=(), description="Without any, only Ray is started.")
    gateway: Gateway | None = Field(
        default=None, description="The clients' entry point: nginx, which checks API keys."
    )
    firewall: Firewall = Field(
        default=Firewall(), description="Who can reach the cluster's ports on its hosts."
    )
    registry: Registry | None = Field(default=None, description="Login for the image registry.")
    distribution: Distribution = Field(
        default=Distribution(),
        description="How large files are distributed to the hosts.",
    )
    monitoring: Monitoring | None = Field(default=None, description="Metrics and dashboards.")
    ports: Ports = Field(
        default=Ports(),
        description="Every port that the cluster listens on, the same on all hosts.",
    )
    env: dict[EnvName, Line] = Field(
        default_factory=dict,
        description="Environment of the replicas (not for secrets).",
        examples=[{"HF_HOME": "/models/hub"}],
    )
    secrets: dict[EnvName, SecretSource] = Field(
        default_factory=dict,
        description="Secrets in the replicas' environment: `env:NAME`, `file:PATH` or "
        "`cmd:COMMAND`.",
        examples=[{"HF_TOKEN": "env:HF_TOKEN"}],
    )

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # the rest comes by keyword
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        **_: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the caller alone: `read_spec` adds the environment."""
        return (init_settings,)

    @field_validator("models")
    @classmethod
    def _models_differ(cls, models: tuple[Model, ...]) -> tuple[Model, ...]:
        if twice := _repeated(name for m in models for name in m.names):
            raise ValueError(f"two models, aliases or adapters have the name {twice!r}")
        return models

    @model_validator(mode="after")
    def _hosts_differ(self) -> ClusterSpec:
        if twice := _repeated(h.name for h in self.hosts):
            raise ValueError(f"two hosts have the name {twice!r}")
        if twice := _repeated(h.private_address for h in self.hosts if h.private_address):
            raise ValueError(f"two hosts have the private_address {twice}")
        places: dict[object, str] = {}
        for host in self.hosts:
            if host.place in places:
                raise ValueError(f"{places[host.place]} and {host.name} are the same machine")
            places[host.place] = host.name
        return self

    @model_validator(mode="after")
    def _models_name_hosts(self) -> ClusterSpec:
        known = [host.name for host in self.hosts]
        for model in self.models:
            if twice := _repeated(model.hosts or ()):
                raise ValueError(f"`hosts` of {model.name} names {twice!r} twice")
            for name in model.hosts or ():
                if name not in known:
                    raise ValueError(
                        f"`hosts` of {model.name}: no host has the name {name!r}"
                        f"{suggest(name, known)}"
                    )
        return self

    @model_validator(mode="after")
    def _keys_name_models(self) -> ClusterSpec:
        known = {model.name for model in self.models}
        further = {name: m.name for m in self.models for name in m.names if name != m.name}
        for owner, key in self.gateway.keys.items() if self.gateway else ():
            for name in key.models or ():
                where = f"gateway.keys.{owner}.models: {name!r}"
                if name in further:
                    raise ValueError(
                        f"{where} is a further name: name the model itself, {further[name]!r}, "
                        "with which come its adapters and aliases"
                    )
                if name not in known:
                    raise ValueError(f"{where} is not a model in the spec")
            kept = [*(["models"] if key.models else []), *self.kept_by_engines(owner)]
            if kept and self.env.get("VLLM_USE_RUST_FRONTEND", "0") != "0":
                raise ValueError(
                    f"gateway.keys.{owner}.{kept[0]}: vLLM's Rust front end, which `env` asks for, "
                    "tells no keys apart"
                )
        return self

    def kept_by_engines(self, owner: str) -> dict[str, object]:
        """Return the limits of an owner's key that engines keep, and the gateway tells them."""
        gate = self.gateway
        several = gate is not None and gate.on == "all" and bool(self.workers)
        return gate.told(owner, several=several) if gate and owner in gate.keys else {}

    @model_validator(mode="after")
    def _gpus_suffice(self) -> ClusterSpec:
        counts = {h.name: n for h in self.hosts if (n := named(h.gpus)) is not None}
        if len(counts) == len(self.hosts) and (lack := lacking_gpus(self.models, counts)):
            raise ValueError(lack)
        return self

    @cached_property
    def hosts(self) -> tuple[ResolvedHost, ...]:
        """Head first, then the workers, each with all defaults filled in."""
        workers = (
            self._resolve(w.name or f"worker-{i}", "worker", w)
            for i, w in enumerate(self.workers, start=1)
        )
        return _same_python((self._resolve("head", "head", self.head), *workers))

    @property
    def head_host(self) -> ResolvedHost:
        """The host of Ray's head, with what it inherits."""
        return self.hosts[0]

    @property
    def owner(self) -> str:
        """Whose cluster it is; without a word in the spec, whoever runs this, and where."""
        return self.cluster.owner or local_owner()

    def _resolve(self, name: str, role: Literal["head", "worker"], host: Host) -> ResolvedHost:
        return ResolvedHost(
            name=name,
            role=role,
            host=host.host or "",
            transport=host.transport,
            host_key=host.host_key,
            private_address=host.private_address,
            owner=self.owner,
            gpus=host.gpus,
            num_cpus=host.num_cpus,
            price_per_hour=_first(host.price_per_hour, self.cluster.price_per_hour),
            ssh=_over(self.ssh, Ssh(**{k: getattr(host, k) for k in Ssh.model_fields})),
            runtime=_over(self.runtime, host.runtime),
        )


def _same_python(hosts: tuple[ResolvedHost, ...]) -> tuple[ResolvedHost, ...]:
    """Return the hosts of which native ones get the Python of the others' images, if it is known.

    Ray refuses nodes whose Python differs.
    """
    images = {h.image for h in hosts if h.image}
    pythons = {python_in(image) for image in images}
    if len(pythons) != 1 or not (python := pythons.pop()):
        return hosts
    return tuple(
        h
        if h.kind == "docker" or h.runtime.python_version
        else h.model_copy(
            update={"runtime": h.runtime.model_copy(update={"python_version": python})}
        )
        for h in hosts
    )


def login_name() -> str:
    """Return the name of the user who runs this, "" where it is not known."""
    with suppress(OSError, KeyError, ImportError):
        return getuser()
    return ""


def local_owner() -> str:
    """Return who runs this and on which machine, `user@machine`, as far as it is known."""
    machine = os.uname().nodename.partition(".")[0]
    return "@".join(filter(None, (login_name(), machine)))


def _repeated(names: Iterable[str]) -> str | None:
    counted = Counter(names)
    return next((name for name, count in counted.items() if count > 1), None)


def _first(*prices: float | None) -> float | None:
    return next((price for price in prices if price is not None), None)


def _over(base: _P, override: _P) -> _P:
    given = {k: v for k in type(base).model_fields if (v := getattr(override, k)) is not None}
    if isinstance(base, Runtime) and base.env and "env" in given:
        given["env"] = {**base.env, **given["env"]}
    return base.model_copy(update=given)


class ResolvedHost(Part):
    """A host with the defaults of `[ssh]` and `[runtime]` filled in."""

    name: str
    role: Literal["head", "worker"]
    host: str
    transport: Literal["ssh", "local"]
    host_key: str | None
    private_address: str | None
    owner: str = ""
    gpus: GpuCount
    num_cpus: int | None
    price_per_hour: Price | None = None
    ssh: Ssh
    runtime: Runtime

    @property
    def place(self) -> tuple[object, ...]:
        """Tells two hosts of a spec apart: behind one address, ports may be different machines."""
        if self.transport == "local":
            return ("local",)
        return (self.host.lower().removesuffix("."), self.ssh.port, self.ssh.proxy_jump)

    @property
    def label(self) -> str:
        """A word in Ray's form for labels by which its node is chosen, whatever its name is."""
        told = self.private_address or "-".join(str(part) for part in self.place if part)
        word = re.sub("[^A-Za-z0-9.]+", "-", told).strip("-.")
        return word if word == told and len(word) < 64 else sha256(told.encode()).hexdigest()[:12]

    @property
    def address(self) -> str:
        """Names the machine to a person: `host:port`, or `local`."""
        return ":".join(str(part) for part in self.place[:2] if part)

    @property
    def kind(self) -> str:
        """The runtime's name."""
        return self.runtime.kind or "docker"

    @property
    def folder(self) -> str:
        """Where clusters' folders lie on the host, in its home folder if it is relative.

        "" where Docker keeps them in volumes.
        """
        if self.kind != "native":
            return ""
        return (
            f"{self.runtime.folder.rstrip('/')}/.raycluster"
            if self.runtime.folder
            else ".raycluster"
        )

    @property
    def makes_environment(self) -> bool:
        """Whether the environment is one that is made by default, for the host's GPUs."""
        own = self.runtime.python or self.runtime.requirements
        return self.kind == "native" and not own

    @property
    def image(self) -> str:
        """The image that the host's node is made from, "" where it is made from none."""
        return self.runtime.image or DEFAULT_IMAGE if self.kind == "docker" else ""

    @property
    def image_cuda(self) -> str:
        """The CUDA that the host's image is built for, "" where there is none or it is unknown."""
        return cuda_in(self.image) if self.image else ""

    @property
    def runs_own_programs(self) -> bool:
        """Whether services run from what the host has installed, for no image brings it."""
        return self.kind == "native"
