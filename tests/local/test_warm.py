"""A model of a hub served for real: fetched before its replica starts, and once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.local.cluster import vllm_cache
from tests.local.test_embedded import CHECKOUT, Local
from tests.node.hub import Hub, files_of, open_hub

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

SPEC = """
[cluster]
name = "fetched"

[runtime]
kind = "native"
python = "{python}"
start_on_boot = false
env = {{ HF_ENDPOINT = "{hub}", VLLM_CACHE_ROOT = "{cache}" }}

[head]
transport = "local"
gpus = 0

[[models]]
name = "smol"
source = "acme/smol"
engine = "vllm"
engine_args = {{ max_model_len = {length}, enforce_eager = true, dtype = "bfloat16" }}
"""


@dataclass
class Served:
    """The program, and the hub that its node fetches from."""

    local: Local
    hub: Hub
    python: str

    def spec(self, length: int) -> None:
        text = SPEC.format(python=self.python, hub=self.hub.url, length=length, cache=vllm_cache())
        self.local.spec.write_text(text)

    def bytes_sent(self) -> int:
        return sum(self.hub.sent.values())


def made_by(script: str) -> str:
    done = subprocess.run(
        [CHECKOUT / "scripts" / script], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.split("\n")[-2]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    local = Local("fetched", home, home / "cluster.toml")
    with open_hub(Hub("acme/smol", files_of(Path(made_by("model"))))) as hub:
        served = Served(local, hub, f"{made_by('node-env')}/bin/python")
        served.spec(512)
        yield served
        local("down", local.spec, "--yes")


def test_a_gated_model_ends_up_before_anything_is_deployed(served: Served) -> None:
    served.hub.status, served.hub.code = 403, "GatedRepo"
    done = served.local("up", served.local.spec)
    assert done.returncode == 1
    assert "acme/smol is gated, and there is no HF_TOKEN" in done.stderr
    status = json.loads(served.local("status", served.local.spec, "--json").stdout)
    assert [model["status"] for model in status["models"]] == ["absent"]


def test_a_model_of_the_hub_is_fetched_and_served(served: Served) -> None:
    served.hub.status = 0
    done = served.local("up", served.local.spec)
    assert done.returncode == 0, done.stderr
    assert "MB downloaded and verified" in done.stderr
    assert "vllm started in" in done.stdout
    assert "Paris" in done.stdout
    whole = sum(len(content) for content in served.hub.files.values())
    assert whole <= served.bytes_sent() < 1.1 * whole  # the engine itself asks for a few headers
    status = json.loads(served.local("status", served.local.spec, "--json").stdout)
    assert status["models"][0]["start_seconds"].keys() >= {"engine", "load", "total"}


def test_an_up_without_changes_asks_no_hub(served: Served) -> None:
    sent = served.hub.requests
    assert served.local.up()["changes"] == []
    assert served.hub.requests == sent


def test_an_asked_check_reads_what_is_there(served: Served) -> None:
    done = served.local("up", served.local.spec, "--verify")
    assert done.returncode == 0, done.stderr
    assert "MB already present and verified" in done.stderr


@pytest.mark.long
def test_another_start_brings_nothing_again(served: Served) -> None:
    sent = served.bytes_sent()
    served.spec(1024)
    assert [c["action"] for c in served.local.up()["changes"]] == ["deploy"]
    assert served.bytes_sent() < sent + 10_000_000
