"""What somebody without a key gets of the cluster: SSH's banner, and refusals of the gateway."""

from __future__ import annotations

import random
import socket
import string
import time

import pytest

from tests.lab.faults.cluster import KEY, Faulty
from tests.lab.host import Host
from tests.lab.scan import open_ports

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SSH, GATEWAY = 22, 8080
SEED = 20261126
MUTATED = 2000


def test_of_all_ports_ssh_and_the_gateway_are_open(faulty: Faulty) -> None:
    faulty.up()  # hosts that were rebooted have no cron here, which would load the rules again
    addresses = [a for host in faulty.hosts for a in (host.address, host.address6)]
    found = open_ports(addresses)
    assert found == {address: {SSH, GATEWAY} for address in addresses[::2]} | {
        address: {SSH} for address in addresses[1::2]
    }


def test_without_rules_up_says_what_is_open_and_how_to_close_it(faulty: Faulty) -> None:
    host = faulty.hosts[1]
    rules = host.check("nft", "list", "table", "inet", "raycluster_faults")
    host.check("nft", "flush", "table", "inet", "raycluster_faults")
    try:
        done = faulty.cli("up", faulty.spec, timeout=200)
        assert done.returncode == 3
        assert f"docker-2: port 6380 of {host.address} can be reached from here" in done.stderr
        assert "[firewall] manage = true" in done.stderr
    finally:
        host.check("nft", "delete", "table", "inet", "raycluster_faults")
    assert "8000 tcp flags" in rules
    assert [c["action"] for c in faulty.up()] == ["guard"]


def test_rays_jobs_are_not_for_who_has_no_token(faulty: Faulty) -> None:
    ask = "import urllib.request as u; u.urlopen('http://127.0.0.1:8265/api/jobs/', timeout=5)"
    done = faulty.hosts[0].run(
        ("docker", "exec", "raycluster-faults-head", "python", "-c", ask), timeout=30
    )
    assert done.returncode == 1
    assert "401" in done.stderr or "403" in done.stderr


def mutated(choice: random.Random) -> bytes:
    """Return a request that is wrong in one way or in several."""
    body = choice.choice(
        [
            b'{"model": "tiny", "prompt": "a", "max_tokens": 1}',
            b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}',
            b"[]",
            b"",
            b"\xff\xfe",
            b'{"model": "tiny", "prompt": ' + b"[" * 500 + b"}",
            b'{"model": "tiny", "prompt": {"a": 1}, "max_tokens": "x"}',
            b'{"model": 7, "prompt": null, "n": -1, "temperature": 1e999}',
            b'{"model": "tiny", "prompt": "a", "max_tokens": 99999999999999}',
            b'{"model": "tiny", "prompt": "a", "max_tokens": 1, "stream": 3, "stop": [[]]}',
        ]
    )
    if body and choice.random() < 0.4:
        at = choice.randrange(len(body))
        body = body[:at] + bytes([choice.randrange(256)]) + body[at + 1 :]
    path = choice.choice(
        [
            *("/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/models/none"),
            *("/v1/../metrics", "/v1//completions", "/v1/%2e%2e/x", "/v1/completions?a=%00"),
            *("/health", "/"),
            "/v1/" + "".join(choice.choices(string.printable[:94], k=choice.randrange(1, 40))),
        ]
    ).replace(" ", "+")
    method = choice.choice(["POST", "POST", "POST", "GET", "PUT", "DELETE", "OPTIONS", "FOO"])
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close"]
    lines.append(f"Authorization: {choice.choice(['Bearer ', 'bearer  ', 'Basic '])}{KEY}")
    lines.append(f"Content-Type: {choice.choice(['application/json', 'text/plain', ';', 'a/b'])}")
    lines.append(f"Content-Length: {len(body)}")
    if choice.random() < 0.2:
        lines.append(choice.choice(["X: " + "y" * 9000, "Transfer-Encoding: nonsense", "A", ":"]))
    return "\r\n".join(lines).encode(errors="replace") + b"\r\n\r\n" + body


def status_of(host: Host, request: bytes) -> int:
    """Send bytes to the gateway; return the status that came back, 0 for none."""
    with socket.create_connection((host.address, GATEWAY), timeout=60) as connection:
        connection.sendall(request)
        said = b""
        while b"\r\n" not in said and (more := connection.recv(4096)):
            said += more
    words = said.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def test_requests_that_are_wrong_break_nothing(faulty: Faulty) -> None:
    choice = random.Random(SEED)
    before = {r["replica_id"] for r in faulty.running()}
    bad: list[tuple[int, bytes]] = []
    seen: dict[int, int] = {}
    for _ in range(MUTATED):
        request = mutated(choice)
        status = status_of(faulty.hosts[0], request)
        seen[status] = seen.get(status, 0) + 1
        if status >= 500:
            bad.append((status, request))
    print(f"{MUTATED} mutated requests by status: {dict(sorted(seen.items()))}")
    assert bad == []
    assert {r["replica_id"] for r in faulty.running()} == before


def test_a_docker_daemon_that_hangs_is_said_and_the_others_are_shown(faulty: Faulty) -> None:
    host = faulty.hosts[2]
    began = time.monotonic()
    faulty.status()
    usual = time.monotonic() - began
    host.check("pkill", "-STOP", "-x", "dockerd")
    try:
        began = time.monotonic()
        code, status = faulty.status()
        took = time.monotonic() - began
    finally:
        host.check("pkill", "-CONT", "-x", "dockerd")
    print(f"status with a hung Docker daemon: {took:.1f} s")
    assert code == 3
    assert took < 18 + usual  # 1 s here by itself; a wait of 10 s is Docker's, and no second one
    assert "docker-3" in {p["where"] for p in status["problems"]}
    processes = {n["name"]: n["process"] for n in status["nodes"]}
    assert (processes["head"], processes["docker-2"]) == ("running", "running")
