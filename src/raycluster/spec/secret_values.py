"""The values of a spec's secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raycluster.core.interfaces import RegistryLogin, Secret


@dataclass(frozen=True)
class Secrets:
    """The values of the sources that a spec names; all empty where they are not needed."""

    replicas: Mapping[str, Secret] = field(default_factory=dict)
    api_keys: Mapping[str, Secret] = field(default_factory=dict)
    certificate: bytes = b""
    certificate_key: Secret | None = None
    registry: RegistryLogin | None = None
