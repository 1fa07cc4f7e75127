"""An `nvidia-smi` of the tests' own: a script that answers our questions as a real one would.

It is a double of the driver's program, for hosts without a GPU. What it prints has the form of
what drivers 535 to 580 print; GPUs, UUIDs and failures come from a table.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

NOT_VALID = 'Field "{field}" is not a valid field to query.'
NO_DEVICES = "No devices were found"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running."
)
MISMATCH = (
    "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.54"
)
LOST = (
    "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  "
    "Reboot the system to recover this GPU"
)


@dataclass(frozen=True)
class Slice:
    """A MIG slice."""

    profile: str
    uuid: str


@dataclass(frozen=True)
class Card:
    """A GPU as nvidia-smi tells of it; `values` stand for what a query asks by its fields."""

    index: int = 0
    name: str = "NVIDIA H100 80GB HBM3"
    values: Mapping[str, str] = field(default_factory=dict)
    slices: tuple[Slice, ...] | None = None

    @property
    def uuid(self) -> str:
        """Its UUID, made from its index."""
        return f"GPU-{self.index:08x}-d33d-2b2c-524d-9e3d8d2b8a77"

    def value(self, name: str) -> str:
        """Return what it says for one field of a query."""
        known = {
            "index": str(self.index),
            "uuid": self.uuid,
            "name": self.name,
            "memory.total": "81559",
            "memory.used": "4",
            "driver_version": "580.65.06",
            "compute_cap": "9.0",
            "mig.mode.current": "Disabled" if self.slices is None else "Enabled",
            "utilization.gpu": "0",
            "temperature.gpu": "31",
            "power.draw": "70.25",
            "ecc.errors.uncorrected.volatile.total": "0",
        }
        return {**known, **self.values}.get(name, "[N/A]")

    def listed(self) -> str:
        """Return its lines of `nvidia-smi -L`."""
        lines = [f"GPU {self.index}: {self.name} (UUID: {self.uuid})"]
        lines += [
            f"  MIG {part.profile:<15} Device {number:>2}: (UUID: {part.uuid})"
            for number, part in enumerate(self.slices or ())
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Driver:
    """What the program says and ends with; `before` stands before the GPUs, or instead of them.

    `unknown` are fields that this driver's version has not; `hangs` waits for ever.
    """

    cards: tuple[Card, ...] = ()
    before: str = ""
    code: int = 0
    unknown: Sequence[str] = ()
    hangs: bool = False

    def script(self) -> str:
        """Return the program, for a POSIX shell."""
        lines = ["#!/bin/sh", "# a double of the tests"]
        if self.hangs:
            lines.append("while :; do sleep 1; done")
        said = f"printf '%s\\n' {shlex.quote(self.before)}" if self.before else ":"
        lists = "\n".join(card.listed() for card in self.cards)
        listing = f"printf '%s\\n' {shlex.quote(lists)}" if lists else ":"
        lines += [
            'for word in "$@"; do case $word in --query-gpu=*) fields=${word#*=} ;; esac; done',
            f'if [ "$1" = -L ]; then {said}; {listing}; exit {self.code}; fi',
            '[ -n "$fields" ] || { echo "a table for people"; exit 0; }',
        ]
        lines += [
            f"case ,$fields, in *,{name},*) echo {shlex.quote(NOT_VALID.format(field=name))}; "
            "exit 2 ;; esac"
            for name in self.unknown
        ]
        lines.append(said)
        for card in self.cards:
            cases = " ".join(
                f"{name}) value={shlex.quote(card.value(name))} ;;" for name in _FIELDS
            )
            lines.append(
                "line=; for name in $(echo $fields | tr , ' '); do value='[N/A]'; "
                f'case $name in {cases} esac; line="$line, $value"; done; '
                "printf '%s\\n' \"${line#, }\""
            )
        return "\n".join([*lines, f"exit {self.code}", ""])

    def install(self, folder: Path) -> Path:
        """Write the program into a folder, which is to stand in PATH, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "nvidia-smi"
        path.write_text(self.script())
        path.chmod(0o755)
        return path


_FIELDS = (
    *("index", "uuid", "name", "memory.total", "memory.used", "driver_version", "compute_cap"),
    *("mig.mode.current", "utilization.gpu", "temperature.gpu", "power.draw"),
    "ecc.errors.uncorrected.volatile.total",
)


def gpus(count: int, **values: str) -> tuple[Card, ...]:
    """Return so many GPUs that are alike."""
    return tuple(Card(index, values=values) for index in range(count))


def driver(count: int, **changes: object) -> Driver:
    """Return a driver with so many GPUs; none answers as one without any does."""
    whole = Driver(gpus(count)) if count else Driver(before=NO_DEVICES, code=6)
    return replace(whole, **changes)  # type: ignore[arg-type]


MIG = Driver(
    (
        replace(
            Card(0, "NVIDIA A100-SXM4-80GB", {"memory.total": "81920", "compute_cap": "8.0"}),
            slices=(
                Slice("3g.40gb", "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"),
                Slice("1g.10gb", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"),
                Slice("1g.10gb+me", "MIG-1e9a8b7c-0000-5b25-b243-5985ef7c9beb"),
            ),
        ),
        Card(1, "NVIDIA A100-SXM4-80GB", {"memory.total": "81920", "compute_cap": "8.0"}),
    )
)
UPDATED = Driver(before=MISMATCH, code=18)
ABSENT = Driver(before=NO_DRIVER, code=9)
ILL = Driver(gpus(1), before=LOST, code=15)
OLD = driver(2, unknown=("compute_cap", "mig.mode.current"))
HANGS = Driver(hangs=True)
