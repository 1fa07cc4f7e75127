"""Hosts of the lab that have GPUs as far as all programs on them can see."""

from __future__ import annotations

import platform
from pathlib import Path

from tests.lab.fake_nvidia import Driver
from tests.lab.host import Host
from tests.lab.network import sh

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIST = "/etc/lab-gpus"
PROGRAM = "/usr/local/bin/nvidia-smi"
LIBRARY = f"/usr/lib/{platform.machine()}-linux-gnu/libnvidia-ml.so.1"
HOOK = "/usr/local/bin/nvidia-container-runtime-hook"

# The bus of the machine that the lab runs on is another one on each machine.
_BUS = """
mount -t tmpfs tmpfs /sys/bus/pci/devices
cd /sys/bus/pci/devices
device() { mkdir "$1"; echo "$2" >"$1/vendor"; echo "$3" >"$1/class"; }
device 0000:00:1f.0 0x8086 0x060100
for each in $(seq "$1"); do device "0000:$each:00.0" 0x10de 0x030200; done
"""

# Before a container starts, NVIDIA's hook puts the driver's files into it.
_HOOK = f"""#!/bin/sh
# a double of the tests
bundle=$(sed 's/.*"bundle":"\\([^"]*\\)".*/\\1/')
root=$(sed 's/.*"root":{{"path":"\\([^"]*\\)".*/\\1/' "$bundle/config.json")
exec cp --parents --target-directory "$root" {LIST} {PROGRAM} {LIBRARY}
"""


def make_library(folder: Path) -> Path:
    """Compile the double of libnvidia-ml, through which Ray counts GPUs."""
    path = folder / "libnvidia-ml.so.1"
    sh("gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", path, SOURCE)
    return path


def put(host: Host, path: str, content: bytes, mode: str = "644") -> None:
    """Write a file of a host's disk."""
    done = host.run(("sh", "-c", f'cat >"$0" && chmod {mode} "$0"', path), stdin=content)
    assert done.returncode == 0, done.stderr


def give_gpus(host: Host, driver: Driver | None, cards: int) -> None:
    """Put so many cards on a host's bus, and a driver's nvidia-smi on its disk."""
    host.check("sh", "-ec", _BUS, "bus", str(cards))
    if driver:
        put(host, PROGRAM, driver.script().encode(), "755")


def give_library(host: Host, driver: Driver, library: Path) -> None:
    """Put the driver's library on a host's disk, in the folder where every program looks."""
    lines = "".join(f"{card.uuid}\t{card.name}\n" for card in driver.cards)
    put(host, LIST, lines.encode())
    put(host, LIBRARY, library.read_bytes())


def give_toolkit(host: Host) -> None:
    """Let a host's Docker give GPUs to containers."""
    put(host, HOOK, _HOOK.encode(), "755")
    host.stop_service("dockerd")  # which looks for the hook when it starts
    host.start_service("dockerd")
