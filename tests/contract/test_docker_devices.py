"""Devices, limits and capabilities of containers, against a real daemon."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from raycluster.core.errors import HostError
from raycluster.core.interfaces import BoxOptions, Completed, Gpus, Process, Versions
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.runtimes.docker_errors import Edge
from raycluster.hosts.runtimes.docker_gpus import look_script
from raycluster.hosts.runtimes.docker_http import open_client
from raycluster.hosts.runtimes.docker_options import container_options
from raycluster.hosts.transports.local import LocalTransport
from tests.contract.dockerd import IMAGE, USR, docker_cli, docker_daemon

LOOP = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
NULL = "/dev/null:/dev/infiniband/uverbs9:rw"
SYS_RESOURCE = 1 << 24
_CAPABILITIES = Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
RAISES = bool(int(_CAPABILITIES, 16) & SYS_RESOURCE)
"""Whether this machine's daemon may raise limits."""
PLAIN = BoxOptions()
LOW = {"memlock": 4 << 20}
SET = BoxOptions((NULL,), {**LOW, "nofile": 1024}, ("IPC_LOCK",), "host")
UNLIMITED = BoxOptions((), {"memlock": -1, "nofile": 1048576}, ("CAP_IPC_LOCK",))


class GpuHost(LocalTransport):
    """This machine, whose shell tells of a GPU and a container toolkit in CDI mode."""

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        if argv[-1] == look_script():
            return Completed(0, b"pci nvidia\nmode cdi\n")
        return super().run(argv, **options)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a daemon whose runtime "nvidia" is the plain one: it hands on no GPU."""
    runc = shutil.which("runc")
    if not runc:
        pytest.skip("needs runc")
    options = (f"--add-runtime=nvidia={runc}",)
    with docker_daemon(tmp_path_factory.mktemp("devices"), options=options) as socket:
        yield socket


@pytest.fixture
def rdma(tmp_path: Path) -> str:
    """Return a folder with a device that is called as those of RDMA are."""
    os.mknod(tmp_path / "uverbs0", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    return str(tmp_path)


@pytest.fixture
def told() -> list[str]:
    return []


def process(gpus: Gpus, box: BoxOptions) -> Process:
    argv = ("sh", "-c", LOOP)
    return Process("head", argv, image=IMAGE, volumes=(USR,), gpus=gpus, shm_size="64m", box=box)


def started(
    daemon: str, told: list[str], *, gpus: Gpus, rdma: str, box: BoxOptions = PLAIN
) -> dict[str, Any]:
    """Return the container's host configuration, and what its limits and devices are inside."""
    runtime = DockerRuntime("here", "dev", GpuHost("here"), socket=daemon, rdma=rdma)
    wanted = process(gpus, box)
    try:
        runtime.start(wanted, Versions(), {}, told.append)
        seen = json.loads(docker_cli(daemon, "inspect", "raycluster-dev-head"))[0]
        look = f"ulimit -l; ulimit -n; find /dev/infiniband {rdma} -type c 2>/dev/null; true"
        inside = runtime.inside("head").run(("sh", "-c", look)).text.split()
        assert seen["Config"]["Labels"]["raycluster.fingerprint"] == wanted.fingerprint
    finally:
        runtime.remove()
    found: dict[str, Any] = {**seen["HostConfig"], "inside": inside}
    return found


def limits(host: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    return {each["Name"]: (each["Soft"], each["Hard"]) for each in host["Ulimits"] or ()}


def test_what_the_spec_says_is_what_the_container_has(daemon: str, told: list[str]) -> None:
    host = started(daemon, told, gpus=0, rdma="/no/such", box=SET)
    [device] = host["Devices"]
    assert device["PathOnHost"] == "/dev/null"
    assert device["PathInContainer"] == "/dev/infiniband/uverbs9"
    assert device["CgroupPermissions"] == "rw"
    assert limits(host) == {"memlock": (4 << 20, 4 << 20), "nofile": (1024, 1024)}
    assert {"IPC_LOCK", "CAP_IPC_LOCK"} & set(host["CapAdd"])
    assert host["IpcMode"] == "host"
    assert host["inside"] == ["4096", "1024", "/dev/infiniband/uverbs9"]
    assert told == []


def test_no_limit_is_minus_one(daemon: str) -> None:
    with contextlib.closing(
        open_client(Edge("here", LocalTransport("here"), daemon).open)
    ) as client:
        options = container_options(client, "dev", process(0, UNLIMITED), "", None)
        made = client.create_container(IMAGE, **options)["Id"]
        try:
            host = client.inspect_container(made)["HostConfig"]
        finally:
            client.remove_container(made, v=True)
    assert limits(host) == {"memlock": (-1, -1), "nofile": (1048576, 1048576)}
    assert {"IPC_LOCK", "CAP_IPC_LOCK"} & set(host["CapAdd"])
    assert "CAP_CAP_IPC_LOCK" not in host["CapAdd"]
    assert (host["ShmSize"], host["IpcMode"]) == (64 << 20, "private")


def test_a_host_with_gpus_and_rdma_hands_both_on(daemon: str, told: list[str], rdma: str) -> None:
    host = started(
        daemon, told, gpus="all", rdma=rdma, box=PLAIN if RAISES else BoxOptions(ulimits=LOW)
    )
    most = -1 if RAISES else LOW["memlock"]
    assert host["Runtime"] == "nvidia"
    assert [device["PathOnHost"] for device in host["Devices"]] == [rdma]
    assert limits(host) == {"memlock": (most, most)}
    assert {"IPC_LOCK", "CAP_IPC_LOCK"} & set(host["CapAdd"])
    assert host["inside"][0] == ("unlimited" if RAISES else "4096")
    assert f"{rdma}/uverbs0" in host["inside"]
    assert told == [f"RDMA devices in {rdma} are passed on, with IPC_LOCK and memlock = {most}"]


@pytest.mark.skipif(RAISES, reason="this machine's daemon may raise limits")
def test_a_limit_that_the_daemon_may_not_raise_is_told(
    daemon: str, told: list[str], rdma: str
) -> None:
    with pytest.raises(HostError, match="may not raise a limit") as caught:
        started(daemon, told, gpus="all", rdma=rdma)
    assert "ulimits" in (caught.value.hint or "")


@pytest.mark.parametrize(("gpus", "there"), [(0, True), ("all", False)])
def test_without_gpus_or_devices_nothing_is_added(
    daemon: str, told: list[str], rdma: str, gpus: Gpus, there: bool
) -> None:
    host = started(daemon, told, gpus=gpus, rdma=rdma if there else "/no/such")
    assert not host["Devices"]
    assert limits(host) == {}
    assert not {"IPC_LOCK", "CAP_IPC_LOCK"} & set(host["CapAdd"])
    assert told == []
