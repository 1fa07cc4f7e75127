"""What was seen of hosts and models before a change; frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raycluster.core.interfaces import Facts, PrepareForecast
from raycluster.serve.model_refs import WEIGHTS, ModelRef, needed_files


@dataclass(frozen=True)
class Disk:
    """Free bytes where something is to be stored; `device` tells file systems of a host apart."""

    free: int
    device: str


@dataclass(frozen=True)
class Files:
    """A model's files, with their bytes, and its config.

    `indexed` are the bytes of its weights by their own index, 0 without one.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    indexed: int = 0

    def weights(self, load_format: str) -> int | None:
        """Return the bytes of what an engine loads, or None where none is there."""
        names = needed_files(list(self.sizes), load_format, weights=True)
        forms = tuple(form.removeprefix("*") for form in WEIGHTS)
        there = sum(self.sizes[name] for name in names if name.endswith(forms))
        return max(there, self.indexed) or None

    def needed(self, wanted: ModelRef) -> dict[str, int]:
        """Return the files that an engine reads, with their bytes."""
        names = needed_files(list(self.sizes), wanted.load_format, weights=wanted.weights)
        return {name: self.sizes[name] for name in names}


@dataclass(frozen=True)
class ModelLocation:
    """A model's place on a host: what is there, and the disk; `hidden` where it may not be read."""

    files: Files = Files()
    disk: Disk | None = None
    folder: str = ""
    hidden: bool = False


@dataclass(frozen=True)
class RuntimeSource(PrepareForecast):
    """What a process runs from, and the disk where it goes if it is not there."""

    disk: Disk | None = None


@dataclass(frozen=True)
class HostSeen:
    """One host: its facts, the models' places there, and what its processes run from."""

    facts: Facts
    models: Mapping[ModelRef, ModelLocation] = field(default_factory=dict)
    bases: tuple[RuntimeSource, ...] = ()


@dataclass(frozen=True)
class Inventory:
    """All hosts that were seen, what others tell of models and images, and seconds of a start.

    `images` are compressed bytes by name. `hub` holds no model that it did not tell of; `seconds`
    is by application.
    """

    hosts: Mapping[str, HostSeen]
    hub: Mapping[ModelRef, Files] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
