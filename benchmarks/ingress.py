"""Measures the way in alone: the app's engine is a sleep, replicas are many, requests are short.

    python -m benchmarks.ingress [--replicas 2,8,32,64] [--seconds 8]

For each number of replicas it prints requests per second and the latency that is added to the sleep
of 50 ms, at 4 requests at once for each replica and at 1 for each; the last line is one request at
a time. Beside it stands one replica asked at its own port, without HAProxy. Needs `wrk` (Debian's
package of that name). Root is not needed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx

from benchmarks.figures import keep
from benchmarks.node import Node, open_node, until

SLEEP_S = 0.05
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", default="2,8,32,64")
    parser.add_argument("--seconds", type=int, default=8)
    options = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed: apt-get install wrk")
    rows: list[dict[str, object]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp")))
        node = stack.enter_context(open_node(folder))
        (folder / "code/sleeper.py").write_text(Path(__file__).with_name("sleeper.py").read_text())
        for replicas in map(int, options.replicas.split(",")):
            deploy(node, replicas)
            loads = {4 * replicas: node.http, replicas: node.http, 1: node.http}
            for connections, url in loads.items():
                rows.append(row(replicas, connections, "haproxy", wrk(url, connections, options)))
            direct = f"http://127.0.0.1:{replica_port(node)}"
            for connections in (4, 1):
                rows.append(
                    row(replicas, connections, "replica", wrk(direct, connections, options))
                )
    keep("ingress", rows, [])


def deploy(node: Node, replicas: int) -> None:
    """Bring the app to so many replicas."""
    node.put(
        {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": node.http_port},
            "applications": [
                {
                    "name": "sleep",
                    "route_prefix": "/",
                    "import_path": "sleeper:build",
                    "args": {"seconds": SLEEP_S},
                    "deployments": [
                        {
                            "name": "Model",
                            "num_replicas": replicas,
                            "max_ongoing_requests": 256,
                            "ray_actor_options": {"num_cpus": 0.01},
                        }
                    ],
                }
            ],
        }
    )
    until(lambda: node.running() and len(node.replicas()) == replicas, seconds=600, what="no app")
    until(lambda: answers(node.http), seconds=60, what="no answer")


def answers(url: str) -> bool:
    """Tell whether Serve answers."""
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def replica_port(node: Node) -> int:
    """Return the port of a replica's own HTTP, as HAProxy's configuration has it."""
    [config] = (node.folder / "h").glob("*/haproxy.cfg")
    found = re.findall(r"server SERVE_REPLICA\S+ [0-9.]+:(\d+) ", config.read_text())
    return int(found[0])


def wrk(url: str, connections: int, options: argparse.Namespace) -> Mapping[str, float]:
    """Ask for some seconds over so many connections; return rate and latencies in ms."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{options.seconds}", "--latency", f"{url}/x"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(said)
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", said)
    shares = dict(re.findall(r"(50|99)%\s+([0-9.]+(?:us|ms|s))", said))
    if not rate or len(shares) != 2:
        raise SystemExit(said)
    return {
        "requests_s": float(rate[1]),
        "p50_ms": in_ms(shares["50"]),
        "p99_ms": in_ms(shares["99"]),
    }


def in_ms(text: str) -> float:
    """Return milliseconds for what wrk writes, such as `1.20ms`."""
    number, unit = re.fullmatch(r"([0-9.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def row(replicas: int, connections: int, way: str, told: Mapping[str, float]) -> dict[str, object]:
    """Print one row and return it."""
    added = {f"added_{q}_ms": told[f"{q}_ms"] - SLEEP_S * 1000 for q in ("p50", "p99")}
    made = {"replicas": replicas, "connections": connections, "way": way, **told, **added}
    print({k: round(v, 2) if isinstance(v, float) else v for k, v in made.items()}, flush=True)
    return made


if __name__ == "__main__":
    main()
