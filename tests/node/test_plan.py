"""What cannot fit on this machine: `plan` says it, `up` refuses it, and nothing is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycluster.spec.models import Ports
from tests.node.hub import LARGE, Hub, open_hub
from tests.ports import free_ports

PROGRAM = Path(sys.executable).with_name("raycluster")
NODE = Path(__file__).parents[2] / ".node" / "bin" / "python"
"""A Python with Ray, which `up` looks for before anything else."""
CONFIG = {
    **{"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30},
    **{"hidden_act": "silu", "tie_word_embeddings": True, "max_position_embeddings": 8192},
}
HUGE = {**CONFIG, "hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 200}
SPEC = """
[cluster]
name = "unfit"
price_per_hour = 1.5
[runtime]
kind = "native"
python = "{python}"
start_on_boot = false
[head]
transport = "local"
gpus = 0
[[models]]
name = "unfit"
source = "{source}"
[env]
HF_ENDPOINT = "{hub}"
[ports]
{ports}
"""

Refused = Callable[[str, str, int], tuple[dict[str, Any], str]]

pytestmark = [pytest.mark.local, pytest.mark.timeout(120)]


class VastHub(Hub):
    """A hub whose large files are said to have a petabyte."""

    def described(self, name: str) -> dict[str, Any]:
        told = super().described(name)
        if len(self.files[name]) >= LARGE:
            told["sibling"]["size"] = 10**15
        return told


@pytest.fixture
def refused(tmp_path: Path) -> Any:  # a function of this file
    """Return what plans a source, sees `up` refuse it with a code, and returns what both said."""
    home = tmp_path / "home"
    home.mkdir()
    spec = tmp_path / "cluster.toml"
    names = [name for name in Ports.model_fields if not name.endswith(("_min", "_max"))]
    free = zip(names, free_ports(len(names)), strict=True)
    ports = "".join(f"{name} = {port}\n" for name, port in free)

    def run(command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, command, spec, *options],
            env={**os.environ, "HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )

    def refused(source: str, hub: str, code: int) -> tuple[dict[str, Any], str]:
        spec.write_text(SPEC.format(python=NODE, source=source, hub=hub, ports=ports))
        planned = run("plan", "--json")
        assert planned.returncode == 0, planned.stderr
        done = run("up")
        assert done.returncode == code, done.stderr
        assert list(home.iterdir()) == []
        return dict(json.loads(planned.stdout)), done.stderr

    return refused


def test_a_model_that_the_memory_does_not_hold(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HUGE))
    planned, said = refused(str(tmp_path), "http://127.0.0.1:9", 2)
    [problem] = planned["problems"]
    assert problem["what"].startswith("does not fit on head: its weights take ")
    assert said == f"error: unfit: {problem['what']}\n  next: {problem['hint']}\n"
    assert planned["models"][0]["hosts"]["head"]["fits"] is False
    assert (planned["cost"]["per_hour"], planned["cost"]["change"]) == (1.5, 1.5)


def test_a_model_that_the_disk_does_not_hold(refused: Any) -> None:
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"w" * LARGE}
    with open_hub(VastHub("meta/vast", files, token="none")) as hub:
        planned, said = refused("meta/vast", hub.url, 2)
    memory, disk = planned["problems"]
    assert memory["where"] == "unfit"
    assert (disk["where"], "meta/vast needs 1000000.0 GB" in disk["what"]) == ("head", True)
    assert f"head: {disk['what']}" in said
    [download] = planned["downloads"]
    assert download["bytes"] == 10**15 + len(files["config.json"])
    assert 0 < download["free_bytes"] < 10**15
    assert hub.sent == {"config.json": 2 * len(files["config.json"])}
