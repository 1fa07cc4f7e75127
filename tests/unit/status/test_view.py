"""What `status` shows, on terminals of several sizes."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.text import Text

from raycluster.core.interfaces import Versions
from raycluster.status.ask import Standing
from raycluster.status.figures import Latency, ModelFigures, Rates
from raycluster.status.gpus import GpuStatus
from raycluster.status.view import status_view
from tests.unit.status.standing import FIGURES, MODEL, broken, whole


def shown(standing: Standing, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(status_view(standing), end="")
    return [line.rstrip() for line in file.getvalue().splitlines()]


def on_screen(standing: Standing, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    lines = console.render_lines(status_view(standing, Text("every 2 s"), screen=True))
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def test_a_host_that_was_not_seen_is_not_said_to_be_without_its_process() -> None:
    lines = shown(broken(), 200)
    assert any(line.split()[:4:3] == ["gpu-machine-2", "unreachable"] for line in lines)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_name_is_broken_or_cut_at_any_width(width: int) -> None:
    lines = shown(broken(), width)
    assert all(len(line) <= width for line in lines)
    begins = [line.split()[:1] for line in lines]
    for name in ("head", "gpu-machine-2", "no-docker", MODEL):
        assert [name] in begins
    assert any("ready" in line and line.startswith("head") for line in lines)


def test_everything_is_shown_where_there_is_room_for_it() -> None:
    lines = shown(broken(), 200)
    (head,) = (line.split() for line in lines if line.startswith("head"))
    assert head == [
        *("head", "head", "127.0.0.1", "docker", "ready", "2.60.0", "0.32.0"),
        *("12%", "8.0/64G", "95%", "68.4/80G", "71C", "350W"),
    ]
    (model,) = (line.split() for line in lines if line.startswith(MODEL))
    assert model == [
        *(MODEL, "running", "vllm", "1", "ready", "3", "0", "12%", "12.3", "1234"),
        *("p50", "45ms,", "p95", "1.2s"),
    ]
    assert lines[1] == "  ! gpu-machine-2: is off"
    assert "  tunnel     API http://a/v1  (process 7)" in lines
    # 5 EUR for 1234.5 * 3600 tokens
    assert "  cost       5.00 EUR an hour, 1.13 EUR per million generated tokens now" in lines


@pytest.mark.parametrize(
    ("figures", "notes"),
    [
        (
            FIGURES,
            "req/s and tok/s: the last 10 s; TTFT: streamed answers, the last 10 s",
        ),
        (
            ModelFigures(
                1,
                rates=Rates("replicas", 0.41, 0, 0, 0),
                first_token=Latency(0.1, 200, None),
            ),
            "req/s and tok/s: the last 0.4 s; TTFT: streamed answers, since the replicas started",
        ),
        (
            ModelFigures(
                1,
                rates=Rates("prometheus", 60, 1, 0, 1),
                first_token=Latency(None, None, 60),
            ),
            "req/s and tok/s: the last 60 s, from Prometheus",
        ),
        (ModelFigures(), ""),
    ],
)
def test_it_says_of_when_the_figures_are(figures: ModelFigures, notes: str) -> None:
    lines = shown(whole(figures={MODEL: figures}), 200)
    assert [line.strip() for line in lines if "tok/s:" in line] == ([notes] if notes else [])


def test_figures_that_are_not_known_are_dashes() -> None:
    (model,) = (line.split() for line in shown(whole(figures={}), 200) if line.startswith(MODEL))
    assert model == [MODEL, "running", "vllm", "1", "ready", *["-"] * 6]


def test_a_full_screen_leaves_out_healthy_hosts_first() -> None:
    standing = broken()
    ill = replace(standing, health=replace(whole(16).health, problems=standing.health.problems))
    assert sum(line.startswith("gpu-machine") for line in on_screen(ill, 80, 60)) == 15
    (tight,) = [n for n in range(20, 40) if "cost" in on_screen(ill, 80, n)[-1]][:1]
    assert len(on_screen(ill, 80, tight)) == tight  # the whole screen is used, without gaps
    assert "" not in on_screen(ill, 80, tight)
    lines = on_screen(ill, 80, 20)
    assert len(lines) <= 20
    assert all(len(line) <= 80 for line in lines)
    names = [line.split()[0] for line in lines if line.startswith(("head", "gpu-machine"))]
    assert names[0] == "gpu-machine-2"
    assert f"... and {16 - len(names)} more hosts" in lines
    assert any(line.startswith(MODEL) for line in lines)


@pytest.mark.parametrize("height", [1, 5, 10, 24])
def test_no_screen_is_overfilled(height: int) -> None:
    assert len(on_screen(broken(), 40, height)) <= height


def test_what_could_become_a_problem_is_told_with_the_next_step() -> None:
    gpu = GpuStatus("nvidia-smi", "3", "H100", errors=2)
    failing = replace(FIGURES, rates=Rates("replicas", 10, 1, 0.5, 1))
    lines = shown(whole(gpus={"head": (gpu,)}, figures={MODEL: failing}), 200)
    assert lines[0] == "q is healthy"
    assert f"  ~ {MODEL}: 0.5 requests/s fail with a server error" in lines
    at = lines.index("  ~ head: GPU 3 had 2 uncorrectable memory errors")
    assert lines[at + 1].startswith("      next: raycluster exec head -- nvidia-smi")


def test_hosts_that_got_a_tag_before_and_after_it_moved_are_told() -> None:
    seen = whole(2)
    digests = iter("12")
    hosts = {
        name: replace(
            host,
            found=tuple(
                replace(f, versions=Versions(image=f"vllm:1@sha256:{next(digests) * 64}"))
                for f in host.found
            ),
        )
        for name, host in seen.health.state.hosts.items()
    }
    state = replace(seen.health.state, hosts=hosts)
    lines = shown(replace(seen, health=replace(seen.health, state=state)), 200)
    assert lines[0] == "q is healthy"
    (at,) = (n for n, line in enumerate(lines) if line.endswith("on head: the tag has moved"))
    assert lines[at].startswith("  ~ gpu-machine-2: vllm:1 is sha256:222222222222 here")
    assert lines[at + 1].endswith(f'image = "vllm@sha256:{"1" * 64}"')
