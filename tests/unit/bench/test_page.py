from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import pytest
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from raycluster.bench.baseline import compare
from raycluster.bench.dataset import DatasetSummary
from raycluster.bench.limits import parse_limit
from raycluster.bench.page import page
from raycluster.bench.record import RequestRecord
from raycluster.bench.server import Look, summarize
from raycluster.observe.engine_metrics import GpuSample, Reading
from tests.unit.bench.level import requests, summary

EVIL = """</script><script>alert(1)</script><img src=x onerror="alert(2)">'"&<!--\ud800\0"""


@dataclass
class Parsed(HTMLParser):
    """What a browser would see: elements with their attributes, scripts, and the text."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    _in: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in = tag if tag in {"script", "style"} else self._in
        if self._in == "script" and dict(attrs).get("type") == "application/json":
            self._in = "figure"

    def handle_endtag(self, tag: str) -> None:
        self._in = "" if tag in {"script", "style"} else self._in

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts.append(data)
        elif self._in == "figure":
            self.figures.append(json.loads(data))
        elif not self._in:
            self.text += data

    def named(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)


def parsed(*levels: list[RequestRecord], **changes: Any) -> Parsed:
    """Return the page of a run with these levels; `changes` are to its JSON."""
    seen = Parsed()
    seen.feed(page({**summary(*levels).to_json(), **changes}, levels).decode())
    return seen


def with_server(level: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {**level, "server": {"samples": samples}}


def names(figure: dict[str, Any]) -> list[str]:
    return [trace["name"] for trace in figure["data"]]


def test_a_level_has_its_figures_and_plots() -> None:
    records = requests(150, failed=0.1)
    seen = parsed(records)
    failed = sum(not record.ok for record in records)
    assert f"{150 - failed} completed, {failed} failed" in seen.text
    assert f"{failed} http_status" in seen.text
    assert "500: no room" in seen.text
    assert "of 150 requests failed" in seen.text
    over_time, latency = seen.figures
    assert names(over_time) == ["sent", "completed", "failed", "in flight", "TTFT p50", "TTFT p95"]
    assert names(latency) == ["TTFT", "TPOT", "ITL", "E2EL"]


def test_levels_stand_against_each_other_in_the_order_of_their_load() -> None:
    levels = [requests(20, 1), requests(20, 2), requests(20, 3)]
    data = summary(*levels).to_json()
    data["levels"].reverse()
    seen = Parsed()
    seen.feed(page(data, levels[::-1]).decode())
    assert len(seen.figures) == 3 + 3 + 2 * 3
    against = seen.figures[0]["data"][0]
    assert against["text"] == ["concurrency 1", "concurrency 2", "concurrency 3"]
    throughputs = [level["output_throughput"] for level in data["levels"][::-1]]
    assert against["x"] == throughputs
    assert against["y"] == [level["ttft_ms"]["p50"] for level in data["levels"][::-1]]


def test_without_usage_throughput_is_of_requests() -> None:
    levels = [[replace(r, output_tokens=None) for r in requests(9, n)] for n in (1, 2)]
    seen = parsed(*levels)
    assert seen.figures[0]["layout"]["xaxis"]["title"]["text"] == "requests/s"
    assert names(seen.figures[-1]) == ["TTFT", "event gap", "E2EL"]


def test_the_servers_side_is_drawn_where_it_is_known() -> None:
    records = requests(30)
    [level] = summary(records).to_json()["levels"]
    samples: list[dict[str, Any]] = [
        {"t": 0.0, "running": 2, "waiting": 1, "kv_cache_usage": None, "replicas": 1},
        {"t": 0.5, "running": 3, "gpu_memory_bytes": 2**31},
    ]
    over_time = parsed(records, levels=[with_server(level, samples)]).figures[0]
    drawn = {trace["name"]: trace for trace in over_time["data"]}
    assert drawn["running"]["y"] == [2.0, 3.0]
    assert drawn["waiting"]["y"] == [1.0, None]
    assert drawn["memory of the fullest GPU"]["y"] == [None, 2.0]
    assert drawn["running"]["yaxis"] == drawn["in flight"]["yaxis"] != drawn["replicas"]["yaxis"]
    assert not {"KV cache", "GPU utilization"} & drawn.keys()


def test_the_servers_figures_are_those_of_the_looks() -> None:
    records = requests(30)
    looks = [
        Look(
            at=100.0 + second,
            replicas={
                "a:1": Reading(1.0, running=second, kv_cache_usage=0.25, requests=5 * second)
            },
            gpus=(GpuSample("a", "0", "H100", 0.5, 2.0**33, 2.0**36),),
        )
        for second in range(5)
    ]
    run = summary(records)
    seen = replace(run.levels[0].seen, server=summarize(looks, 100.5))
    run = replace(run, levels=(replace(run.levels[0], seen=seen),))
    shown = Parsed()
    shown.feed(page(run.to_json(), [records]).decode())
    for text in (
        "servers run2.0 on average, 3 at most",
        "KV cache25% full on average, 25% at most",
        "GPUs50% busy on average, 50% at most",
        "memory of the fullest GPU8.0 GiB at most",
        "replicas1",
    ):
        assert text in shown.text
    drawn = {trace["name"]: trace for trace in shown.figures[0]["data"]}
    assert drawn["running"]["x"] == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert drawn["running"]["y"] == [0, 1, 2, 3, 4]
    assert drawn["GPU utilization"]["y"] == [0.5] * 5


@pytest.mark.parametrize("count", [1, 2, 30])
def test_plotly_takes_every_figure(count: int) -> None:
    records = requests(count, failed=0.3)
    [level] = summary(records).to_json()["levels"]
    sample = {"t": 0, "running": 1, "kv_cache_usage": 0.1, "gpu_memory_bytes": 1, "replicas": 1}
    levels = [with_server(level, [sample, sample | {"t": 1}])] * 2
    load = {**summary(records).to_json()["load"], "ramp": 0.01}
    seen = Parsed()
    seen.feed(
        page({**summary(records).to_json(), "levels": levels, "load": load}, [records] * 2).decode()
    )
    assert seen.figures
    for figure in seen.figures:
        Figure(figure)  # raises ValueError for a property that plotly does not know


def test_nothing_comes_from_elsewhere_and_no_other_script_may_run() -> None:
    seen = parsed(requests(9), requests(9))
    assert [a for _, a in seen.elements if {"src", "srcset", "action", "data"} & a.keys()] == []
    links = [a["href"] for _, a in seen.elements if "href" in a]
    assert links == ["#level-1", "#level-2"]
    assert {a.get("id") for a in seen.named("section")} == {"level-1", "level-2"}
    assert len(seen.scripts) == 2
    assert seen.scripts[0] == get_plotlyjs()
    [policy] = [a["content"] or "" for a in seen.named("meta") if a.get("http-equiv")]
    digests = [hashlib.sha256(script.encode()).digest() for script in seen.scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    assert policy.startswith("default-src 'none'; ")
    assert policy.endswith(f"script-src {allowed}")


def test_texts_of_others_stay_texts() -> None:
    records = [replace(r, failure="http_status", detail=EVIL) for r in requests(3)]
    data = summary(records, requests(3), model=EVIL).to_json()
    data["target"]["base_url"] = EVIL
    data["dataset"] = DatasetSummary(3, {EVIL: 1}, ((1, EVIL),), {EVIL: 2}, EVIL).to_json()
    data["baseline"] = {"changes": [], "doubts": [EVIL]}
    for level in data["levels"]:
        level["label"] = EVIL
        level["verdict"]["reasons"] = [EVIL]
        level["errors"] = {EVIL: 1}
    seen = Parsed()
    seen.feed(page(data, [records, requests(3)]).decode())
    assert len(seen.scripts) == 2
    assert list(seen.named("img")) == []
    assert [a for _, a in seen.elements if any(name.startswith("on") for name in a)] == []
    shown = EVIL.replace("\ud800", "?")
    assert seen.text.count(shown) >= 12
    drawn = json.dumps(seen.figures)
    assert "&lt;script&gt;alert(1)" in drawn
    assert "<" not in re.sub(r"<(br|/?b)>", "", drawn)


def test_limits_and_changes() -> None:
    records = requests(50, failed=0.1)
    limits = tuple(map(parse_limit, ("ttft_p95<1ms", "e2el_p99<9m", "error_rate<90%")))
    run = replace(summary(records), limits=limits)
    before = deepcopy(run.to_json())
    before["levels"][0]["ttft_ms"]["p50"] *= 2
    before["levels"][0]["tpot_ms"]["p50"] /= 2
    before["dataset"]["digest"] = "another"
    shapes = [level.shape for level in run.levels]
    run = replace(run, comparison=compare(before, run.to_json(), shapes))
    seen = Parsed()
    seen.feed(page(run.to_json(), [records]).decode())
    assert re.search(r"ttft_p95<1ms.*\d\d\.\d\d missed.*\d kept.*\d\.\d\d% kept", seen.text, re.S)
    assert re.search(r"ttft_p50\s*\d+\.\d\d → \d+\.\d\d, 50\.0% better", seen.text)
    assert re.search(r"tpot_p50\s*\d+\.\d\d → \d+\.\d\d, 100\.0% worse", seen.text)
    assert "the prompts differ" in seen.text


def test_a_figure_that_is_gone_is_no_number() -> None:
    records = requests(10)
    run = summary(records)
    before = deepcopy(run.to_json())
    after = summary([replace(r, output_tokens=None) for r in records])
    compared = replace(after, comparison=compare(before, after.to_json(), [after.levels[0].shape]))
    seen = Parsed()
    seen.feed(page(compared.to_json(), [records]).decode())
    assert re.search(r"output_throughput\s*\d+\.\d\d → –, not measured", seen.text)


def test_a_level_without_answers_has_a_page() -> None:
    seen = parsed([replace(r, failure="connect", status=None) for r in requests(4)])
    assert "0 completed, 4 failed" in seen.text
    assert len(seen.figures) == 1


def test_a_long_run_makes_no_large_page() -> None:
    few, many = requests(400, 8, tokens=4), requests(100_000, 64, tokens=4)
    begin = time.process_time()
    large = page(summary(many).to_json(), [many])
    assert time.process_time() - begin < 20
    assert len(large) < len(page(summary(few).to_json(), [few])) + 50_000
