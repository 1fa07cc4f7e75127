"""A replica in two parts, as over two hosts: here both are on one, and on CPUs."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.local.cluster import Cluster, descendants, gone, until
from tests.local.rolling import with_args
from tests.local.tiny import NAME, tiny

pytestmark = [pytest.mark.local, pytest.mark.timeout(600), pytest.mark.long]

HERE = {"RAYCLUSTER_ADDRESS": "127.0.0.1"}
TWO = "two"


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Cluster:
    """The same model, whole and in two parts."""
    two = with_args(replace(tiny(), name=TWO, spread=2, env=HERE), tensor_parallel_size=2)
    cluster.put(tiny(), two)
    until(cluster.running, seconds=300, what="not running")
    return cluster


def said(cluster: Cluster, name: str) -> str:
    """Return 16 tokens, or "" where there is no answer now."""
    body = {"model": name, "prompt": "Once upon a time", "max_tokens": 16, "temperature": 0}
    answer = cluster.http.post("/v1/completions", json={**body, "ignore_eos": True}, timeout=120)
    return str(answer.json()["choices"][0]["text"]) if answer.status_code == 200 else ""


def replica(cluster: Cluster) -> int:
    """Return the process of the replica in two parts, or 0."""
    (deployment,) = cluster.details()["applications"][TWO]["deployments"].values()
    running = [r["pid"] for r in deployment["replicas"] if r["state"] == "RUNNING"]
    return int(running[0]) if len(running) == 1 else 0


def part(cluster: Cluster) -> list[int]:
    """Return the processes of the second part: Ray's first, which has no other below it."""
    for pid in descendants(cluster.process.pid):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Part"):
                return [pid, *descendants(pid)]
    return []


def test_two_parts_say_what_the_whole_says(served: Cluster) -> None:
    assert len(part(served)) >= 3
    assert said(served, TWO) == said(served, NAME) != ""


@pytest.mark.parametrize("which", [-1, 0], ids=["a worker of vLLM's", "the part whole"])
def test_a_dead_part_brings_the_whole_replica_back(served: Cluster, which: int) -> None:
    before, theirs = replica(served), part(served)
    mine = descendants(before)
    os.kill(theirs[which], signal.SIGKILL)
    until(lambda: replica(served) not in (0, before), seconds=120, what="no new replica")
    until(lambda: said(served, TWO) == said(served, NAME), seconds=60, what="no response")
    until(lambda: gone((*theirs, *mine)), seconds=30, what="a process is left")
