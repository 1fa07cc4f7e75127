"""The questions as a real shell asks them, of a double of nvidia-smi and a made-up file system."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raycluster.core.accelerators import host, nvidia
from raycluster.core.accelerators.values import Accelerators
from raycluster.hosts.transports.local import LocalTransport
from raycluster.status.gpus import ASK, from_smi
from tests.lab import fake_nvidia as fake

Asked = Callable[[fake.Driver | None], Accelerators]
NVIDIA, NETWORK, MATROX = ("0x10de", "0x030200"), ("0x1af4", "0x020000"), ("0x102b", "0x030000")


def device(root: Path, name: str, vendor: str, kind: str) -> None:
    place = root / "sys/bus/pci/devices" / name
    place.mkdir(parents=True)
    (place / "vendor").write_text(f"{vendor}\n")
    (place / "class").write_text(f"{kind}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with a network card and plain graphics."""
    root = tmp_path / "root"
    device(root, "0000:00:03.0", *NETWORK)
    device(root, "0000:00:04.0", *MATROX)
    return root


@pytest.fixture(params=["with timeout", "without timeout"])
def programs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the few programs that a host has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    names = ["sh", "head", "sed", "grep", "tr", "awk", "cat", "id", "sleep", "stat"]
    names += ["timeout"] * (request.param == "with timeout")
    for name in names:
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def run(script: str, programs: Path) -> str:
    done = LocalTransport("here").run(
        ("/bin/sh", "-c", script.replace("$PATH:/usr/local/sbin:/usr/sbin:/sbin:", "$PATH:")),
        env={"PATH": str(programs)},
    )
    assert done.stderr == b""
    return done.text


@pytest.fixture
def asked(root: Path, programs: Path) -> Asked:
    """Return what a host with this driver tells, or with none."""

    def ask(driver: fake.Driver | None) -> Accelerators:
        if driver:
            driver.install(programs)
        return host.read(run(host.script(str(root)), programs))

    return ask


@pytest.mark.parametrize("count", [0, 1, 2, 8])
def test_so_many_gpus(asked: Asked, count: int) -> None:
    found = asked(fake.driver(count))
    assert found.problem is None
    assert [gpu.uuid for gpu in found.devices] == [card.uuid for card in fake.gpus(count)]
    assert {gpu.compute_capability for gpu in found.devices} <= {"9.0"}


def test_an_old_driver_is_asked_again(asked: Asked) -> None:
    found = asked(fake.OLD)
    assert found.problem is None
    assert [gpu.memory_total_bytes for gpu in found.devices] == [81559 << 20] * 2
    assert {gpu.compute_capability for gpu in found.devices} == {None}


def test_mig_slices_stand_in_their_gpus_place(asked: Asked) -> None:
    found = asked(fake.MIG)
    assert found.problem is None
    assert [gpu.index for gpu in found.devices] == ["0:0", "0:1", "0:2", "1"]
    assert [(gpu.memory_total_bytes or 0) >> 30 for gpu in found.devices] == [40, 10, 10, 80]


def test_names_with_commas_and_signs(asked: Asked) -> None:
    card = fake.Card(0, "NVIDIA A, 'B' $HOME \"C\" `id`")
    [gpu] = asked(fake.Driver((card,))).devices
    assert gpu.name == card.name


@pytest.mark.parametrize("driver", [fake.UPDATED, fake.ABSENT, fake.ILL, fake.driver(0), None])
def test_a_card_without_an_answer_is_a_problem(
    asked: Asked, root: Path, driver: fake.Driver | None
) -> None:
    device(root, "0000:3b:00.0", *NVIDIA)
    found = asked(driver)
    assert found.problem
    assert found.vendor == "nvidia"
    assert len(found.devices) == (1 if driver is fake.ILL else 0)


@pytest.mark.parametrize("driver", [fake.ABSENT, fake.driver(0), None])
def test_a_machine_without_a_card_has_no_problem(asked: Asked, driver: fake.Driver | None) -> None:
    assert asked(driver) == Accelerators()


@pytest.mark.parametrize("programs", ["with timeout"], indirect=True)
def test_a_driver_that_hangs_is_ended(root: Path, programs: Path) -> None:
    device(root, "0000:3b:00.0", *NVIDIA)
    fake.HANGS.install(programs)
    script = host.script(str(root)).replace(f"KILL {nvidia.ASK_S} ", "KILL 0.2 ")
    problem = host.read(run(script, programs)).problem
    assert problem
    assert problem.what == "nvidia-smi did not respond within 10 s"


@pytest.mark.parametrize(
    ("driver", "card", "expected"),
    [
        (None, False, False),
        (None, True, True),
        (fake.driver(0), False, False),
        (fake.ABSENT, False, False),
        (fake.ABSENT, True, True),
        (fake.driver(1), False, True),
    ],
)
def test_the_quick_question(
    root: Path, programs: Path, driver: fake.Driver | None, *, card: bool, expected: bool
) -> None:
    if card:
        device(root, "0000:3b:00.0", *NVIDIA)
    if driver:
        driver.install(programs)
    assert host.has_nvidia(run(host.quick_script(str(root)), programs)) is expected


def test_status_asks_in_the_same_way(programs: Path) -> None:
    fake.driver(2).install(programs)
    gpus, problem = from_smi(run(ASK, programs))
    assert problem is None
    assert [(g.index, g.memory_total_mib, g.power_watts) for g in gpus] == [
        ("0", 81559, 70.25),
        ("1", 81559, 70.25),
    ]
    fake.ILL.install(programs)
    gpus, problem = from_smi(run(ASK, programs))
    assert len(gpus) == 1
    assert problem
    assert problem.what.startswith("a GPU is lost")


def node(root: Path, number: int, memory: int, **properties: int) -> None:
    place = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
    bank = place / "mem_banks/0"
    bank.mkdir(parents=True)
    (bank / "properties").write_text(f"heap_type 1\nsize_in_bytes {memory}\nflags 0\n")
    lines = "".join(f"{name} {value}\n" for name, value in properties.items())
    (place / "properties").write_text(lines)


def test_amds_gpus_are_those_of_the_kernel(root: Path, programs: Path) -> None:
    (root / "dev").mkdir()
    (root / "dev/kfd").touch()
    node(root, 0, 512 << 30, cpu_cores_count=96, simd_count=0)
    for number, render in ((10, 137), (2, 129)):
        common = {"cpu_cores_count": 0, "simd_count": 1216, "gfx_target_version": 90402}
        node(root, number, 192 << 30, **common, drm_render_minor=render, unique_id=number << 48)
    node(root, 11, 192 << 30, cpu_cores_count=0, simd_count=1216, gfx_target_version=90402)
    answer = '{"card0": {"Card Series": "MI300X", "Unique ID": "0x2000000000000"},\n "system": {}}'
    program = programs / "rocm-smi"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    found = host.read(run(host.script(str(root)), programs))
    assert (found.vendor, found.problem, found.denied) == ("amd", None, "")
    assert [(d.index, d.name, d.uuid) for d in found.devices] == [
        ("0", "MI300X", "0x2000000000000"),
        ("1", "AMD gfx942", "0xa000000000000"),
        ("2", "AMD gfx942", ""),
    ]
    if os.geteuid():  # root may use everything
        (root / "dev/kfd").chmod(0o400)
        assert host.read(run(host.script(str(root)), programs)).denied


@pytest.mark.parametrize(
    "place",
    ["usr/lib/wsl/lib", "usr/local/nvidia/bin", "run/nvidia/driver/usr/bin", "opt/nvidia/bin",
     "run/current-system/sw/bin", "opt/vendor/driver/bin", "usr/lib/nvidia-550/bin", "opt/bin"],
)  # fmt: skip
@pytest.mark.parametrize("programs", ["with timeout"], indirect=True)
def test_the_program_is_found_beside_the_path(root: Path, programs: Path, place: str) -> None:
    fake.driver(2).install(root / place)
    found = host.read(run(host.script(str(root)), programs))
    assert (len(found.devices), found.problem) == (2, None)
    assert host.has_nvidia(run(host.quick_script(str(root)), programs))


@pytest.mark.parametrize("programs", ["with timeout"], indirect=True)
def test_its_library_is_found_with_it(root: Path, programs: Path) -> None:
    program = root / "opt/nvidia/bin/nvidia-smi"
    fake.driver(1).install(program.parent)
    (root / "opt/nvidia/lib64").mkdir()
    (root / "opt/nvidia/lib64/libnvidia-ml.so.1").touch()
    script = program.read_text().replace(
        "# a double", '[ -e "${LD_LIBRARY_PATH%%:*}/libnvidia-ml.so.1" ] || exit 12\n# a double'
    )
    program.write_text(script)
    assert len(host.read(run(host.script(str(root)), programs)).devices) == 1


@pytest.mark.parametrize("name", ["nvidia0", "nvhost-gpu", "nvidiactl"])
@pytest.mark.parametrize("programs", ["with timeout"], indirect=True)
def test_a_device_without_a_program_is_a_problem(root: Path, programs: Path, name: str) -> None:
    (root / "dev").mkdir()
    (root / "dev" / name).touch()
    problem = host.read(run(host.script(str(root)), programs)).problem
    assert problem
    assert problem.what.startswith("the NVIDIA driver is loaded, but nvidia-smi is not installed")


@pytest.mark.parametrize(
    ("vendor", "kind", "files", "problem", "unseen"),
    [
        ("0x1002", "0x120000", (), True, False),
        ("0x1002", "0x038000", (), True, False),
        ("0x1002", "0x030000", (), False, True),
        ("0x1a03", "0x030000", ("dev/dxg",), False, True),
        ("0x1a03", "0x030000", ("dev/kfd",), True, False),
        ("0x1a03", "0x030000", (), False, False),
    ],
)
@pytest.mark.parametrize("programs", ["with timeout"], indirect=True)
def test_hardware_that_is_not_counted(
    root: Path, programs: Path, vendor: str, kind: str, *, files: tuple[str, ...],
    problem: bool, unseen: bool,
) -> None:  # fmt: skip
    device(root, "0000:3b:00.0", vendor, kind)
    (root / "dev").mkdir()
    for name in files:
        (root / name).touch()
    found = host.read(run(host.script(str(root)), programs))
    assert (bool(found.problem), bool(found.unseen), found.devices) == (problem, unseen, ())


@pytest.mark.parametrize(
    "before",
    ["i=0; while [ $i -lt 5000 ]; do echo WARNING: line $i of many; i=$((i + 1)); done",
     "echo 'WARNING: infoROM is corrupted at gpu 0000:3B:00.0' >&2",
     "head -c 300000 /dev/zero | tr '\\0' x; echo"],
    ids=["thousands of lines", "a warning", "one long line"],
)  # fmt: skip
def test_what_is_said_before_the_gpus_hides_none(root: Path, programs: Path, before: str) -> None:
    device(root, "0000:3b:00.0", *NVIDIA)
    program = fake.driver(8).install(programs)
    program.write_text(program.read_text().replace("# a double of the tests", before))
    text = run(host.script(str(root)), programs)
    assert len(text) < 65536
    found = host.read(text)
    assert (len(found.devices), found.problem) == (8, None)


@pytest.mark.parametrize("programs", ["with timeout"], indirect=True)
def test_a_program_that_crashes_is_a_problem(root: Path, programs: Path) -> None:
    device(root, "0000:3b:00.0", *NVIDIA)
    program = programs / "nvidia-smi"
    program.write_text("#!/bin/sh\nkill -SEGV $$\n")
    program.chmod(0o755)
    problem = host.read(run(host.script(str(root)), programs)).problem
    assert problem
    assert problem.what.startswith("nvidia-smi was killed by signal 11")
