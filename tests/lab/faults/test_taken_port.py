"""A user of the head's host holds the dashboard's port while the head is away: no token comes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.faults.cluster import NAME, Faulty
from tests.lab.host import Host, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

HEAD = f"raycluster-{NAME}-head"
HEARD = "/tmp/heard"
LISTEN = f"""
import socket
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", 8265))
server.listen(64)
with open("{HEARD}", "wb", 0) as heard:
    heard.write(b"listening ")
    while True:
        taken, _ = server.accept()
        taken.settimeout(2)
        try:
            heard.write(taken.recv(10000))
            taken.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{{}}")
        except OSError:
            pass
        taken.close()
"""


@contextmanager
def held(host: Host) -> Iterator[None]:
    """Let the host's other user listen on the port."""
    argv = host.enter("python3", "-c", LISTEN, user="outsider")
    with subprocess.Popen(argv) as listener:
        wait_for(lambda: "listening" in host.run(("cat", HEARD)).stdout, "the listener")
        try:
            yield
        finally:
            host.run(("pkill", "-u", "outsider"))
            listener.wait()
            host.check("rm", HEARD)


def test_who_holds_the_port_hears_no_token_and_is_named(faulty: Faulty) -> None:
    host = faulty.hosts[0]
    uid = host.check("id", "-u", "outsider").strip()
    taken = f"port 8265 is in use by outsider (uid {uid}), not by the head"
    token = host.check("docker", "exec", HEAD, "cat", "/raycluster/token")
    prompts = faulty.cli.home / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    host.check("docker", "stop", "--time", "20", HEAD)
    spec = ("--spec", faulty.spec)
    commands = (
        ("status", faulty.spec),
        ("check", faulty.spec),
        ("plan", faulty.spec),
        ("up", faulty.spec),
        ("deploy", faulty.spec),
    )
    asking = (
        ("batch", prompts, "-o", faulty.cli.home / "out.jsonl", "--offline", *spec),
        ("support-bundle", *spec, "-o", faulty.cli.home / "bundle.tar.gz"),
        ("logs", "app", *spec),
    )
    with held(host):
        done = {args[0]: faulty.cli(*args) for args in commands[:3]}
        host.check("docker", "start", HEAD)  # it comes up, and ends again, for the port is taken
        done |= {f"{args[0]} again": faulty.cli(*args) for args in commands}
        for args in asking:
            faulty.cli(*args)
        heard = host.check("cat", HEARD)
    assert token not in heard
    assert "Authorization" not in heard
    said = {name: each.stdout + each.stderr for name, each in done.items()}
    assert {name: words for name, words in said.items() if taken not in words} == {}
    codes = {name: each.returncode for name, each in done.items()}
    assert {codes[name] for name in ("status", "check", "status again", "check again")} == {3}
    assert {codes[name] for name in ("up again", "deploy again", "plan")} == {1}
    wait_for(faulty.healthy, "the cluster to be whole again by itself", 240)
