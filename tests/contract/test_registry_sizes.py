"""What Docker's own registry tells of an image and an index in it, to this machine and to hosts."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest

from raycluster.check.hosts import Finding, check_hosts
from raycluster.core.errors import ImageError
from raycluster.core.interfaces import Process, RegistryLogin, Secret
from raycluster.core.wait import wait_for
from raycluster.hosts import fleet as connect
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.runtimes.docker_image import Pull
from raycluster.hosts.transports.local import LocalTransport
from raycluster.observe.image_registry import (
    INDEXES,
    MANIFESTS,
    ImageAnswer,
    ask_for,
    image_sizes,
    parse,
)
from raycluster.spec import ClusterSpec
from tests.contract.dockerd import IMAGE, docker_daemon
from tests.ports import free_port

USER, PASSWORD = "puller", "a pass:word"
LAYERS = (b"l" * 30_000, b"m" * 7_000)
CONFIG = b'{"architecture": "amd64"}'


@dataclass(frozen=True)
class Registry:
    """A registry that asks for a login, and the login."""

    server: str
    login: RegistryLogin
    config: Path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    if not shutil.which("docker-registry"):
        pytest.skip("needs docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    server = f"127.0.0.1:{free_port()}"
    password = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (folder / "htpasswd").write_text(f"{USER}:{password}\n")
    config = {
        "version": "0.1",
        "http": {"addr": server},
        "log": {"level": "error"},
        "auth": {"htpasswd": {"realm": "lab", "path": str(folder / "htpasswd")}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "store")}},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        program = ("docker-registry", "serve", str(folder / "config.yml"))
        process = subprocess.Popen(program, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{server}/v2", auth=(USER, PASSWORD)) as client:
            assert wait_for(lambda: _answers(client), timeout=60), (folder / "log").read_text()
            _fill(client)
        login = RegistryLogin(server, Secret(USER), Secret(PASSWORD))
        yield Registry(server, login, folder / "config.yml")
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def beside(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a Docker daemon with a network of its own, in which the registry is too."""
    folder = tmp_path_factory.mktemp("dockerd")
    serve = shlex.join(["docker-registry", "serve", str(registry.config)])
    (folder / "daemon").mkdir()
    with docker_daemon(folder / "daemon", f"{serve} >{folder}/log 2>&1") as socket:
        runtime = DockerRuntime("here", "q", LocalTransport("here"), socket=socket)
        image = f"{registry.server}/acme/serving:1"
        process = Process("head", ("ray",), image=image, login=registry.login)

        def answers() -> bool | None:
            try:
                return runtime.pullable(process)
            except ImageError:
                return None

        assert wait_for(answers, timeout=30), (folder / "log").read_text()
        yield socket


def _answers(client: httpx.Client) -> bool | None:
    try:
        return client.get("/").is_success or None
    except httpx.TransportError:
        return None


def _fill(client: httpx.Client) -> None:
    config, *layers = (_blob(client, content) for content in (CONFIG, *LAYERS))
    image = {"schemaVersion": 2, "mediaType": MANIFESTS[0], "config": config, "layers": layers}
    one = _manifest(client, "1", image)
    small = _manifest(client, "arm", {**image, "layers": layers[:1]})
    arm = {"platform": {"os": "linux", "architecture": "arm64"}}
    arms = [{**small, **arm}]
    _manifest(client, "arms", {"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": arms})
    index = [
        *arms,
        {**one, "platform": {"os": "linux", "architecture": "amd64"}},
    ]
    _manifest(client, "many", {"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": index})


def _blob(client: httpx.Client, content: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    place = client.post("/acme/serving/blobs/uploads/").raise_for_status().headers["Location"]
    done = client.put(place, params={**httpx.URL(place).params, "digest": digest}, content=content)
    assert done.status_code == 201, done.text
    return {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "size": len(content),
        "digest": digest,
    }


def _manifest(client: httpx.Client, tag: str, value: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps(value).encode()
    kind = {"Content-Type": value["mediaType"]}
    done = client.put(f"/acme/serving/manifests/{tag}", content=content, headers=kind)
    assert done.status_code == 201, done.text
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"mediaType": value["mediaType"], "size": len(content), "digest": digest}


WHOLE = len(CONFIG) + sum(map(len, LAYERS))


@pytest.mark.parametrize("tag", ["1", "many"])
def test_an_image_is_as_large_as_its_layers_for_this_kind_of_machine(
    registry: Registry, tag: str
) -> None:
    image = f"{registry.server}/acme/serving:{tag}"
    assert image_sizes([image], registry.login) == {image: WHOLE}


def test_what_the_registry_does_not_tell_is_not_known(registry: Registry, tmp_path: Path) -> None:
    image = f"{registry.server}/acme/serving:1"
    wrong = RegistryLogin(registry.server, Secret(USER), Secret("wrong"))
    assert image_sizes([image], None) == {}
    assert image_sizes([image], wrong) == {}
    assert image_sizes([f"{registry.server}/acme/none:1"], registry.login) == {}
    assert image_sizes(["127.0.0.1:9/a:1", "127.0.0.1:9/b:1"], None) == {}


def test_a_tag_is_there_or_the_nearest_are_named(registry: Registry) -> None:
    def ask(reference: str, login: RegistryLogin | None = registry.login) -> ImageAnswer:
        return ask_for(f"{registry.server}/acme/{reference}", login)

    assert ask("serving:1") == ImageAnswer(True)
    assert ask("serving:manny") == ImageAnswer(False, nearest=("many", "arm", "arms", "1"))
    assert ask(f"serving@sha256:{'0' * 64}") == ImageAnswer(False)
    unknown = ask("serving:1", None)
    assert (unknown.there, "401" in unknown.why) == (None, True)
    assert ask_for("127.0.0.1:9/a:1", None).there is None


WRONG = RegistryLogin("", Secret(USER), Secret("wrong"))
NO_WAY = "cannot get image .*: the host cannot reach the registry \\(.*refused\\)"


def findings(image: str, login: RegistryLogin | None) -> list[Finding]:
    """Return what `check` says of the image of a host of this machine."""
    head = {"host": "127.0.0.1", "transport": "local", "gpus": 0}
    table = {"cluster": {"name": "q"}, "runtime": {"image": image}, "head": head}
    with Fleet("q", 2) as fleet:
        found = check_hosts(ClusterSpec.model_validate(table), fleet, login)
    return [f for f in found if f.subject == "image"]


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, Pull], None]:
    """Return what makes the hosts' Docker that of a socket."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))  # no login of this machine's user

    def use(socket: str, pull: Pull) -> None:
        made = {
            "docker": lambda host, cluster, transport: DockerRuntime(
                host.name, cluster, transport, pull=pull, socket=socket
            )
        }
        monkeypatch.setattr(connect, "RUNTIMES", made)

    return use


@pytest.mark.parametrize(
    ("image", "pull", "passed", "text"),
    [
        ("{}/acme/serving:many", "missing", True, "{}/acme/serving:many exists in its registry"),
        ("{}/acme/serving:men", "missing", False, "cannot get .* no such tag .*; it has many, arm"),
        ("{}/acme/serving@sha256:" + "0" * 64, "missing", False, "cannot get .* or digest"),
        ("{}/acme/serving:arms", "missing", False, ".* is built for arm64, but the host is amd64"),
        ("127.0.0.1:9/a:1", "missing", False, NO_WAY),
        (IMAGE, "missing", None, ""),
        (IMAGE, "always", False, "cannot get image .*: the host cannot reach the registry"),
        ("{}/acme/serving:men", "never", False, "image .* is missing, and pull"),
        (IMAGE, "never", None, ""),
    ],
)
def test_check_lets_a_host_ask_for_what_it_would_pull(
    registry: Registry,
    beside: str,
    uses: Callable[[str, Pull], None],
    *,
    image: str,
    pull: Pull,
    passed: bool | None,
    text: str,
) -> None:
    uses(beside, pull)
    found = findings(image.format(registry.server), registry.login)
    assert [f.passed for f in found] == ([] if passed is None else [passed])
    assert [f.text for f in found if not re.match(text.format(registry.server), f.text)] == []
    assert all(f.passed or f.hint for f in found)
    if passed is False and pull != "never":  # what `up` does then
        here = DockerRuntime("head", "q", LocalTransport("head"), pull=pull, socket=beside)
        process = Process("head", ("ray",), image=image.format(registry.server))
        with pytest.raises(ImageError):
            here.prepare(replace(process, login=registry.login), lambda _: None)


@pytest.mark.parametrize("login", [None, WRONG], ids=["none", "wrong"])
def test_check_says_that_a_pull_needs_a_login(
    registry: Registry,
    beside: str,
    uses: Callable[[str, Pull], None],
    login: RegistryLogin | None,
) -> None:
    uses(beside, "missing")
    given = login and replace(login, server=registry.server)
    [found] = findings(f"{registry.server}/acme/serving:1", given)
    assert (found.passed, "[registry]" in found.hint) == (False, True)


def test_what_this_machine_reaches_is_no_proof_for_hosts(
    registry: Registry, dockerd: str, uses: Callable[[str, Pull], None]
) -> None:
    image = f"{registry.server}/acme/serving:1"
    assert ask_for(image, registry.login).there
    uses(dockerd, "missing")
    [found] = findings(image, registry.login)
    assert not found.passed
    assert re.match(NO_WAY, found.text)


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("nginx", ("registry-1.docker.io", "library/nginx", "latest")),
        ("rayproject/ray-llm:2", ("registry-1.docker.io", "rayproject/ray-llm", "2")),
        ("ghcr.io/a/b@sha256:00", ("ghcr.io", "a/b", "sha256:00")),
        ("localhost:5000/a/b:1@sha256:00", ("localhost:5000", "a/b", "sha256:00")),
    ],
)
def test_an_images_name_tells_where_it_is_asked_for(
    image: str, parts: tuple[str, str, str]
) -> None:
    assert parse(image) == parts
