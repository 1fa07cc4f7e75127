"""What programs get from `status --json`: the keys are promised."""

from __future__ import annotations

import json
import math
from typing import Any

from raycluster.core.cgroups import Limits
from raycluster.core.errors import UnreachableError
from raycluster.state.cluster import ClusterState, HostState
from raycluster.status.figures import Latency, ModelFigures
from raycluster.status.json import status_json
from tests.unit.status.standing import MODEL, broken, spec, standing, whole

PROMISED: dict[str, Any] = {
    "schema": 1,
    "cluster": "q",
    "taken": "2026-11-26T18:40:00.000+00:00",
    "healthy": True,
    "problems": [],
    "warnings": [],
    "nodes": [
        {
            "name": "head",
            "role": "head",
            "runtime": "docker",
            "address": "127.0.0.1",
            "process": "running",
            "started": None,
            "joined": True,
            "services": [],
            "versions": {
                "python": "3.11.7",
                "ray": "2.60.0",
                "vllm": "0.32.0",
                "transformers": "",
            },
            "cpus": 0,
            "cpu_percent": 12.5,
            "memory_bytes": {"used": 8 * 2**30, "total": 64 * 2**30},
            "gpus": [
                {
                    "index": "0",
                    "name": "NVIDIA H100",
                    "source": "ray",
                    "utilization_percent": 95,
                    "memory_used_mib": 70000,
                    "memory_total_mib": 81920,
                    "temperature_celsius": 71,
                    "power_watts": 350.5,
                    "uncorrected_memory_errors": None,
                }
            ],
            "gpus_total": 1,
        }
    ],
    "models": [
        {
            "name": MODEL,
            "status": "running",
            "engine": "vllm",
            "fallback_reason": None,
            "start_seconds": None,
            "replicas_wanted": 1,
            "replicas": [{"id": "r", "state": "running", "address": ""}],
            "figures": {
                "replicas_answered": 1,
                "running_requests": 3.0,
                "waiting_requests": 0.0,
                "kv_cache_usage": 0.12,
                "rates": {
                    "source": "replicas",
                    "window_seconds": 10.0,
                    "requests_per_second": 12.34,
                    "errors_per_second": 0.0,
                    "generated_tokens_per_second": 1234.5,
                },
                "time_to_first_token": {
                    "window_seconds": 10.0,
                    "p50_seconds": 0.045,
                    "p95_seconds": 1.25,
                },
            },
        }
    ],
    "endpoints": {"api": "http://127.0.0.1:8000/v1", "dashboard": "http://127.0.0.1:8265"},
    "tunnels": [
        {"pid": 7, "since": "2026-11-26T18:00:00+00:00", "endpoints": {"API": "http://a/v1"}}
    ],
    "cost": {
        "currency": "EUR",
        "per_hour": 2.0,
        "per_million_generated_tokens": 0.45,
        "hosts_without_price": [],
    },
}


def test_every_key_is_there() -> None:
    told = status_json(whole(1))
    assert json.loads(json.dumps(told, allow_nan=False)) == PROMISED


def test_what_is_not_known_is_null_and_not_zero() -> None:
    told = status_json(whole(1, figures={}, gpus={}, cost=None))
    figures = told["models"][0]["figures"]
    assert figures.pop("replicas_answered") == 0
    assert set(figures.values()) == {None}
    assert (told["nodes"][0]["gpus"], told["cost"]) == ([], None)


def test_a_percentile_beyond_the_last_bound_is_no_number() -> None:
    figures = ModelFigures(1, first_token=Latency(1.0, math.inf, None))
    told = status_json(whole(1, figures={MODEL: figures}))
    assert told["models"][0]["figures"]["time_to_first_token"] == {
        "window_seconds": None,
        "p50_seconds": 1.0,
        "p95_seconds": None,
    }


def test_a_host_that_was_not_seen_is_not_said_to_be_without_its_process() -> None:
    nodes = status_json(broken())["nodes"]
    assert [n["process"] for n in nodes] == ["running", "unreachable", "unknown"]


def test_a_model_on_a_head_that_was_not_seen_is_unknown() -> None:
    hosts = {h.name: HostState(h.name) for h in spec().hosts}
    away = {"head": HostState("head", problem=UnreachableError("is off"))}
    told = status_json(standing(spec(), ClusterState(hosts | away)))
    assert [m["status"] for m in told["models"]] == ["unknown"]


def test_a_hosts_memory_is_what_its_control_groups_leave() -> None:
    usage = whole(1).health.usage["head"]["mem"]
    total = int(usage[0].number() or 0)
    seen = Limits(1, total // 4, 8, total, used_bytes=total // 8)
    [node] = status_json(whole(1, limits={"head": seen}))["nodes"]
    assert node["memory_bytes"] == {"used": total // 8, "total": total // 4}
    seen = Limits(1, total, 8, total, used_bytes=5)
    [node] = status_json(whole(1, limits={"head": seen}))["nodes"]
    assert node["memory_bytes"] == PROMISED["nodes"][0]["memory_bytes"]
