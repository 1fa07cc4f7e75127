"""What nvidia-smi and Ray say of GPUs; the lines are made up, in the form of nvidia-smi 550."""

from __future__ import annotations

import subprocess

import pytest

from raycluster.status.gpus import ASK, Gpu, from_ray, from_smi
from tests.unit.status.standing import GPU


def test_reads_what_nvidia_smi_prints() -> None:
    text = (
        "0, NVIDIA H100 80GB HBM3, 97, 70123, 81559, 64, 512.31, 0\n"
        "1, NVIDIA GeForce RTX 4090, 3, 12, 24564, 31, [N/A], [N/A]\n"
    )
    assert from_smi(text) == (
        Gpu("nvidia-smi", "0", "NVIDIA H100 80GB HBM3", 97, 70123, 81559, 64, 512.31, 0),
        Gpu("nvidia-smi", "1", "NVIDIA GeForce RTX 4090", 3, 12, 24564, 31, None, None),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        'Field "power.draw" is not a valid field to query.\n',
    ],
)
def test_an_error_is_no_gpu(text: str) -> None:
    assert from_smi(text) == ()


def test_a_host_without_nvidia_smi_says_nothing() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", ASK], env={"PATH": "/nowhere"}, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


def test_reads_what_ray_gives() -> None:
    less = {"index": 1, "name": "AMD", "utilizationGpu": None, "memoryUsed": 1, "memoryTotal": 2}
    assert from_ray([GPU, less]) == (
        Gpu("ray", "0", "NVIDIA H100", 95, 70000, 81920, 71, 350.5, None),
        Gpu("ray", "1", "AMD", None, 1, 2, None, None, None),
    )
