"""What hosts lack comes to all of them with `up`: an image from the laptop or from the one host
that has it, a model from the one host that fetched it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.hosts import Host, Lab
from tests.lab.image import IMAGE
from tests.lab.program import Cli
from tests.node.hub import Hub, files_of, open_hub

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(600)]

NEW = "raycluster-lab:new"
CONTENT = "head -c 30000000 /dev/urandom >/content"
REPO = "acme/tiny"
WEIGHTS = "*/models--acme--tiny/snapshots/*/model.safetensors"


@pytest.fixture
def owner(lab: Lab) -> Iterator[Host]:
    """The one host that has an image of which no registry knows; afterwards none has it."""
    host = lab.docker_hosts[0]
    host.check("docker", "run", "--name=making", "--network=none", IMAGE, "sh", "-c", CONTENT)
    host.check("docker", "commit", "making", NEW)
    host.check("docker", "rm", "making")
    yield host
    for each in lab.docker_hosts:
        each.run(("docker", "rmi", NEW))


@pytest.fixture
def archive(owner: Host, tmp_path: Path) -> Path:
    """A file of `docker save` on the laptop, whose image is on no host."""
    path = tmp_path / "image.tar"
    owner.check("docker", "save", "--output=/root/image.tar", NEW)
    owner.check("docker", "rmi", NEW)
    shutil.move(owner.folder / "disk/root/image.tar", path)
    return path


@pytest.fixture
def hub(lab: Lab) -> Iterator[Hub]:
    """A hub on this machine that hosts reach."""
    with open_hub(Hub(REPO, files_of(lab.tiny)), lab.network.ipv4(1)) as hub:
        yield hub


def all_run_it(hosts: list[Host]) -> None:
    """Assert that every host has the same new image, runs it, and kept nothing of the way."""
    layers = [
        host.check("docker", "image", "inspect", "--format={{json .RootFS}}", NEW) for host in hosts
    ]
    assert len(set(layers)) == 1
    for host in hosts:
        running = host.check("docker", "ps", "--format={{.Image}}").split()
        assert running and {*running} == {NEW}
        assert host.check("sh", "-c", "ls -A /var/tmp") == ""


def test_an_archive_of_the_laptop_comes_to_all_hosts(
    lab: Lab, cli: Cli, write_spec: Callable[..., Path], archive: Path
) -> None:
    hosts = lab.docker_hosts
    spec = write_spec(hosts, name="brought", tiny=True, engine="transformers")
    image = f'image = "{NEW}"\narchive = "{archive}"'
    spec.write_text(spec.read_text().replace(f'image = "{IMAGE}"', image))
    try:
        done = cli("up", spec, "--json", timeout=400)
        assert done.returncode == 0, done.stderr
        all_run_it(hosts)
        again = cli("up", spec, "--json")
        assert (again.returncode, json.loads(again.stdout)["changes"]) == (0, [])
    finally:
        down = cli("down", spec, "--yes")
    assert down.returncode == 0, down.stderr


def test_hosts_take_image_and_model_from_the_one_that_has_them(
    lab: Lab, cli: Cli, write_spec: Callable[..., Path], owner: Host, hub: Hub
) -> None:
    hosts = lab.docker_hosts
    whole = sum(len(content) for content in hub.files.values())
    peer = '\n[distribution]\nimages = "peer"\n'
    spec = write_spec(hosts, name="handed", tiny=True, engine="transformers", extra=peer)
    text = spec.read_text().replace(f'image = "{IMAGE}"', f'image = "{NEW}"')
    text = text.replace(f'source = "{lab.tiny}"', f'source = "{REPO}"')
    spec.write_text(text.replace("[env]\n", f'[env]\nHF_ENDPOINT = "{hub.url}"\n'))
    try:
        done = cli("up", spec, "--json", timeout=400)
        assert done.returncode == 0, done.stderr
        all_run_it(hosts)
        assert whole <= sum(hub.sent.values()) < 1.1 * whole
        for host in hosts:
            [name] = host.check("docker", "ps", "--format={{.Names}}").split()
            find = f"find / -path /proc -prune -o -path '{WEIGHTS}' -print"
            assert len(host.check("docker", "exec", name, "sh", "-c", find).split()) == 1
        requests = hub.requests
        again = cli("up", spec, "--json")
        assert (again.returncode, json.loads(again.stdout)["changes"]) == (0, [])
        assert hub.requests == requests
    finally:
        down = cli("down", spec, "--yes")
    assert down.returncode == 0, down.stderr
