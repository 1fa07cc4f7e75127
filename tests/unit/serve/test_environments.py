"""Environments of models' own vLLM, made by real uv of tiny wheels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raycluster.requirements import uv_lock
from raycluster.serve.environment import Environment
from raycluster.serve.environments import last_line
from tests.wheels import make_wheel, write_index

SOURCE = Path(__file__).parents[3] / "src"


class Node:
    """A node's folder, and an index that it reaches."""

    def __init__(self, folder: Path) -> None:
        self.root, self.index = folder / "root", folder / "index"
        self.root.mkdir()
        self.index.mkdir()
        for version in ("0.31.0", "0.32.0"):
            make_wheel(self.index, "vllm", version, requires=["torch"])
        make_wheel(self.index, "torch", "2.13.0")
        make_wheel(self.index, "other", "1.0")
        write_index(self.index)

    def order(self, *make: Environment, keep: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Run the program as `up` does, and return its lines but those of its progress."""
        names = {each.name for each in make if each.name}
        told = {
            "make": [each.to_json() for each in make],
            "keep": sorted(names | set(keep)),
            "uv": uv_lock().decode(),
        }
        program = ("-m", "raycluster.serve.environments", json.dumps(told))
        done = subprocess.run(
            (sys.executable, *program),
            env={
                "RAYCLUSTER_ROOT": str(self.root),
                "UV_HTTP_RETRIES": "0",
                "UV_DEFAULT_INDEX": f"file://{self.index}/simple",
                "PYTHONPATH": str(SOURCE),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return [line for line in lines if "bytes" not in line]

    def made(self) -> list[str]:
        """Return what lies in the folder of environments."""
        return sorted(path.name for path in (self.root / "environments").glob("*"))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


OLD = Environment(requirements=("vllm==0.31.0",))
NEW = Environment(requirements=("vllm==0.32.0",))


def test_it_is_made_once_and_stays_while_it_is_used(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first] = node.order(OLD)
    assert first["environment"] == "vllm==0.31.0"
    assert first["result"]["fetched"] is True
    assert first["result"]["versions"]["vllm"] == "0.31.0"
    [again] = node.order(OLD)
    assert again["result"] == {**first["result"], "fetched": False}
    node.order(NEW, keep=(OLD.name,))
    assert node.made() == sorted((OLD.name, NEW.name))
    node.order(NEW)
    assert node.made() == [NEW.name]
    monkeypatch.setenv("RAYCLUSTER_ROOT", str(node.root))
    Path(NEW.program).unlink()
    [mended] = node.order(NEW)
    assert mended["result"]["fetched"] is True


def test_one_that_is_there_is_looked_at(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.order(NEW)
    monkeypatch.setenv("RAYCLUSTER_ROOT", str(node.root))
    [told] = node.order(Environment(python=NEW.program), keep=(NEW.name,))
    assert told["result"]["versions"]["vllm"] == "0.32.0"


@pytest.mark.parametrize(
    ("wanted", "said", "hint"),
    [
        (Environment(requirements=("vllm==0.9",)), "vllm==0.9: error: No solution", "correct"),
        (Environment(requirements=("other",)), "other: it has no vLLM", "correct"),
        (
            Environment(python="/no/such"),
            "/no/such: /no/such does not run",
            "set another",
        ),
        (Environment(python=sys.executable), f"{sys.executable}: it has no vLLM", "correct"),
        (
            Environment(requirements=("vllm",), version="3.2"),
            "vllm: error: ",
            "set another",
        ),
        (
            Environment(
                requirements=("vllm",), uv_args=("--default-index", "http://127.0.0.1:1/simple")
            ),
            "vllm: error: ",
            "package index",
        ),
    ],
)
def test_what_cannot_be_is_told_and_leaves_nothing(
    node: Node, wanted: Environment, said: str, hint: str
) -> None:
    [told] = node.order(wanted)
    assert told["error"].startswith(said)
    assert hint in told["hint"]
    assert node.made() == []


def test_one_cause_is_told_once() -> None:
    assert last_line("error: a\n  cause: b\n  cause: c\n") == "error: a: cause: c"
    assert last_line("error: a\n") == "error: a"
    assert last_line("some\nwords\n") == "words"
    assert last_line("") == ""
