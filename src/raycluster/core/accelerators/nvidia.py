"""What nvidia-smi says of a host's GPUs; pure.

An exit code other than 0 is a failure, whatever is printed: nvidia-smi says on standard output what
went wrong, in lines that look like others. Only lines of the asked form are GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raycluster.core.accelerators.values import (
    Accelerators,
    Device,
    Trouble,
    clean,
    whole,
)

ASK_S = 10
"""Seconds for one question to nvidia-smi, which an ill GPU keeps waiting for ever."""

BEGIN, END = "index,uuid,name", "memory.total,memory.used,driver_version"

LIMITED = f"""
limited() {{
  if command -v timeout >/dev/null 2>&1; then timeout -s KILL {ASK_S} "$@"; else "$@"; fi
}}
"""
"""A shell function that ends a command in time, where the host has what it takes for that."""

PLACES = (
    "@/usr/lib/wsl/lib @/usr/local/nvidia/bin @/run/nvidia/driver/usr/bin "
    "@/run/current-system/sw/bin @/run/opengl-driver/bin @/usr/lib/nvidia*/bin @/usr/lib/nvidia* "
    "@/opt/nvidia*/bin @/opt/bin @/opt/*/bin @/opt/*/*/bin @/var/lib/nvidia/bin "
    "@/home/kubernetes/bin/nvidia/bin @/usr/local/cuda*/bin @/snap/bin"
)
"""Folders beside PATH in which nvidia-smi lies: Windows, drivers in containers, other systems."""

FIND = f"""
if ! command -v nvidia-smi >/dev/null 2>&1; then
  for folder in {PLACES}; do
    [ -f "$folder/nvidia-smi" ] && [ -x "$folder/nvidia-smi" ] || continue
    PATH="$PATH:$folder"
    for library in "$folder" "${{folder%/bin}}/lib64" "${{folder%/bin}}/lib" \
      "${{folder%/bin}}"/lib/*-linux-gnu
    do
      [ -e "$library/libnvidia-ml.so.1" ] || continue
      LD_LIBRARY_PATH="$library${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"; export LD_LIBRARY_PATH
      break
    done
    break
  done
fi
"""
"""Puts nvidia-smi into PATH, from where it lies, and its library where the program finds it."""

ASKED = r"""
asked() {
  kind=$1 wanted=$2; shift 2
  { code=$({ { limited nvidia-smi "$@" 2>&1 </dev/null 3>&- 4>&-; echo $? >&4; } |
    head -c 16777216 | awk -v kind="$kind" -v wanted="$wanted" '
      $0 ~ wanted { if (rows++ < 1024) print kind, substr($0, 1, 1000); next }
      NF && others++ < 40 { print kind, substr($0, 1, 400) }' >&3; } 4>&1); } 3>&1
  echo "$kind-code $code"
}
"""
"""A shell function that prints what nvidia-smi says, line by line, and what it ended with.

Lines of the wanted form are kept whatever stands before them, of others the first few.
"""

SCRIPT = f"""
if command -v nvidia-smi >/dev/null 2>&1; then
  for more in ,compute_cap,mig.mode.current ,mig.mode.current ''; do
    fields="{BEGIN},{END}$more"
    said=$(asked smi '^[0-9]+,' --query-gpu="$fields" --format=csv,noheader,nounits)
    case $said in *'not a valid field'*) ;; *) break ;; esac
  done
  echo "smi-fields $fields"
  printf '%s\\n' "$said"
  case $said in *', Enabled'*) asked list '^(GPU |  MIG )' -L ;; esac
fi
"""
"""Older drivers know neither `compute_cap` nor MIG: then it asks again for less."""

_PART = r"^\s+MIG (\S{1,40})\s+Device\s+([0-9]{1,3}): \(UUID: (MIG-[0-9A-Za-z/-]{4,100})\)"
_LOST = ("[GPU is lost]", "[GPU requires reset]")
_KILLED = (124, 137, 143)
_SIGNAL = 128
_INFOROM = 14  # a damaged infoROM, of which nvidia-smi warns: the GPU computes as before
_NONE = "No devices were found"
_UNTOLD = ("[N/A]", "N/A", "[Not Supported]", "Not Supported")
_UUID = r"GPU-[0-9A-Za-z-]{4,100}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_FAILS = re.compile(r"^(NVRM|error|failed|unable|couldn't)\b|Unable to determine", re.IGNORECASE)

_REASONS = (
    (
        "version mismatch",
        "the NVIDIA driver was updated while it was loaded: {said}",
        "reboot the host, or reload the driver's kernel modules",
    ),
    (
        "communicate with the NVIDIA driver",
        "the NVIDIA driver does not respond: {said}",
        "load it (`sudo modprobe nvidia`), or install one that matches the running kernel, then "
        "run nvidia-smi",
    ),
    (
        "is lost",
        "a GPU is lost: {said}",
        "reboot the host; if that does not help, see `dmesg | grep -i xid`",
    ),
    (
        "requires reset",
        "a GPU needs a reset: {said}",
        "stop the programs that use it, then run `sudo nvidia-smi --gpu-reset`, or reboot the host",
    ),
    (
        "nsufficient",
        "the NVIDIA driver denies access to this user: {said}",
        "check the permissions of /dev/nvidia*",
    ),
    (
        "libnvidia-ml",
        "nvidia-smi lacks the driver's library: {said}",
        "install the driver's libraries; a container must be started with GPU access",
    ),
)
_OTHER = ("nvidia-smi fails: {said}", "run nvidia-smi on the host, and see `dmesg`")


@dataclass(frozen=True)
class Hardware:
    """What the system shows of NVIDIA's hardware without asking the driver.

    `cards` are display devices on the PCI bus, `driver` a loaded driver. `tells` is False where
    that says nothing: Windows hides the bus from its Linux, some boards and boxes have none.
    """

    cards: int = 0
    driver: bool = False
    tells: bool = True

    @property
    def there(self) -> bool:
        """Whether there is some."""
        return bool(self.cards) or self.driver


def read(told: Mapping[str, Sequence[str]], hardware: Hardware) -> Accelerators:
    """Return the GPUs in what SCRIPT printed, its lines by their first word."""
    if "smi-code" not in told:
        problem = _no_program(hardware) if hardware.there else None
        return Accelerators(problem=problem, vendor="nvidia" if problem else "")
    fields = told.get("smi-fields", ("",))[-1].split(",")
    if not {*f"{BEGIN},{END}".split(",")} <= {*fields}:
        fields = []  # those are not what was asked for
    lines = told.get("smi", ())
    code = whole(told["smi-code"][-1], 3)
    rows = [row for line in lines if (row := _row(line, fields))]
    devices = tuple(row.device for row in rows if not row.failure)
    others = [line for line in lines if line.strip() and not _row(line, fields)]
    ill = [(row.device.index, row.failure) for row in rows if row.failure]
    problem = failure(code, others, ill, hardware, some=bool(rows))
    divided = [row for row in rows if row.divided and not row.failure]
    if divided:
        devices, without = _divide(rows, told)
        problem = problem or without
    return Accelerators(devices, problem, "nvidia" if devices or problem else "")


@dataclass(frozen=True)
class _Row:
    device: Device
    divided: bool
    failure: str


def _row(line: str, fields: Sequence[str]) -> _Row | None:
    """Return one line of the query; a name may hold commas, so it is what the others leave."""
    words = parted(line, len(fields), BEGIN.split(",").index("name"))
    if words is None:
        return None
    values = dict(zip(fields, words, strict=True))
    said = values.get("uuid", "")
    uuid = said if re.fullmatch(_UUID, said) else ""
    if not uuid and not said.startswith("[") and said not in _UNTOLD:
        return None
    failure = failure_in(words) or ("" if uuid or said in _UNTOLD else said)
    capability: str | None = values.get("compute_cap", "")
    if not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}", capability or ""):
        capability = None
    device = Device(
        index=str(int(words[0])),
        uuid=uuid,
        name=clean(values["name"], 100),
        memory_total_bytes=_mebibytes(values["memory.total"]),
        memory_used_bytes=_mebibytes(values["memory.used"]),
        driver=driver if (driver := clean(values["driver_version"], 40))[:1].isdigit() else "",
        compute_capability=capability,
    )
    return _Row(device, values.get("mig.mode.current") == "Enabled", clean(failure))


def parted(line: str, count: int, name: int) -> list[str] | None:
    """Return the values of one line of a query for `count` fields, None for a line of other kind.

    The first is the index. That at `name` may hold commas, so it is what the others leave.
    """
    words = [word.strip() for word in line.split(",")]
    if count < 2 or len(words) < count or whole(words[0], 4) is None:
        return None
    after = len(words) - (count - name - 1)
    return [*words[:name], ", ".join(words[name:after]), *words[after:]]


def failure_in(words: Sequence[str]) -> str:
    """Return the word that a GPU has for every field when it is gone, or ""."""
    return next((word for word in words if word in _LOST), "")


def _mebibytes(word: str) -> int | None:
    number = whole(word, 9)
    return None if number is None else number << 20


def _no_program(hardware: Hardware) -> Trouble:
    if hardware.driver:
        return Trouble(
            "the NVIDIA driver is loaded, but nvidia-smi is not installed",
            "install the driver's utilities (nvidia-utils); a container needs them mounted",
        )
    return Trouble(
        "the machine has an NVIDIA GPU, but no driver is loaded",
        "install NVIDIA's driver, then run nvidia-smi",
    )


def failure(
    code: int | None,
    others: Sequence[str],
    ill: Sequence[tuple[str, str]],
    hardware: Hardware,
    *,
    some: bool,
) -> Trouble | None:
    """Return what is wrong, by the exit code of a query and what it printed besides GPUs.

    `ill` are indices of GPUs with what they say instead of figures; `some` is True where it named
    any.
    """
    if code in _KILLED:
        return Trouble(
            f"nvidia-smi did not respond within {ASK_S} s",
            "a GPU or its driver hangs: see `dmesg | grep -i -e xid -e nvrm`, and reboot the host",
        )
    said = clean(" ".join(others))
    absent = not some and not hardware.there and hardware.tells
    if code is not None and _SIGNAL < code < _SIGNAL + 65 and not absent:
        return _ended(code - _SIGNAL, said)
    if _NONE in said or (not said and not some):
        return _none_found() if hardware.there else None
    if ill:
        said = said or f"GPU {', '.join(index for index, _ in ill)} says {ill[0][1]}"
    elif code in (0, _INFOROM) and some and not any(map(_fails, others)):
        return None
    elif absent:
        return None  # a machine without GPUs that has the programs of one with
    what, hint = next(((w, h) for sign, w, h in _REASONS if sign in said), _OTHER)
    return Trouble(what.format(said=said.rstrip(".") or f"it exited with status {code}"), hint)


def _ended(signal: int, said: str) -> Trouble:
    return Trouble(
        f"nvidia-smi was killed by signal {signal}" + (f": {said}" if said else ""),
        "reinstall the driver and its utilities in the same version; see `dmesg`",
    )


def _none_found() -> Trouble:
    return Trouble(
        "the machine has an NVIDIA GPU, but nvidia-smi finds none",
        "see `dmesg | grep -i nvrm`: the driver may not support the GPU, or it was not passed "
        "through to this container or virtual machine",
    )


def _fails(line: str) -> bool:
    """Tell whether a line beside the GPUs says that one of them fails, and is no warning."""
    return bool(_FAILS.search(line.strip())) or any(sign in line for sign, _, _ in _REASONS)


def _divide(
    rows: Sequence[_Row], told: Mapping[str, Sequence[str]]
) -> tuple[tuple[Device, ...], Trouble | None]:
    """Return the devices with each divided GPU's slices in its place."""
    slices = dict(_slices(told.get("list", ())))
    devices: list[Device] = []
    problem: Trouble | None = None
    for row in (row for row in rows if not row.failure):
        if not row.divided:
            devices.append(row.device)
            continue
        mine = slices.get(row.device.uuid, [])
        devices += [_slice(row.device, profile, number, uuid) for profile, number, uuid in mine]
        if not mine:
            problem = Trouble(
                f"MIG is enabled on GPU {row.device.index}, but it has no slices",
                f"create some (`sudo nvidia-smi mig -i {row.device.index} -cgi PROFILE -C`), or "
                f"switch it off (`sudo nvidia-smi -i {row.device.index} -mig 0`)",
            )
    return tuple(devices), problem


def _slices(lines: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield each GPU's UUID with the profile, number and UUID of its slices."""
    mine: list[tuple[str, str, str]] = []
    for line in lines:
        if gpu := re.search(r"^GPU [0-9]{1,4}: .*\(UUID: (GPU-[0-9A-Za-z-]{4,100})\)", line):
            mine = []
            yield gpu[1], mine
        elif part := re.search(_PART, line):
            mine.append((clean(part[1]), str(int(part[2])), part[3]))


def _slice(gpu: Device, profile: str, number: str, uuid: str) -> Device:
    """Return one slice; how much memory it has stands in its profile's name, as `1g.10gb`."""
    named = re.search(r"\b([0-9]{1,4})gb", profile)
    sizes = [int(named[1]) << 30] if named else []
    if sizes and gpu.memory_total_bytes:
        sizes.append(gpu.memory_total_bytes)
    return Device(
        index=f"{gpu.index}:{number}",
        uuid=uuid,
        name=f"{gpu.name} MIG {profile}",
        memory_total_bytes=min(sizes, default=None),
        driver=gpu.driver,
        compute_capability=gpu.compute_capability,
        parent=gpu.uuid,
    )
