"""What nvidia-smi or Ray say of GPUs -> figures; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_FIELDS = (
    *("index", "name", "utilization.gpu", "memory.used", "memory.total"),
    *("temperature.gpu", "power.draw", "ecc.errors.uncorrected.volatile.total"),
)
ASK = (
    "command -v nvidia-smi >/dev/null 2>&1 || exit 0; "
    f"nvidia-smi --query-gpu={','.join(_FIELDS)} --format=csv,noheader,nounits"
)
"""A shell script for a host with GPUs; prints nothing where there is no nvidia-smi."""


@dataclass(frozen=True)
class Gpu:
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


def from_smi(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs in what ASK printed; a line of another kind, such as an error's, is none."""
    found = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) != len(_FIELDS) or not words[0].isdigit():
            continue
        busy, used, total, warm, power, errors = (_number(word) for word in words[2:])
        count = None if errors is None else int(errors)
        found.append(Gpu("nvidia-smi", words[0], words[1], busy, used, total, warm, power, count))
    return tuple(found)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:  # "[N/A]"
        return None


def from_ray(told: Iterable[Mapping[str, Any]]) -> tuple[Gpu, ...]:
    """Return the GPUs in the figures of a node that Ray's dashboard gives."""
    return tuple(
        Gpu(
            "ray",
            str(gpu.get("index", number)),
            str(gpu.get("name") or ""),
            gpu.get("utilizationGpu"),
            gpu.get("memoryUsed"),
            gpu.get("memoryTotal"),
            gpu.get("temperatureC"),
            None if (power := gpu.get("powerMw")) is None else power / 1000,
        )
        for number, gpu in enumerate(told)
    )
