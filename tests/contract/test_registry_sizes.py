"""How many bytes a pull brings, asked of Docker's own registry with an image and an index in it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest

from raycluster.check.hosts import check_hosts
from raycluster.core.interfaces import RegistryLogin, Secret
from raycluster.core.wait import wait_for
from raycluster.hosts import fleet as connect
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.runtimes.docker_image import Pull
from raycluster.observe.image_registry import (
    INDEXES,
    MANIFESTS,
    ImageAnswer,
    ask_for,
    image_sizes,
    parse,
)
from raycluster.spec import ClusterSpec
from tests.contract.dockerd import IMAGE
from tests.ports import free_port

USER, PASSWORD = "puller", "a pass:word"
LAYERS = (b"l" * 30_000, b"m" * 7_000)
CONFIG = b'{"architecture": "amd64"}'


@dataclass(frozen=True)
class Registry:
    """A registry that asks for a login, and the login."""

    server: str
    login: RegistryLogin


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
        yield Registry(server, RegistryLogin(server, Secret(USER), Secret(PASSWORD)))
    finally:
        process.terminate()
        process.wait()


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
    index = [
        {**small, "platform": {"os": "linux", "architecture": "arm64"}},
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
    assert ask("serving:manny") == ImageAnswer(False, nearest=("many", "arm", "1"))
    assert ask(f"serving@sha256:{'0' * 64}") == ImageAnswer(False)
    unknown = ask("serving:1", None)
    assert (unknown.there, "401" in unknown.why) == (None, True)
    assert ask_for("127.0.0.1:9/a:1", None).there is None


@pytest.mark.parametrize(
    ("image", "pull", "passed", "text"),
    [
        ("{}/acme/serving:many", "missing", True, "{}/acme/serving:many exists in its registry"),
        ("{}/acme/serving:men", "missing", False, "the registry has no .*; it has many, arm, 1"),
        ("127.0.0.1:9/a:1", "missing", True, "127.0.0.1:9/a:1 was not looked up: 127.0.0.1:9: "),
        (IMAGE, "missing", None, ""),
        ("{}/acme/serving:men", "never", False, "image .* is missing, and pull"),
        (IMAGE, "never", None, ""),
    ],
)
def test_check_asks_for_what_a_host_would_pull(
    registry: Registry,
    dockerd: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    image: str,
    pull: Pull,
    passed: bool | None,
    text: str,
) -> None:
    monkeypatch.setattr(
        connect,
        "RUNTIMES",
        {
            "docker": lambda host, cluster, transport: DockerRuntime(
                host.name, cluster, transport, pull=pull, socket=dockerd
            )
        },
    )
    image = image.format(registry.server)
    head = {"host": "127.0.0.1", "transport": "local", "gpus": 0}
    table = {"cluster": {"name": "q"}, "runtime": {"image": image}, "head": head}
    spec = ClusterSpec.model_validate(table)
    with Fleet("q", 2) as fleet:
        found = [f for f in check_hosts(spec, fleet, registry.login) if f.subject == "image"]
    assert [f.passed for f in found] == ([] if passed is None else [passed])
    assert [f.text for f in found if not re.match(text.format(registry.server), f.text)] == []


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
