"""What a plan is made of: actions that describe themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raycluster.core.interfaces import Process
from raycluster.plan.rollout import Rollout
from raycluster.services.gateway import GATEWAY
from raycluster.spec import ResolvedHost
from raycluster.state.cluster import UNREAD

ATTEMPT = "attempt"
HIDING = (
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
)
"""Variables that take GPUs out of Ray's sight."""


@dataclass(frozen=True)
class Start:
    """Start a process on a host, in place of the one that is there if `replaces`."""

    host: str
    process: Process
    reason: str
    replaces: bool = False

    def describe(self) -> str:
        sign = "~ restart" if self.replaces else "+ start"
        return f"{self.host}: {sign} {self.process.role} ({self.reason})"


@dataclass(frozen=True)
class Reload:
    """Hand changed files to a process that runs on, and tell it to read them."""

    host: str
    process: Process
    reason: str = "its files changed"

    def describe(self) -> str:
        return f"{self.host}: ~ reload {self.process.role} ({self.reason})"


@dataclass(frozen=True)
class ApplyFirewall:
    """Put firewall rules in force on a host, or with none take ours back."""

    host: str
    rules: str
    reason: str

    def describe(self) -> str:
        verb = "~ write firewall rules" if self.rules else "- remove firewall rules"
        return f"{self.host}: {verb} ({self.reason})"


@dataclass(frozen=True)
class Remove:
    """Take a process, or with `role` None all that is ours, off a host of the spec or of before."""

    host: str
    role: str | None
    reason: str

    def describe(self) -> str:
        return f"{self.host}: - remove {self.role or 'everything of this cluster'} ({self.reason})"


@dataclass(frozen=True)
class Deploy:
    """Make Serve's applications those of the spec, in the steps of `rollout`."""

    rollout: Rollout
    reasons: tuple[str, ...]

    def describe(self) -> str:
        return f"app: ~ deploy ({'; '.join(self.reasons)})"

    @property
    def body(self) -> Mapping[str, Any]:
        """What Serve is told in the end."""
        return self.rollout.steps[-1]

    @property
    def costs(self) -> tuple[str, ...]:
        """What the running models' clients will notice, a line for each model."""
        return tuple(f"{name}: {cost}" for name, cost in self.rollout.costs.items())

    @property
    def host(self) -> str:
        """The app is no host; its name stands where a host's would."""
        return "app"


WHY_RULES = {"": "the cluster's ports are open", UNREAD: "the existing rules cannot be read"}
Action = ApplyFirewall | Start | Reload | Remove | Deploy


@dataclass(frozen=True)
class Only:
    """The part of the cluster that one run is about: a stage, or one host by name."""

    part: Literal["all", "head", "workers", "app", "gateway"] = "all"
    host: str | None = None

    def nodes(self, host: ResolvedHost) -> bool:
        """Return True when this run may touch the host's processes."""
        if self.host:
            return host.name == self.host
        return self.part in ("all", "gateway", host.role, f"{host.role}s")

    def role(self, name: str) -> bool:
        """Return True when this run may touch the process of this role."""
        return self.part != "gateway" or name == GATEWAY

    @property
    def app(self) -> bool:
        """True when this run deploys."""
        return not self.host and self.part in ("all", "app")


EVERYTHING = Only()
APP = Only("app")
