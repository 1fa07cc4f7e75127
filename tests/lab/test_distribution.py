"""An image that no host has and no registry knows comes to all hosts with `up`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.hosts import Lab
from tests.lab.image import IMAGE
from tests.lab.program import Cli

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(400)]

NEW = "raycluster-lab:from-archive"
CONTENT = "head -c 30000000 /dev/urandom >/content"


@pytest.fixture
def archive(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """A file of `docker save`, whose image is on no host; afterwards it is again on none."""
    host, path = lab.docker_hosts[0], tmp_path / "image.tar"
    host.check("docker", "run", "--name=making", "--network=none", IMAGE, "sh", "-c", CONTENT)
    host.check("docker", "commit", "making", NEW)
    host.check("docker", "save", "--output=/root/image.tar", NEW)
    host.check("docker", "rm", "making")
    host.check("docker", "rmi", NEW)
    shutil.move(host.folder / "disk/root/image.tar", path)
    yield path
    for each in lab.docker_hosts:
        each.run(("docker", "rmi", NEW))


def test_an_archive_of_the_laptop_comes_to_all_hosts(
    lab: Lab, cli: Cli, write_spec: Callable[..., Path], archive: Path
) -> None:
    hosts = lab.docker_hosts
    spec = write_spec(hosts, name="brought", tiny=True, engine="transformers")
    image = f'image = "{NEW}"\narchive = "{archive}"'
    spec.write_text(spec.read_text().replace(f'image = "{IMAGE}"', image))
    try:
        done = cli("up", spec, "--json", timeout=300)
        assert done.returncode == 0, done.stderr
        layers = [
            host.check("docker", "image", "inspect", "--format={{json .RootFS}}", NEW)
            for host in hosts
        ]
        assert len(set(layers)) == 1
        for host in hosts:
            running = host.check("docker", "ps", "--format={{.Image}}").split()
            assert running and {*running} == {NEW}
            assert host.check("sh", "-c", "ls -A /var/tmp") == ""
        again = cli("up", spec, "--json")
        assert (again.returncode, json.loads(again.stdout)["changes"]) == (0, [])
    finally:
        down = cli("down", spec, "--yes")
    assert down.returncode == 0, down.stderr
