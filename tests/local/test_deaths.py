"""vLLM dies again and again; transformers takes over, and says why."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from raycluster.serve.settings import ModelSettings
from tests.local.cluster import Cluster, until
from tests.local.test_openai import engine_process, exported

pytestmark = [pytest.mark.local, pytest.mark.timeout(600)]

NAME = "mortal"
ARGS = {"max_model_len": 256, "enforce_eager": True}


def report(cluster: Cluster) -> dict[str, Any]:
    """Return what the replica says of its engine, or nothing while there is none."""
    try:
        answer = cluster.http.get("/raycluster/engine")
    except httpx.TransportError:
        return {}
    return dict(answer.json()) if answer.status_code == 200 else {}


def replica(cluster: Cluster) -> int:
    """Return the process of the running replica, or 0."""
    deployments = cluster.details()["applications"][NAME]["deployments"].values()
    found = [r for d in deployments for r in d["replicas"] if r["state"] == "RUNNING"]
    return int(found[0]["pid"]) if len(found) == 1 else 0


@pytest.mark.long
def test_the_fourth_start_is_without_vllm(cluster: Cluster, model: str, tmp_path: Path) -> None:
    env = {"RAYCLUSTER_ROOT": str(tmp_path)}
    cluster.put(ModelSettings(NAME, model, engine_args=ARGS, env=env))
    until(cluster.running, seconds=120, what="not running")
    for _ in range(3):
        told = until(lambda: report(cluster), seconds=60, what="no report")
        assert told["engine"] == "vllm"
        before = replica(cluster)
        os.kill(engine_process(cluster, NAME), signal.SIGKILL)
        until(
            lambda before=before: replica(cluster) not in (0, before) and report(cluster),  # type: ignore[misc]
            seconds=120,
            what="no new replica",
        )
    told = until(lambda: report(cluster), seconds=60, what="no report")
    assert told["engine"] == "transformers"
    assert told["reason"] == (
        "vLLM died 3 times within 10 minutes on this node; "
        "the last time: its process ended without an error (killed?)"
    )
    body = {"model": NAME, "prompt": "The capital of France is", "max_tokens": 1, "temperature": 0}
    answer = cluster.http.post("/v1/completions", json=body)
    assert answer.json()["choices"][0]["text"] == " Paris"
    assert answer.headers["x-raycluster-engine"] == "transformers"
    counted = re.compile(r'\w*fallbacks_total\{.*engine="transformers".*\} [1-9]')
    line = until(
        lambda: next((x for x in exported(cluster).splitlines() if counted.match(x)), ""),
        seconds=60,
        what="the fallback is not counted",
    )
    assert float(line.rpartition(" ")[2]) == 1
