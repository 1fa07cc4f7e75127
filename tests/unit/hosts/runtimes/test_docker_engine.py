"""Which engines can run our containers, and what is said of those that cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from raycluster.core.errors import RuntimeUnavailableError
from raycluster.core.interfaces import BoxOptions, Process, Volume
from raycluster.hosts.runtimes.docker_engine import engine, notes, refuse, refuse_process

SOCKET = "/var/run/docker.sock"
INFO = {
    "KernelVersion": "6.1.0-18-amd64",
    "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
    "DockerRootDir": "/var/lib/docker",
    "Driver": "overlay2",
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"],
}
VERSION = {"Version": "27.1.1", "ApiVersion": "1.46", "Os": "linux", "Components": []}
HOST = "kernel 6.1.0-18-amd64\nsystem Linux\nuid 1000\nuser jane\nroot\n"
ROOTLESS = {"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]}
OURS = "own net:[4026531833]\nnet net:[4026531833]\nlowest 1024\n"


def judged(info: Mapping[str, Any], version: Mapping[str, Any], text: str, socket: str) -> None:
    refuse(engine({**INFO, **info}, {**VERSION, **version}), HOST + text, socket, "gpu-1")


@pytest.mark.parametrize(
    ("info", "version", "text", "what", "hint"),
    [
        (
            {},
            {"Components": [{"Name": "Podman Engine", "Version": "4.3.1"}]},
            "",
            "podman 4.3.1 answers at /var/run/docker.sock, but is not supported",
            "install Docker Engine",
        ),
        ({}, {"Os": "windows"}, "", "runs windows containers", "Linux containers"),
        (
            {},
            {"ApiVersion": "1.39"},
            "",
            "its API version is 1.39, but 1.40 is needed",
            "update Docker",
        ),
        (
            {"OperatingSystem": "Docker Desktop", "KernelVersion": "6.10.14-linuxkit"},
            {},
            "",
            "(Docker Desktop) runs in a virtual machine",
            "on the host itself",
        ),
        ({"KernelVersion": "6.8.0-1-virt"}, {}, "", "runs in a virtual machine", "on the host"),
        (
            {},
            {},
            "missing-under /var/lib\n",
            "belongs to another machine or container: its folder /var/lib/docker does not exist "
            "here",
            "set `host` to the address of that machine",
        ),
        ({"SecurityOptions": ["name=userns"]}, {}, "", "maps users", "remove `userns-remap`"),
        (
            ROOTLESS,
            {},
            "own net:[1]\nnet net:[2]\n",
            "is rootless, and gives containers their own network",
            "29.5",
        ),
        (ROOTLESS, {}, "own net:[1]\n", "does not show whether", "29.5"),
        (ROOTLESS, {}, "", "does not show whether", "29.5"),
        (
            ROOTLESS,
            {},
            f"{OURS}systemd\n",
            "stops when its user logs out",
            "`sudo loginctl enable-linger jane`",
        ),
    ],
)
def test_what_cannot_run_a_node_is_refused_by_its_name(
    info: dict[str, Any], version: dict[str, Any], text: str, what: str, hint: str
) -> None:
    socket = "/run/user/1000/docker.sock" if "linger" in hint else SOCKET
    with pytest.raises(RuntimeUnavailableError) as caught:
        judged(info, version, text, socket)
    assert what in caught.value.what
    assert hint in caught.value.hint
    assert "native" in caught.value.hint
    assert caught.value.where == "gpu-1"


@pytest.mark.parametrize(
    ("info", "version", "text", "socket"),
    [
        ({}, {}, "", SOCKET),
        ({}, {"ApiVersion": "1.40"}, "", SOCKET),
        ({"Swarm": {"LocalNodeState": "active"}, "LiveRestoreEnabled": True}, {}, "", SOCKET),
        (ROOTLESS, {}, OURS, "/srv/docker.sock"),
        (ROOTLESS, {}, f"{OURS}systemd\nlinger\n", "/run/user/1000/docker.sock"),
        ({"KernelVersion": "", "SecurityOptions": None}, {"Components": None}, "", SOCKET),
    ],
)
def test_what_can_is_not(
    info: dict[str, Any], version: dict[str, Any], text: str, socket: str
) -> None:
    judged(info, version, text, socket)


@pytest.mark.parametrize(
    ("process", "what"),
    [
        (Process("gateway", ("nginx",), ports={"gateway": 443}), "port 443, which the gateway"),
        (Process("head", ("ray",), box=BoxOptions(ipc="host")), "the host's IPC"),
    ],
)
def test_what_rootless_docker_cannot_give_a_process(process: Process, what: str) -> None:
    found = engine({**INFO, **ROOTLESS}, VERSION)
    with pytest.raises(RuntimeUnavailableError, match=what):
        refuse_process(found, OURS, process, "gpu-1")
    refuse_process(engine(INFO, VERSION), OURS, process, "gpu-1")
    plain = Process("gateway", ("nginx",), ports={"gateway": 8443})
    refuse_process(found, OURS, plain, "gpu-1")


@pytest.mark.parametrize(
    ("info", "note"),
    [
        ({"Driver": "vfs"}, "storage driver is vfs"),
        ({"Driver": "devicemapper"}, "storage driver is devicemapper"),
        (ROOTLESS, "no-cgroups = true"),
        ({"DockerRootDir": "/var/snap/docker/common/var-lib-docker"}, "it is the snap package"),
        ({"SecurityOptions": ["name=selinux"]}, "SELinux confines"),
    ],
)
def test_what_works_less_well_is_a_note(info: dict[str, Any], note: str) -> None:
    process = Process("head", ("ray",), gpus="all", volumes=(Volume("/data", "/data"),))
    assert any(note in each for each in notes(engine({**INFO, **info}, VERSION), process))
    assert not list(notes(engine(INFO, VERSION), process))
