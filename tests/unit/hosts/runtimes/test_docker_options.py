"""What containers are made of, and how a host's words are understood, without a daemon."""

from __future__ import annotations

import io
import json
import tarfile

import docker
import pytest

from raycluster.core.cgroups import Limits
from raycluster.core.errors import HostError, ImageError, RuntimeUnavailableError
from raycluster.core.interfaces import ROOT, ByteStream, Process, Versions, Volume
from raycluster.hosts.runtimes.docker_errors import Edge
from raycluster.hosts.runtimes.docker_http import open_client
from raycluster.hosts.runtimes.docker_image import LayerProgress, _interpreters, registry_of
from raycluster.hosts.runtimes.docker_options import (
    archive,
    container_options,
    labels,
    owner,
    place,
)
from raycluster.hosts.transports.local import LocalTransport

PASSWD = "root:x:0:0::/root:/bin/sh\nray:x:1000:100::/home/ray:/bin/bash\nodd\n"
GROUP = "root:x:0:\nusers:x:100:ray\nteam:x:77:\n"


@pytest.fixture
def client() -> docker.APIClient:
    """Return a client that cannot send: nothing here may need the daemon."""

    def refuse() -> ByteStream:
        raise AssertionError("something was sent")

    return open_client(refuse)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0)),
        ("root", (0, 0)),
        ("ray", (1000, 100)),
        ("1000", (1000, 100)),
        ("1000:77", (1000, 77)),
        ("ray:team", (1000, 77)),
        ("4321", (4321, 0)),
        ("4321:8765", (4321, 8765)),
        ("4321:team", (4321, 77)),
    ],
)
def test_the_images_user_is_understood_as_docker_does(user: str, expected: tuple[int, int]) -> None:
    assert owner(user, PASSWD, GROUP) == expected


def test_without_account_files_only_numbers_can_be_known() -> None:
    assert owner("1000:1001", "", "") == (1000, 1001)


def test_files_are_private_to_the_user_and_the_folder_is_everybodys() -> None:
    made = archive({"a/b/token": b"hush", "plain": b""}, (1000, 100), 5.0)
    with tarfile.open(fileobj=io.BytesIO(made)) as tar:
        seen = {m.name: (oct(m.mode), m.uid, m.gid, m.mtime) for m in tar.getmembers()}
    assert seen == {
        "raycluster": ("0o1777", 0, 0, 5),
        "raycluster/a": ("0o700", 1000, 100, 5),
        "raycluster/a/b": ("0o700", 1000, 100, 5),
        "raycluster/a/b/token": ("0o600", 1000, 100, 5),
        "raycluster/plain": ("0o600", 1000, 100, 5),
    }


def test_labels_hold_what_a_container_is_compared_by() -> None:
    process = Process("head", ("ray",))
    versions = Versions(python="3.11.9", ray="2.60.0")
    made = labels("qwen", "jane", process, versions)
    assert (made["raycluster.cluster"], made["raycluster.owner"]) == ("qwen", "jane")
    assert made["raycluster.role"] == "head"
    assert made["raycluster.fingerprint"] == process.fingerprint
    assert Versions(**json.loads(made["raycluster.versions"])) == versions


def test_volumes_become_mounts_that_make_no_folder(client: docker.APIClient) -> None:
    volumes = (Volume("~/m", "/m", True), Volume("/data", "{root}/data"), Volume("named", "/n"))
    process = Process("head", ("ray",), volumes=volumes)
    made = container_options(client, "qwen", process, "/home/u", None)["host_config"]["Mounts"]
    assert [(m["Type"], m["Source"], m["Target"], m["ReadOnly"]) for m in made] == [
        ("volume", "raycluster-qwen", "/raycluster", False),
        ("bind", "/home/u/m", "/m", True),
        ("bind", "/data", "/raycluster/data", False),
        ("volume", "named", "/n", False),
    ]


@pytest.mark.parametrize(("port", "may_bind"), [(80, True), (1024, False), (8080, False)])
def test_only_a_low_port_brings_the_right_to_bind_it(
    client: docker.APIClient, port: int, may_bind: bool
) -> None:
    process = Process("gateway", ("nginx",), ports={"gateway": port})
    made = container_options(client, "qwen", process, "", None)["host_config"]
    assert ("NET_BIND_SERVICE" in made["CapAdd"]) is may_bind


@pytest.mark.parametrize(
    ("said", "error", "what"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', *(
            RuntimeUnavailableError, "no NVIDIA runtime")),
        ("OCI runtime create failed: invoking the NVIDIA Container Runtime Hook directly (e.g. "
         "specifying the docker --gpus flag) is not supported", *(
            RuntimeUnavailableError, "in CDI mode")),
        ("write /x: no space left on device", HostError, "the disk is full"),
        ('Conflict. The container name "/x" is already in use by container "y"', *(
            HostError, "another container")),
        ("exec format error", ImageError, "another architecture"),
        ('OCI runtime create failed: exec: "/bin/sh": stat /bin/sh: no such file', *(
            ImageError, "lacks a program")),
        ("No such image: a:1", ImageError, "No such image: a:1"),
        ('error mounting "mqueue" to rootfs at "/dev/mqueue": operation not permitted', *(
            RuntimeUnavailableError, "which rootless Docker never can")),
        ('invalid mount config for type "bind": stat /root/models: permission denied', *(
            HostError, "may not read a volume's folder")),
        ("authorization denied by plugin opa: no host "
        "network", HostError, "a Docker authorization plugin"),
        ("something new", HostError, "something new"),
    ],
)  # fmt: skip
def test_refusals_of_the_daemon(said: str, error: type[HostError], what: str) -> None:
    made = Edge("gpu-1", LocalTransport("gpu-1"), "/none").refusal(said, "starting x")
    assert type(made) is error
    assert what in made.what
    assert made.where == "gpu-1"


def test_progress_adds_up_the_layers() -> None:
    def layer(name: str, status: str, current: float = 0, total: float = 0) -> dict[str, object]:
        detail = {"current": current, "total": total} if total else {}
        return {"id": name, "status": status, "progressDetail": detail}

    progress = LayerProgress("a:1")
    assert progress.line({"status": "Pulling from a"}) == ""
    assert progress.line(layer("x", "Downloading", 1e9, 3e9)) == "pulling a:1: 1.0 of 3.0 GB"
    assert progress.line(layer("y", "Downloading", 0.2e9, 1.5e9)) == "pulling a:1: 1.2 of 4.5 GB"
    assert progress.line(layer("x", "Download complete")) == "pulling a:1: 3.2 of 4.5 GB"
    assert progress.line(layer("y", "Download complete")) == "unpacking a:1"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), []),
        (("ray", "start"), []),
        (("/opt/env/bin/ray",), ["/opt/env/bin/python3"]),
        (("python3.11", "-m", "x"), ["python3.11"]),
        (("/opt/env/bin/python", "x"), ["/opt/env/bin/python"]),
    ],
)
def test_the_interpreter_beside_the_program_is_tried_first(
    argv: tuple[str, ...], expected: list[str]
) -> None:
    assert _interpreters(argv) == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("nginx:1.29", "docker.io"),
        ("rayproject/ray-llm:2.60.0", "docker.io"),
        ("ghcr.io/acme/serving@sha256:00", "ghcr.io"),
        ("Registry.Example.org:5000/serving", "registry.example.org:5000"),
        ("localhost/serving", "localhost"),
    ],
)
def test_a_name_tells_its_registry(image: str, expected: str) -> None:
    assert registry_of(image) == expected


@pytest.mark.parametrize(
    ("path", "on_host"),
    [
        (f"{ROOT}/cache/x", "/var/lib/docker/volumes/raycluster-q/_data/cache/x"),
        ("/models/a/b", "/data/models/a/b"),
        ("/models", "/data/models"),
        ("/models/deep/b", "/deep/b"),
        ("/home/x", "/home/me/kept/x"),
        ("/named/x", "/var/lib/docker/volumes/weights/_data/x"),
        ("/modelsandmore/a", ""),
        ("~/a", ""),
    ],
)
def test_where_on_the_host_a_path_of_the_container_lies(path: str, on_host: str) -> None:
    volumes = (
        Volume("/data/models", "/models", read_only=True),
        Volume("/deep", "/models/deep"),
        Volume("~/kept", "/home"),
        Volume("weights", "/named"),
    )
    process = Process("head", ("ray",), volumes=volumes)
    assert place(path, "q", process, "/home/me", "/var/lib/docker") == on_host


@pytest.mark.parametrize(
    ("limits", "size", "memory", "shared"),
    [
        (None, "8g", None, 8 << 30),
        (Limits(2, 24 << 30, 8, 24 << 30), "8g", None, 8 << 30),
        (Limits(8, 2 << 30, 8, 24 << 30), "8g", 2 << 30, 2 << 30),
        (Limits(8, 16 << 30, 8, 24 << 30), "8g", 16 << 30, 8 << 30),
    ],
)
def test_a_container_on_a_host_with_a_limit_has_it_too(
    client: docker.APIClient, limits: Limits | None, size: str, memory: int | None, shared: int
) -> None:
    """Ray in it sees the limit of its own group alone."""
    process = Process("head", ("ray",), shm_size=size, limits=limits, more=("--num-cpus=2",))
    made = container_options(client, "q", process, "", None)
    assert made["command"] == ["--num-cpus=2"]
    assert made["host_config"].get("Memory") == memory
    assert made["host_config"]["ShmSize"] == shared
