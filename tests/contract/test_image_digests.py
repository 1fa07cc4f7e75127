"""A tag that moves in a real registry, which two hosts reach: the cluster stays with one image."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from raycluster.apply.context import ApplyContext
from raycluster.apply.image_parity import settled
from raycluster.core.errors import ImageError
from raycluster.core.interfaces import Process, Secret, Versions
from raycluster.hosts import fleet as connect
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.transports.local import LocalTransport
from raycluster.plan.actions import Start
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from tests.contract.dockerd import IMAGE, USR, docker_cli, docker_daemon
from tests.contract.sshd import wait_for

SERVER = "127.0.0.1:5000"  # of each daemon's own network; both registries have one folder
NAME = f"{SERVER}/acme/serving:1"
NOWHERE = "sha256:" + "0" * 64
PROCESS = Process("gateway", ("sleep", "1000"), volumes=(USR,), image=NAME)


class Hosts:
    """Two hosts, and two images that one tag has named, one after the other."""

    def __init__(self, sockets: Mapping[str, str]) -> None:
        self.sockets = sockets
        for host in sockets:
            wait_for(partial(self._answers, host), "registry", 60)
        self.old, self.new = self._pushed("old"), self._pushed("new")

    def _answers(self, host: str) -> bool:
        """Return whether the host's registry listens: it has no such image then."""
        with pytest.raises(ImageError) as refused:
            self.runtime(host).prepare(replace(PROCESS, image=f"{SERVER}/none:1"), lambda _: None)
        return "connection refused" not in refused.value.what

    def _pushed(self, word: str) -> str:
        socket = self.sockets["head"]
        container = docker_cli(socket, "create", "--label", f"word={word}", IMAGE, "x").strip()
        docker_cli(socket, "commit", "--change", f"LABEL word={word}", container, NAME)
        docker_cli(socket, "rm", container)
        docker_cli(socket, "push", NAME)
        digest = self.held("head")[NAME]
        self.clear()
        return digest

    def held(self, host: str) -> dict[str, str]:
        """Return the digest of each image of the registry by its name, or by itself."""
        form = "{{.Repository}}:{{.Tag}} {{.Digest}}"
        lines = docker_cli(self.sockets[host], "images", "--digests", "--format", form).split("\n")
        pairs = dict(line.split(" ") for line in lines if line.startswith(SERVER))
        return {name.replace("<none>", digest): digest for name, digest in pairs.items()}

    def pull(self, host: str, digest: str) -> None:
        """Let a host have this image under the tag's name."""
        name = f"{NAME.rpartition(':')[0]}@{digest}"
        docker_cli(self.sockets[host], "pull", name)
        docker_cli(self.sockets[host], "tag", name, NAME)

    def runtime(self, host: str, pull: str = "missing") -> DockerRuntime:
        return DockerRuntime(
            host,
            "q",
            LocalTransport(host),
            pull=pull,  # type: ignore[arg-type]
            socket=self.sockets[host],
        )

    def clear(self) -> None:
        for host, socket in self.sockets.items():
            self.runtime(host).remove()
            while held := self.held(host):
                for name in held:
                    place = name.replace(":sha256", "@sha256")
                    docker_cli(socket, "rmi", place)
                    break


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if not shutil.which("docker-registry"):
        pytest.skip("needs docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    store = {"filesystem": {"rootdirectory": str(folder / "store")}}
    plain = {"version": "0.1", "http": {"addr": SERVER}, "log": {"level": "error"}}
    config = folder / "config.yml"  # every JSON is YAML
    config.write_text(json.dumps({**plain, "storage": store}))
    beside = f"docker-registry serve {shlex.quote(str(config))} >/dev/null 2>&1"
    with ExitStack() as stack:
        yield Hosts(
            {
                name: stack.enter_context(docker_daemon(tmp_path_factory.mktemp(name), beside))
                for name in ("head", "second")
            }
        )


@pytest.fixture
def hosts(made: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))  # no login of this machine's user
    yield made
    made.clear()


def started(runtime: DockerRuntime, process: Process) -> str:
    """Start a process, and return what its host has noted of the image."""
    told: list[str] = []
    runtime.start(process, runtime.prepare(process, told.append), {}, told.append)
    (found,) = runtime.observe()
    return found.versions.image


def test_what_a_tag_was_is_noted_and_a_later_host_gets_it(hosts: Hosts) -> None:
    hosts.pull("head", hosts.old)
    noted = started(hosts.runtime("head"), PROCESS)
    assert noted == f"{NAME}@{hosts.old}"
    later = hosts.runtime("second")
    assert started(later, replace(PROCESS, digest=noted.partition("@")[2])) == noted
    assert hosts.held("second") == {NAME: hosts.old}, "under the name, and no other"
    assert later.layers(NAME) == hosts.runtime("head").layers(NAME) != ()
    later.remove(purge=True)
    assert hosts.held("second") == {}


def test_another_image_under_the_name_stays_what_it_is(hosts: Hosts) -> None:
    hosts.pull("second", hosts.new)
    runtime, process = hosts.runtime("second"), replace(PROCESS, digest=hosts.old)
    assert not runtime.outlook(process, ()).there
    assert started(runtime, process) == f"{NAME}@{hosts.old}"
    assert runtime.outlook(process, ()).there
    form = '{{index .Config.Labels "word"}}'
    word = docker_cli(hosts.sockets["second"], "inspect", "--format", form, "raycluster-q-gateway")
    assert word.strip() == "old"
    runtime.remove(purge=True)
    assert hosts.held("second") == {NAME: hosts.new}


def test_what_the_registry_has_no_longer_is_told_with_the_ways_on(hosts: Hosts) -> None:
    process, told = replace(PROCESS, digest=NOWHERE), list[str]()
    with pytest.raises(ImageError) as refused:
        hosts.runtime("second").prepare(process, told.append)
    assert NOWHERE in refused.value.what
    assert "no longer has" in refused.value.what
    assert 'distribution.images = "peer"' in refused.value.hint
    hosts.pull("second", hosts.new)
    assert hosts.runtime("second").prepare(process, told.append).image == f"{NAME}@{hosts.new}"
    assert "going on with" in told[-1]
    assert started(hosts.runtime("second"), process) == f"{NAME}@{hosts.new}"


@pytest.mark.parametrize(("pull", "gets"), [("missing", "old"), ("always", "new")])
def test_who_wants_the_newest_gets_it(hosts: Hosts, pull: str, gets: str) -> None:
    hosts.pull("second", hosts.old)
    (start,) = settle(hosts, ["second"], pull)
    assert start.process.digest == getattr(hosts, gets)
    assert started(hosts.runtime("second", pull), start.process) == f"{NAME}@{getattr(hosts, gets)}"
    assert hosts.held("second")[NAME] == getattr(hosts, gets)


def test_an_image_that_was_built_here_is_left_alone(hosts: Hosts) -> None:
    docker_cli(hosts.sockets["second"], "tag", IMAGE, NAME)
    try:
        assert started(hosts.runtime("second"), replace(PROCESS, digest=hosts.old)) == ""
    finally:
        hosts.runtime("second").remove()
        docker_cli(hosts.sockets["second"], "rmi", NAME)


def settle(hosts: Hosts, names: list[str], pull: str = "missing") -> list[Start]:
    """Return what is to be started on these hosts, with the image that all of them get."""
    every = [{"host": f"127.0.0.{n}", "name": name} for n, name in enumerate(hosts.sockets, 2)]
    spec = ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "runtime": {"image": NAME, "pull": pull},
            "head": {k: v for k, v in every[0].items() if k != "name"},
            "workers": every[1:],
        }
    )
    with pytest.MonkeyPatch.context() as patch, Fleet("q", 4) as fleet:
        patch.setattr(connect, "TRANSPORTS", {"ssh": lambda host, _: LocalTransport(host.name)})
        runtimes = {"docker": lambda host, *_: hosts.runtime(host.name, pull)}
        patch.setattr(connect, "RUNTIMES", runtimes)
        fleet.reach(spec.hosts, lambda connected: connected.address)
        work = ApplyContext(spec, fleet, Secret("t"), Secrets(), lambda _: None)
        return settled(work, [Start(name, PROCESS, "") for name in names])


def test_hosts_that_start_together_get_what_the_tag_is_now(hosts: Hosts) -> None:
    starts = settle(hosts, ["head", "second"])
    assert {start.process.digest for start in starts} == {hosts.new}


def test_hosts_that_start_together_get_what_the_first_has(hosts: Hosts) -> None:
    hosts.pull("second", hosts.old)
    assert {s.process.digest for s in settle(hosts, ["head", "second"])} == {hosts.old}


def test_a_registry_that_does_not_tell_leaves_it_to_the_pull(hosts: Hosts) -> None:
    assert hosts.runtime("head").registry_digest(f"{SERVER}/acme/unknown:1", None) == ""
    assert hosts.runtime("head").prepare(PROCESS, lambda _: None) == Versions(
        image=f"{NAME}@{hosts.new}"
    )
