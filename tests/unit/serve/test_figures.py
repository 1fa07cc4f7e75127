from __future__ import annotations

import asyncio

import pytest

from raycluster.serve import figures
from raycluster.serve.figures import Figures, kept, load, ours, parsed, written

TEXT = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 3
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="deferred"} 9.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 4.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 5.0
vllm:time_to_first_token_seconds_created{engine="0",model_name="m"} 1.7e+09
http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 7.0
http_requests_total{handler="none",method="GET",status="4xx"} 1.0
http_request_duration_seconds_bucket{handler="/v1/completions",le="0.5",method="POST"} 6.0
http_request_size_bytes_count{handler="/v1/completions"} 7.0
"""


def test_the_load_is_what_runs_and_what_waits() -> None:
    assert load(TEXT) == 6
    assert load("") == 0


def test_what_is_not_worth_passing_on() -> None:
    names = {name for name, _, _ in parsed(kept(TEXT))}
    assert "python_gc_objects_collected_total" not in names
    assert "http_request_size_bytes_count" not in names
    assert "vllm:num_requests_running" in names
    assert "python" not in kept(TEXT)


def test_our_figures_from_the_server_s() -> None:
    own = {"model": "m", "engine": "vllm"}
    requests = {**own, "endpoint": "/v1/completions", "status": "200"}
    first = "raycluster_time_to_first_token_seconds"
    assert list(ours(TEXT, "m", "vllm")) == [
        (f"{first}_bucket", {**own, "endpoint": "all", "le": "0.1"}, 4),
        (f"{first}_count", {**own, "endpoint": "all"}, 5),
        ("raycluster_requests_total", requests, 7),
        ("raycluster_requests_total", {**requests, "endpoint": "other", "status": "400"}, 1),
        (
            "raycluster_request_duration_seconds_bucket",
            {**own, "endpoint": "/v1/completions", "le": "0.5"},
            6,
        ),
    ]


def test_what_is_written_can_be_read() -> None:
    samples = [("a_total", {"x": 'q\\"uote', "y": ""}, 1.5), ("b", {}, 2.0)]
    assert list(parsed(written(samples))) == samples


class Clock:
    """What tells the time, and serves figures."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked = 0

    def monotonic(self) -> float:
        return self.now

    async def get(self, path: str) -> str:
        assert path == "/metrics"
        self.asked += 1
        return f"vllm:num_requests_running{{}} {self.asked}\n"


def test_the_figures_of_some_seconds_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(figures, "time", clock)
    told = Figures()

    async def run() -> None:
        assert (told.earliest(), told.last, await told.newest()) == (None, "", "")
        told.server = clock
        told.also = lambda _: "raycluster_x 1\n"
        for _ in range(10):
            assert await told.load() == clock.asked
            clock.now += 2
        age, text = told.earliest() or (0.0, "")
        assert 10 <= age <= 12
        assert text == "vllm:num_requests_running{} 5\nraycluster_x 1\n"
        assert told.last.startswith("vllm:num_requests_running{} 10\n")

    asyncio.run(run())
