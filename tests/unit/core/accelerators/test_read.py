"""What a host's shell tells of GPUs, read from outputs in the form of real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from raycluster.core.accelerators import host
from raycluster.core.accelerators.values import Accelerators, Device, clean, decimal, sharing, whole

MIB = 1 << 20
FULL = "index,uuid,name,memory.total,memory.used,driver_version,compute_cap,mig.mode.current"
UUID = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"
OTHER = "GPU-6e6cb1e7-d33d-2b2c-524d-9e3d8d2b8a77"
CARD = "pci nvidia\n"
LOST = (
    "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  "
    "Reboot the system to recover this GPU"
)


def told(text: str, code: int = 0, fields: str = FULL, before: str = CARD, listed: str = "") -> str:
    lines = [f"{before}smi-fields {fields}", f"smi-code {code}"]
    lines += [f"smi {line}" for line in text.splitlines()]
    lines += ["list-code 0", *(f"list {line}" for line in listed.splitlines())] if listed else []
    return "\n".join(lines)


def only(text: str, **changes: Any) -> Device:
    found = host.read(told(text, **changes))
    assert found.problem is None
    [device] = found.devices
    return device


def test_every_field_of_a_gpu() -> None:
    line = f"0, {UUID}, NVIDIA H100 80GB HBM3, 81559, 4, 580.65.06, 9.0, Disabled"
    assert only(line) == Device(
        "0", UUID, "NVIDIA H100 80GB HBM3", 81559 * MIB, 4 * MIB, "580.65.06", "9.0"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # unified memory: GB10 and others tell no total
        (
            f"0, {UUID}, NVIDIA GB10, [N/A], [N/A], 580.95.05, 12.1, [N/A]",
            Device("0", UUID, "NVIDIA GB10", None, None, "580.95.05", "12.1"),
        ),
        (
            f"0, {UUID}, NVIDIA GH200 480GB, 97871, 1, 560.35.03, 9.0, Disabled",
            Device("0", UUID, "NVIDIA GH200 480GB", 97871 * MIB, MIB, "560.35.03", "9.0"),
        ),
        (
            f"0, {UUID}, Tesla, V100, PCIe, 16160, 0, 450.80.02, 7.0, [Not Supported]",
            Device("0", UUID, "Tesla, V100, PCIe", 16160 * MIB, 0, "450.80.02", "7.0"),
        ),
        (
            f"0, {UUID}, NVIDIA L4, [Unknown Error], [Unknown Error], 550.54.15, 8.9, [N/A]",
            Device("0", UUID, "NVIDIA L4", None, None, "550.54.15", "8.9"),
        ),
        (
            f"0, {UUID}, NVIDIA L4, {'9' * 310}, -1, {'5' * 310}, {'1' * 310}.0, [N/A]",
            Device("0", UUID, "NVIDIA L4", None, None, f"{'5' * 37}...", None),
        ),
        (
            f"0, {UUID}, \x1b[31mNVIDIA\x07 L4, 1, 1, 550.54.15, , ",
            Device("0", UUID, "[31mNVIDIA L4", MIB, MIB, "550.54.15", None),
        ),
    ],
    ids=["GB10", "GH200", "commas", "unknown error", "310 digits", "control characters"],
)
def test_what_is_not_told_is_none_and_never_a_traceback(line: str, expected: Device) -> None:
    assert only(line) == expected


@pytest.mark.parametrize(
    "fields", [FULL.removesuffix(",compute_cap,mig.mode.current"), FULL.replace(",compute_cap", "")]
)
def test_an_older_driver_is_asked_for_less(fields: str) -> None:
    line = f"0, {UUID}, Tesla P4, 7611, 0, 440.33.01" + (", [N/A]" if "mig" in fields else "")
    assert only(line, fields=fields).memory_total_bytes == 7611 * MIB


@pytest.mark.parametrize(
    "line",
    [
        "No devices were found",
        "NVIDIA-SMI has failed because it couldn't communicate, with, the, NVIDIA, driver, a, b",
        f"{'1' * 310}, {UUID}, NVIDIA L4, 1, 1, 550.54.15, 8.9, Disabled",
        "0, UUID, NVIDIA L4, 1, 1, 550.54.15, 8.9, Disabled",
        f"0, {UUID}, NVIDIA L4, 1, 1, 550.54.15",
        f"\u0663, {UUID}, NVIDIA L4, 1, 1, 550.54.15, 8.9, Disabled",
    ],
)
def test_a_line_of_another_form_is_no_gpu(line: str) -> None:
    found = host.read(told(line))
    assert found.devices == ()
    assert found.problem


@pytest.mark.parametrize(
    ("text", "code", "what", "hint"),
    [
        ("No devices were found", 6, "the machine has an NVIDIA GPU, but nvidia-smi finds none",
         "dmesg"),
        ("", 0, "the machine has an NVIDIA GPU, but nvidia-smi finds none", "dmesg"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure "
         "that the latest NVIDIA driver is installed and running.", 9,
         "the NVIDIA driver does not respond: NVIDIA-SMI has failed because it couldn't "
         "communicate with the NVIDIA driver", "modprobe"),
        ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.54",
         18, "the NVIDIA driver was updated while it was loaded: Failed to initialize NVML",
         "reboot"),
        (LOST, 15, "a GPU is lost: Unable to determine the device handle for GPU0000:3B:00.0",
         "reboot"),
        ("Failed to initialize NVML: Insufficient "
        "Permissions", 4, "denies access to this user", "/dev/nv"),
        ("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that "
         "the NVIDIA Display Driver is properly installed", 12, "lacks the driver's library",
         "install"),
        ("", 137, "nvidia-smi did not respond within 10 s", "xid"),
        ("Killed", 124, "nvidia-smi did not respond within 10 s", "xid"),
        ("something new", 255, "nvidia-smi fails: something new", "nvidia-smi"),
        ("", 255, "the machine has an NVIDIA GPU, but nvidia-smi finds none", "dmesg"),
    ],
)  # fmt: skip
def test_a_driver_that_fails_is_told_in_its_own_words(
    text: str, code: int, what: str, hint: str
) -> None:
    found = host.read(told(text, code))
    assert found.devices == ()
    assert found.vendor == "nvidia"
    assert found.problem
    assert what in found.problem.what
    assert hint in found.problem.hint


def test_a_lost_gpu_leaves_the_others_and_is_told() -> None:
    other = f"0, {UUID}, NVIDIA A100, 81920, 4, 550.54.15, 8.0, Disabled"
    for text in (f"{LOST}\n{other}", f"{other}\n1, {OTHER}, NVIDIA A100" + ", [GPU is lost]" * 5):
        found = host.read(told(text, 15))
        assert [device.uuid for device in found.devices] == [UUID]
        assert found.problem
        assert found.problem.what.startswith("a GPU is lost: ")
    found = host.read(
        told(f"{other}\n1, [Unknown Error], NVIDIA A100, 1, 1, 550.54.15, 8.0, [N/A]")
    )
    assert found.problem
    assert found.problem.what == "nvidia-smi fails: GPU 1 says [Unknown Error]"


def test_a_warning_of_the_inforom_is_no_failure() -> None:
    line = f"0, {UUID}, NVIDIA A100, 81920, 4, 550.54.15, 8.0, Disabled"
    assert only(f"{line}\nWARNING: infoROM is corrupted at gpu 0000:3B:00.0", code=14)
    found = host.read(told(line, 255))
    assert found.problem, "the exit code counts, whatever was printed"


@pytest.mark.parametrize(
    ("before", "text", "code", "ill"),
    [
        ("pci other\n", "No devices were found", 6, False),
        ("pci other\n", "NVIDIA-SMI has failed because it couldn't communicate", 9, False),
        ("pci other\npci nvidia\n", "No devices were found", 6, True),
        ("pci other\ndriver /proc/driver/nvidia/version\n", "Failed to initialize NVML", 18, True),
        ("", "No devices were found", 6, False),
        ("", "NVIDIA-SMI has failed because it couldn't communicate", 9, True),
        ("pci other\nwindows\n", "No devices were found", 6, False),
        ("pci other\nwindows\n", "Failed to initialize NVML: GPU access blocked", 9, True),
    ],
)
def test_without_hardware_there_is_no_gpu_and_no_error(
    before: str, text: str, code: int, *, ill: bool
) -> None:
    found = host.read(told(text, code, before=before))
    assert (found.devices, bool(found.problem)) == ((), ill)


def test_windows_shows_no_hardware_and_its_program_counts() -> None:
    line = f"0, {UUID}, NVIDIA GeForce RTX 4090, 24564, 900, 560.94, 8.9, [N/A]"
    assert only(line, before="pci other\nwindows\n").index == "0"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("pci nvidia\npci other\n", "the machine has an NVIDIA GPU, but no driver is loaded"),
        (
            "pci nvidia\ndriver /dev/nvidiactl\n",
            "the NVIDIA driver is loaded, but nvidia-smi is not installed",
        ),
        ("pci other\nwindows\n", ""),
        ("pci other\n", ""),
        ("", ""),
    ],
)
def test_hardware_without_a_driver_is_said_and_none_is_none(text: str, what: str) -> None:
    problem = host.read(text).problem
    assert (problem.what if problem else "").startswith(what)
    assert bool(problem) == bool(what)
    assert host.has_nvidia(text) is bool(what)


PARENT = f"0, {UUID}, NVIDIA A100-SXM4-80GB, 81920, 0, 550.54.15, 8.0, Enabled"
LISTED = f"""GPU 0: NVIDIA A100-SXM4-80GB (UUID: {UUID})
  MIG 3g.40gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.10gb+me  Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
  MIG 1c.2g.20gb  Device  2: (UUID: MIG-{UUID}/5/0)
"""


def test_mig_slices_are_devices_with_their_own_memory() -> None:
    found = host.read(told(PARENT, listed=LISTED))
    assert found.problem is None
    assert [(d.index, d.name[22:], d.memory_total_bytes) for d in found.devices] == [
        ("0:0", "MIG 3g.40gb", 40 << 30),
        ("0:1", "MIG 1g.10gb+me", 10 << 30),
        ("0:2", "MIG 1c.2g.20gb", 20 << 30),
    ]
    assert {d.parent for d in found.devices} == {UUID}
    assert found.devices[2].uuid == f"MIG-{UUID}/5/0"
    assert found.slices == found.devices


def test_a_divided_gpu_without_slices_is_said() -> None:
    found = host.read(told(PARENT, listed=LISTED.partition("\n")[0]))
    assert found.devices == ()
    assert found.problem
    assert found.problem.what == "MIG is enabled on GPU 0, but it has no slices"


KFD = (
    f"kfd 2 129 {192 << 30} 1311768467463790320 90402\n"
    f"kfd 1 128 {192 << 30} 81985529216486895 90402\n"
    f"kfd 3 130 {512 << 20} 7 110003\n"
)
ROCM = (
    'rocm {"card0": {"Card Series": "AMD Instinct MI300X", "Unique ID": "0x123456789abcdef", '
    '"VRAM Total Memory (B)": "206141652992", "VRAM Total Used Memory (B)": "297283584"}, '
    '"card1": {"Device Name": "AMD Instinct MI300X", "Unique ID": "0x123456789abcdef0"}, '
    '"system": {"Driver version": "6.10.5"}}\n'
)
AMD = (
    'amd {"gpu_data": [{"gpu": 0, "asic": {"market_name": "MI300X"}, '
    '"vram": {"size": {"value": 196592, "unit": "MB"}}}, {"gpu": 1, "asic": {}, "vram": "N/A"}]}\n'
)


def test_amd_counts_as_the_kernel_does_and_its_programs_know_more() -> None:
    first, second = host.read(KFD + ROCM).devices
    assert (first.index, first.name, first.driver) == ("0", "AMD Instinct MI300X", "6.10.5")
    assert (first.memory_total_bytes, first.memory_used_bytes) == (206141652992, 297283584)
    assert (second.index, second.memory_total_bytes) == ("1", 192 << 30)
    first, second = host.read(KFD + AMD).devices
    assert (first.name, first.memory_total_bytes) == ("MI300X", 196592 << 20)
    assert second.name == "AMD gfx942"


@pytest.mark.parametrize("text", ["rocm not json\n", f"rocm {'[' * 9999}\n", "amd [1, null]\n", ""])
def test_amd_without_an_answer_of_its_programs(text: str) -> None:
    found = host.read(f"pci other\n{KFD}{text}kfd-denied ubuntu\n")
    assert [device.name for device in found.devices] == ["AMD gfx942", "AMD gfx942"]
    assert (found.vendor, found.denied) == ("amd", "ubuntu")


def test_graphics_of_a_processor_are_not_meant() -> None:
    assert host.read("kfd 1 128 536870912 7 110003\n") == Accelerators()


@pytest.mark.parametrize(
    "word", ["", "[N/A]", "9" * 310, "-1", "1.5", "0x1", "1_0", "\u0663", None]
)
def test_what_is_no_whole_number(word: object) -> None:
    assert whole(word) is None


def test_numbers_and_words_are_bounded() -> None:
    numbers: Mapping[str, float | None] = {"1.50": 1.5, "-3": -3, "1e9": None, "nan": None}
    assert {word: decimal(word) for word in numbers} == numbers
    assert clean("a\x00b\n c" + "d" * 999, 10) == "a b cdd..."


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        ("Segmentation fault", 139, "nvidia-smi was killed by signal 11: Segmentation fault"),
        ("", 134, "nvidia-smi was killed by signal 6"),
        ("Failed to initialize NVML: Unknown Error", 0, "nvidia-smi fails: Failed to initialize"),
        ("ERROR: something, 1, 2, 3, 4, 5, 6, 7", 0, "nvidia-smi fails: ERROR: something"),
    ],
)
def test_a_program_that_breaks_counts_no_gpus(text: str, code: int, what: str) -> None:
    for before in (CARD, "driver /dev/nvidia0\n", ""):
        found = host.read(told(text, code, before=before))
        assert found.devices == ()
        assert found.problem
        assert found.problem.what.startswith(what)
    assert host.read(told(text, code, before="pci other\n")) == Accelerators()


GOOD = f"0, {UUID}, NVIDIA A100, 81920, 4, 550.54.15, 8.0, Disabled"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("WARNING: a newer driver is recommended", ""),
        ("Persistence mode is off, which is deprecated", ""),
        ("Failed to get the state of GPU 1: Unknown Error", "nvidia-smi fails: Failed to get"),
        ("ERROR: GPU 1 has fallen off the bus", "nvidia-smi fails: ERROR: GPU 1"),
        ("GPU 1: GPU requires reset", "a GPU needs a reset: GPU 1"),
    ],
)
def test_a_line_beside_gpus_is_a_failure_where_it_says_so(line: str, what: str) -> None:
    for text in (f"{line}\n{GOOD}", f"{GOOD}\n{line}"):
        found = host.read(told(text))
        assert [device.uuid for device in found.devices] == [UUID]
        assert (found.problem.what if found.problem else "").startswith(what)
        assert bool(found.problem) == bool(what)


@pytest.mark.parametrize("word", ["[N/A]", "[Not Supported]", "[Unknown Error]"])
@pytest.mark.parametrize(
    ("name", "uuid", "capability", "machine"),
    [
        ("NVIDIA GB10", UUID, "12.1", "aarch64"),
        ("NVIDIA Thor", UUID, "11.0", "aarch64"),
        ("Orin (nvgpu)", "[N/A]", "[N/A]", "aarch64"),
        ("Orin (nvgpu)", UUID[4:], "8.7", ""),
        ("NVIDIA chip of tomorrow", UUID, "[N/A]", "aarch64"),
    ],
)
def test_a_gpu_of_one_chip_with_the_processor_has_the_hosts_memory(
    word: str, name: str, uuid: str, capability: str, machine: str
) -> None:
    line = f"0, {uuid}, {name}, {word}, {word}, 580.95.05, {capability}, [N/A]"
    found = host.read(told(line))
    assert found.problem is None
    [device] = sharing(found, 120 << 30, machine).devices
    assert (device.memory_total_bytes, device.shares) == (120 << 30, True)


def test_no_other_gpu_is_given_the_hosts_memory() -> None:
    """What a driver does not tell of a card stays unknown, and what it tells stays."""
    ill = f"0, {UUID}, NVIDIA L4, [Unknown Error], [N/A], 550.54.15, 8.9, [N/A]"
    own = f"0, {UUID}, NVIDIA GH200 480GB, 97871, 1, 560.35.03, 9.0, Disabled"
    for line, machine, total in ((ill, "x86_64", None), (own, "aarch64", 97871 * MIB)):
        [device] = sharing(host.read(told(line)), 120 << 30, machine).devices
        assert (device.memory_total_bytes, device.shares) == (total, False)
    two = sharing(
        host.read(
            told(
                "\n".join(
                    f"{n}, {UUID[:-1]}{n}, NVIDIA GB10, [N/A], [N/A], 580.95.05, 12.1, [N/A]"
                    for n in (0, 1)
                )
            )
        ),
        120 << 30,
        "aarch64",
    )
    assert [device.memory_total_bytes for device in two.devices] == [60 << 30] * 2


@pytest.mark.parametrize(
    ("text", "problem", "unseen"),
    [
        ("pci other\nwindows\n", "", "Windows shares a GPU with this machine (/dev/dxg)"),
        ("pci other\npci graphics\n", "", "AMD's graphics are in the machine, and the kernel has"),
        ("kfd-there\nkfd 1 128 536870912 7 110003\n", "", "AMD's graphics here have less than 2"),
        ("pci amd\n", "the machine has an AMD GPU, but the kernel's KFD", ""),
        ("kfd-there\n", "/dev/kfd exists, but /sys/class/kfd lists no GPU", ""),
        ("pci other\n", "", ""),
        (f"pci amd\nkfd-there\nkfd 1 128 {192 << 30} 7 90402\n", "", ""),
    ],
)
def test_hardware_of_which_nothing_is_counted_is_said(text: str, problem: str, unseen: str) -> None:
    found = host.read(text)
    for said, begins in ((found.problem, problem), (found.unseen, unseen)):
        assert (said.what if said else "").startswith(begins)
        assert bool(said) == bool(begins)
