"""The program that packs a node's logs, run as it is on a node."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from raycluster.support import on_node

LIMITS = {"file": 1000, "all": 2000}


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's folder and the newest session of its Ray."""
    (tmp_path / "token").write_text("the-token\n")
    (tmp_path / "secrets.json").write_text('{"HF_TOKEN": "hf_secret"}')
    logs = tmp_path / "ray" / "session_1" / "logs"
    (logs / "serve").mkdir(parents=True)
    (tmp_path / "ray" / "session_latest").symlink_to("session_1")
    (logs / "raylet.out").write_text("raylet\n")
    (logs / "serve" / "replica.log").write_text("".join(f"line {n}\n" for n in range(500)))
    (logs / "worker-1.out").write_text(":actor_name:ServeReplica:m\nhello\n")
    (logs / "worker-2.out").write_text(":actor_name:Other\nnot ours\n")
    (logs / "gcs_server.out").write_text("")
    return tmp_path


def packed(node: Path, limits: dict[str, int]) -> dict[str, bytes]:
    """Run the program and return what it packed."""
    done = subprocess.run(
        (sys.executable, "-c", Path(on_node.__file__).read_text(), json.dumps(limits)),
        env={**os.environ, "RAYCLUSTER_ROOT": str(node), "RAY_TMPDIR": str(node)},
        capture_output=True,
        check=True,
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout), mode="r|") as tar:
        return {m.name: f.read() for m in tar if (f := tar.extractfile(m))}


def test_what_matters_is_packed_and_the_secrets_are_named(node: Path) -> None:
    members = packed(node, {"file": 10_000, "all": 100_000})
    assert json.loads(members["known"]) == ["the-token", "hf_secret"]
    assert json.loads(members["environment.json"])["RAYCLUSTER_ROOT"] == str(node)
    assert b"pytest==" in members["packages.txt"]
    assert {name for name in members if name.startswith("ray/")} == {
        "ray/raylet.out",
        "ray/serve/replica.log",
        "ray/worker-1.out",
    }
    assert members["cut.txt"] == b""


def test_of_a_large_file_the_end_is_packed_from_a_lines_beginning(node: Path) -> None:
    members = packed(node, LIMITS)
    log = members["ray/serve/replica.log"]
    assert len(log) <= LIMITS["file"]
    assert log.startswith(b"line ")
    assert log.endswith(b"line 499\n")
    assert b"serve/replica.log: " in members["cut.txt"]


def test_all_together_is_bounded_and_what_is_left_out_is_named(node: Path) -> None:
    members = packed(node, {"file": 1000, "all": 100})
    assert sum(len(c) for name, c in members.items() if name.startswith("ray/")) <= 100
    assert b"serve/replica.log: " in members["cut.txt"]


def test_a_node_without_ray_or_secrets_tells_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text("[1]")
    members = packed(tmp_path, LIMITS)
    assert json.loads(members["known"]) == []
    assert not [name for name in members if name.startswith("ray/")]
