"""How a container is given the host's GPUs, and the RDMA devices that they talk through."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from docker.types import DeviceRequest

from raycluster.core.accelerators import amd
from raycluster.core.accelerators import host as hardware
from raycluster.core.accelerators.choice import WITHOUT, visible
from raycluster.core.errors import RuntimeUnavailableError
from raycluster.core.interfaces import BoxOptions, Gpus, Transport
from raycluster.core.untrusted import text_of
from raycluster.hosts.runtimes.docker_errors import TOOLKIT

KIND = "nvidia.com/gpu"

_LOOK = r"""
for program in nvidia-container-runtime-hook nvidia-container-runtime; do
  command -v "$program" >/dev/null 2>&1 && echo "program $program"
done
sed -n 's/^[[:space:]]*mode[[:space:]]*=[[:space:]]*"\([a-z-]*\)".*/mode \1/p' \
  @/etc/nvidia-container-runtime/config.toml 2>/dev/null
grep -ls 'nvidia.com/gpu' @/etc/cdi/* @/var/run/cdi/* 2>/dev/null | sed 's/^/specified /'
for device in @/dev/kfd @/dev/dri/renderD*; do
  [ -e "$device" ] && echo "group $(stat -c %g "$device")"
done
[ ! -e @/dev/dri ] || echo dri
true
"""


@dataclass(frozen=True)
class GpuOptions:
    """What a container with GPUs has besides: in its host configuration, and in its environment."""

    host: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def look_script(root: str = "") -> str:
    """Return what the host's shell is asked; `root` is that of its file system."""
    own = (_LOOK + amd.NODES).replace("@/", f"{root}/")
    return hardware.quick_script(root) + own


def gpu_options(
    info: Mapping[str, Any], transport: Transport, gpus: Gpus, host: str
) -> GpuOptions | None:
    """Return the options of a container with GPUs, None where there are none to hand on.

    `info` is what the daemon says about itself. Raises RuntimeUnavailableError where GPUs are
    asked for, or there, and Docker cannot hand them on.
    """
    if gpus == 0:
        return None
    text = text_of(transport.run(("sh", "-c", look_script())), "look for GPUs", host)
    return options_of(info, text, gpus, host)


def options_of(info: Mapping[str, Any], text: str, gpus: Gpus, host: str) -> GpuOptions | None:
    """Return the options by what the daemon and the host's shell said."""
    told = hardware.by_word(text)
    nvidia, cards = hardware.has_nvidia(text), amd.nodes(told)
    if gpus == "all" and not nvidia and not cards:
        return None
    if cards and not nvidia:
        return GpuOptions(_amd(cards, told, gpus, host))
    known = _discovered(info)
    by_name = bool(known) or _reads_specifications(info, told)
    # In this mode the toolkit refuses to be called as a hook, which is what a count of GPUs does.
    forced = not {"cdi", "jit-cdi"}.isdisjoint(told.get("mode", ()))
    runtime = "nvidia" in (info.get("Runtimes") or {})
    if (runtime or "program" in told) and not forced:
        return GpuOptions({"device_requests": [_request(gpus)]}, _slices(gpus))
    if by_name:
        return GpuOptions({"device_requests": [_by_name(gpus, known, host)]}, _slices(gpus))
    if runtime:
        devices = visible(gpus)
        given = {"NVIDIA_VISIBLE_DEVICES": "all" if devices is None else devices}
        return GpuOptions({"runtime": "nvidia"}, {**given, **_slices(gpus)})
    raise _no_way(host)


def _no_way(host: str) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        "Docker cannot give GPUs to containers: it has no NVIDIA runtime",
        where=host,
        hint=f"{TOOLKIT}; {WITHOUT}",
    )


def _request(gpus: Gpus) -> DeviceRequest:
    if isinstance(gpus, tuple):
        return DeviceRequest(device_ids=[str(each) for each in gpus], capabilities=[["gpu"]])
    return DeviceRequest(count=-1 if gpus == "all" else gpus, capabilities=[["gpu"]])


def _by_name(gpus: Gpus, known: frozenset[str], host: str) -> DeviceRequest:
    devices = visible(gpus)
    names = [f"{KIND}={name}" for name in ("all" if devices is None else devices).split(",")]
    if unknown := [name for name in names if known and name not in known]:
        raise RuntimeUnavailableError(
            f"Docker has no device {', '.join(unknown)}, only {', '.join(sorted(known)[:16])}",
            where=host,
            hint="correct `gpus`, or update the device list: "
            "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`",
        )
    return DeviceRequest(driver="cdi", device_ids=names)


def _slices(gpus: Gpus) -> dict[str, str]:
    """Return what makes CUDA use several MIG slices: by itself it counts no more than one."""
    named = gpus if isinstance(gpus, tuple) else ()
    if len(named) > 1 and any(str(each).startswith("MIG-") for each in named):
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, named))}
    return {}


def _discovered(info: Mapping[str, Any]) -> frozenset[str]:
    devices = info.get("DiscoveredDevices") or []
    names = {str(d.get("ID", "")) for d in devices if isinstance(d, Mapping)}
    return frozenset(name for name in names if name.startswith(f"{KIND}="))


def _reads_specifications(info: Mapping[str, Any], told: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether the daemon hands on devices by the files that describe them.

    Daemons before API 1.50 do not list the devices; where they read such files is empty when it is
    switched off.
    """
    folders = [str(folder).rstrip("/") for folder in info.get("CDISpecDirs") or []]
    files = [re.sub(r"^/var/run/", "/run/", path) for path in told.get("specified", ())]
    inside = [re.sub(r"^/var/run/", "/run/", folder) for folder in folders]
    return any(path.rpartition("/")[0] in inside for path in files)


def _amd(
    cards: Sequence[amd.Node], told: Mapping[str, Sequence[str]], gpus: Gpus, host: str
) -> dict[str, Any]:
    """Return the devices of AMD's GPUs, and the groups that own them on the host.

    `render` is often no group of the image, or has another number there: numbers are what counts.
    """
    groups = sorted({g for g in told.get("group", ()) if g.isdecimal() and g != "0"}, key=int)
    devices = ["/dev/kfd", "/dev/dri"] if gpus == "all" and "dri" in told else []
    if not devices:
        indices = range(gpus) if isinstance(gpus, int) else gpus
        wanted = range(len(cards)) if gpus == "all" else [str(each) for each in indices]
        there = {str(n): f"/dev/dri/renderD{card.render}" for n, card in enumerate(cards)}
        if missing := [str(each) for each in wanted if str(each) not in there]:
            raise RuntimeUnavailableError(
                f"gpus selects {', '.join(missing)}, but the host has {', '.join(there)}",
                where=host,
                hint="correct `gpus`: AMD GPUs are selected by index",
            )
        devices = ["/dev/kfd", *(there[str(each)] for each in wanted)]
    return {"devices": devices, "group_add": ["video", *groups]}


FOLDER = "/dev/infiniband"
LOCK, PIN = "memlock", "IPC_LOCK"


def has_rdma(transport: Transport, folder: str = FOLDER) -> bool:
    """Tell whether the host has devices through which programs use RDMA."""
    look = 'for device in "$1"/uverbs*; do [ -c "$device" ] && echo yes && break; done; true'
    done = transport.run(("sh", "-c", look, "sh", folder))
    return text_of(done, "look for RDMA devices", transport.address) == "yes"


def with_rdma(box: BoxOptions, folder: str = FOLDER) -> BoxOptions:
    """Return the options with which RDMA works: its devices, and memory that stays where it is.

    What is already said of one of them stays.
    """
    given = {device.partition(":")[0].rstrip("/") for device in box.devices}
    own = any(path == folder or path.startswith(f"{folder}/") for path in given)
    pinned = {each.removeprefix("CAP_") for each in box.capabilities}
    return replace(
        box,
        devices=box.devices if own else (*box.devices, folder),
        ulimits={LOCK: -1, **box.ulimits},
        capabilities=box.capabilities if PIN in pinned else (*box.capabilities, PIN),
    )
