"""What a container needs to use the RDMA devices of a host: InfiniBand, RoCE."""

from __future__ import annotations

from dataclasses import replace

from raycluster.core.interfaces import BoxOptions, Transport
from raycluster.core.untrusted import text_of

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
