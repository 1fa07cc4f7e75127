"""What a bench measured is kept beside the spec, with what it ran on."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from raycluster.core.accelerators.values import Accelerators, Device
from raycluster.core.errors import HostError, MissedLimitError, UsageError
from raycluster.core.interfaces import Facts, Found, Versions
from raycluster.recipes.measured import Measured, latest, measured_in, parse, ran, read_measured
from raycluster.recipes.writing import lines_of
from raycluster.services.app import app
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import App, ClusterState, HostState, RayNode, Replica


def level(label: str, rate: float, grade: str = "VALID", *, kept: bool = True) -> dict[str, Any]:
    return {
        "label": label,
        "completed": 100,
        "verdict": {"grade": grade, "reasons": []},
        "request_throughput": rate,
        "output_throughput": 10 * rate,
        "ttft_ms": {"p50": 5.0, "p99": 20.12345},
        "tpot_ms": None,
        "limits": [{"limit": "ttft_p99<1s", "value": 20.1, "kept": kept}],
    }


def summary(*levels: dict[str, Any], **more: Any) -> bytes:
    told = {"schema": 1, "kind": "bench", "started": 1796000000.5, "target": {"model": "m"}}
    return json.dumps({**told, "levels": levels, **more}).encode()


def test_the_fastest_level_that_kept_its_limits_is_kept() -> None:
    content = summary(
        level("8", 10),
        level("16", 15.00049, "SUSPECT"),
        level("32", 20, "INVALID"),
        level("64", 30, kept=False),
    )
    found = measured_in(content, "summary.json", "lab")
    assert found == Measured(
        model="m",
        cluster="lab",
        date="2026-11-30",
        load="16",
        verdict="SUSPECT",
        requests_per_second=15.0,
        output_tokens_per_second=150.005,
        ttft_p99=20.123,
        limits=["ttft_p99<1s"],
    )
    assert found.summary == (
        "2026-11-30: 15.0 requests/s, 150 tokens/s, TTFT p99 20 ms, kept ttft_p99<1s, SUSPECT "
        "with 16, on unknown hardware"
    )


def test_what_kept_no_limit_is_not_recorded() -> None:
    with pytest.raises(MissedLimitError, match="nothing was recorded"):
        measured_in(summary(level("8", 1, kept=False), level("9", 1, "INVALID")), "s", "lab")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        summary(level("8", 1), kind="drill"),
        summary(level("8", 1), schema=2),
        summary(level("8", 1), started=1e300),
        summary(level("8", 1), started=-1e18),
        summary({"label": 8}),
        b'{"schema": 1, "kind": "bench"}',
        b"\xff",
    ],
)
def test_what_is_no_summary_is_refused(content: bytes) -> None:
    with pytest.raises(UsageError, match=r"^s: "):
        measured_in(content, "s", "lab")


MODEL = {"name": "org/m", "aliases": ["m"], "source": "hub/m"}
SPEC = ClusterSpec.model_validate(
    {
        "cluster": {"name": "q"},
        "head": {"host": "10.0.0.1"},
        "workers": [{"name": n, "host": f"10.0.0.{i}"} for i, n in enumerate("ab", 2)],
        "models": [{**MODEL, "engine_args": {"max_model_len": 8}}],
    }
)
L4 = Facts(Accelerators((Device("0", "GPU-0000", "NVIDIA L4", 23034 << 20),)), 8, 1 << 36)
FACTS = dict.fromkeys(("head", "a", "b"), L4)


def state(gpus: float, *nodes: str) -> ClusterState:
    """Return a cluster whose model has a replica on each of these nodes."""
    hosts = {
        h.name: HostState(
            h.name,
            h.host,
            (Found(h.role, "f", "running", Versions("3.12", "2.60.0", "0.32.0")),),
        )
        for h in SPEC.hosts
    }
    rays = tuple(RayNode(h.host, h.name, True, h.role == "head", 8, 1) for h in SPEC.hosts)
    [body] = app(SPEC, gpus=dict.fromkeys(hosts, gpus), fingerprint="f")["applications"]
    replicas = tuple(Replica(f"r{n}", "RUNNING", node) for n, node in enumerate(nodes))
    return ClusterState(hosts, nodes=rays, apps=(App(body["name"], "RUNNING", "", body, replicas),))


def test_what_it_ran_on_is_where_its_replicas_are() -> None:
    told = ran(SPEC, state(1, "a", "b"), FACTS, "m")
    assert told == {
        "model": "hub/m",
        "cluster": "q",
        "hardware": ["2 x (1 x NVIDIA L4 (22 GiB))"],
        "vllm": "0.32.0",
        "ray": "2.60.0",
        "replicas": 2,
        "engine_args": {"max_model_len": 8},
    }
    assert ran(SPEC, state(0, "head"), FACTS, "org/m")["hardware"] == ["CPUs"]


def test_a_model_that_does_not_run_or_is_none_is_refused() -> None:
    with pytest.raises(HostError, match="has no replica now"):
        ran(SPEC, state(1), FACTS, "m")
    with pytest.raises(UsageError, match="did you mean `org/m`"):
        ran(SPEC, state(1), FACTS, "org/n")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    assert read_measured(tmp_path) == ()
    old = Measured(
        "m",
        "q",
        "2026-11-29",
        "8",
        hardware=["GPU"],
        limits=["a<1"],
        engine_args={"x": [1], "y": "z"},
    )
    new = replace(old, date="2026-11-30", hardware=["CPUs"])
    text = "\n".join(lines_of("measured", asdict(each), "c") for each in (new, old))
    (tmp_path / "recipes.toml").write_text(text)
    found = read_measured(tmp_path)
    assert found == (new, old)
    assert latest(found) == {"m": new}


@pytest.mark.parametrize(
    "text", ["[[measured]\n", "measured = 1\n", "[[measured]]\nmodel = 1\n", "[[measured]]\n"]
)
def test_a_spoiled_file_is_told(text: str) -> None:
    with pytest.raises(UsageError, match=r"^recipes.toml: "):
        parse(text, "recipes.toml")
