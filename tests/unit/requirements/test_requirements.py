"""What a host lacks for the environment with GPUs, told before anything is fetched."""

from __future__ import annotations

from typing import Any

import pytest

from raycluster.core.accelerators.values import Accelerators, Device
from raycluster.core.errors import HostError
from raycluster.core.interfaces import Facts
from raycluster.plan.preconditions import check_host_gpus
from raycluster.requirements import GPU_NEEDS
from raycluster.spec import ClusterSpec

H100 = Device("0", "GPU-aaaa", "NVIDIA H100", driver="580.65.06", compute_capability="9.0")
GOOD = {"machine": "x86_64", "glibc": "2.36"}


def check(device: Device, facts: dict[str, str], **runtime: Any) -> None:
    """Check a native host with this GPU."""
    spec = ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "runtime": {"kind": "native"} | runtime,
            "head": {"host": "h"},
        }
    )
    gpus = Accelerators((device,), None, "nvidia")
    check_host_gpus(spec.hosts[0], Facts(gpus=gpus, **facts))  # type: ignore[arg-type]


def device(**changes: str | None) -> Device:
    plain = {"index": "0", "uuid": "GPU-aaaa", "name": "NVIDIA H100", "driver": "580.65.06"}
    return Device(**{**plain, "compute_capability": "9.0", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpu", "facts"),
    [
        (H100, GOOD),
        (H100, GOOD | {"glibc": "2.31"}),
        (H100, GOOD | {"machine": "aarch64"}),
        (H100, {}),
        (device(driver="", compute_capability=None), GOOD),
        (device(driver="999.1"), GOOD),
        (device(compute_capability="7.5"), GOOD),
        (device(compute_capability="12.1"), GOOD),
    ],
)
def test_what_is_enough_or_not_known(gpu: Device, facts: dict[str, str]) -> None:
    check(gpu, facts)


@pytest.mark.parametrize(
    ("gpu", "facts", "said", "step"),
    [
        (
            device(driver="570.124.06"),
            GOOD,
            "needs NVIDIA's driver 580 or newer (CUDA 13.0), but the host has 570.124.06",
            "update the driver",
        ),
        (
            device(name="Tesla V100", compute_capability="7.0"),
            GOOD,
            "compute capability 7.5 and newer, but GPU 0 (Tesla V100) has 7.0",
            "gpus = 0",
        ),
        (H100, GOOD | {"glibc": "2.28"}, "needs glibc 2.31, but the host has 2.28", "Docker"),
        (
            H100,
            {"machine": "aarch64", "glibc": "2.31"},
            "needs glibc 2.34, but the host has 2.31",
            "Docker",
        ),
        (H100, GOOD | {"machine": "ppc64le"}, "is not available for ppc64le processors", "Docker"),
    ],
)
def test_what_is_not(gpu: Device, facts: dict[str, str], said: str, step: str) -> None:
    with pytest.raises(HostError) as error:
        check(gpu, facts)
    assert said in error.value.what
    assert error.value.what.startswith(GPU_NEEDS.what)
    assert error.value.where == "head"
    assert step in error.value.hint


@pytest.mark.parametrize(
    ("name", "image", "driver", "said"),
    [
        ("NVIDIA GeForce RTX 4090", None, "570.86", "built for CUDA 13.0, which on a NVIDIA GeF"),
        ("NVIDIA GeForce RTX 4090", "vllm/vllm-openai:v0.32.0-cu129", "570.86", ""),
        ("NVIDIA GeForce RTX 4090", "vllm/vllm-openai:v0.32.0-cu129", "470.1", "for CUDA 12.9"),
        ("NVIDIA GeForce RTX 4090", "acme/serving:1", "470.1", ""),
        ("NVIDIA GeForce RTX 4090", None, "580.65", ""),
        ("NVIDIA GeForce RTX 4090", None, "", ""),
        ("NVIDIA H100", None, "550.54", ""),
    ],
)
def test_the_driver_for_an_image_is_compared_where_its_libraries_do_not_help(
    name: str, image: str | None, driver: str, said: str
) -> None:
    runtime = {"kind": "docker", **({"image": image} if image else {})}
    gpu = device(name=name, driver=driver)
    if not said:
        return check(gpu, GOOD, **runtime)
    with pytest.raises(HostError, match=said) as error:
        check(gpu, GOOD, **runtime)
    assert "runtime.image" in error.value.hint
    return None


def test_an_environment_of_one_s_own_is_not_judged() -> None:
    old = device(driver="535.1", compute_capability="7.0")
    check(old, GOOD, python="/opt/python")
    check(old, GOOD, requirements=["ray==2.60.0", "vllm==0.32.0"])
