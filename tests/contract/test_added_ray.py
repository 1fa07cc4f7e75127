"""Ray for an image that has none, against a real daemon: tiny wheels stand for Ray's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from uv import find_uv_bin

from raycluster.core.errors import ImageError
from raycluster.core.interfaces import Process, Versions, Volume
from raycluster.core.tested_versions import RAY
from raycluster.hosts.runtimes import docker_ray, docker_wheels
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.runtimes.docker_ray import AddedRay
from raycluster.hosts.runtimes.docker_wheels import NoWheelsError, Store, WheelTarget
from raycluster.hosts.transports.local import LocalTransport
from tests.contract.dockerd import IMAGE, USR, docker_cli
from tests.wheels import install, lock_of, make_wheel, write_index

PROOF = ("ray", "lacking")
SCRIPT = "import os, sys\ndef main():\n    import lacking\n    print(sys.argv[1], flush=True)\n"
SCRIPT += "    __import__('time').sleep(600)\n"


@dataclass
class Here:
    """A daemon, an image with these packages, and an index for the host or for this machine."""

    socket: str
    folder: Path
    host_has_index: bool = True
    cluster: str = "add"
    told: list[str] = field(default_factory=list)
    lock: bytes = b""
    runtime: DockerRuntime = field(init=False)

    def __post_init__(self) -> None:
        self.runtime = self.another_run()
        self.folder.chmod(0o755)

    def another_run(self) -> DockerRuntime:
        transport = LocalTransport("here")
        wanted = AddedRay(lock=self.lock, proof=PROOF)
        return DockerRuntime("here", self.cluster, transport, socket=self.socket, ray=wanted)

    @property
    def index(self) -> Path:
        return self.folder / "index"

    @property
    def process(self) -> Process:
        tools = self.folder / "tools"
        tools.mkdir(exist_ok=True)
        mounted = [USR, Volume(str(self.folder / "packages"), "/packages", read_only=True)]
        env = {"PYTHONPATH": "/packages", "PATH": "/usr/bin:/bin"}
        if self.host_has_index:
            if not (tools / "uv").exists():
                shutil.copy(find_uv_bin(), tools / "uv")
            mounted += [Volume(str(self.index), "/index", read_only=True)]
            mounted += [Volume(str(tools), "/tools", read_only=True)]
            env |= {"UV_DEFAULT_INDEX": "file:///index/simple", "PATH": "/usr/bin:/bin:/tools"}
        argv = ("ray", "it runs")
        return Process("head", argv, env=env, image=IMAGE, volumes=tuple(mounted))

    def offer(self, ray_requires: str = "shared", lacking: str = "") -> None:
        """Fill the index; the image has `shared` 1.0."""
        requires = [ray_requires, 'lacking>=1; extra == "serve"']
        modules = {"ray/__init__.py": "import shared\n", "ray/script.py": SCRIPT}
        make_wheel(
            self.index,
            "ray",
            RAY,
            requires=requires,
            extras=("data", "serve"),
            modules=modules,
            program="ray = ray.script:main",
        )
        make_wheel(self.index, "prometheus_client", "0.20.0")
        make_wheel(self.index, "lacking", "1.1", modules={"lacking/__init__.py": lacking})
        for version in ("1.0", "2.0"):
            make_wheel(self.index, "shared", version)
        write_index(self.index)

    def hold(self, **versions: str) -> None:
        """Let the image have these distributions."""
        install(self.folder / "packages", **versions)
        (self.folder / "packages/shared.py").touch()

    def prepare(self) -> Versions:
        self.told.clear()
        return self.runtime.prepare(self.process, self.told.append)

    def added(self) -> dict[str, list[str]]:
        """Return what lies in the cluster's volume for each folder of Ray."""
        volumes = docker_cli(self.socket, "volume", "ls", "--quiet").split()
        if "raycluster-add" not in volumes:
            return {}
        place = docker_cli(self.socket, "volume", "inspect", "-f", "{{.Mountpoint}}", *volumes)
        return {
            each.name: sorted(info.name for info in each.glob("*.dist-info"))
            for each in Path(place.strip()).glob("ray-*")
        }


@pytest.fixture(params=[True, False], ids=["index of the host", "index of this machine"])
def here(
    request: pytest.FixtureRequest, dockerd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Here]:
    made = Here(dockerd, tmp_path, host_has_index=request.param)
    made.index.mkdir()
    monkeypatch.setattr(docker_ray, "STORE", Store())  # this machine's index changes with the test
    own = "file:///no/such" if request.param else f"file://{made.index}/simple"
    monkeypatch.setenv("UV_DEFAULT_INDEX", own)
    yield made
    made.runtime.remove()
    assert made.added() == {}


def test_what_the_image_lacks_is_added_and_nothing_else(here: Here) -> None:
    here.offer()
    odd = {"~hared": "1.0", "legacy": "2004d", "tensors": "2.13.0a0+git1.cu130"}
    here.hold(vllm="0.32.0", shared="1.0", **odd)
    before = here.runtime.known_versions(here.process)
    assert (before.whole, here.added(), here.told) == (True, {}, [])
    versions = here.prepare()
    assert replace(versions, added="") == before.versions
    assert (versions.ray, versions.vllm) == (RAY, "0.32.0")
    names = ["lacking-1.1", "prometheus_client-0.20.0", f"ray-{RAY}"]
    assert here.added() == {versions.added: [f"{name}.dist-info" for name in names]}
    from_here = [line for line in here.told if "from this machine" in line]
    assert len(from_here) == (0 if here.host_has_index else 1)
    assert docker_cli(here.socket, "ps", "--all", "--quiet") == ""


def test_hosts_without_an_index_get_what_this_machine_has_made_once(
    dockerd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = list[WheelTarget](), docker_wheels._made

    def counted(target: WheelTarget, folder: Path) -> Path | NoWheelsError:
        made.append(target)
        return real(target, folder)

    monkeypatch.setattr(docker_wheels, "_made", counted)
    monkeypatch.setattr(docker_ray, "STORE", Store())
    hosts = [
        Here(dockerd, tmp_path, host_has_index=False, cluster=name) for name in ("add", "other")
    ]
    hosts[0].offer()
    hosts[0].hold(vllm="0.32.0", shared="1.0")
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"file://{hosts[0].index}/simple")
    try:
        with ThreadPoolExecutor() as side_by_side:
            found = [*side_by_side.map(Here.prepare, hosts)]
        assert len(made) == 1
        assert found[0] == found[1]
        assert all(any("from this machine" in line for line in host.told) for host in hosts)
        shutil.rmtree(hosts[0].index)  # what is there needs neither
        for host in hosts:
            host.runtime = host.another_run()
            assert host.prepare() == found[0]
            assert host.told == []
    finally:
        for host in hosts:
            host.runtime.remove()


def test_the_lock_chooses_the_version_and_the_file(here: Here) -> None:
    here.offer()
    make_wheel(here.index, "lacking", "1.9")
    write_index(here.index)
    here.hold(vllm="0.32.0", shared="1.0")
    here.lock = lock_of(here.index, f"ray-{RAY}", "lacking-1.1", "shared-2.0")
    here.runtime = here.another_run()
    versions = here.prepare()
    names = ["lacking-1.1", "prometheus_client-0.20.0", f"ray-{RAY}"]
    assert here.added() == {versions.added: [f"{name}.dist-info" for name in names]}


def test_another_file_than_the_locked_one_is_refused(here: Here) -> None:
    here.offer()
    here.lock = lock_of(here.index, f"ray-{RAY}", "lacking-1.1")
    here.offer(lacking="print('not what was locked')\n")
    here.hold(vllm="0.32.0", shared="1.0")
    here.runtime = here.another_run()
    with pytest.raises(ImageError, match=r"(?i)hash mismatch.*lacking"):
        here.prepare()
    assert here.added() == {}


def test_a_node_runs_it_and_a_second_run_adds_nothing(here: Here) -> None:
    here.offer()
    here.hold(vllm="0.32.0", shared="1.0")
    versions = here.prepare()
    here.runtime.start(here.process, versions, {}, here.told.append)
    log = here.runtime.logs("head", follow=True, tail=None, since=None)
    assert next(iter(log)).strip() == b"it runs"
    inside = here.runtime.inside("head").run(("sh", "-c", "echo $PATH $PYTHONPATH"))
    path, modules = inside.text.split()
    assert path.endswith(f":/raycluster/{versions.added}/bin")
    assert modules == f"/packages:/raycluster/{versions.added}"
    [found] = here.runtime.observe()
    assert (found.versions, found.fingerprint) == (versions, here.process.fingerprint)
    here.runtime = here.another_run()
    shutil.rmtree(here.index)
    here.index.mkdir()
    assert here.prepare() == versions
    assert here.told == []


def test_what_is_half_made_is_made_anew(here: Here) -> None:
    here.offer()
    here.hold(vllm="0.32.0", shared="1.0")
    first = here.prepare()
    place = docker_cli(here.socket, "volume", "inspect", "-f", "{{.Mountpoint}}", "raycluster-add")
    folder = Path(place.strip()) / first.added
    (folder / ".complete").unlink()
    shutil.rmtree(folder / "lacking")
    (folder.parent / f"{first.added}.part").mkdir()
    assert here.prepare() == first
    assert (folder / "lacking/__init__.py").exists()
    assert [*here.added()] == [first.added]


def test_a_conflict_names_both(here: Here) -> None:
    here.offer(ray_requires="shared>=2")
    here.hold(vllm="0.32.0", shared="1.0")
    with pytest.raises(ImageError, match=rf"Ray {RAY} conflicts with .*shared>=2.*shared==1.0"):
        here.prepare()
    assert here.added() == {}
    assert docker_cli(here.socket, "volume", "ls", "--quiet") == ""


def test_what_cannot_be_imported_is_not_taken(here: Here) -> None:
    here.offer(lacking="raise ImportError('no libfoo.so here')\n")
    here.hold(vllm="0.32.0", shared="1.0")
    with pytest.raises(ImageError, match=r"does not work in it: ImportError: no libfoo\.so here"):
        here.prepare()
    assert here.added() == {}


def test_without_an_index_anywhere_both_say_why(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.hold(vllm="0.32.0", shared="1.0")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "file:///no/such")
    with pytest.raises(ImageError, match=r"the host says .*, this machine ") as caught:
        here.prepare()
    assert "UV_DEFAULT_INDEX" in caught.value.hint


def test_an_image_without_an_engine_gets_nothing(dockerd: str, tmp_path: Path) -> None:
    here = Here(dockerd, tmp_path, host_has_index=False)
    here.hold(shared="1.0")
    with pytest.raises(ImageError, match=f"{IMAGE} has neither ray nor an engine"):
        here.prepare()
    assert docker_cli(dockerd, "volume", "ls", "--quiet") == ""
    assert here.runtime.prepare(replace(here.process, role="gateway"), print) == Versions()


def test_the_folder_stands_in_the_label(dockerd: str, tmp_path: Path) -> None:
    here = Here(dockerd, tmp_path)
    here.offer()
    here.hold(transformers="5.19.0", shared="1.0")
    versions = here.prepare()
    sleeper = replace(here.process, argv=("sleep", "600"))
    here.runtime.start(sleeper, versions, {}, print)
    try:
        seen = json.loads(docker_cli(dockerd, "inspect", "raycluster-add-head"))[0]
        label = json.loads(seen["Config"]["Labels"]["raycluster.versions"])
        assert label["added"] == versions.added
    finally:
        here.runtime.remove()
