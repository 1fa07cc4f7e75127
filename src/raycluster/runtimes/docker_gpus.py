"""How a container is given the host's GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docker.types import DeviceRequest

from raycluster.contracts import Gpus, Transport
from raycluster.errors import RuntimeUnavailableError
from raycluster.runtimes.docker_errors import TOOLKIT

LOOK = (
    "command -v nvidia-container-runtime-hook nvidia-container-runtime; "
    "ls -d /dev/nvidiactl /dev/kfd /dev/dri 2>/dev/null; true"
)


def gpu_options(
    info: Mapping[str, Any], transport: Transport, gpus: Gpus, host: str
) -> dict[str, Any]:
    """Return the options of a container's host configuration; "all" of none is none.

    `info` is what the daemon says about itself. Raises RuntimeUnavailableError where GPUs are
    asked for, or there, and Docker cannot hand them on.
    """
    if gpus == 0:
        return {}
    seen = set(transport.run(("sh", "-c", LOOK)).text.split())
    if _offers_nvidia(info, seen):
        return {"device_requests": [DeviceRequest(count=_count(gpus), capabilities=[["gpu"]])]}
    if _offers_cdi(info):
        names = ["all"] if gpus == "all" else [str(index) for index in range(gpus)]
        return {
            "device_requests": [
                DeviceRequest(driver="cdi", device_ids=[f"nvidia.com/gpu={n}" for n in names])
            ]
        }
    if "/dev/kfd" in seen and "/dev/dri" in seen:
        return {"devices": ["/dev/kfd", "/dev/dri"], "group_add": ["video"]}
    if gpus == "all" and "/dev/nvidiactl" not in seen:
        return {}
    raise RuntimeUnavailableError(
        "Docker cannot give GPUs to containers: it has no NVIDIA runtime", where=host, hint=TOOLKIT
    )


def _count(gpus: Gpus) -> int:
    return -1 if gpus == "all" else gpus


def _offers_nvidia(info: Mapping[str, Any], seen: set[str]) -> bool:
    hook = any(path.rpartition("/")[2].startswith("nvidia-container-runtime") for path in seen)
    return "nvidia" in (info.get("Runtimes") or {}) or hook


def _offers_cdi(info: Mapping[str, Any]) -> bool:
    devices = info.get("DiscoveredDevices") or []
    return any(str(device.get("ID", "")).startswith("nvidia.com/gpu") for device in devices)
