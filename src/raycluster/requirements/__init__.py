"""What is installed on hosts, each package with version and hashes, and what that needs there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from raycluster.core.tested_versions import TORCH, VLLM


@dataclass(frozen=True)
class Needs:
    """What an environment needs of a host with NVIDIA's GPUs.

    `cuda` is what its packages are built for, `capability` the least of a GPU for which kernels are
    there, `glibc` the oldest by processor.
    """

    what: str
    cuda: str
    capability: tuple[int, int]
    glibc: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class RequirementsLock:
    """The packages of an environment as pip reads them: what is fetched and stored, in bytes.

    `beside` are those that have a version there and no hash.
    """

    text: bytes = field(repr=False)
    download: int
    stored: int
    beside: tuple[str, ...] = ()


DRIVERS: Mapping[int, int] = {11: 450, 12: 525, 13: 580}
"""The first release of NVIDIA's driver that runs programs of a CUDA's major version.

From NVIDIA's table of minor version compatibility, as known in 2026-11.
"""

GPU_NEEDS = Needs(
    what=f"vLLM {VLLM}",
    cuda="13.0",
    capability=(7, 5),
    glibc={"x86_64": (2, 31), "aarch64": (2, 34)},
)
"""Of node-gpu.txt, seen 2026-11-29: kernels by cuobjdump, glibc by which wheels uv takes."""


def gpu_lock() -> RequirementsLock:
    """Return what a native host with NVIDIA GPUs gets, of every processor and Python.

    Its sizes are those of an installation on x86_64 with Python 3.11, bytecode included.
    """
    return RequirementsLock(_read("node-gpu.txt"), download=4_400_000_000, stored=9_000_000_000)


def cpu_lock() -> RequirementsLock:
    """Return what a native host without GPUs gets, sizes as above.

    torch's build for CPUs comes from an index of PyTorch's own, which tells no hash beforehand.
    """
    return RequirementsLock(
        _read("node-cpu.txt"),
        download=1_000_000_000,
        stored=4_200_000_000,
        beside=(f"torch=={TORCH}",),
    )


def ray_lock() -> bytes:
    """Return the packages that are added to an image without Ray, as far as it lacks them."""
    return _read("ray.txt")


def uv_lock() -> bytes:
    """Return the uv that is installed where there is none."""
    return _read("uv.txt")


def _read(name: str) -> bytes:
    return (resources.files(__name__) / name).read_bytes()


def too_old_for(cuda: str, driver: str) -> int:
    """Return the oldest release of NVIDIA's driver for a CUDA, 0 where the driver will do."""
    if not cuda or not driver:
        return 0
    least = DRIVERS.get(_release(cuda)[0], 0)
    return least if _release(driver)[0] < least else 0


def short_of(
    needs: Needs, *, machine: str, glibc: str, driver: str, capabilities: Mapping[str, str | None]
) -> tuple[str, str] | None:
    """Return what a host lacks for an environment, with the next step.

    `machine` is its processor's name, `glibc` and `driver` are versions, `capabilities` are those
    of the GPUs by name. What is empty or None is not known, and lacks nothing.
    """
    docker = "use Docker with an image built for it"
    if machine and machine not in needs.glibc:
        made = ", ".join(needs.glibc)
        return f"{needs.what} is not available for {machine} processors, only for {made}", docker
    least = needs.glibc.get(machine)
    if least and glibc and _release(glibc) < least:
        told = ".".join(map(str, least))
        return f"{needs.what} needs glibc {told}, but the host has {glibc}", docker
    if oldest := too_old_for(needs.cuda, driver):
        return (
            f"{needs.what} needs NVIDIA's driver {oldest} or newer (CUDA {needs.cuda}), but the "
            f"host has {driver}",
            "update the driver, or use Docker with an image that is built for an older CUDA",
        )
    for name, capability in capabilities.items():
        if capability and _release(capability) < needs.capability:
            told = ".".join(map(str, needs.capability))
            return (
                f"{needs.what} has kernels for compute capability {told} and newer, but {name} has "
                f"{capability}",
                "select other GPUs with `gpus`, or set gpus = 0 to use this host without its GPUs",
            )
    return None


def _release(version: str) -> tuple[int, int]:
    first, _, rest = version.partition(".")
    second = rest.partition(".")[0]
    return int(first), int(second) if second.isdecimal() else 0
