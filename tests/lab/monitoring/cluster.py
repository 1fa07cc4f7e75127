"""A cluster with a gateway on each host and monitoring, and the way to its Prometheus."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from raycluster.drill.load import Load
from raycluster.openai_wire.target import Target
from tests.lab.host import Host, wait_for
from tests.lab.hosts import Lab
from tests.lab.image import IMAGE
from tests.lab.program import Cli
from tests.lab.specs import TINY, cluster_toml

NAME, KEY = "watched", "sk-watched-0123456789abcdef"
SERVICES = f"""
[gateway]
on = "all"
image = "{IMAGE}"
api_keys = {{ tests = "env:WATCHED_KEY" }}
tls = {{ self_signed = true }}

[monitoring]
image = "{IMAGE}"
"""
RATE = 4.0


@dataclass
class Watched:
    """A running cluster of a head and a worker; `prometheus` is asked through the tunnel.

    `urls` are what the tunnel says: its addresses on 127.0.0.1 by name.
    """

    lab: Lab
    hosts: Sequence[Host]
    spec: Path
    cli: Cli
    urls: dict[str, str]
    prometheus: httpx.Client

    def up(self) -> list[tuple[str, str | None]]:
        """Run `up` to its end and return the actions and roles of what it changed."""
        return up(self.cli, self.spec)

    def ask(self, path: str, **params: str) -> Any:
        """Return the data of an answer of Prometheus's API."""
        answer = self.prometheus.get(f"/api/v1/{path}", params=params)
        told = answer.json()
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression has now."""
        return list(self.ask("query", query=expression)["result"])

    def targets(self, job: str) -> dict[str, str]:
        """Return the health of a job's targets by node."""
        found = self.ask("targets", state="active")["activeTargets"]
        return {t["labels"]["node"]: t["health"] for t in found if t["labels"]["job"] == job}

    def firing(self, alert: str) -> bool:
        """Tell whether an alert fires."""
        alerts = self.ask("alerts")["alerts"]
        return any(a["labels"]["alertname"] == alert and a["state"] == "firing" for a in alerts)


def up(cli: Cli, spec: Path) -> list[tuple[str, str | None]]:
    """Run `up` to its end and return the actions and roles of what it changed."""
    done = cli("up", spec, "--json", timeout=400)
    assert done.returncode == 0, done.stderr
    return [(c["action"], c.get("role")) for c in json.loads(done.stdout)["changes"]]


@contextmanager
def tunnel(cli: Cli, spec: Path) -> Iterator[dict[str, str]]:
    """Run `raycluster tunnel` and yield its addresses by name, once Prometheus's is known."""
    with cli.start("tunnel", spec) as process:
        assert process.stdout
        found: dict[str, str] = {}
        for line in process.stdout:
            if match := re.match(r"\W*(\w[\w ]*?)\s+(https?://127\.0\.0\.1:\d+)", line):
                found[match[1]] = match[2]
            if "Prometheus" in found:
                break
        try:
            yield found
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)


def written(lab: Lab, hosts: Sequence[Host]) -> str:
    """Return the spec for these hosts; the replica of vLLM has room on the head alone."""
    text = cluster_toml(lab, hosts, name=NAME, tiny=True, engine="vllm", extra=SERVICES)
    head, *workers = text.split("[[workers]]\n")
    return "".join([head, *(f"[[workers]]\nnum_cpus = 0\n{worker}" for worker in workers)])


@contextmanager
def watched_cluster(lab: Lab, folder: Path, cli: Cli) -> Iterator[Watched]:
    """Bring the cluster up and send requests until Prometheus knows of them; it is taken down."""
    spec = folder / "cluster.toml"
    hosts = lab.docker_hosts[:2]
    spec.write_text(written(lab, hosts))
    try:
        up(cli, spec)
        with (
            tunnel(cli, spec) as urls,
            httpx.Client(base_url=urls["Prometheus"], timeout=30, trust_env=False) as client,
        ):
            running = Watched(lab, hosts, spec, cli, urls, client)
            _load(running)
            yield running
    finally:
        for host in hosts:
            with contextlib.suppress(RuntimeError):
                host.heal()
        done = cli("down", spec, "--yes")
        assert done.returncode == 0, done.stderr


def _load(running: Watched) -> None:
    """Send requests until the rates and quantiles of the last minutes are there."""
    key = {"authorization": f"Bearer {KEY}"}
    head = running.hosts[0].address
    ca = str(running.spec.with_name("ca.pem"))
    inside = ("docker", "exec", f"raycluster-{NAME}-gateway", "sh", "-c")
    pem = running.hosts[0].check(*inside, "cat $RAYCLUSTER_ROOT/gateway/cert.pem")
    Path(ca).write_text(pem)
    target = Target(f"https://{head}:8080", TINY, key, ca_file=ca)

    def there(series: str) -> Callable[[], object]:
        return lambda: running.query(series)

    with Load([target], RATE, max_tokens=16) as load:
        wait_for(lambda: sum(a.ok for a in load.answers) > RATE, "the load to be answered", 60)
        for series in (
            "model:requests:rate2m > 0",
            "model:generation_tokens:rate2m > 0",
            "model:time_to_first_token_seconds:p95_5m > 0",
            "application:http_errors:ratio5m",
        ):
            wait_for(there(series), series, 90)
    assert not [a for a in load.answers if not a.ok], load.answers
