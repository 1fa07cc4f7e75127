"""The processors and the memory that a host's control groups leave of the machine's; pure.

One script for the host's shell, which prints files of the kernel as they are, and one reader. Where
a machine is lent in part (a container, a slice of systemd), the whole machine still shows in
/proc/meminfo; what counts is the least of the limits on the way from a process's group to the root.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raycluster.core.accelerators.values import whole

_QUESTION = r"""
first() { read -r line <"$1" || [ -n "$line" ]; }
figures() {
  for name in memory.max memory.limit_in_bytes; do
    [ -r "$1/$name" ] && first "$1/$name" 2>/dev/null || continue
    most=$line used= cached=
    for name in memory.current memory.usage_in_bytes; do
      [ -r "$1/$name" ] && first "$1/$name" && used=$line
    done
    while read -r name line; do
      case $name in
        inactive_file | total_inactive_file) cached=$line ;;
        hierarchical_memory_limit) echo "held $line" ;;
      esac
    done 2>/dev/null <"$1/memory.stat"
    echo "held $most $used $cached"
  done
  [ -r "$1/cpu.max" ] && first "$1/cpu.max" && echo "quota $line"
  if [ -r "$1/cpu.cfs_quota_us" ] && first "$1/cpu.cfs_quota_us"; then
    most=$line; first "$1/cpu.cfs_period_us" && echo "quota $most $line"
  fi
}
upwards() {
  below=$3
  [ "$2" = / ] || below=${below#"$2"}
  case $below in *..*) below= ;; esac
  [ -d "$1$below" ] || below=
  while :; do
    figures "$1$below"
    case $below in */*) below=${below%/*} ;; *) break ;; esac
  done
}
mounted() {
  while read -r _ _ _ top at rest; do
    case $rest in
      *" - cgroup2 "*) [ -z "$1" ] || continue ;;
      *" - cgroup "*) case ",${rest##* }," in *",${1:-none},"*) ;; *) continue ;; esac ;;
      *) continue ;;
    esac
    for path in "$2" EXTRA; do upwards "@$at" "$top" "$path"; done
  done <@/proc/self/mountinfo
}
[ -r @/proc/PROCESS/cgroup ] && while IFS=: read -r number kinds path; do
  case $number:,$kinds, in
    0:,,) mounted "" "$path" ;;
    *,memory,*) mounted memory "$path" ;;
  esac
  case ,$kinds, in *,cpu,*) mounted cpu "$path" ;; esac
done <@/proc/PROCESS/cgroup
while read -r name value _; do
  case $name in MemTotal: | MemAvailable:) echo "$name $value" ;; esac
done <@/proc/meminfo
for process in PROCESS self; do
  while read -r name value; do
    case $name in Cpus_allowed_list:) echo "allowed $value" ;; esac
  done 2>/dev/null <"@/proc/$process/status"
done
[ -r @/sys/devices/system/cpu/online ] && first @/sys/devices/system/cpu/online &&
  echo "online $line"
"""
_UNLIMITED = 1 << 60
"""From here on a number of bytes stands for no limit: version 1 has no word for that."""
_PROCESSORS = 65536
_SPAN = "[0-9]{1,5}(-[0-9]{1,5})?"


@dataclass(frozen=True)
class Limits:
    """What processes of ours may take of a host, and what the whole machine has.

    `cpus` are as many as quotas and sets of processors allow. `used_bytes` is what is in use of
    the memory, without files that can be read again; None where that is not told.
    """

    cpus: float
    memory_bytes: int
    machine_cpus: int
    machine_bytes: int
    used_bytes: int | None = None

    @property
    def of_memory(self) -> bool:
        """Whether the memory is less than the machine's."""
        return self.memory_bytes < self.machine_bytes

    @property
    def of_cpus(self) -> bool:
        """Whether the processors are fewer than the machine's."""
        return self.cpus < self.machine_cpus

    @property
    def whole_cpus(self) -> int:
        """The processors, in whole ones; one at least."""
        return max(1, math.floor(self.cpus))


def script(root: str = "", *, boxed: bool = False) -> str:
    """Return what a host's shell is asked; `root` is that of its file system.

    `boxed` asks for what a daemon starts in groups of its own, in which the asking process is not:
    limits of the whole host count then, and those of where Docker has its containers.
    """
    process, extra = ("1", "/docker /system.slice") if boxed else ("self", "")
    asked = _QUESTION.replace("PROCESS", process).replace("EXTRA", extra)
    return asked.replace("@$at", f"{root}$at").replace("@/", f"{root}/")


def read(told: Mapping[str, Sequence[str]]) -> Limits | None:
    """Return the limits in what the script printed, its lines by their first word.

    None where the host does not report its memory or its processors.
    """
    machine = _kibibytes(told.get("MemTotal:", ()))
    online = processors("".join(told.get("online", ())[:1]))
    allowed = [n for line in told.get("allowed", ()) if (n := processors(line))]
    sets = [float(n) for n in (online, *allowed[:1]) if n]
    if not machine or not sets:
        return None
    held = [part for line in told.get("held", ()) if (part := _held(line))]
    smallest = min((part for part in held if part[0] < machine), default=None)
    quotas = [quota for line in told.get("quota", ()) if (quota := _quota(line))]
    available = _kibibytes(told.get("MemAvailable:", ()))
    used = None if available is None else max(0, machine - available)
    memory = machine
    if smallest:
        memory, used = smallest[0], next((u for m, u in held if m == smallest[0] and u >= 0), None)
    return Limits(
        cpus=min([*sets, *quotas]),
        memory_bytes=memory,
        machine_cpus=online or int(max(sets)),
        machine_bytes=machine,
        used_bytes=used,
    )


def processors(text: str) -> int | None:
    """Return how many a list such as `0-3,8` names, None for anything else."""
    if not re.fullmatch(f"{_SPAN}(,{_SPAN})*", text.strip()[:4096]):
        return None
    count = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count if 0 < count <= _PROCESSORS else None


def _held(line: str) -> tuple[int, int] | None:
    """Return a limit and what is used of it, -1 where that is not told; None for no limit."""
    words = line.split()
    most = whole(words[0], 19) if words else None
    if most is None or most >= _UNLIMITED:
        return None
    numbers = [whole(word, 19) for word in words[1:3]]
    used = numbers[0] if numbers else None
    cached = numbers[1] if len(numbers) > 1 else None
    return most, -1 if used is None else max(0, used - (cached or 0))


def _quota(line: str) -> float | None:
    """Return the processors that a quota and its period, in microseconds, are."""
    words = [whole(word, 12) for word in line.split()]
    if len(words) != 2 or not words[0] or not words[1]:
        return None  # "max" and -1 are none
    return words[0] / words[1]


def _kibibytes(values: Sequence[str]) -> int | None:
    number = whole(values[0], 15) if values else None
    return None if number is None else number << 10
