"""The main job on two hosts with Docker and one without: one cluster, test after test.

A third host with Docker comes and goes; then a host without Docker is the head of another.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from raycluster.core.tested_versions import DOCKER_API
from raycluster.serve.metrics_history import PERIOD_S, SPAN_S
from tests.lab.conftest import make_cli
from tests.lab.host import Host
from tests.lab.hosts import Lab, wait_for
from tests.lab.image import IMAGE
from tests.lab.program import Cli
from tests.lab.specs import MODEL, cluster_toml
from tests.lab.watch import Watch
from tests.terminal import CTRL_C

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

# Letters and digits alone, which are the same however they are quoted.
HF_TOKEN, API_KEY, PASSWORD = (f"{n}{secrets.token_hex(16)}" for n in ("hf", "sk", "proxy"))
CANARY = f"canary-{secrets.token_hex(4)}"
GATEWAY = f"""
[gateway]
image = "{IMAGE}"
api_keys = {{ alice = "env:LAB_API_KEY" }}

[secrets]
HF_TOKEN = "env:LAB_HF_TOKEN"
"""
LOGIN = f"export HTTPS_PROXY=http://lab:{PASSWORD}@127.0.0.1:9\n"  # before all that .bashrc does


@dataclass
class Running:
    """The cluster that the tests of this module share; `watch` sees it from first to last.

    `first` is what the first `up` said.
    """

    lab: Lab
    cli: Cli
    folder: Path
    watch: Watch
    before: Mapping[str, tuple[object, ...]]
    first: Mapping[str, Any]

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The head and a worker with Docker, a worker without."""
        return (*self.lab.docker_hosts[:2], *self.lab.native_hosts)

    def spec(self, hosts: Sequence[Host] = ()) -> Path:
        """Write the spec for these hosts."""
        path = self.folder / "cluster.toml"
        text = cluster_toml(self.lab, hosts or self.hosts, name="job", extra=GATEWAY)
        path.write_text(text.replace("[cluster]\n", "[cluster]\nprice_per_hour = 2.5\n"))
        return path

    def up(self, hosts: Sequence[Host] = ()) -> dict[str, Any]:
        """Run `up` to its end and return its JSON."""
        done = self.cli("up", self.spec(hosts), "--json", timeout=400)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def token(self) -> str:
        """Return the token of the running cluster."""
        read = ("docker", "exec", "raycluster-job-head", "cat", "/raycluster/token")
        return self.hosts[0].check(*read)

    def ask_gateway(self) -> None:
        """Ask for the models with alice's key."""
        url = f"http://{self.hosts[0].address}:8080/v1/models"
        key = {"Authorization": f"Bearer {API_KEY}"}
        asked = httpx.get(url, headers=key, timeout=60, trust_env=False)
        assert asked.status_code == 200, asked.text

    def run_inside(self, number: int) -> subprocess.CompletedProcess[str]:
        """Run what the watch has to see in the node of a host."""
        name = "head" if number == 0 else self.hosts[number].name
        seen = f"sleep 1; : {CANARY}-{number}"
        script = f"cat /proc/sys/kernel/hostname; echo e >&2; {seen}; exit 7"
        return self.cli("exec", "--spec", self.spec(), name, "--", "sh", "-c", script)

    def down(self) -> None:
        """Take the cluster down, where a test did not do so before."""
        if self.hosts[0].containers():
            done = self.cli("down", self.spec(), "--yes")
            assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def job(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The cluster, which is taken down in any case."""
    folder = tmp_path_factory.mktemp("job")
    cli = make_cli(lab, folder / "home", {"LAB_HF_TOKEN": HF_TOKEN, "LAB_API_KEY": API_KEY})
    bashrc = lab.native_hosts[0].folder / "disk/home/ubuntu/.bashrc"
    original = bashrc.read_text()
    bashrc.write_text(LOGIN + original)
    before = {host.name: host.traces() for host in lab.hosts}
    with Watch() as watch:
        running = Running(lab, cli, folder, watch, before, {})
        try:
            running.first = running.up()
            yield running
        finally:
            cli("down", running.spec(lab.hosts), "--yes")
    bashrc.write_text(original)


def changed(outcome: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return what `up` changed: action, host and role."""
    return [tuple(c[k] for k in ("action", "host", "role") if c.get(k)) for c in outcome["changes"]]


def test_up_ends_with_a_real_completion(job: Running) -> None:
    head, second, native = job.hosts
    *starts, last = changed(job.first)
    assert sorted(starts) == [
        ("start", second.name, "worker"),
        ("start", "head", "gateway"),
        ("start", "head", "head"),
        ("start", native.name, "worker"),
    ]
    assert last == ("deploy",)
    [proof] = job.first["completions"]
    assert proof["engine"] == "vllm"
    assert "Paris" in proof["text"]
    assert sorted(head.containers()) == ["raycluster-job-gateway", "raycluster-job-head"]
    assert second.containers() == ["raycluster-job-worker"]
    assert any("raylet" in line for line in native.processes())


def test_a_second_up_changes_nothing(job: Running) -> None:
    done = job.cli("up", job.spec())
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "job is up: 0 changes")
    plan = job.cli("plan", job.spec())
    assert (plan.returncode, plan.stdout) == (0, "nothing to change\ncost: 7.50 USD per hour\n")


def test_status_tells_all(job: Running) -> None:
    done = job.cli("status", job.spec(), "--json")
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
    assert (model["replicas_wanted"], model["figures"]["replicas_answered"]) == (1, 1)
    assert status["tunnels"] == []
    assert status["cost"] | {"per_million_generated_tokens": None} == {
        "currency": "USD",
        "per_hour": 7.5,
        "per_million_generated_tokens": None,
        "hosts_without_price": [],
    }


def test_tokens_have_no_price_where_none_were_generated_lately(job: Running) -> None:
    def idle() -> bool:
        status = json.loads(job.cli("status", job.spec(), "--json").stdout)
        [model] = status["models"]
        price = status["cost"]["per_million_generated_tokens"]
        assert (price is None) == (model["figures"]["rates"]["generated_tokens_per_second"] == 0)
        return price is None

    wait_for(idle, "the completion of `up` to leave the window", 120)


@contextmanager
def tunnel(job: Running) -> Iterator[str]:
    """Run `raycluster tunnel` and yield the API's address."""
    with job.cli.start("tunnel", job.spec()) as process:
        try:
            yield _api_address(process)
        finally:
            process.send_signal(signal.SIGINT)
            job.cli.said += process.communicate(timeout=20)
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
        question: list[Any] = [
            {"role": "user", "content": "Answer with one word: What is the capital of France?"}
        ]
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


def test_status_tells_what_the_machines_do(job: Running) -> None:
    def told() -> list[dict[str, Any]]:
        nodes = json.loads(job.cli("status", job.spec(), "--json").stdout)["nodes"]
        return [n for n in nodes if n["cpu_percent"] is not None and n["memory_bytes"]]

    last: list[dict[str, Any]] = []

    def all_tell() -> bool:
        last[:] = told()
        return len(last) == 3

    wait_for(all_tell, "figures of all nodes", 120)
    for node in last:
        assert 0 <= node["cpu_percent"] <= 100
        assert 0 < node["memory_bytes"]["used"] < node["memory_bytes"]["total"]
        assert node["gpus"] == []


def test_status_tells_of_the_load_and_of_the_tunnel_that_carries_it(job: Running) -> None:
    with tunnel(job) as url, Load(url) as load:
        began = time.monotonic()
        span = SPAN_S + PERIOD_S  # what came before the load is then in no window
        wait_for(lambda: time.monotonic() - began > span and load.answered > 5, "answers", 120)

        def remembers() -> bool:
            """Longer after the machine stood still, for a moment."""
            status = json.loads(job.cli("status", job.spec(), "--json").stdout)
            assert [t["endpoints"]["API"] for t in status["tunnels"]] == [url]
            rates = status["models"][0]["figures"]["rates"]
            assert rates["source"] == "replicas"
            return bool(9 < rates["window_seconds"] < 13)  # what the replica remembers

        wait_for(remembers, "a replica that remembers so long", 60)
        screen = job.cli.on_terminal("status", "--watch", job.spec())
        try:
            screen.read(lambda text: re.search(r"req/s and tok/s: the last \d\d s", plain(text)))
            screen.press(CTRL_C)
        finally:
            code, text = screen.close()
        assert code == 130
        row = rf"{MODEL} +running +vllm +1 ready +\d+ +\d+ +\d+% +([\d.]+) +([\d.]+)"
        requests, tokens = map(float, re.findall(row, plain(text))[-1])
        assert requests > 0
        assert 0.8 < tokens / requests < 1.2  # a token each, and none for the looks themselves
        assert load.failures == []
    status = json.loads(job.cli("status", job.spec(), "--json").stdout)
    assert status["tunnels"] == []


def plain(text: str) -> str:
    """Return what a terminal shows, without its escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_batch_runs_on_the_cluster(job: Running) -> None:
    source, output = job.folder / "batch.txt", job.folder / "batch.jsonl"
    source.write_text("".join(f"Count to {n}.\n" for n in range(60)))
    batch = ("batch", source, "-o", output, "--spec", job.spec(), "--offline", "--json")
    done = job.cli(*batch, "--max-tokens", "8", timeout=200)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert [summary[name] for name in ("ok", "failed", "sent")] == [60, 0, 60]
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(r["custom_id"] for r in results) == sorted(f"line-{n}" for n in range(1, 61))
    assert {r["response"]["body"]["model"] for r in results} == {MODEL}
    left = ("docker", "exec", "raycluster-job-head", "ls", "/raycluster/batch")
    assert job.hosts[0].check(*left) == ""


def test_bench_runs_through_a_tunnel_of_its_own(job: Running) -> None:
    prompts = job.folder / "prompts.jsonl"
    lines: list[dict[str, Any]] = [{"prompt": f"Count to {n}."} for n in range(4)]
    lines += [{"messages": [{"role": "user", "content": f"Say {n}."}]} for n in range(4)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines) + '"plain"\n')
    bench = ("bench", "--prompts", prompts, "--spec", job.spec(), "--max-tokens", "8", "--json")
    gateway = ("--url", f"http://{job.hosts[0].address}:8080/v1", "--api-key", "env:LAB_API_KEY")
    for more in (("--concurrency", "3"), ("--from", "head"), gateway):
        done = job.cli(*bench, *more)
        assert done.returncode == 0, done.stderr
        [level] = json.loads(done.stdout)["levels"]
        assert (level["completed"], level["failed"]) == (9, 0)
        if more != gateway:
            assert level["server"]["requests"] == 9


@pytest.mark.parametrize("number", [0, 1, 2], ids=["head", "docker", "native"])
def test_exec_runs_inside_the_node_and_passes_its_status_on(job: Running, number: int) -> None:
    done = job.run_inside(number)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (7, job.hosts[number].name, "e\n")


def test_logs_of_nodes_and_of_the_app(job: Running) -> None:
    spec = job.spec()
    for name in ("head", *(host.name for host in job.hosts[1:])):
        logs = job.cli("logs", "--spec", spec, name, "--tail", "10000")
        assert "Ray runtime started" in logs.stdout, logs.stderr
    app = job.cli("logs", "--spec", spec, "app", "--tail", "10000").stdout
    assert re.search(r"^\S+  .*raycluster: \{.*\"engine\": \"vllm\"", app, re.MULTILINE)
    job.ask_gateway()
    gateway = ("logs", "--spec", spec, "gateway")
    wait_for(lambda: '"owner":"alice"' in job.cli(*gateway).stdout, "the line of a request")


def test_logs_of_one_replica_and_of_all_by_time_and_words(job: Running) -> None:
    logs = ("logs", "--spec", job.spec())
    [model] = json.loads(job.cli("status", job.spec(), "--json").stdout)["models"]
    [replica] = model["replicas"]
    started = ("--grep", r'"ENGINE": "vllm"', "-i")
    for target in (replica["id"][:5], f"{MODEL}#1"):
        [line] = job.cli(*logs, target, *started).stdout.splitlines()
        assert re.match(rf"\S+/{MODEL}:{replica['id']}  ", line)
    assert job.cli(*logs, "app", "--since", "1h", *started).stdout.splitlines() == [line]
    assert job.cli(*logs, "app", "--since", "1s", *started).stdout == ""
    done = job.cli(*logs, "all", "--tail", "1")
    assert done.returncode == 0, done.stderr
    native = job.hosts[2].name
    labels = {line.partition("  ")[0] for line in done.stdout.splitlines()}
    assert {"head", "head/gateway", job.hosts[1].name, native} <= labels
    unknown = job.cli(*logs, "zzzzzzzz")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "is not a host, service, model or replica" in unknown.stderr


def test_a_support_bundle_holds_no_secret(job: Running) -> None:
    path = job.folder / "bundle.tar.gz"
    began = time.monotonic()
    done = job.cli("support-bundle", job.spec(), "-o", path, "--json")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    with tarfile.open(path) as tar:
        files = {m.name.partition("/")[2]: _content(tar, m) for m in tar}
    failed = json.loads(files["manifest.json"])["failed"]
    assert failed == [], failed
    for host in ("head", *(each.name for each in job.hosts[1:])):
        role = "head" if host == "head" else "worker"
        at = f"hosts/{host}"
        assert b"Ray runtime started" in files[f"{at}/logs/{role}.log"]
        assert b"ray==" in files[f"{at}/{role}/packages.txt"]
        assert b"RAY_AUTH_MODE" in files[f"{at}/{role}/environment.json"]
        assert files[f"{at}/{role}/ray/raylet.out"]
        assert b"ray_node_" in files[f"{at}/metrics/node.txt"]
    assert b"listen" in files["hosts/head/gateway/config.txt"]
    assert any(re.match(r"hosts/\S+/metrics/replica-\d+", name) for name in files)
    assert any("/ray/serve/controller_" in name for name in files)
    assert files["plan.txt"] == b"nothing to change\n"
    assert json.loads(files["status.json"])["healthy"] is True
    versions = re.findall(rb"API version: +([\d.]+)", files["hosts/head/docker.txt"])
    assert versions[-1].decode() == DOCKER_API  # the server's
    wanted = {HF_TOKEN: "HF token", API_KEY: "API key", PASSWORD: "proxy's password"}
    wanted[job.token()] = "Ray's token"
    for secret, what in wanted.items():
        encoded = [base64.b64encode(n * b":" + secret.encode())[4:-4] for n in range(3)]
        for form in (secret.encode(), secret.encode().hex().encode(), *encoded):
            assert [name for name, data in files.items() if form in data] == [], what


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file
    return file.read()


def test_a_removed_container_is_repaired_and_nothing_else(job: Running) -> None:
    first, second, native = job.hosts
    before = first.check("docker", "ps", "-q", "--no-trunc"), supervisor(native)
    second.check("docker", "rm", "-f", "raycluster-job-worker")
    assert job.cli("status", job.spec()).returncode == 3
    assert changed(job.up()) == [("start", second.name, "worker")]
    assert (first.check("docker", "ps", "-q", "--no-trunc"), supervisor(native)) == before


def supervisor(native: Host) -> str:
    """Return the process that keeps the native worker alive."""
    return native.check("pgrep", "-f", "supervisor.py --keep")


ALIVE = """
import json, sys, urllib.request
token = {"Authorization": "Bearer " + open("/raycluster/token").read()}
url = "http://127.0.0.1:8265/api/v0/nodes?detail=true&limit=1000"
told = json.load(urllib.request.urlopen(urllib.request.Request(url, headers=token), timeout=20))
for node in told["data"]["result"]["result"]:
    if (node["state"], node["node_ip"]) == ("ALIVE", sys.argv[1]):
        print(node["node_id"])
"""


def living(job: Running, host: Host) -> set[str]:
    """Return the nodes that Ray's head believes to live on a host; none while it does not tell."""
    ask = ("docker", "exec", "raycluster-job-head", "python", "-c", ALIVE, host.address)
    return {*job.hosts[0].run(ask).stdout.split()}


def test_a_native_worker_whose_supervisor_is_killed_comes_back_by_cron(job: Running) -> None:
    *others, native = job.hosts
    before = [host.check("docker", "ps", "-q", "--no-trunc") for host in others]
    former, raylets = supervisor(native), native.check("pgrep", "-x", "raylet")
    [orphan] = living(job, native)
    native.check("kill", "-KILL", *former.split())  # Ray's processes are orphans now
    wait_for(lambda: not _runs(native, former), "its end")
    wait_for(lambda: _runs(native, "supervisor.py --keep"), "cron to start another", 180)

    def replaced() -> bool:
        """For some time after its end the head believes the orphan to live."""
        nodes = living(job, native)
        return len(nodes) == 1 and orphan not in nodes

    wait_for(replaced, "another node of Ray alone", 240)
    wait_for(lambda: job.cli("status", job.spec()).returncode == 0, "the worker", 240)
    assert supervisor(native) != former
    now = native.check("pgrep", "-x", "raylet")
    assert (now != raylets, len(now.split())) == (True, 1)
    assert changed(job.up()) == []
    assert [host.check("docker", "ps", "-q", "--no-trunc") for host in others] == before


def _runs(host: Host, what: str) -> bool:
    found = ("kill", "-0", what.strip()) if what.strip().isdigit() else ("pgrep", "-f", what)
    return host.run(found).returncode == 0


GATE = ("reload", "head", "gateway")
"""The gateway learns of the hosts that there are."""


class Load:
    """Asks for one token without pause, and remembers what failed."""

    def __init__(self, url: str) -> None:
        self._client = openai.OpenAI(base_url=url, api_key="none", timeout=120, max_retries=0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.failures: list[str] = []

    def _run(self) -> None:
        while not self._stop.is_set():
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


def test_hosts_of_both_kinds_come_and_go_while_the_app_serves(job: Running) -> None:
    first, second, native = job.hosts
    third = job.lab.docker_hosts[2]
    with tunnel(job) as url, Load(url) as load:
        assert changed(job.up([*job.hosts, third])) == [("start", third.name, "worker"), GATE]
        assert third.containers() == ["raycluster-job-worker"]
        assert changed(job.up([first, second, third])) == [GATE, ("remove", native.name)]
        assert native.traces() == job.before[native.name]
        assert sorted(changed(job.up([first, second, native]))) == [
            GATE,
            ("remove", third.name),
            ("start", native.name, "worker"),
        ]
        assert third.traces() == job.before[third.name]
    assert load.failures == []
    assert load.answered > 100


def write_records(job: Running, content: bytes) -> None:
    """Have every node of the cluster say this of its members."""
    for host in job.hosts:
        path = "/var/lib/docker/volumes/raycluster-job/_data/members.json"
        if host.kind == "native":
            path = "/home/ubuntu/.raycluster/job/members.json"
        assert host.run(("sh", "-c", 'cat >"$0"', path), stdin=content).returncode == 0


def test_what_hosts_say_of_members_hurts_neither_the_laptop_nor_others(job: Running) -> None:
    third = job.lab.docker_hosts[2]
    keys = job.cli.home / ".ssh/authorized_keys"
    login = {"user": "root", "known_hosts": str(keys), "host_keys": "accept-new"}
    plain = {"runtime": {"kind": "native"}, "transport": "ssh", "name": "gone"}
    members = [
        {**plain, "host": "", "transport": "local", "ssh": {}},
        {**plain, "host": third.address, "ssh": {**login, "port": third.ssh_port}},
    ]
    own = job.cli.home / ".raycluster/job/token"
    own.parent.mkdir(parents=True)
    own.write_text("0" * 64)
    there = "/root/.raycluster/job"
    third.check("mkdir", "-p", there)
    third.check("cp", "/etc/hostname", f"{there}/token")
    write_records(job, json.dumps(members).encode())
    plan = job.cli("plan", job.spec())
    assert f"no longer in the spec, at {third.address}:{third.ssh_port}" in plan.stdout
    done = job.cli("up", job.spec())
    assert done.returncode == 0, done.stderr
    assert "the installation there does not have this cluster's token" in done.stderr
    assert "was the machine that ran `raycluster up`" in done.stderr
    assert (own.read_text(), keys.exists()) == ("0" * 64, False)
    third.check("rm", "-r", f"{there}/token", there, "/root/.raycluster")
    shutil.rmtree(own.parents[1])


@pytest.mark.parametrize("content", [b"[", b"true", b"[{}]"])
def test_damaged_records_are_said_and_written_again(job: Running, content: bytes) -> None:
    write_records(job, content)
    said = "record of the cluster's hosts (members.json) cannot be read"
    status = job.cli("status", job.spec())
    assert (status.returncode, said in status.stdout + status.stderr) == (3, True)
    plan = job.cli("plan", job.spec())
    assert (plan.returncode, said in plan.stdout) == (0, True)
    if content != b"[{}]":
        return
    done = job.cli("up", job.spec())
    assert (done.returncode, said in done.stderr) == (3, True)
    assert "Traceback" not in done.stderr
    plan = job.cli("plan", job.spec())
    assert (plan.returncode, plan.stdout.splitlines()[0]) == (0, "nothing to change")


def holding(host: Host, *wanted: str) -> dict[str, str]:
    """Return the files on a host's disk that hold any of these texts, with their modes.

    They may lie anywhere: among logs, in Docker's own files, its volumes and layers.
    """
    disk = host.folder / "disk"
    search = ("grep", "-rlsaF", "-f", "-")  # the texts come by stdin, for arguments are watched
    texts = "\n".join(wanted)
    assert host.run((*search, "/run", "/dev/shm"), stdin=texts.encode()).stdout == ""
    found = subprocess.run(
        [*search, disk], input=texts, stdout=subprocess.PIPE, text=True, check=False
    )
    paths = [Path(line) for line in found.stdout.splitlines()]
    return {f"/{path.relative_to(disk)}": f"{path.stat().st_mode & 0o777:o}" for path in paths}


def test_files_that_hold_secrets_are_those_of_one_user_that_need_them(job: Running) -> None:
    wanted = (HF_TOKEN, API_KEY, PASSWORD, job.token())
    volume = "/var/lib/docker/volumes/raycluster-job/_data"
    root = "/home/ubuntu/.raycluster/job"
    bashrc = {"/home/ubuntu/.bashrc": "644"}  # the test's own
    expected: list[set[str]] = [
        {f"{volume}/token", f"{volume}/secrets.json", f"{volume}/gateway/nginx.conf"},
        {f"{volume}/token", f"{volume}/secrets.json"},
        {f"{root}/token", f"{root}/secrets.json", f"{root}/roles/worker/launch.json"},
    ]
    for host, paths in zip(job.hosts, expected, strict=True):
        found = holding(host, *wanted)
        native = bashrc if host.kind == "native" else {}
        assert found == dict.fromkeys(paths, "600") | native, host.name


def test_secrets_are_nowhere(job: Running) -> None:
    """Neither said by any command so far, nor in any process's arguments, `down` included."""
    wanted = {HF_TOKEN: "HF token", API_KEY: "API key", PASSWORD: "proxy's password"}
    wanted[job.token()] = "Ray's token"
    spec = job.spec()
    for more in ("check", "plan", "status"):
        assert job.cli(more, spec, "--json").stdout
        assert job.cli(more, spec).stdout
    for number in range(3):
        job.run_inside(number)
    for host in job.hosts[:2]:
        job.cli.said += [host.check("docker", "inspect", name) for name in host.containers()]
    done = job.cli("down", spec, "--yes")
    assert done.returncode == 0, done.stderr
    lines = frozenset(job.watch.lines)
    there = [line for line in lines if line.startswith("sh -c cat /proc")]  # what exec ran
    seen = [n for n in range(3) if any(f"{CANARY}-{n}" in line for line in there)]
    assert seen == [0, 1, 2], "the watch does not see what runs on each host"
    assert [
        (what, said) for word, what in wanted.items() for said in job.cli.said if word in said
    ] == []
    assert [(what, line) for word, what in wanted.items() for line in lines if word in line] == []


def test_down_leaves_nothing_and_can_be_repeated(job: Running) -> None:
    """The test before took the cluster down under the eyes of the watch."""
    job.down()
    assert {host.name: host.traces() for host in job.lab.hosts} == job.before
    again = job.cli("down", job.spec(), "--yes")
    assert (again.returncode, again.stdout) == (0, "job is down: nothing to remove\n")


@pytest.mark.long
def test_a_native_head_has_a_docker_worker(job: Running) -> None:
    job.down()
    head, worker = job.lab.native_hosts[0], job.lab.docker_hosts[0]
    spec = job.folder / "turned.toml"
    spec.write_text(cluster_toml(job.lab, [head, worker], name="turned"))
    try:
        done = job.cli("up", spec, "--json", timeout=400)
        assert done.returncode == 0, done.stderr
        [proof] = json.loads(done.stdout)["completions"]
        assert (proof["engine"], "Paris" in proof["text"]) == ("vllm", True)
        assert worker.containers() == ["raycluster-turned-worker"]
        nodes = json.loads(job.cli("status", spec, "--json").stdout)["nodes"]
        assert [(n["role"], n["runtime"], n["joined"]) for n in nodes] == [
            ("head", "native", True),
            ("worker", "docker", True),
        ]
    finally:
        down = job.cli("down", spec, "--yes")
    assert down.returncode == 0, down.stderr
    assert {host.name: host.traces() for host in job.lab.hosts} == job.before
