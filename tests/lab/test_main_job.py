"""The main job on three hosts with Docker and one without: one cluster, test after test."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.lab.conftest import make_cli
from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.program import Cli
from tests.lab.specs import MODEL, cluster_toml

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

HF_TOKEN = "hf_lab0123456789secretsecret"
RAY_LOGS = "cat /tmp/ray/session_latest/logs/*.*"
SECRETS = '\n[secrets]\nHF_TOKEN = "env:LAB_HF_TOKEN"\n'


@dataclass
class Running:
    """The cluster that the tests of this module share."""

    lab: Lab
    cli: Cli
    folder: Path
    files_before: Mapping[str, frozenset[str]]

    def spec(self, hosts: Sequence[Host], name: str = "cluster.toml") -> Path:
        """Write the spec for these hosts."""
        path = self.folder / name
        path.write_text(cluster_toml(self.lab, hosts, name="job", extra=SECRETS))
        return path

    def up(self, hosts: Sequence[Host]) -> dict[str, Any]:
        """Run `up` to its end and return its JSON."""
        done = self.cli("up", self.spec(hosts), "--json", timeout=400)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def job(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A program and a folder for the whole module; the cluster is taken down in any case."""
    folder = tmp_path_factory.mktemp("job")
    cli = make_cli(lab, folder / "home", {"LAB_HF_TOKEN": HF_TOKEN})
    before = {h.name: h.files() for h in (*lab.docker_hosts, *lab.native_hosts)}
    running = Running(lab, cli, folder, before)
    yield running
    cli("down", running.spec((*lab.docker_hosts, *lab.native_hosts)), "--yes")


def test_up_ends_with_a_real_completion(job: Running) -> None:
    outcome = job.up(job.lab.docker_hosts)
    assert [c["action"] for c in outcome["changes"]] == ["start", "start", "start", "deploy"]
    [proof] = outcome["completions"]
    assert proof["engine"] == "vllm"
    assert "Paris" in proof["text"]
    assert [h.containers() for h in job.lab.docker_hosts] == [
        ["raycluster-job-head"],
        ["raycluster-job-worker"],
        ["raycluster-job-worker"],
    ]


def test_a_second_up_changes_nothing(job: Running) -> None:
    outcome = job.up(job.lab.docker_hosts)
    assert outcome["changes"] == []
    plan = job.cli("plan", job.spec(job.lab.docker_hosts))
    assert (plan.returncode, plan.stdout) == (0, "nothing to change\n")


def test_status_tells_all(job: Running) -> None:
    done = job.cli("status", job.spec(job.lab.docker_hosts), "--json")
    assert done.returncode == 0, done.stdout
    status = json.loads(done.stdout)
    assert status["healthy"] is True
    assert [(n["role"], n["process"], n["joined"]) for n in status["nodes"]] == [
        ("head", "running", True),
        ("worker", "running", True),
        ("worker", "running", True),
    ]
    [model] = status["models"]
    assert (model["engine"], model["status"]) == ("vllm", "running")
    assert [r["state"] for r in model["replicas"]] == ["running"]


@contextmanager
def tunnel(job: Running) -> Iterator[str]:
    """Run `raycluster tunnel` and yield the API's address."""
    with job.cli.start("tunnel", job.spec(job.lab.docker_hosts)) as process:
        try:
            yield _api_address(process)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
    assert process.returncode == 0


def _api_address(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    for line in process.stdout:
        if found := re.search(r"API\s+(http://127\.0\.0\.1:\d+/v1)", line):
            return found[1]
    raise AssertionError(f"no API in what the tunnel said: {process.communicate()}")


def test_openai_client_through_the_tunnel(job: Running) -> None:
    with tunnel(job) as url, openai.OpenAI(base_url=url, api_key="none", timeout=60) as client:
        assert [m.id for m in client.models.list()] == [MODEL]
        question: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
        answer = client.chat.completions.create(
            model=MODEL, messages=question, temperature=0, max_tokens=16
        )
        assert "Paris" in (answer.choices[0].message.content or "")
        stream = client.chat.completions.create(
            model=MODEL,
            messages=question,
            temperature=0,
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == answer.choices[0].message.content
        assert chunks[-1].usage and chunks[-1].usage.completion_tokens > 1
        with pytest.raises(openai.NotFoundError, match="no-such-model"):
            client.completions.create(model="no-such-model", prompt="x")


def test_bench_runs_through_a_tunnel_of_its_own(job: Running) -> None:
    prompts = job.folder / "prompts.jsonl"
    lines: list[dict[str, Any]] = [{"prompt": f"Count to {n}."} for n in range(4)]
    lines += [{"messages": [{"role": "user", "content": f"Say {n}."}]} for n in range(4)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines) + '"plain"\n')
    spec = job.spec(job.lab.docker_hosts)
    done = job.cli(
        *("bench", "--prompts", prompts, "--spec", spec, "--concurrency", "3"),
        *("--max-tokens", "8", "--json"),
    )
    assert done.returncode == 0, done.stderr
    [level] = json.loads(done.stdout)["levels"]
    assert level["completed"] == 9
    assert level["failed"] == 0


def test_exec_runs_inside_the_node_and_passes_its_status_on(job: Running) -> None:
    spec = job.spec(job.lab.docker_hosts)
    name = job.lab.docker_hosts[1].name
    done = job.cli(
        "exec",
        "--spec",
        spec,
        name,
        "--",
        "sh",
        "-c",
        "cat /proc/sys/kernel/hostname; echo e >&2; exit 7",
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (7, name, "e\n")


def test_logs_of_a_node_and_of_the_app(job: Running) -> None:
    spec = job.spec(job.lab.docker_hosts)
    assert "Ray runtime started" in job.cli("logs", "--spec", spec, "head").stdout
    app = job.cli("logs", "--spec", spec, "app").stdout
    assert re.search(r"^\S+  .*raycluster: \{.*\"engine\": \"vllm\"", app, re.MULTILINE)


def test_secrets_are_nowhere(job: Running) -> None:
    token = job.lab.docker_hosts[0].check(
        *("docker", "exec", "raycluster-job-head", "cat", "/raycluster/token")
    )
    assert len(token) == 64
    spec = job.spec(job.lab.docker_hosts)
    said = [
        job.cli("plan", spec, "--json").stdout,
        job.cli("status", spec, "--json").stdout,
        job.cli("status", spec).stdout,
        job.cli("logs", "--spec", spec, "app", "--tail", "10000").stdout,
    ]
    for host in job.lab.docker_hosts:
        [container] = host.containers()
        said += [
            host.check("docker", "inspect", container),
            host.check("docker", "logs", container),
            host.check("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
            host.check(
                "docker", "exec", container, "sh", "-c", "cat /tmp/ray/session_latest/logs/*.*"
            ),
        ]
    for text in said:
        assert text
        assert HF_TOKEN not in text
        assert token not in text


def test_a_removed_container_is_repaired_and_nothing_else(job: Running) -> None:
    first, second, third = job.lab.docker_hosts
    before = [h.check("docker", "ps", "-q", "--no-trunc") for h in (first, third)]
    second.check("docker", "rm", "-f", "raycluster-job-worker")
    assert job.cli("status", job.spec(job.lab.docker_hosts)).returncode == 3
    outcome = job.up(job.lab.docker_hosts)
    assert [(c["action"], c.get("host")) for c in outcome["changes"]] == [("start", second.name)]
    assert [h.check("docker", "ps", "-q", "--no-trunc") for h in (first, third)] == before


class Load:
    """Asks for one token again and again, and remembers what failed."""

    def __init__(self, url: str) -> None:
        self._client = openai.OpenAI(base_url=url, api_key="none", timeout=120, max_retries=0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.failures: list[str] = []

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            try:
                self._client.completions.create(model=MODEL, prompt="A", max_tokens=1)
            except openai.OpenAIError as error:
                self.failures.append(repr(error))
            else:
                self.answered += 1

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()


def test_a_native_host_comes_and_goes_while_the_app_serves(job: Running) -> None:
    native = job.lab.native_hosts[0]
    with tunnel(job) as url, Load(url) as load:
        added = job.up([*job.lab.docker_hosts, native])
        assert [(c["action"], c.get("host")) for c in added["changes"]] == [("start", native.name)]
        assert any("raylet" in p for p in native.processes())
        removed = job.up(job.lab.docker_hosts)
        assert [(c["action"], c["host"]) for c in removed["changes"]] == [("remove", native.name)]
    assert load.failures == []
    assert load.answered > 10
    assert_clean(native, job.files_before[native.name])


def test_down_leaves_nothing_and_can_be_repeated(job: Running) -> None:
    spec = job.spec(job.lab.docker_hosts)
    first = job.cli("down", spec, "--yes")
    assert first.returncode == 0, first.stderr
    for host in job.lab.docker_hosts:
        assert_clean(host, job.files_before[host.name])
    again = job.cli("down", spec, "--yes")
    assert (again.returncode, again.stdout) == (0, "job is down: nothing was left to remove\n")


def assert_clean(host: Host, files_before: frozenset[str]) -> None:
    """Assert that no container, volume, network, process or file of ours is on the host."""
    if host.kind == "docker":
        assert host.containers() == []
        assert host.check("docker", "volume", "ls", "-q") == ""
        networks = host.check("docker", "network", "ls", "--format", "{{.Name}}").split()
        assert sorted(networks) == ["bridge", "host", "none"]
    assert host.processes() == []
    ours = {f for f in host.files() - files_before if "/docker/" not in f and "/var/log" not in f}
    assert ours == set()
