"""What the kernel's KFD, rocm-smi and amd-smi say of a host's GPUs; pure.

KFD's nodes are what ROCm, and so Ray, counts, in its order; the programs know names and memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raycluster.core.accelerators.values import Accelerators, Device, Trouble, clean, whole

LEAST_BYTES = 2 << 30
"""Graphics of a processor have less memory of their own, and are not meant."""

NODES = r"""
if [ -e @/dev/kfd ]; then
  echo kfd-there
  { [ -r @/dev/kfd ] && [ -w @/dev/kfd ]; } || echo "kfd-denied $(id -un)"
  for node in @/sys/class/kfd/kfd/topology/nodes/*; do
    size=$(cat "$node"/mem_banks/*/properties 2>/dev/null |
      awk '$1 == "heap_type" {own = $2 == 1 || $2 == 2}
        $1 == "size_in_bytes" && own {sum += $2} END {printf "%.0f", sum}')
    awk -v node="${node##*/}" -v size="$size" '{v[$1] = $2}
      END {if (v["simd_count"] > 0 && v["cpu_cores_count"] == 0)
        print "kfd", node, v["drm_render_minor"] + 0, size,
          (v["unique_id"] == "" ? 0 : v["unique_id"]), v["gfx_target_version"] + 0
      }' "$node/properties" 2>/dev/null
  done
fi
"""
"""`@` stands for the root of the file system."""

_PROGRAMS = r"""
if [ -e @/dev/kfd ]; then
  if command -v rocm-smi >/dev/null 2>&1; then
    echo "rocm $(limited rocm-smi --showid --showproductname --showuniqueid --showmeminfo vram \
      --json 2>/dev/null </dev/null | head -c 262144 | tr '\n' ' ')"
  elif command -v amd-smi >/dev/null 2>&1; then
    echo "amd $(limited amd-smi static --asic --vram --json 2>/dev/null </dev/null |
      head -c 262144 | tr '\n' ' ')"
  fi
fi
"""
SCRIPT = NODES + _PROGRAMS


@dataclass(frozen=True)
class Node:
    """A GPU among KFD's nodes; `render` is its number among /dev/dri/renderD*."""

    number: int
    render: int
    memory_bytes: int
    unique_id: int
    gfx: int


def nodes(told: Mapping[str, Sequence[str]]) -> tuple[Node, ...]:
    """Return KFD's GPUs in the order in which ROCm counts them."""
    found = []
    for line in told.get("kfd", ()):
        words = [whole(word, 20) for word in line.split()]
        if len(words) == 5 and None not in words:
            found.append(Node(*(word or 0 for word in words)))
    there = [node for node in found if node.memory_bytes >= LEAST_BYTES]
    return tuple(sorted(there, key=lambda node: node.number))


def read(told: Mapping[str, Sequence[str]]) -> Accelerators:
    """Return the GPUs in what SCRIPT printed, its lines by their first word."""
    found = nodes(told)
    cards = list(_rocm(_json(told.get("rocm", ())))) or list(_amd(_json(told.get("amd", ()))))
    denied = clean("".join(told.get("kfd-denied", ())), 60) if found else ""
    devices = tuple(
        _device(position, node, _card_of(position, node, cards, len(found)))
        for position, node in enumerate(found)
    )
    if devices:
        return Accelerators(devices, None, "amd", denied)
    problem = _hidden(told)
    return Accelerators(
        (), problem, "amd" if problem else "", unseen=None if problem else _unseen(told)
    )


def _hidden(told: Mapping[str, Sequence[str]]) -> Trouble | None:
    """Return what is wrong where there is a GPU of AMD, by all signs, and none can be counted."""
    if "kfd" in told:
        return None  # what it shows is too small to be meant
    if "amd" in told.get("pci", ()):
        return Trouble(
            "the machine has an AMD GPU, but the kernel's KFD does not list it",
            "load the driver (`sudo modprobe amdgpu`), or install the ROCm driver; a container "
            "needs access to /dev/kfd and /sys/class/kfd",
        )
    if "kfd-there" in told:
        return Trouble(
            "/dev/kfd exists, but /sys/class/kfd lists no GPU",
            "see `dmesg | grep -i -e kfd -e amdgpu`; a container needs access to both",
        )
    return None


def _unseen(told: Mapping[str, Sequence[str]]) -> Trouble | None:
    """Return what to say of AMD's graphics that are not counted as GPUs for models."""
    if "kfd-there" in told:
        what = f"AMD's graphics here have less than {LEAST_BYTES >> 30} GiB of their own"
        return Trouble(f"{what} (/dev/kfd), and are not counted as a GPU")
    if "graphics" in told.get("pci", ()):
        return Trouble(
            "AMD's graphics are in the machine, and the kernel has no /dev/kfd for them",
            "if that is a GPU for models, install the driver of ROCm",
        )
    return None


@dataclass(frozen=True)
class _Card:
    name: str
    unique_id: int | None
    total: int | None
    used: int | None
    driver: str = ""


def _card_of(position: int, node: Node, cards: Sequence[_Card], count: int) -> _Card | None:
    for card in cards:
        if node.unique_id and card.unique_id == node.unique_id:
            return card
    return cards[position] if len(cards) == count else None


def _device(position: int, node: Node, card: _Card | None) -> Device:
    target = f"gfx{node.gfx // 10000}{node.gfx // 100 % 100:x}{node.gfx % 100:x}"
    return Device(
        index=str(position),
        uuid=f"{node.unique_id:#x}" if node.unique_id else "",
        name=card.name if card and card.name else f"AMD {target}",
        memory_total_bytes=(card.total if card else None) or node.memory_bytes,
        memory_used_bytes=card.used if card else None,
        driver=card.driver if card else "",
    )


def _json(texts: Iterable[str]) -> Any:  # noqa: ANN401 - whatever the program printed
    try:
        return json.loads("".join(texts))
    except (ValueError, RecursionError):
        return None


def _rocm(told: Any) -> Iterator[_Card]:  # noqa: ANN401
    """Yield the cards of rocm-smi, whose keys change their case between versions."""
    if not isinstance(told, dict):
        return
    system = told.get("system")
    driver = str(system.get("Driver version", "")) if isinstance(system, dict) else ""
    cards = {int(m[1]): v for k, v in told.items() if (m := re.fullmatch(r"card([0-9]{1,4})", k))}
    for _, card in sorted(cards.items()):
        if not isinstance(card, dict):
            continue
        values = {str(key).lower(): value for key, value in card.items()}
        names = (values.get(key) for key in ("card series", "device name", "card model"))
        yield _Card(
            name=next((clean(str(n), 100) for n in names if n and str(n)[:2] != "0x"), ""),
            unique_id=_hexadecimal(values.get("unique id")),
            total=whole(values.get("vram total memory (b)")),
            used=whole(values.get("vram total used memory (b)")),
            driver=clean(driver, 40),
        )


def _amd(told: Any) -> Iterator[_Card]:  # noqa: ANN401
    """Yield the cards of amd-smi, which newer versions put one level lower."""
    if isinstance(told, dict):
        told = told.get("gpu_data")
    for card in told if isinstance(told, list) else ():
        if not isinstance(card, dict):
            continue
        asic, vram = (v if isinstance(v := card.get(key), dict) else {} for key in ("asic", "vram"))
        size = vram.get("size")
        number = whole(size.get("value")) if isinstance(size, dict) else whole(size)
        yield _Card(
            name=clean(str(asic.get("market_name") or ""), 100),
            unique_id=_hexadecimal(asic.get("asic_serial")),
            total=None if number is None else number << 20,
            used=None,
        )


def _hexadecimal(word: object) -> int | None:
    match = re.fullmatch(r"0x([0-9A-Fa-f]{1,16})", str(word).strip()[:32])
    return int(match[1], 16) if match else None
