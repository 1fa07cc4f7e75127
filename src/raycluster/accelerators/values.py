"""A host's GPUs as plain values, and what a spec may ask for of them; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Choice = int | Literal["all"] | tuple[int, ...] | tuple[str, ...]
"""What a spec says of a host's GPUs: all, the first so many, these indices or these UUIDs."""

UUID = r"(?:GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]{3,99}"
"""Names a GPU, or a slice of one, as `nvidia-smi -L` does."""


@dataclass(frozen=True)
class Trouble:
    """What is wrong, and the next step."""

    what: str
    hint: str = ""


@dataclass(frozen=True)
class Device:
    """One GPU, or one MIG slice, which has the UUID of its GPU as `parent`.

    `index` is as the driver counts, `0:1` for a slice. None is what the driver does not tell, as
    the memory of GPUs that share the host's.
    """

    index: str
    uuid: str
    name: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    driver: str = ""
    compute_capability: str | None = None
    parent: str = ""


@dataclass(frozen=True)
class Accelerators:
    """The GPUs of one host that answer, and why others, or all, do not.

    `vendor` is there where such hardware is, whether it answers or not. `denied` names the user
    whom the system lets look at the GPUs and not use them, outside of containers.
    """

    devices: tuple[Device, ...] = ()
    problem: Trouble | None = None
    vendor: Literal["nvidia", "amd", ""] = ""
    denied: str = ""

    @property
    def slices(self) -> tuple[Device, ...]:
        """The MIG slices among them."""
        return tuple(device for device in self.devices if device.parent)


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
