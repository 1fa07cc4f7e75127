"""The questions about GPUs that a host's own shell answers, and what the answers mean; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from raycluster.core.accelerators import amd, nvidia
from raycluster.core.accelerators.nvidia import Hardware
from raycluster.core.accelerators.values import Accelerators, Trouble, clean, whole

_BEGIN = """
seen=; other=
LC_ALL=C; export LC_ALL
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:/opt/rocm/bin"
"""
# 0x10de is NVIDIA, 0x1002 AMD; 0x03.... a display device, with or without a plug, 0x0380.. and
# 0x12.... one that only computes.
_HARDWARE = r"""
for device in @/sys/bus/pci/devices/*; do
  [ -r "$device/class" ] && [ -r "$device/vendor" ] || continue
  read -r vendor <"$device/vendor"; read -r class <"$device/class"
  case "$vendor $class" in
    "0x10de 0x03"*) seen=1; echo "pci nvidia" ;;
    "0x1002 0x0380"* | "0x1002 0x12"*) echo "pci amd" ;;
    "0x1002 0x03"*) echo "pci graphics" ;;
    *) other=1 ;;
  esac
done
[ -z "$other" ] || echo "pci other"
for sign in @/proc/driver/nvidia/version @/proc/driver/nvidia/gpus/* @/dev/nvidiactl \
  @/dev/nvidia[0-9]* @/dev/nvhost-gpu
do
  [ -e "$sign" ] && { seen=1; echo "driver $sign"; }
done
[ ! -e @/dev/dxg ] || echo windows
"""
# Windows hides the bus from its Linux, and some boards have none: there nvidia-smi's word counts.
_SAYS = r"""
if [ -z "$seen" ] && command -v nvidia-smi >/dev/null 2>&1; then
  limited nvidia-smi -L 2>/dev/null </dev/null | grep -q '^GPU ' && echo "driver named"
fi
"""


_LIVE = r"""
if command -v nvidia-smi >/dev/null 2>&1; then
  echo "machine $(uname -m 2>/dev/null)"
  while read -r name value _; do
    case $name in MemTotal: | MemAvailable:) echo "$name $value" ;; esac
  done </proc/meminfo
  asked smi '^[0-9]+,' --query-gpu=FIELDS --format=csv,noheader,nounits
fi
"""
_OF_WINDOWS = Trouble(
    "Windows shares a GPU with this machine (/dev/dxg), but nvidia-smi lists none",
    "install NVIDIA's driver in Windows, which brings /usr/lib/wsl/lib/nvidia-smi; GPUs of other "
    "vendors cannot be used there",
)
_ALL = (_BEGIN, nvidia.FIND, nvidia.LIMITED, nvidia.ASKED, _HARDWARE)


def script(root: str = "") -> str:
    """Return what a host's shell is asked to read its GPUs; `root` is that of its file system."""
    parts = (*_ALL, nvidia.SCRIPT, amd.SCRIPT, "true\n")
    return "".join(parts).replace("@/", f"{root}/")


def quick_script(root: str = "") -> str:
    """Return what a host's shell is asked for its hardware alone.

    No driver is waited for where the system shows a GPU by itself.
    """
    parts = (*_ALL, _SAYS, "true\n")
    return "".join(parts).replace("@/", f"{root}/")


def live_script(fields: str) -> str:
    """Return what a host's shell is asked for these fields of `nvidia-smi --query-gpu`."""
    ask = _LIVE.replace("FIELDS", fields)
    return "".join((*_ALL, ask, "true\n")).replace("@/", "/")


def by_word(text: str) -> dict[str, list[str]]:
    """Return lines by their first word."""
    told: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        told.setdefault(word, []).append(rest)
    return told


def read(text: str) -> Accelerators:
    """Return the GPUs in what `script` printed; NVIDIA's where there are some, else AMD's."""
    told = by_word(text)
    found = nvidia.read(told, _hardware(told))
    if found.vendor:
        return found
    other = amd.read(told)
    if other.devices or other.problem or other.unseen or "windows" not in told:
        return other
    return replace(other, unseen=_OF_WINDOWS)


def read_live(text: str, count: int, name: int) -> tuple[list[list[str]], Trouble | None]:
    """Return the values of each GPU in what `live_script` printed, and why others have none.

    `count` is the number of fields, `name` the place of the name among them.
    """
    told = by_word(text)
    if "smi-code" not in told:
        return [], None
    lines = told.get("smi", ())
    rows = [row for line in lines if (row := nvidia.parted(line, count, name))]
    others = [line for line in lines if line.strip() and not nvidia.parted(line, count, name)]
    ill = [(clean(row[0]), word) for row in rows if (word := nvidia.failure_in(row))]
    code = whole(told["smi-code"][-1], 3)
    problem = nvidia.failure(code, others, ill, _hardware(told), some=bool(rows))
    return [row for row in rows if not nvidia.failure_in(row)], problem


def has_nvidia(text: str) -> bool:
    """Tell from what `quick_script` printed whether NVIDIA's hardware is there, driver or not."""
    return _hardware(by_word(text)).there


def _hardware(told: Mapping[str, Sequence[str]]) -> Hardware:
    buses = told.get("pci", ())
    return Hardware(
        cards=sum(bus == "nvidia" for bus in buses),
        driver="driver" in told,
        tells=bool(buses) and "windows" not in told,
    )
