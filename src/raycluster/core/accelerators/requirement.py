"""What a model asks of the GPUs of its hosts: words of their name, the least memory; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raycluster.core.accelerators.values import Device

WORDS = 'part of a GPU\'s name or a least memory, such as "A6000", ">= 40 GiB" or "A100 >= 80 GB",'
_FORM = r"(?P<name>[^<>=]*?)\s*(?:>=\s*(?P<size>[0-9]{1,5}(?:\.[0-9]{1,3})?)\s*(?P<unit>GB|GiB))?"
_SIZE = r"\s*(?:=|>)?\s*([0-9.]+)\s*(GB|GiB)\s*"


@dataclass(frozen=True)
class GpuRequirement:
    """What each GPU of a host has to be: `words` are in its name, whole and in any order."""

    words: frozenset[str]
    least_bytes: float = 0

    def fits(self, device: Device) -> bool:
        """Tell whether a GPU is such a one; one that tells no memory has none."""
        return self.words <= _words(device.name) and self.least_bytes <= (
            device.memory_total_bytes or 0
        )


def read_requirement(text: str) -> GpuRequirement:
    """Return what a spec says. Raises ValueError.

    A GB is that of the makers, 10^9 bytes. Whole GiB are those that `check` shows, rounded: drivers
    keep a part of a GPU's memory.
    """
    if bare := re.fullmatch(_SIZE, text, re.IGNORECASE):
        raise ValueError(f'{WORDS} is expected; did you mean ">= {bare[1]} {bare[2]}"?')
    match = re.fullmatch(_FORM, text.strip(), re.IGNORECASE | re.ASCII)
    words = _words(match["name"]) if match else frozenset()
    if not match or not (words or (match["size"] and not match["name"])):
        raise ValueError(f"{WORDS} is expected, not {text[:80]!r}")
    size = float(match["size"] or 0)
    if match["size"] and not size:
        raise ValueError(f"{WORDS} is expected, not 0 of memory")
    if (match["unit"] or "").lower() == "gb":
        return GpuRequirement(words, size * 10**9)
    rounded = size - 0.5 if size and size.is_integer() else size
    return GpuRequirement(words, rounded * 2**30)


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", name.lower()))
