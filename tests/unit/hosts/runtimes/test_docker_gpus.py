"""How Docker is asked for a host's GPUs, by what it and the host's shell tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker
import pytest

from raycluster.core.errors import RuntimeUnavailableError
from raycluster.core.interfaces import BoxOptions, ByteStream, Gpus, Process
from raycluster.hosts.runtimes.docker_gpus import (
    GpuOptions,
    gpu_options,
    has_rdma,
    look_script,
    options_of,
    with_rdma,
)
from raycluster.hosts.runtimes.docker_http import open_client
from raycluster.hosts.runtimes.docker_options import container_options
from raycluster.hosts.transports.local import LocalTransport

CARD = "pci nvidia\n"
TOOLKIT = f"{CARD}program nvidia-container-runtime\n"
FORCED = f"{TOOLKIT}mode cdi\n"
RUNTIME: dict[str, Any] = {"Runtimes": {"runc": {}, "nvidia": {}}}
KNOWN = [{"ID": f"nvidia.com/gpu={name}"} for name in ("0", "1", "all", "GPU-aaaa")]
DISCOVERED = {"DiscoveredDevices": [*KNOWN, {"ID": "vendor.com/nic=0"}]}
READS_FILES = {"CDISpecDirs": ["/etc/cdi", "/var/run/cdi/"]}
DESCRIBED = f"{CARD}specified /run/cdi/nvidia.yaml\n"
KFD = f"kfd 2 129 {192 << 30} 2 90402\nkfd 1 128 {192 << 30} 1 90402\n"
AMD = f"{KFD}dri\ngroup 44\ngroup 109\ngroup 109\ngroup 0\n"


def request(info: Mapping[str, Any], text: str, gpus: Gpus) -> dict[str, Any]:
    """Return the one request for devices."""
    options = options_of(info, text, gpus, "gpu-1")
    assert options
    [made] = options.host["device_requests"]
    return {name: made[name] for name in ("Driver", "Count", "DeviceIDs", "Capabilities")}


@pytest.mark.parametrize(("info", "text"), [(RUNTIME, CARD), ({}, TOOLKIT)])
@pytest.mark.parametrize(
    ("gpus", "count", "ids"),
    [
        ("all", -1, []),
        (2, 2, []),
        ((0, 2), 0, ["0", "2"]),
        (("GPU-aaaa",), 0, ["GPU-aaaa"]),
    ],
)
def test_the_toolkit_hands_them_on(
    info: dict[str, Any], text: str, gpus: Gpus, count: int, ids: list[str]
) -> None:
    made = request(info, text, gpus)
    assert (made["Driver"], made["Count"], made["DeviceIDs"] or []) == ("", count, ids)
    assert made["Capabilities"] == [["gpu"]]


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (DISCOVERED, CARD),
        (READS_FILES, DESCRIBED),
        ({**RUNTIME, **DISCOVERED}, FORCED),
        ({**RUNTIME, **READS_FILES}, f"{FORCED}specified /etc/cdi/nvidia.yaml\n"),
    ],
    ids=["daemon tells", "files tell", "forced, daemon tells", "forced, files tell"],
)
@pytest.mark.parametrize(
    ("gpus", "names"),
    [("all", ["all"]), (2, ["0", "1"]), ((1,), ["1"]), (("GPU-aaaa",), ["GPU-aaaa"])],
)
def test_devices_by_name(info: dict[str, Any], text: str, gpus: Gpus, names: list[str]) -> None:
    made = request(info, text, gpus)
    assert made["Driver"] == "cdi"
    assert made["DeviceIDs"] == [f"nvidia.com/gpu={name}" for name in names]


@pytest.mark.parametrize(("gpus", "shown"), [("all", "all"), (2, "0,1"), ((0, 2), "0,2")])
def test_a_toolkit_that_refuses_to_be_a_hook_is_a_runtime(gpus: Gpus, shown: str) -> None:
    for text in (FORCED, f"{TOOLKIT}mode jit-cdi\n"):
        assert options_of(RUNTIME, text, gpus, "gpu-1") == GpuOptions(
            {"runtime": "nvidia"}, {"NVIDIA_VISIBLE_DEVICES": shown}
        )


def test_several_slices_are_named_inside_too() -> None:
    slices = ("MIG-aaaa", "MIG-bbbb")
    made = options_of(RUNTIME, CARD, slices, "gpu-1")
    assert made
    assert made.environment == {"CUDA_VISIBLE_DEVICES": "MIG-aaaa,MIG-bbbb"}
    assert made.host["device_requests"][0]["DeviceIDs"] == list(slices)
    one = options_of(RUNTIME, CARD, ("MIG-aaaa",), "gpu-1")
    assert one
    assert one.environment == {}, "the only one is the first, whatever the engine makes of names"


def test_a_device_that_docker_does_not_know_is_named_with_those_it_knows() -> None:
    with pytest.raises(RuntimeUnavailableError) as caught:
        options_of(DISCOVERED, CARD, (7,), "gpu-1")
    assert caught.value.what == (
        "Docker has no device nvidia.com/gpu=7, only nvidia.com/gpu=0, nvidia.com/gpu=1, "
        "nvidia.com/gpu=GPU-aaaa, nvidia.com/gpu=all"
    )
    assert "nvidia-ctk cdi generate" in caught.value.hint


@pytest.mark.parametrize(
    ("info", "text", "gpus"),
    [
        ({}, CARD, "all"),
        ({}, "driver /proc/driver/nvidia/version\n", "all"),
        ({}, FORCED, "all"),
        ({}, DESCRIBED, "all"),
        ({"CDISpecDirs": []}, DESCRIBED, "all"),
        ({}, "", 1),
        ({}, "", (0,)),
    ],
)
def test_gpus_that_cannot_be_handed_on_are_an_error(
    info: dict[str, Any], text: str, gpus: Gpus
) -> None:
    with pytest.raises(RuntimeUnavailableError) as caught:
        options_of(info, text, gpus, "gpu-1")
    assert caught.value.what.startswith("Docker cannot give GPUs to containers")
    assert caught.value.where == "gpu-1"
    assert "gpus = 0" in caught.value.hint


def test_all_of_none_is_none_even_with_a_toolkit() -> None:
    assert options_of({}, "pci other\n", "all", "gpu-1") is None
    assert options_of(RUNTIME, "program nvidia-container-runtime\n", "all", "gpu-1") is None
    assert gpu_options({}, LocalTransport("here"), 0, "here") is None


@pytest.mark.parametrize(
    ("gpus", "devices"),
    [
        ("all", ["/dev/kfd", "/dev/dri"]),
        (1, ["/dev/kfd", "/dev/dri/renderD128"]),
        ((1,), ["/dev/kfd", "/dev/dri/renderD129"]),
        (2, ["/dev/kfd", "/dev/dri/renderD128", "/dev/dri/renderD129"]),
    ],
)
def test_amds_gpus_are_device_files_and_their_groups(gpus: Gpus, devices: list[str]) -> None:
    made = options_of({}, AMD, gpus, "gpu-1")
    assert made
    assert made.host == {"devices": devices, "group_add": ["video", "44", "109"]}


def test_amds_gpus_that_are_not_there() -> None:
    with pytest.raises(RuntimeUnavailableError, match="gpus selects 2, but the host has 0, 1"):
        options_of({}, AMD, 3, "gpu-1")


def test_a_container_has_them_in_its_options() -> None:
    def refuse() -> ByteStream:
        raise AssertionError("something was sent")

    client: docker.APIClient = open_client(refuse)
    gpus = options_of(RUNTIME, FORCED, (1,), "gpu-1")
    process = Process("head", ("ray", "start"), {"A": "b"}, gpus=(1,))
    made = container_options(client, "c", process, "", gpus)
    assert made["environment"] == {"NVIDIA_VISIBLE_DEVICES": "1", "A": "b"}
    assert made["host_config"]["Runtime"] == "nvidia"


def test_the_shell_looks_for_each_program_and_at_files(tmp_path: Path) -> None:
    """`command -v A B` looks at A alone in dash."""
    programs, root = tmp_path / "bin", tmp_path / "root"
    programs.mkdir()
    (programs / "nvidia-container-runtime").touch(mode=0o755)
    toolkit = root / "etc/nvidia-container-runtime"
    toolkit.mkdir(parents=True)
    (toolkit / "config.toml").write_text(
        '#mode = "legacy"\n[nvidia-container-runtime]\n  mode = "cdi"\nmodes = "x"\n'
    )
    for folder, content in (("etc/cdi", "kind: nvidia.com/gpu\n"), ("var/run/cdi", "kind: x\n")):
        (root / folder).mkdir(parents=True)
        (root / folder / "device.yaml").write_text(content)
    (root / "dev/dri").mkdir(parents=True)
    (root / "dev/dri/renderD128").touch()
    done = LocalTransport("here").run(
        ("/bin/sh", "-c", look_script(str(root))),
        env={"PATH": f"{programs}:{os.environ['PATH']}"},
    )
    lines = done.text.splitlines()
    assert "program nvidia-container-runtime" in lines
    assert [line for line in lines if line.startswith("mode")] == ["mode cdi"]
    assert [line for line in lines if line.startswith("specified")] == [
        f"specified {root}/etc/cdi/device.yaml"
    ]
    assert f"group {os.getgid()}" in lines or "group 0" in lines
    assert "dri" in lines


WHOLE = BoxOptions(("/dev/infiniband",), {"memlock": -1}, ("IPC_LOCK",))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (BoxOptions(), WHOLE),
        (WHOLE, WHOLE),
        (
            BoxOptions(("/dev/fuse",), {"nofile": 9}, ("SYS_NICE",), "host"),
            BoxOptions(
                ("/dev/fuse", "/dev/infiniband"),
                {"memlock": -1, "nofile": 9},
                ("SYS_NICE", "IPC_LOCK"),
                "host",
            ),
        ),
        (
            BoxOptions(("/dev/infiniband/uverbs1",), {"memlock": 4096}, ("CAP_IPC_LOCK",)),
            BoxOptions(("/dev/infiniband/uverbs1",), {"memlock": 4096}, ("CAP_IPC_LOCK",)),
        ),
    ],
)
def test_what_rdma_needs_is_added_to_what_is_said(given: BoxOptions, expected: BoxOptions) -> None:
    assert with_rdma(given) == expected


def test_a_folder_without_devices_is_no_rdma(tmp_path: Path) -> None:
    (tmp_path / "uverbs0").touch()
    assert not has_rdma(LocalTransport("here"), str(tmp_path))
    assert not has_rdma(LocalTransport("here"), str(tmp_path / "none"))
