"""Models are on a node before replicas start: the node's own huggingface_hub with a hub of ours."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raycluster.serve.model_refs import ModelRef, order
from tests.node.hub import Hub, open_hub

pytestmark = [pytest.mark.local, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
REPO = "acme/tiny"
CHUNK = 10 << 20
"""What huggingface_hub reads before it writes: less than that is lost with a connection."""
FILES = {
    "config.json": b'{"model_type": "qwen2"}',
    "tokenizer.json": random.Random(1).randbytes(5_000),
    "model.safetensors": random.Random(2).randbytes(4 * CHUNK),
    "pytorch_model.bin": random.Random(3).randbytes(3_000_000),
    "original/consolidated.00.pth": random.Random(4).randbytes(100_000),
    "README.md": b"# Tiny",
}
READ = FILES.keys() - {"pytorch_model.bin", "original/consolidated.00.pth"}


@pytest.fixture(scope="module")
def python() -> str:
    done = subprocess.run(
        [ROOT / "scripts" / "node-env"], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.split("\n")[-2] + "/bin/python"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with open_hub(Hub(REPO, dict(FILES))) as opened:
        yield opened


@dataclass
class Node:
    """A node's folder, environment and Python."""

    root: Path
    python: str
    env: dict[str, str] = field(default_factory=dict)

    def begin(self, *wanted: ModelRef, verify: bool = False) -> subprocess.Popen[str]:
        ask = order(wanted, verify=verify, secrets_path="$RAYCLUSTER_ROOT/secrets.json")
        env = {"PATH": os.environ["PATH"], "HOME": str(self.root), "PYTHONPATH": str(ROOT / "src")}
        env |= {"RAYCLUSTER_ROOT": str(self.root), "HF_HOME": str(self.root / "cache/huggingface")}
        return subprocess.Popen(
            [self.python, "-m", "raycluster.serve.fetch", ask],
            env={**env, **self.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def fetch(self, *wanted: ModelRef, verify: bool = False) -> dict[str, Any]:
        """Return the last line: a result or an error."""
        return last_line(self.begin(*(wanted or (ModelRef(REPO),)), verify=verify))

    @property
    def snapshot(self) -> Path:
        (folder,) = self.root.glob("cache/huggingface/hub/models--acme--tiny/snapshots/*")
        return folder


def last_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return dict(json.loads(out.splitlines()[-1]))


@pytest.fixture
def node(tmp_path: Path, python: str, hub: Hub) -> Node:
    (tmp_path / "secrets.json").write_text("{}")
    return Node(tmp_path, python, {"HF_ENDPOINT": hub.url})


def held(folder: Path) -> Mapping[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_an_engine_reads_is_brought_once(node: Node, hub: Hub) -> None:
    first = node.fetch()["result"]
    assert (first["version"], first["fetched"]) == (hub.commit, True)
    assert held(node.snapshot) == {name: FILES[name] for name in READ}
    sent = dict(hub.sent)
    again = node.fetch()["result"]
    assert (again["version"], again["fetched"]) == (hub.commit, False)
    assert hub.sent == sent
    assert set(sent) == READ


def test_a_download_goes_on_after_the_server_was_cut(node: Node, hub: Hub) -> None:
    hub.cuts = 2
    assert node.fetch()["result"]["fetched"]
    assert held(node.snapshot)["model.safetensors"] == FILES["model.safetensors"]
    assert hub.sent["model.safetensors"] == len(FILES["model.safetensors"])
    assert hub.ranges == [f"bytes={2 * CHUNK}-", f"bytes={3 * CHUNK}-"]


def test_a_wrong_hash_is_refused_and_nothing_of_it_stays(node: Node, hub: Hub) -> None:
    hub.spoiled.add("model.safetensors")
    told = node.fetch()
    assert told["error"].startswith(
        "model.safetensors of acme/tiny was received with a wrong SHA-256"
    )
    assert held(node.snapshot).keys() == READ - {"model.safetensors"}
    hub.spoiled.clear()
    assert node.fetch()["result"]["fetched"]
    assert held(node.snapshot)["model.safetensors"] == FILES["model.safetensors"]


def test_a_file_that_changed_on_the_disk_is_brought_again(node: Node, hub: Hub) -> None:
    node.fetch()
    weights = (node.snapshot / "model.safetensors").resolve()
    weights.write_bytes(b"x" * len(FILES["model.safetensors"]))
    assert "result" in node.fetch()
    assert weights.read_bytes() == FILES["model.safetensors"]


def test_a_change_that_kept_size_and_time_is_seen_when_asked(node: Node, hub: Hub) -> None:
    node.fetch()
    weights = (node.snapshot / "model.safetensors").resolve()
    stat = weights.stat()
    weights.write_bytes(b"x" * stat.st_size)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "result" in node.fetch()
    assert weights.read_bytes()[:1] == b"x"
    assert "result" in node.fetch(verify=True)
    assert weights.read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_asks_for_a_token(node: Node, hub: Hub, status: int) -> None:
    hub.status, hub.code, hub.token = status, "GatedRepo", "hf_right"
    told = node.fetch()
    assert told["error"] == "acme/tiny is gated, and there is no HF_TOKEN"
    assert f"{hub.url}/acme/tiny" in told["hint"]
    (node.root / "secrets.json").write_text('{"HF_TOKEN": "hf_wrong"}')
    assert node.fetch()["error"] == "acme/tiny is gated, and HF_TOKEN gives no access to it"
    (node.root / "secrets.json").write_text('{"HF_TOKEN": "hf_right"}')
    assert node.fetch()["result"]["fetched"]


def test_an_unknown_model_and_revision_are_named(node: Node) -> None:
    told = node.fetch(ModelRef("acme/tyni"))
    assert told["error"].endswith("has no model acme/tyni visible without an HF_TOKEN")
    told = node.fetch(ModelRef(REPO, revision="v9"))
    assert told["error"] == "acme/tiny has no revision 'v9'"


def test_without_the_hub_what_is_there_is_used(node: Node, hub: Hub) -> None:
    away = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    there = dict(node.env)
    node.env |= away
    assert node.fetch()["error"].startswith("cannot reach http://127.0.0.1:9 for acme/tiny: ")
    node.env |= there
    node.fetch()
    node.env |= away
    told = node.fetch()["result"]
    assert (told["version"], told["fetched"]) == (hub.commit, False)
    assert "does not respond" in told["note"]
    node.env["HF_HUB_OFFLINE"] = "1"
    assert node.fetch()["result"]["version"] == hub.commit


def test_two_at_once_bring_a_file_once(node: Node, hub: Hub) -> None:
    both = [node.begin(ModelRef(REPO)) for _ in range(2)]
    assert all("result" in last_line(process) for process in both)
    assert hub.sent["model.safetensors"] == len(FILES["model.safetensors"])
    assert held(node.snapshot) == {name: FILES[name] for name in READ}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    if os.geteuid():
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_too_small_is_told_before_the_download(
    node: Node, hub: Hub, small_disk: Path
) -> None:
    node.env["HF_HOME"] = str(small_disk)
    told = node.fetch()
    assert told["error"] == (
        f"acme/tiny needs 42 MB more, but only 2 MB are free in {small_disk}/hub"
    )
    assert not hub.sent


def test_paths_are_compared_by_names_sizes_and_small_files(node: Node, tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert node.fetch(ModelRef(str(model)))["error"] == f"the model {model} does not exist"
    model.mkdir()
    assert node.fetch(ModelRef(str(model)))["error"] == f"the model's folder {model} is empty"
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes(FILES[name])
    files = node.fetch(ModelRef(str(model)))["result"]["files"]
    assert files["model.safetensors"] == str(4 * CHUNK)
    size, digest = files["config.json"].split()
    assert (size, len(digest)) == (str(len(FILES["config.json"])), 16)
    files = node.fetch(ModelRef(str(model)), verify=True)["result"]["files"]
    assert len(files["model.safetensors"].split()) == 2
