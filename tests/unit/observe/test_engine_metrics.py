"""Metrics as vLLM 0.32 and Ray 2.60 wrote them, cut to what is used.

`replica.txt`: a replica of a cluster, after `up` asked for 8 tokens and a bench for 72 answers.
`vllm.txt`: bare `vllm serve` after 5 answers of 8 tokens. `node.txt`: a node of Ray without a GPU;
the GPUs in it are made up, in the names, labels and units of Ray's reporter (reporter_agent.py).
"""

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from raycluster.core.errors import AnswerError
from raycluster.observe.engine_metrics import (
    ENGINE_SERIES,
    GpuSample,
    Reading,
    read_engine,
    read_gpus,
    read_service,
)
from raycluster.serve.metrics import Metrics

DATA = Path(__file__).parents[1] / "data"
REPLICA, VLLM, NODE = ((DATA / f"{n}.txt").read_text() for n in ("replica", "vllm", "node"))


def test_reads_a_replica() -> None:
    reading = read_engine(REPLICA, "SmolLM2-135M-Instruct", now=1795702688.38 + 20)
    assert reading == Reading(
        started=1795702688.38,
        age=20.0,
        running=0.0,
        waiting=0.0,
        kv_cache_usage=0.0,
        prompt_tokens=2879.0,
        generation_tokens=2506.0,
        prefix_cache_queries=2879.0,
        prefix_cache_hits=0.0,
        preemptions=0.0,
        requests=73.0,
        engine="vllm",
    )


def test_reads_bare_vllm() -> None:
    reading = read_engine(VLLM)
    assert reading is not None
    assert (reading.requests, reading.generation_tokens, reading.age) == (5.0, 40.0, None)


def test_another_model_is_none() -> None:
    assert read_engine(REPLICA, "tiny") is None


def test_engines_of_a_replica_are_added_but_for_their_share_of_the_cache() -> None:
    second = VLLM.replace('engine="0"', 'engine="1"')
    used = "vllm:kv_cache_usage_perc{"
    text = "\n".join(
        line.rpartition(" ")[0] + f" {share}" if line.startswith(used) else line
        for whole, share in ((VLLM, 0.25), (second, 0.75))
        for line in whole.splitlines()
    )
    reading = read_engine(text, "tiny")
    assert reading is not None
    assert (reading.prompt_tokens, reading.kv_cache_usage) == (40.0, 0.5)


def test_reads_the_names_of_older_vllm_once() -> None:
    names = ("kv_cache_usage_perc", "prefix_cache_queries", "prefix_cache_hits")
    new = VLLM.replace('perc{engine="0",model_name="tiny"} 0.0', 'perc{engine="0"} 0.5')
    old = new
    for name in names:
        old = old.replace(f"vllm:{name}", f"vllm:gpu_{name.removeprefix('kv_')}")
    both = new + "".join(f"{line}\n" for line in old.splitlines() if "vllm:gpu_" in line)
    readings = [read_engine(text) for text in (old, new, both)]
    assert readings[0] is not None
    assert (readings[0].kv_cache_usage, readings[0].prefix_cache_queries) == (0.5, 20.0)
    assert readings[0] == readings[1] == readings[2]


def test_reads_an_engine_that_has_no_figures_of_its_own() -> None:
    registry = CollectorRegistry()
    metrics = Metrics("tiny", registry)
    metrics.started("transformers", "vllm: no", {"total": 1.0})
    metrics.ended("transformers", "/v1/chat/completions", 200, 0.5)
    metrics.ended("transformers", "/v1/completions", 499, 0.5)
    metrics.ended("transformers", "/v1/models", 200, 0.5)
    metrics.tokens("transformers", 10, 4)
    text = generate_latest(registry).decode()
    told = Reading(prompt_tokens=10.0, generation_tokens=4.0, requests=2.0)
    told = replace(told, engine="transformers", fell_back="vllm: no")
    assert read_engine(text, "tiny") == told
    assert read_engine(text, "other") is None


@pytest.mark.parametrize("text", ["", "<!doctype html>\n<p>vllm</p>", NODE])
def test_what_no_engine_said_is_none(text: str) -> None:
    assert read_engine(text) is None


@pytest.mark.parametrize(
    "line",
    [
        'raycluster_time_to_first_token_seconds_bucket{l=""}2',
        'raycluster_time_to_first_token_seconds_bucket{le="nan"}2',
        f'raycluster_requests_total{{status="200"}} {"9" * 310}',
        'raycluster_requests_total{status="\ud800"} 1',
        "vllm:prompt_tokens_total 1e999",
    ],
)
def test_a_strange_line_costs_nothing_but_itself(line: str) -> None:
    text = f'raycluster_engine_info{{engine="vllm"}} 1\n{line}\n'
    service = read_service(text, "m")
    assert service
    assert service.engine.engine == "vllm"
    assert not {bound for bound in service.first_token if bound != bound}  # noqa: PLR0124
    repr(service).encode()


def test_broken_text_is_refused() -> None:
    with pytest.raises(AnswerError, match=r"."):
        read_engine('vllm:num_requests_running{engine="0" 1.0')


def test_all_series_are_those_of_the_replica() -> None:
    """Nothing is asked for that today's replica does not have, but for older names."""
    had = {line.split()[2] for line in REPLICA.splitlines() if line.startswith("# TYPE")}
    assert {name for name in ENGINE_SERIES if "vllm:gpu_" not in name} == had


def test_reads_gpus_in_bytes() -> None:
    mib = 1024 * 1024
    name = "NVIDIA H100 80GB HBM3"
    assert read_gpus(NODE, "head") == (
        GpuSample("head", "0", name, 0.93, 73728.0 * mib, 81559.0 * mib),
        GpuSample("head", "1", name, 0.0, 512.0 * mib, 81559.0 * mib),
    )


def test_a_node_without_gpus_has_none() -> None:
    without = "".join(f"{line}\n" for line in NODE.splitlines() if "ray_node_g" not in line)
    assert "ray_node_cpu_utilization" in without
    assert read_gpus(without, "head") == ()


def test_reads_what_a_replica_did_for_its_clients() -> None:
    registry = CollectorRegistry()
    ours = Metrics("SmolLM2-135M-Instruct", registry)
    for endpoint, status in (("/v1/completions", 200), ("/v1/completions", 500), ("other", 404)):
        ours.ended("vllm", endpoint, status, 0.1)
    for seconds in (0.03, 0.03, 3.0):
        ours.first_token("vllm", "/v1/completions", seconds)
    ours.asked("vllm")
    own = "\n".join(line for line in REPLICA.splitlines() if "raycluster_requests" not in line)
    service = read_service(own + "\n" + generate_latest(registry).decode(), "SmolLM2-135M-Instruct")
    assert service is not None
    assert (service.requests, service.errors, service.tokens) == (2.0, 1.0, 2505.0)
    counts = service.first_token
    assert (counts[0.02], counts[0.04], counts[2.5], counts[float("inf")]) == (0, 2, 2, 3)
    assert read_service(REPLICA, "tiny") is None
