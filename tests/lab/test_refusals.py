"""What `up` refuses on real hosts: one clear sentence, the right exit code, and nothing half-made.

In every case the first host is in order, so that something could have been started there.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.host import Host, wait_for
from tests.lab.hosts import Lab
from tests.lab.image import IMAGE
from tests.lab.program import Cli
from tests.lab.specs import cluster_toml

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

QUICK = 10.0  # seconds; an order of magnitude more than a refusal takes on a quiet machine
RAY_STUB = "Metadata-Version: 2.1\nName: ray\nVersion: 2.59.0\n"


@dataclass
class Bench:
    """A program in a home of its own, and where the specs of one test lie."""

    lab: Lab
    cli: Cli
    folder: Path

    def spec(self, hosts: Sequence[Host], *changes: tuple[str, str], extra: str = "") -> Path:
        """Write the spec for these hosts, with pieces of its text replaced."""
        text = cluster_toml(self.lab, hosts, name="refuse", extra=extra)
        head, mark, worker = text.partition("[[workers]]")
        for old, new in changes:  # in the worker where there is one, else anywhere
            if old in worker:
                worker = worker.replace(old, new, 1)
            else:
                assert old in head, f"{old} is not in {text}"
                head = head.replace(old, new, 1)
        path = self.folder / "refused.toml"
        path.write_text(head + mark + worker)
        return path

    def refuses(
        self, spec: Path, *said: str, code: int = 1, command: str = "up", within: float = QUICK
    ) -> str:
        """Run a command that must fail with one sentence and a next step; return them."""
        began = time.monotonic()
        done = self.cli(command, spec)
        took = time.monotonic() - began
        _, _, error = done.stderr.rpartition("error: ")
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert [part for part in said if not re.search(part, error)] == [], error
        assert re.fullmatch(r"[^\n]+(\n  next: |; did you mean )[^\n]+\n", error), error
        assert took < within, f"took {took:.1f} s"
        return error


@pytest.fixture
def bench(lab: Lab, cli: Cli, tmp_path: Path) -> Iterator[Bench]:
    """A bench; afterwards every host must be as it was before."""
    before = {host.name: host.traces() for host in lab.hosts}
    yield Bench(lab, cli, tmp_path)

    def after() -> dict[str, tuple[object, ...]]:
        return {host.name: host.traces() for host in lab.hosts}

    with suppress(TimeoutError):  # what was cut off by the last command may still be ending
        wait_for(lambda: after() == before, "what was there before", 60)
    assert after() == before


def known_hosts(bench: Bench, *, of: Host, line: str) -> tuple[str, str]:
    """Return the change that makes the worker's known_hosts say `line` about a host."""
    true = bench.lab.known_hosts.read_text()
    path = bench.folder / "known_hosts"
    path.write_text(true.replace(of.known_hosts_line, line))
    assert path.read_text() != true
    return ("gpus = 0", f"gpus = 0\nknown_hosts = {str(path)!r}")


def test_a_changed_host_key(bench: Bench) -> None:
    first, second, _ = bench.lab.docker_hosts
    names = second.known_hosts_line.split()[0]
    wrong = " ".join([names, *first.known_hosts_line.split()[1:]]) + "\n"
    change = known_hosts(bench, of=second, line=wrong)
    said = bench.refuses(bench.spec([first, second], change), "^docker-2: .*key")
    assert "SHA256:" in said


def test_an_unknown_host_key(bench: Bench) -> None:
    first, second, _ = bench.lab.docker_hosts
    change = known_hosts(bench, of=second, line="")
    bench.refuses(bench.spec([first, second], change), "^docker-2: .*known")


def test_a_user_that_is_not_there(bench: Bench) -> None:
    spec = bench.spec(bench.lab.docker_hosts[:2], ('user = "root"', 'user = "nobody-here"'))
    bench.refuses(spec, "^docker-2: .*rejected user 'nobody-here'", "authorized_keys")


def test_a_key_that_the_host_does_not_admit(bench: Bench) -> None:
    key = bench.folder / "other"
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", key], check=True)
    change = ("gpus = 0", f"gpus = 0\nidentity_file = {str(key)!r}")
    spec = bench.spec(bench.lab.docker_hosts[:2], change)
    bench.refuses(spec, "^docker-2: .*rejected user 'root'", str(key))


def test_a_closed_port(bench: Bench) -> None:
    spec = bench.spec(bench.lab.docker_hosts[:2], ("port = 22", "port = 2222"))
    bench.refuses(spec, "^docker-2: .* port 2222 refused the connection")


def test_a_name_that_does_not_resolve(bench: Bench) -> None:
    first, second, _ = bench.lab.docker_hosts
    spec = bench.spec([first, second], (f'"{second.address}"', '"no-such-host.invalid"'))
    bench.refuses(spec, "^docker-2: the name no-such-host.invalid cannot be resolved", within=30)


def test_a_host_that_drops_every_packet(bench: Bench) -> None:
    first, second, _ = bench.lab.docker_hosts
    spec = bench.spec([first, second], ("gpus = 0", "gpus = 0\nconnect_timeout = 1"))
    second.partition()
    try:
        bench.refuses(spec, "^docker-2: .*did not respond within 1 s")
    finally:
        second.heal()


def test_an_address_that_nobody_has(bench: Bench) -> None:
    first, second, _ = bench.lab.docker_hosts
    unused = bench.lab.network.ipv4(250)
    change = (f'"{second.address}"', f'"{unused}"\nconnect_timeout = 1')
    bench.refuses(bench.spec([first, second], change), f"^docker-2: {unused} port 22")


def test_every_host_that_cannot_be_used_is_named(bench: Bench) -> None:
    user = ('user = "root"', 'user = "nobody-here"')
    host = (f'"{bench.lab.docker_hosts[2].address}"', '"no-such-host.invalid"')
    done = bench.cli("up", bench.spec(bench.lab.docker_hosts, user, host))
    assert done.returncode == 1
    assert "error: 2 hosts cannot be used\n" in done.stderr
    assert re.findall(r"^(docker-\d): ", done.stderr, re.MULTILINE) == ["docker-2", "docker-3"]


def test_a_docker_daemon_that_does_not_run(bench: Bench) -> None:
    second = bench.lab.docker_hosts[1]
    second.stop_service("dockerd")
    try:
        bench.refuses(bench.spec(bench.lab.docker_hosts[:2]), "^docker-2: .*Docker daemon|nothing")
    finally:
        second.start_service("dockerd")


def test_a_host_without_docker(bench: Bench) -> None:
    native = bench.lab.native_hosts[0]
    kind = f'runtime = {{ kind = "native", python = "{bench.lab.node_python}" }}\n'
    spec = bench.spec([bench.lab.docker_hosts[0], native], (kind, ""))
    bench.refuses(spec, "^native-1: Docker is not installed", 'kind = "native"')


def test_a_user_who_may_not_use_docker(bench: Bench) -> None:
    spec = bench.spec(bench.lab.docker_hosts[:2], ('user = "root"', 'user = "outsider"'))
    bench.refuses(
        spec, "^docker-2: user outsider has no permission to use Docker", "usermod -aG docker"
    )


def test_an_image_that_is_not_there(bench: Bench) -> None:
    image = 'runtime = { image = "nobody/has-this:1" }'
    spec = bench.spec(bench.lab.docker_hosts[:2], ("gpus = 0", f"gpus = 0\n{image}"))
    bench.refuses(spec, "^docker-2: image nobody/has-this:1 is missing", "docker load")


def test_an_image_without_ray(bench: Bench) -> None:
    spec = bench.spec(bench.lab.docker_hosts[:2], ("gpus = 0", "gpus = 0\nruntime = {volumes=[]}"))
    bench.refuses(spec, f"^docker-2: .*{IMAGE}")


@contextmanager
def listener(host: Host, port: int) -> Iterator[None]:
    """Hold a port on a host."""
    code = f"import socket; s = socket.create_server(('', {port})); print(flush=True); input()"
    program = host.enter("python3", "-c", code)
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield
        process.communicate(b"\n", timeout=10)


def test_a_port_that_is_taken(bench: Bench) -> None:
    spec = bench.spec(bench.lab.docker_hosts[:2])
    with listener(bench.lab.docker_hosts[1], 6380):
        bench.refuses(spec, "^docker-2: port 6380 is already in use", "ports.node_manager")


@contextmanager
def refusing(host: Host, port: int) -> Iterator[None]:
    """Let a host's firewall refuse a port as if nobody listened there."""
    rule = f"tcp dport {port} reject with icmp port-unreachable"
    chain = f"chain in {{ type filter hook input priority 0; {rule}; }}"
    host.check("nft", f"table ip refusing {{ {chain}; }}")
    try:
        yield
    finally:
        host.check("nft", "delete table ip refusing")


def test_a_firewall_between_the_hosts_that_refuses_one_port(bench: Bench) -> None:
    spec = bench.spec(bench.lab.docker_hosts[:2])
    with refusing(bench.lab.docker_hosts[1], 6380):
        said = "can reach docker-2 at [0-9.]*, but not its ports 6380: rejected by a firewall"
        bench.refuses(spec, f"^head: {said}", "private_address", within=2 * QUICK)
        checked = bench.cli("check", spec)
    assert re.search(rf"✗ head +network: {said}", checked.stdout), checked.stdout
    assert "✓ docker-2" in checked.stdout


def test_a_misspelt_key(bench: Bench) -> None:
    spec = bench.spec(bench.lab.docker_hosts[:2], ("gpus = 0", "gpu = 0"))
    bench.refuses(spec, r"workers\[0\].gpu: unknown key; did you mean `gpus`", code=2)


def test_more_gpus_than_the_host_has(bench: Bench) -> None:
    spec = bench.spec(bench.lab.docker_hosts[:2], ("gpus = 0", "gpus = 2"))
    bench.refuses(spec, "^docker-2: gpus = 2, but the host has (0|none)", "nvidia-smi")


def twins(bench: Bench, alias: str) -> Path:
    first = bench.lab.docker_hosts[0]
    return bench.spec([first, first], (f'"{first.address}"', f'"{alias}"'))


def test_one_machine_under_two_addresses(bench: Bench) -> None:
    spec = twins(bench, bench.lab.docker_hosts[0].address6)
    bench.refuses(spec, "head and docker-1 are the same machine", code=2)


def test_one_machine_under_an_address_and_an_alias(bench: Bench) -> None:
    first = bench.lab.docker_hosts[0]
    config = (
        f"Host twin\n  HostName {first.address}\n  UserKnownHostsFile {bench.lab.known_hosts}\n"
    )
    (bench.cli.home / ".ssh/config").write_text(config)
    bench.refuses(twins(bench, "twin"), "head and docker-1 are the same machine", code=2)


@contextmanager
def other_ray(lab: Lab, host: Host, folder: Path) -> Iterator[str]:
    """Yield a Python on a native host whose installed ray is another version."""
    wheel = folder / "ray-2.59.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("ray-2.59.0.dist-info/METADATA", RAY_STUB)
        archive.writestr("ray-2.59.0.dist-info/RECORD", "")
        tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr("ray-2.59.0.dist-info/WHEEL", tag)
    base = host.check(lab.node_python, "-c", "import sys; print(sys._base_executable)").strip()
    home = "/opt/other"
    host.run(("sh", "-c", f"cat >/tmp/{wheel.name}"), stdin=wheel.read_bytes())
    try:
        host.check(base, "-m", "venv", "--without-pip", home)
        install = ("-m", "pip", "--python", f"{home}/bin/python", "install", "--no-index")
        host.check(base, *install, "--root-user-action=ignore", f"/tmp/{wheel.name}")
        yield f"{home}/bin/python"
    finally:
        host.check("rm", "-rf", home, f"/tmp/{wheel.name}")


HUGE = {
    **{"hidden_size": 16384, "intermediate_size": 53248, "vocab_size": 128256},
    **{"num_attention_heads": 128, "num_key_value_heads": 8, "num_hidden_layers": 126},
    **{"hidden_act": "silu", "tie_word_embeddings": False, "max_position_embeddings": 131072},
}


@contextmanager
def huge(hosts: Sequence[Host]) -> Iterator[str]:
    """Yield a folder of the hosts with the config of a model that is far too large."""
    folder = "/tmp/huge"  # of the hosts
    write = f"mkdir -p {folder} && cat >{folder}/config.json"
    for host in hosts:
        host.run(("sh", "-c", write), stdin=json.dumps(HUGE).encode())
    try:
        yield folder
    finally:
        for host in hosts:
            host.check("rm", "-rf", folder)


def test_a_model_that_no_host_has_memory_for(bench: Bench) -> None:
    hosts = bench.lab.docker_hosts[:2]
    with huge(hosts) as folder:
        volume = ("volumes = [", f'volumes = ["{folder}:/huge:ro", ')
        spec = bench.spec(hosts, volume, (f'source = "{bench.lab.model}"', 'source = "/huge"'))
        said = "^smollm2-135m: fits on no host; on head: its weights take 75.* of memory"
        error = bench.refuses(spec, said, "smaller or quantized model", code=2)
        planned = bench.cli("plan", spec)
    assert planned.returncode == 0, planned.stderr
    assert error.partition("\n")[0] in planned.stdout


def test_a_request_longer_than_the_memory_that_is_kept(bench: Bench) -> None:
    length = ("max_model_len = 1024", "max_model_len = 100000")
    bench.refuses(
        bench.spec(bench.lab.docker_hosts[:2], length),
        "one request of 100,000 tokens takes 2.1 GiB, and 1.0 GiB are reserved",
        "set max_model_len = 8192",
        code=2,
    )


def test_nodes_with_different_rays(bench: Bench) -> None:
    native = bench.lab.native_hosts[0]
    with other_ray(bench.lab, native, bench.folder) as python:
        hosts = [bench.lab.docker_hosts[0], native]
        spec = bench.spec(hosts, (bench.lab.node_python, python))
        said = "Ray differs between nodes: head has 2.*, native-1 has 2.59.0"
        bench.refuses(spec, said, within=2 * QUICK)


def test_a_secret_without_its_variable(bench: Bench) -> None:
    spec = bench.spec(
        bench.lab.docker_hosts[:2], extra='\n[secrets]\nHF_TOKEN = "env:LAB_NOT_SET"\n'
    )
    bench.refuses(spec, "secret HF_TOKEN: the variable LAB_NOT_SET is not set", code=2)


NEVER_UP = (
    (("status",), 3, "! refuse: is not up"),
    (("status", "--json"), 3, '"healthy": false'),
    (("down", "--yes"), 0, "refuse is down: nothing to remove"),
    (("logs", "head"), 1, "error: head: the container does not exist"),
    (("logs", "native-1"), 1, "error: native-1: nothing was started here as worker"),
    (("logs", "app"), 1, "error: refuse: no node is running"),
    (("logs", "nowhere"), 2, "'nowhere' is not a host, service, model or replica in this cluster"),
    (("exec", "head", "--", "true"), 1, "error: head: the container does not exist"),
    (("exec", "native-1", "--", "true"), 1, "error: native-1: nothing was started here as worker"),
    (("exec", "nowhere", "--", "true"), 2, "'nowhere' is not a host in this cluster"),
    (("ssh", "nowhere"), 2, "'nowhere' is not a host in this cluster"),
    (("up", "--only", "nowhere"), 2, "'nowhere' is not a part of this cluster"),
    (("bench", "--prompts", "prompts.txt"), 1, "error: "),
)


def test_a_cluster_that_was_never_created(bench: Bench) -> None:
    spec = bench.spec([bench.lab.docker_hosts[0], bench.lab.native_hosts[0]])
    spec.rename(bench.cli.home / "cluster.toml")
    (bench.cli.home / "prompts.txt").write_text("Hello\n")
    for command, code, said in NEVER_UP:
        done = bench.cli(*command)
        written = done.stdout + done.stderr
        assert said in written, command
        assert "Traceback" not in written
        assert done.returncode == code, written
        if code in (1, 2):
            assert "\n  next: " in done.stderr, command


@pytest.fixture
def alone(lab: Lab, cli: Cli, tmp_path: Path) -> Iterator[Bench]:
    """A bench whose first host has a running head and no model; it is taken down afterwards."""
    before = lab.docker_hosts[0].traces()
    made = Bench(lab, cli, tmp_path)
    spec = made.spec(lab.docker_hosts[:1])
    started = cli("up", spec, "--only", "head")
    assert started.returncode == 0, started.stderr
    yield made
    done = cli("down", spec, "--yes")
    assert done.returncode == 0, done.stderr
    assert lab.docker_hosts[0].traces() == before


@pytest.mark.long
def test_what_a_running_cluster_refuses(alone: Bench) -> None:
    first = alone.lab.docker_hosts[0]
    running = first.check("docker", "ps", "-q", "--no-trunc")
    absent = alone.spec([first], (f'source = "{alone.lab.model}"', 'source = "/models/none"'))
    alone.refuses(absent, r"^head: the model /models/none does not exist\n", within=40)
    engine = ('engine = "auto"', 'engine = "vllm"')
    long = alone.spec([first], ("max_model_len = 1024", "max_model_len = 20000"), engine)
    alone.refuses(long, "^smollm2-135m: vllm: .*max_model_len", within=90)
    alone.refuses(twins(alone, first.address6), "head and docker-1 are the same machine", code=2)
    assert first.check("docker", "ps", "-q", "--no-trunc") == running
