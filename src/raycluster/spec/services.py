"""The tables of what stands beside Ray: the gateway and the monitoring."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raycluster.spec.sections import Part
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
    Port,
    RegistryName,
    Seconds,
    SecretSource,
    WebOrigin,
)

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104  # the gateway is meant to be reached


class Tls(Part):
    """The certificate with which the gateway proves who it is."""

    cert: Operand | None = Field(
        default=None,
        description="A file on this machine: the certificate and its chain.",
        examples=["./gateway.pem"],
    )
    key: SecretSource | None = Field(
        default=None,
        description="The certificate's key: `file:PATH` or `cmd:COMMAND`.",
        examples=["file:./gateway.key"],
    )
    self_signed: bool = Field(
        default=False, description="Instead of a file: one that the cluster makes for itself."
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
        description="The models that it is for, each with its adapters and aliases; left out: all.",
        examples=[["org/model"]],
    )
    requests_per_minute: AtLeastOne | None = Field(
        default=None,
        description="As many at once, and then one after the other at this rate; each gateway "
        "counts for itself.",
        examples=[60],
    )
    expires: Moment | None = Field(
        default=None,
        description="From then on it is none: a date (its beginning, in UTC), or a time with its "
        "offset.",
        examples=["2027-01-01"],
    )


class Gateway(Part):
    """The way in for clients: nginx, which checks API keys."""

    on: Literal["head", "all"] = Field(
        default="head", description="Where it runs: `all` is every host."
    )
    listen: IpAddress | None = Field(
        default=None,
        description="Default: everywhere when there are keys (over IPv6 too on hosts whose "
        "addresses are such), else loopback alone.",
        examples=["0.0.0.0"],  # noqa: S104  # an example
    )
    api_keys: dict[KeyOwner, SecretSource] = Field(
        default_factory=dict,
        description="Owner and source of each key; the log names owners, never keys.",
        examples=[{"alice": "env:ALICE_KEY", "batch": "file:./batch.key"}],
    )
    keys: dict[KeyOwner, Key] = Field(
        default_factory=dict,
        description="Keys with limits, by owner, beside `api_keys`.",
        examples=[{"carol": {"key": "env:CAROL_KEY", "requests_per_minute": 60}}],
    )
    tls: Tls | None = Field(
        default=None,
        description="Without it, keys travel in the clear: reach the gateway by the tunnel then.",
        examples=[{"cert": "./gateway.pem", "key": "file:./gateway.key", "self_signed": False}],
    )
    allowed_origins: tuple[WebOrigin, ...] = Field(
        default=(),
        description="Web pages that may ask with a key, as browsers name them; `*` is all.",
        examples=[["https://chat.example.com"]],
    )
    paths: tuple[HttpPath, ...] = Field(
        default=("/v1/", "/health"),
        description="What may be asked for: `/v1/` is all below it; `/health` needs no key.",
    )
    max_body: Bytes = Field(default="64m", description="The largest request.")
    max_connections: AtLeastOne = Field(
        default=1024, description="Requests that one address may have at once."
    )
    rate_limit: AtLeastOne | None = Field(
        default=None,
        description="Requests a second for each key, or without keys for each address.",
        examples=[20],
    )
    access_log: Days | None = Field(
        default=None,
        description="Keep a log of requests in `gateway/access/` of the cluster's folder, a file "
        "for each day, each for as long as this. The gateway's own output has it too.",
        examples=["30d"],
    )
    timeout: Seconds = Field(
        default=600, ge=1, description="Seconds that a model may be silent in an answer."
    )
    image: ImageName = Field(default="nginx:1.29-alpine", description="Docker: holds nginx.")

    @model_validator(mode="after")
    def _owners_differ(self) -> Gateway:
        if both := sorted(self.api_keys.keys() & self.keys.keys()):
            raise ValueError(f"{both[0]!r} is in `api_keys` and in `keys`: one of both")
        return self

    @property
    def sources(self) -> dict[str, str]:
        """The source of each owner's key."""
        return {**self.api_keys, **{owner: key.key for owner, key in self.keys.items()}}

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
        description="Close the hosts with nftables (root) to all but SSH, the gateway, the "
        "cluster's hosts, and the ports of other services that listen when the rules are written.",
    )
    allow_ports: tuple[Port, ...] = Field(
        default=(),
        description="More ports of other services, TCP and UDP, that stay open.",
        examples=[[8888, 51820]],
    )
    allow_from: tuple[IpNetwork, ...] = Field(
        default=(),
        description="More networks that get in, such as a second one between the hosts.",
        examples=[["192.168.100.0/24"]],
    )
    check: Literal["public", "always", "never"] = Field(
        default="public",
        description="After `up`, try the ports from here: of hosts with public addresses "
        "(`public`), of all (`always`), or of none (`never`).",
    )


class Registry(Part):
    """The login of the registry that images come from."""

    server: RegistryName = Field(
        default="docker.io", description="How the images' names begin; `docker.io` if they do not."
    )
    username: SecretSource = Field(
        description="`env:NAME`, `file:PATH` or `cmd:COMMAND`.", examples=["env:REGISTRY_USERNAME"]
    )
    password: SecretSource = Field(
        description="A password or token, from such a source; it goes to the hosts' Docker with "
        "each pull and is not kept there.",
        examples=["env:REGISTRY_PASSWORD"],
    )


class Distribution(Part):
    """How what is large comes to many hosts: from outside once, and then from host to host."""

    models: Literal["auto", "peer", "hub"] = Field(
        default="auto",
        description="Hosts take a model from one another (`peer`), each from the hub (`hub`), or "
        "from one another where all their addresses are private (`auto`).",
    )
    images: Literal["registry", "peer"] = Field(
        default="registry",
        description="Every host pulls an image (`registry`), or one does, and the others take it "
        "from there (`peer`).",
    )
    folder: Folder = Field(
        default="/var/tmp",  # noqa: S108  # a folder of each user's own is made in it
        description="On Docker hosts: where an image lies on its way to Docker.",
    )


class Monitoring(Part):
    """What records how the cluster does."""

    prometheus: bool = Field(
        default=True, description="Prometheus, on the head's loopback: Ray, Serve and vLLM."
    )
    retention: Days = Field(default="15d", description="How long figures are kept.")
    retention_size: Bytes = Field(default="10g", description="How much room they may take.")
    alertmanagers: tuple[HostAndPort, ...] = Field(
        default=(),
        description="Alertmanagers that alerts are sent to, as the head reaches them.",
        examples=[["10.0.0.9:9093"]],
    )
    time_to_first_token: Seconds = Field(
        default=10, description="Alert when 1 of 20 streams begins later than this many seconds."
    )
    gpu_exporter_port: Port | None = Field(
        default=None,
        description="Where each host with GPUs runs an exporter of yours, such as DCGM's.",
        examples=[9400],
    )
    image: ImageName = Field(
        default="prom/prometheus:v3.5.0", description="Docker: holds Prometheus."
    )
    grafana: bool = Field(
        default=False,
        description="Grafana, on the head's loopback: dashboards of what Prometheus has recorded.",
    )
    grafana_image: ImageName = Field(
        default="grafana/grafana:12.4.10", description="Docker: holds Grafana."
    )

    @model_validator(mode="after")
    def _grafana_shows_prometheus(self) -> Monitoring:
        if self.grafana and not self.prometheus:
            raise ValueError("`grafana = true` shows what Prometheus records: leave it on")
        return self
