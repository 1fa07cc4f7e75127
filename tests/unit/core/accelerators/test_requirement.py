"""What a model asks of GPUs is met by what drivers really tell, and by nothing like it."""

from __future__ import annotations

import pytest

from raycluster.core.accelerators.requirement import read_requirement
from raycluster.core.accelerators.values import Device

# name and MiB, as nvidia-smi and rocm-smi tell them
A100_40 = ("NVIDIA A100-SXM4-40GB", 40536)
A100_80 = ("NVIDIA A100 80GB PCIe", 81920)
A1000 = ("NVIDIA RTX A1000", 8188)
A6000 = ("NVIDIA RTX A6000", 49140)
GB10 = ("NVIDIA GB10", 122570)
H100 = ("NVIDIA H100 80GB HBM3", 81559)
L4 = ("NVIDIA L4", 23034)
L40S = ("NVIDIA L40S", 46068)
MI300X = ("AMD Instinct MI300X", 196592)
RTX_4090 = ("NVIDIA GeForce RTX 4090", 24564)
SILENT = ("NVIDIA Thing", None)
SLICE = ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10240)
T4 = ("Tesla T4", 15360)
ALL = {A100_40, A100_80, A1000, A6000, GB10, H100, L4, L40S, MI300X, RTX_4090, SILENT, SLICE, T4}


@pytest.mark.parametrize(
    ("text", "fitting"),
    [
        ("A6000", {A6000}),
        ("rtx a6000", {A6000}),
        ("A100", {A100_40, A100_80}),
        ("a100 80gb", {A100_80}),
        ("A100-SXM4-40GB", {A100_40}),
        ("L4", {L4}),
        ("L40", set()),
        ("4090", {RTX_4090}),
        ("GeForce 4090", {RTX_4090}),
        ("mi300x", {MI300X}),
        ("A100 >= 80 GB", {A100_80}),
        ("A100>=40GiB", {A100_40, A100_80}),
        (">= 24 GB", ALL - {A1000, SILENT, SLICE, T4, L4} | {L4}),
        (">= 24 GiB", ALL - {A1000, SILENT, SLICE, T4, L4}),
        (">= 48 GB", {A6000, L40S, A100_80, GB10, H100, MI300X}),
        (">= 48 GiB", {A6000, A100_80, GB10, H100, MI300X}),
        (">= 80 gib", {A100_80, GB10, H100, MI300X}),
        (">=79.7GiB", {A100_80, GB10, MI300X}),
        (">= 16 GB", ALL - {A1000, SILENT, SLICE}),
    ],
)
def test_what_fits(text: str, fitting: set[tuple[str, int | None]]) -> None:
    wanted = read_requirement(text)
    found = {
        (name, size)
        for name, size in ALL
        if wanted.fits(Device("0", "u", name, None if size is None else size << 20))
    }
    assert found == fitting


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("48 GB", 'did you mean ">= 48 GB"?'),
        ("40GiB", 'did you mean ">= 40 GiB"?'),
        ("> 40 GiB", 'did you mean ">= 40 GiB"?'),
        (">= 0 GB", "not 0 of memory"),
        ("", "is expected, not ''"),
        ("--", "is expected, not '--'"),
        (">= 40", "is expected, not '>= 40'"),
        (">= many GB", "is expected"),
        ("<= 40 GB", "is expected"),
        ("-- >= 40 GB", "is expected"),
        ("A100 >= 40 GB >= 80 GB", "is expected"),
        (">= 9999999 GB", "is expected"),
        (">= ٤٠ GB", "is expected"),
        ("日本", "is expected"),
    ],
)
def test_what_says_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="is expected") as caught:
        read_requirement(text)
    assert said in str(caught.value)
