"""The tables of what stands beside Ray: the gateway and the monitoring."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raycluster.spec.types import (
    AtLeastOne,
    Bytes,
    Days,
    Folder,
    HostAndPort,
    HttpPath,
    ImageName,
    IpAddress,
    IpNetwork,
    KeyOwner,
    ModelName,
    Moment,
    Operand,
    Part,
    Port,
    RegistryName,
    Seconds,
    SecretSource,
    TokenCount,
    WebOrigin,
)

MOST_CONNECTIONS = 65_535
"""What nginx can count."""
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104  # the gateway is meant to be reached


class Tls(Part):
    """The certificate with which the gateway proves who it is."""

    cert: Operand | None = Field(
        default=None,
        description="Local PEM file with the certificate and its chain.",
        examples=["./gateway.pem"],
    )
    key: SecretSource | None = Field(
        default=None,
        description="Private key of the certificate: `file:PATH` or `cmd:COMMAND`.",
        examples=["file:./gateway.key"],
    )
    self_signed: bool = Field(
        default=False,
        description="Use a self-signed certificate that the cluster generates, instead of files.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Tls:
        if self.self_signed == bool(self.cert) or bool(self.cert) != bool(self.key):
            raise ValueError("give `cert` and `key`, or `self_signed = true`")
        return self


class Key(Part):
    """A key of the gateway, what it is for, and how long."""

    key: SecretSource = Field(
        description="`env:NAME`, `file:PATH` or `cmd:COMMAND`.", examples=["env:ALICE_KEY"]
    )
    models: tuple[ModelName, ...] | None = Field(
        default=None,
        min_length=1,
        description="Models that the key may use, with their adapters and aliases; default: all.",
        examples=[["org/model"]],
    )
    requests_per_minute: AtLeastOne | None = Field(
        default=None,
        description="Maximum requests per minute, over all gateways.",
        examples=[60],
    )
    tokens_per_minute: TokenCount | None = Field(
        default=None,
        description="Maximum prompt and generated tokens per minute, over all models and replicas.",
        examples=[100_000],
    )
    tokens_per_day: TokenCount | None = Field(
        default=None,
        description="The same per day (in UTC).",
        examples=[5_000_000],
    )
    priority: Literal["high", "normal", "low"] = Field(
        default="normal",
        description="Requests of keys with a higher priority go first while others wait; keys of "
        "one priority share evenly.",
    )
    expires: Moment | None = Field(
        default=None,
        description="When the key expires: a date (at its start, in UTC), or a time with an "
        "offset.",
        examples=["2027-01-01"],
    )


class Gateway(Part):
    """The clients' entry point: nginx, which checks API keys."""

    on: Literal["head", "all"] = Field(
        default="head", description="Where it runs: on the head or on all hosts."
    )
    listen: IpAddress | None = Field(
        default=None,
        description="Listen address; default: all interfaces if there are API keys (also IPv6 on "
        "hosts with IPv6 addresses), else loopback only.",
        examples=["0.0.0.0"],  # noqa: S104  # an example
    )
    api_keys: dict[KeyOwner, SecretSource] = Field(
        default_factory=dict,
        description="Owner and source of each key; logs contain owners, never keys.",
        examples=[{"alice": "env:ALICE_KEY", "batch": "file:./batch.key"}],
    )
    keys: dict[KeyOwner, Key] = Field(
        default_factory=dict,
        description="Keys with limits, by owner, in addition to `api_keys`.",
        examples=[{"carol": {"key": "env:CAROL_KEY", "requests_per_minute": 60}}],
    )
    tls: Tls | None = Field(
        default=None,
        description="TLS; without it, API keys are sent unencrypted: use the tunnel then.",
        examples=[{"cert": "./gateway.pem", "key": "file:./gateway.key", "self_signed": False}],
    )
    allowed_origins: tuple[WebOrigin, ...] = Field(
        default=(),
        description="Origins of web pages that may send requests with a key; `*` allows all.",
        examples=[["https://chat.example.com"]],
    )
    paths: tuple[HttpPath, ...] = Field(
        default=("/v1/", "/health"),
        description="Allowed paths: `/v1/` includes everything below it; `/health` needs no key.",
    )
    max_body: Bytes = Field(default="64m", description="Maximum request size.")
    max_connections: AtLeastOne = Field(
        default=1024,
        le=MOST_CONNECTIONS,
        description="Maximum concurrent requests per client address.",
    )
    rate_limit: AtLeastOne | None = Field(
        default=None,
        description="Requests per second per key, or per client address without keys.",
        examples=[20],
    )
    access_log: Days | None = Field(
        default=None,
        description="How long to keep the request log: one file per day in `gateway/access/` of "
        "the cluster's folder. The gateway's output has it too.",
        examples=["30d"],
    )
    timeout: Seconds = Field(
        default=600, ge=1, description="Timeout between two parts of a response, in seconds."
    )
    image: ImageName = Field(default="nginx:1.29-alpine", description="Docker: image with nginx.")

    @model_validator(mode="after")
    def _owners_differ(self) -> Gateway:
        if both := sorted(self.api_keys.keys() & self.keys.keys()):
            raise ValueError(f"{both[0]!r} is in both `api_keys` and `keys`: use one of them")
        return self

    @property
    def sources(self) -> dict[str, str]:
        """The source of each owner's key."""
        return {**self.api_keys, **{owner: key.key for owner, key in self.keys.items()}}

    def told(self, owner: str, *, several: bool) -> dict[str, object]:
        """What engines keep of an owner's limits: of requests where there are `several` gateways.

        One gateway counts requests by itself.
        """
        key = self.keys[owner]
        limits: dict[str, object] = {
            "requests_per_minute": key.requests_per_minute if several else None,
            "tokens_per_minute": key.tokens_per_minute,
            "tokens_per_day": key.tokens_per_day,
            "priority": None if key.priority == "normal" else key.priority,
        }
        return {name: value for name, value in limits.items() if value is not None}

    @property
    def unlimited(self) -> str:
        """The first owner of a key without limits, or ""."""
        free = (owner for owner, key in self.keys.items() if key == Key(key=key.key))
        return min((*self.api_keys, *free), default="")

    @property
    def address(self) -> str:
        """What it listens on."""
        return self.listen or (EVERYWHERE if self.sources else LOOPBACK)

    @property
    def near(self) -> str:
        """Where its own host reaches it."""
        return {EVERYWHERE: LOOPBACK, "::": "::1"}.get(self.address, self.address)

    @property
    def scheme(self) -> str:
        """How URLs of it begin."""
        return "https" if self.tls else "http"


class Firewall(Part):
    """Who reaches the cluster's ports: its own hosts, and nobody else but through the gateway."""

    manage: bool = Field(
        default=False,
        description="Block access to the hosts with nftables (needs root), except for SSH, the "
        "gateway, the cluster's hosts, and ports of other services that listen when the rules "
        "are written.",
    )
    allow_ports: tuple[Port, ...] = Field(
        default=(),
        description="Additional TCP and UDP ports to keep open.",
        examples=[[8888, 51820]],
    )
    allow_from: tuple[IpNetwork, ...] = Field(
        default=(),
        description="Additional networks to allow, such as a second one between the hosts.",
        examples=[["192.168.100.0/24"]],
    )
    check: Literal["public", "always", "never"] = Field(
        default="public",
        description="After `up`, test from this machine which ports are open: on hosts with public "
        "addresses (`public`), on all (`always`) or none (`never`).",
    )


class Registry(Part):
    """Login for the image registry."""

    server: RegistryName = Field(
        default="docker.io",
        description="The registry's host name in image names; `docker.io` if they have none.",
    )
    username: SecretSource = Field(
        description="`env:NAME`, `file:PATH` or `cmd:COMMAND`.", examples=["env:REGISTRY_USERNAME"]
    )
    password: SecretSource = Field(
        description="Source of the password or token; it is sent to the hosts' Docker with each "
        "pull and not stored there.",
        examples=["env:REGISTRY_PASSWORD"],
    )


class Distribution(Part):
    """How what is large comes to many hosts: from outside once, and then from host to host."""

    models: Literal["auto", "peer", "hub"] = Field(
        default="auto",
        description="Hosts copy models from each other (`peer`), download them from the hub "
        "(`hub`), or copy if all their addresses are private (`auto`).",
    )
    images: Literal["registry", "peer"] = Field(
        default="registry",
        description="Every host pulls images from the registry (`registry`), or one does and the "
        "others copy them from it (`peer`).",
    )
    folder: Folder = Field(
        default="/var/tmp",  # noqa: S108  # a folder of each user's own is made in it
        description="Docker hosts: folder for images before they are loaded.",
    )


class Monitoring(Part):
    """Metrics and dashboards."""

    prometheus: bool = Field(
        default=True, description="Prometheus, on the head's loopback: Ray, Serve and vLLM."
    )
    retention: Days = Field(default="15d", description="How long metrics are kept.")
    retention_size: Bytes = Field(default="10g", description="Maximum disk space for metrics.")
    alertmanagers: tuple[HostAndPort, ...] = Field(
        default=(),
        description="Alertmanagers to send alerts to, at addresses that the head can reach.",
        examples=[["10.0.0.9:9093"]],
    )
    time_to_first_token: Seconds = Field(
        default=10, description="Alert if the p95 time to first token exceeds this many seconds."
    )
    gpu_exporter_port: Port | None = Field(
        default=None,
        description="Port of a GPU metrics exporter that you run on each host with GPUs, such as "
        "DCGM's.",
        examples=[9400],
    )
    image: ImageName = Field(
        default="prom/prometheus:v3.5.0", description="Docker: image with Prometheus."
    )
    grafana: bool = Field(
        default=False,
        description="Grafana with dashboards, on the head's loopback.",
    )
    grafana_image: ImageName = Field(
        default="grafana/grafana:12.4.10", description="Docker: image with Grafana."
    )

    @model_validator(mode="after")
    def _grafana_shows_prometheus(self) -> Monitoring:
        if self.grafana and not self.prometheus:
            raise ValueError("`grafana = true` needs `prometheus = true`")
        return self
