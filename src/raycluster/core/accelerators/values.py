"""A host's GPUs as plain values, and what a spec may ask for of them; pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Choice = int | Literal["all"] | tuple[int, ...] | tuple[str, ...]
"""What a spec says of a host's GPUs: all, the first so many, these indices or these UUIDs."""

UUID = r"(?:GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]{3,99}"
"""Names a GPU, or a slice of one, as `nvidia-smi -L` does."""

HANGS = "did not respond within"
"""Stands in what is said of a program of a host that had to be ended."""


@dataclass(frozen=True)
class Trouble:
    """What is wrong, and the next step."""

    what: str
    hint: str = ""


@dataclass(frozen=True)
class Device:
    """One GPU, or one MIG slice, which has the UUID of its GPU as `parent`.

    `index` is as the driver counts, `0:1` for a slice. None is what the driver does not tell.
    `shares` is True of a GPU without memory of its own: what it has is a part of the host's.
    """

    index: str
    uuid: str
    name: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    driver: str = ""
    compute_capability: str | None = None
    parent: str = ""
    shares: bool = False


@dataclass(frozen=True)
class Accelerators:
    """The GPUs of one host that answer, and why others, or all, do not.

    `vendor` is there where such hardware is, whether it answers or not. `denied` names the user
    whom the system lets look at the GPUs and not use them, outside of containers. `unseen` tells
    of hardware that may be a GPU where none is counted, and that is nothing to fail for.
    """

    devices: tuple[Device, ...] = ()
    problem: Trouble | None = None
    vendor: Literal["nvidia", "amd", ""] = ""
    denied: str = ""
    unseen: Trouble | None = None

    @property
    def slices(self) -> tuple[Device, ...]:
        """The MIG slices among them."""
        return tuple(device for device in self.devices if device.parent)


def is_unified(name: str, capability: str | None, machine: str) -> bool:
    """Tell whether a GPU that tells no memory has none of its own: it shares the host's.

    Those are GPUs of one chip with the processor: GB10, Thor, Orin and older ones of that kind.
    """
    known = re.search(r"\b(GB10|N1X?|Thor|Orin|Xavier|Tegra|Jetson|nvgpu)\b", name)
    return bool(known) or capability in _UNIFIED or machine == "aarch64"


_UNIFIED = ("5.3", "6.2", "7.2", "8.7", "10.1", "11.0", "12.1")
"""Compute capabilities of such chips alone."""


def sharing(found: Accelerators, memory: int, machine: str) -> Accelerators:
    """Return the GPUs, those that share the host's `memory` (bytes) with their part of it."""

    def shares(device: Device) -> bool:
        told = device.memory_total_bytes or device.parent
        return not told and is_unified(device.name, device.compute_capability, machine)

    count = sum(map(shares, found.devices)) if found.vendor == "nvidia" else 0
    if not count:
        return found
    devices = (
        replace(each, memory_total_bytes=memory // count, shares=True) if shares(each) else each
        for each in found.devices
    )
    return replace(found, devices=tuple(devices))


def described(devices: Iterable[Device]) -> str:
    """Return GPUs in words, those that are alike together, "" where there are none."""
    kinds = Counter((d.name, d.memory_total_bytes, d.shares) for d in devices)
    return ", ".join(
        f"{count} x {name}" + (f" ({size / 2**30:.0f} GiB{_SHARED * shares})" if size else "")
        for (name, size, shares), count in kinds.items()
    )


_SHARED = " of the host's memory"


def clean(text: str, most: int = 200) -> str:
    """Return a host's own words on one line, short, and without control characters."""
    line = " ".join(re.sub(r"[^\x20-\x7e]", " ", text[: 4 * most]).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def whole(word: object, most: int = 15) -> int | None:
    """Return a whole number of at most `most` digits, None for anything else, as `[N/A]`."""
    text = str(word).strip() if isinstance(word, str | int) else ""
    return int(text) if re.fullmatch(rf"[0-9]{{1,{most}}}", text) else None


def decimal(word: str) -> float | None:
    """Return a number such as `512.31`, None for anything else, as `[N/A]`."""
    text = word.strip()
    return float(text) if re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", text) else None
