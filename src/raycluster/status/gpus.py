"""What nvidia-smi or Ray say of GPUs -> figures; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raycluster.core.accelerators.host import by_word, live_script, read_live
from raycluster.core.accelerators.values import Trouble, clean, decimal, is_unified, whole
from raycluster.core.untrusted import Told

_FIELDS = (
    *("index", "name", "utilization.gpu", "memory.used", "memory.total"),
    *("temperature.gpu", "power.draw", "ecc.errors.uncorrected.volatile.total"),
)
ASK = live_script(",".join(_FIELDS))
"""A shell script for a host with GPUs."""


@dataclass(frozen=True)
class GpuStatus:
    """One GPU now, as `source` says; None where that does not tell.

    `errors` are those of the memory that could not be corrected since the driver was loaded.
    """

    source: Literal["nvidia-smi", "ray"]
    index: str
    name: str
    utilization_percent: float | None = None
    memory_used_mib: float | None = None
    memory_total_mib: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    errors: int | None = None


def from_smi(text: str) -> tuple[tuple[GpuStatus, ...], Trouble | None]:
    """Return the GPUs in what ASK printed, and why others do not answer."""
    found = []
    rows, problem = read_live(text, len(_FIELDS), _FIELDS.index("name"))
    told = by_word(text)
    machine, host = "".join(told.get("machine", ())), _memory(told)
    for index, name, *words in rows:
        busy, used, total, warm, power, errors = (decimal(word) for word in words)
        count = None if errors is None else int(errors)
        shown = clean(name, 100)
        if total is None and is_unified(shown, None, machine):
            used, total = (None, None) if host is None else host
        found.append(GpuStatus("nvidia-smi", index, shown, busy, used, total, warm, power, count))
    return tuple(found), problem


def _memory(told: Mapping[str, Sequence[str]]) -> tuple[float | None, float] | None:
    """Return what is used and what there is of the host's own memory, in MiB."""
    total, free = (
        whole("".join(told.get(f"{name}:", ()))) for name in ("MemTotal", "MemAvailable")
    )
    if total is None:
        return None
    return (None if free is None else max(0, total - free) / 1024), total / 1024


def from_ray(told: Told) -> tuple[GpuStatus, ...]:
    """Return the GPUs in the figures of a node that Ray's dashboard gives."""
    return tuple(
        GpuStatus(
            "ray",
            str(number if (index := gpu["index"].whole()) is None else index),
            clean(gpu["name"].text(), 100),
            gpu["utilizationGpu"].number(),
            gpu["memoryUsed"].number(),
            gpu["memoryTotal"].number(),
            gpu["temperatureC"].number(),
            None if (power := gpu["powerMw"].number()) is None else power / 1000,
        )
        for number, gpu in enumerate(told)
    )
