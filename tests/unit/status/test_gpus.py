"""What nvidia-smi and Ray say of GPUs; the lines are made up, in the form of nvidia-smi 550."""

from __future__ import annotations

import subprocess

import pytest

from raycluster.core.untrusted import Told
from raycluster.status.gpus import ASK, GpuStatus, from_ray, from_smi
from tests.unit.status.standing import GPU

PCI = "pci other\npci nvidia\n"


def told(text: str, code: int = 0) -> str:
    return f"{PCI}smi-code {code}\n" + "".join(f"smi {line}\n" for line in text.splitlines())


def test_reads_what_nvidia_smi_prints() -> None:
    text = (
        "0, NVIDIA H100 80GB HBM3, 97, 70123, 81559, 64, 512.31, 0\n"
        "1, NVIDIA GeForce RTX 4090, 24 GB, 3, 12, 24564, 31, [N/A], [N/A]\n"
    )
    assert from_smi(told(text)) == (
        (
            GpuStatus("nvidia-smi", "0", "NVIDIA H100 80GB HBM3", 97, 70123, 81559, 64, 512.31, 0),
            GpuStatus(
                *("nvidia-smi", "1", "NVIDIA GeForce RTX 4090, 24 GB", 3, 12, 24564, 31),
                *(None, None),
            ),
        ),
        None,
    )


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        ("No devices were found", 6, "nvidia-smi finds none"),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
            *(9, "the NVIDIA driver does not respond: NVIDIA-SMI has failed"),
        ),
        ('Field "power.draw" is not a valid field to query.', 2, "nvidia-smi fails: Field"),
        ("0" * 310, 0, "nvidia-smi fails: 0000"),
        ("", 137, "did not respond within"),
    ],
)
def test_an_error_is_no_gpu_and_is_told(text: str, code: int, what: str) -> None:
    gpus, problem = from_smi(told(text, code))
    assert gpus == ()
    assert problem
    assert what in problem.what


def test_a_machine_without_gpus_says_nothing_whatever_programs_it_has() -> None:
    assert from_smi("pci other\nsmi-code 9\nsmi NVIDIA-SMI has failed\n") == ((), None)
    assert from_smi(PCI) == ((), None)


def test_a_lost_gpu_is_told_beside_those_that_answer() -> None:
    lost = "[GPU is lost]"
    text = f"0, NVIDIA A100, 1, 2, 3, 4, 5, 0\n1, NVIDIA A100{f', {lost}' * 6}\n"
    gpus, problem = from_smi(told(text, 15))
    assert [gpu.index for gpu in gpus] == ["0"]
    assert problem
    assert problem.what == "a GPU is lost: GPU 1 says [GPU is lost]"


def test_a_host_without_nvidia_smi_says_nothing_of_gpus() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", ASK], env={"PATH": "/nowhere"}, capture_output=True, check=True, text=True
    )
    assert from_smi(done.stdout) == ((), None)


def test_reads_what_ray_gives() -> None:
    less = {"index": 1, "name": "AMD", "utilizationGpu": None, "memoryUsed": 1, "memoryTotal": 2}
    assert from_ray(Told([GPU, less])) == (
        GpuStatus("ray", "0", "NVIDIA H100", 95, 70000, 81920, 71, 350.5, None),
        GpuStatus("ray", "1", "AMD", None, 1, 2, None, None, None),
    )
