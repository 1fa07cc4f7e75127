"""What a spec asks of a host's GPUs, and what is said where the host has not got it."""

from __future__ import annotations

import pytest

from raycluster.core.accelerators.choice import WITHOUT, chosen, count, lack, named, visible
from raycluster.core.accelerators.values import Accelerators, Choice, Device, Trouble

ONE, TWO, THREE = (Device(str(n), f"GPU-{n}{n}{n}{n}", "L4", n << 30) for n in range(3))
WHOLE = Accelerators((ONE, TWO, THREE), vendor="nvidia")
PART = Device("0:0", "MIG-aaaa", "A100 MIG 1g.10gb", 10 << 30, parent="GPU-0000")
SLICED = Accelerators((PART, TWO), vendor="nvidia")
ILL = Accelerators((TWO,), Trouble("a GPU is lost: GPU 0", "reboot the host"), "nvidia")
NONE = Accelerators()


@pytest.mark.parametrize(
    ("choice", "said", "counted", "shown", "indices"),
    [
        ("all", None, 3, None, "012"),
        (0, 0, 0, "", ""),
        (2, 2, 2, "0,1", "01"),
        ((2, 0), 2, 2, "2,0", "20"),
        (("GPU-1111",), 1, 1, "GPU-1111", "1"),
    ],
)
def test_what_is_chosen(
    choice: Choice, said: int | None, counted: int, shown: str | None, indices: str
) -> None:
    assert (named(choice), count(choice, WHOLE), visible(choice)) == (said, counted, shown)
    assert "".join(device.index for device in chosen(choice, WHOLE)) == indices
    assert lack(choice, WHOLE) is None


@pytest.mark.parametrize(
    ("choice", "found", "what", "hint"),
    [
        (4, WHOLE, "gpus = 4, but the host has 3", "correct `gpus`"),
        ((7, 1), WHOLE, "gpus names 7, but the host has 0 (L4, GPU-0000), 1 (L4, GPU-1111), 2 (L4, "
         "GPU-2222)", "nvidia-smi -L"),
        (("GPU-ffff",), WHOLE, "gpus names GPU-ffff, but the host has 0 (L4", "nvidia-smi -L"),
        ((0,), NONE, "gpus names 0, but the host has no GPU", "nvidia-smi -L"),
        ("all", ILL, "a GPU is lost: GPU 0",
         f'reboot the host; use those that respond: gpus = ["GPU-1111"]; {WITHOUT}'),
        (1, ILL, "a GPU is lost: GPU 0", "reboot the host; use those"),
        ((0,), ILL, "gpus names 0, which does not respond: a GPU is lost: GPU 0",
         "reboot the host"),
        ("all", SLICED, 'its GPUs are divided by MIG, and gpus = "all" does not say which slices',
         'name them, each with its UUID: gpus = ["MIG-aaaa", "GPU-1111"]'),
        (1, SLICED, "its GPUs are divided by MIG, and gpus = 1 does not say", "MIG-aaaa"),
        ((0,), SLICED, "gpus names 0, which is divided into MIG slices",
         'name slices: gpus = ["MIG-aaaa"]'),
        (("GPU-0000",), SLICED, "gpus names GPU-0000, which is divided into MIG slices",
         "MIG-aaaa"),
    ],
)  # fmt: skip
def test_what_is_lacking_and_the_next_step(
    choice: Choice, found: Accelerators, what: str, hint: str
) -> None:
    trouble = lack(choice, found)
    assert trouble
    assert trouble.what.startswith(what)
    assert hint in trouble.hint


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (0, ILL),
        ((1,), ILL),
        (("GPU-1111",), ILL),
        ("all", NONE),
        (("MIG-aaaa", "GPU-1111"), SLICED),
        ((1,), SLICED),
    ],
)
def test_what_can_be_used(choice: Choice, found: Accelerators) -> None:
    assert lack(choice, found) is None
