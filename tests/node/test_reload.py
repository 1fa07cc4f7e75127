"""HAProxy itself when Serve starts its successor, which takes the sockets over."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from raycluster.serve.haproxy import edited, metrics_relay
from tests.local.cluster import until
from tests.ports import free_ports

pytestmark = [pytest.mark.local, pytest.mark.timeout(120)]

CONFIG = """\
global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
    hard-stop-after 600s
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind 127.0.0.1:{api}
listen stats
    bind *:{stats}
"""


def accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=10).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("own", ["127.0.0.2", "::1"])
def test_a_node_is_reached_at_all_its_addresses_after_every_reload(
    program: str, tmp_path: Path, own: str
) -> None:
    api, metrics, stats, relayed = free_ports(4)
    ports = {"api": api, "metrics": metrics, "stats": stats}
    config = edited(CONFIG.format(folder=tmp_path, **ports), {}, {}, address=own)
    path = tmp_path / "haproxy.cfg"
    path.write_text(config + metrics_relay(own, relayed))
    loopback = [("127.0.0.1", port) for port in ports.values()]
    places = [*loopback, (own, api), (own, relayed)]
    command = [program, "-db", "-f", str(path), "-dR"]  # as Serve does
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: all(accepts(*p) for p in places), seconds=60, what="HAProxy does not listen")
        for _ in range(3):
            take = ("-sf", str(running.pid), "-x", str(tmp_path / "admin.sock"))
            before, running = (
                running,
                subprocess.Popen([*command, *take], stderr=subprocess.DEVNULL),
            )
            before.wait(timeout=60)  # the new one tells it to go when it listens itself
            assert [place for place in places if not accepts(*place)] == []
    finally:
        running.kill()
        running.wait()
