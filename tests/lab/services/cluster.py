"""A cluster with a gateway on each host and monitoring, and the way to its Prometheus."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from raycluster.drill.load import SteadyLoad
from raycluster.openai_client.target import Target
from tests.lab.host import Host, wait_for
from tests.lab.hosts import Lab
from tests.lab.image import IMAGE
from tests.lab.program import Cli
from tests.lab.specs import MODEL, cluster_toml

NAME = "watched"
KEY, OTHER_KEY = "sk-lab-0123456789abcdef", "sk-lab-fedcba9876543210"
API_PORT = 8080
SERVICES = f"""
[gateway]
on = "all"
image = "{IMAGE}"
api_keys = {{ alice = "env:ALICE_KEY" }}
max_body = "64k"
tls = {{ self_signed = true }}

[monitoring]
image = "{IMAGE}"
"""
URLS = {"API", "gateway", "Ray dashboard", "Prometheus"}
RATE = 2.0
Changes = list[tuple[str, str | None]]
"""Actions and roles, in their order."""


@dataclass
class Watched:
    """A running cluster of a head and a worker; `prometheus` is asked through the tunnel.

    `urls` are what the tunnel says: its addresses on 127.0.0.1 by name; `first` is what the first
    `up` changed.
    """

    lab: Lab
    hosts: Sequence[Host]
    spec: Path
    cli: Cli
    first: Changes
    urls: dict[str, str]
    prometheus: httpx.Client

    @property
    def head(self) -> Host:
        """The head, whose gateway is asked."""
        return self.hosts[0]

    def up(self, key: str = KEY) -> Changes:
        """Run `up` to its end with this key of alice's and return what it changed."""
        return up(self.with_key(key), self.spec)

    def with_key(self, key: str) -> Cli:
        """Return the program of somebody whose variable holds this key."""
        return replace(self.cli, env={"ALICE_KEY": key})

    def client(self, key: str = "") -> httpx.Client:
        """Return a client of the gateway at the head's own address, with no key or this one."""
        return httpx.Client(
            base_url=f"https://{self.head.address}:{API_PORT}",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=60,
            trust_env=False,
            verify=self.trust(),
        )

    def trust(self) -> ssl.SSLContext:
        """Return what trusts the certificate of the gateways alone."""
        return ssl.create_default_context(cafile=str(self.ca))

    @property
    def ca(self) -> Path:
        """The certificate of the gateways, as a file."""
        path = self.spec.with_name("ca.pem")
        if not path.exists():
            read = "cat $RAYCLUSTER_ROOT/gateway/cert.pem"
            gateway = f"raycluster-{NAME}-gateway"
            path.write_text(self.head.check("docker", "exec", gateway, "sh", "-c", read))
        return path

    def ask(self, path: str, **params: str) -> Any:
        """Return the data of an answer of Prometheus's API."""
        answer = self.prometheus.get(f"/api/v1/{path}", params=params)
        told = answer.json()
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression has now."""
        return list(self.ask("query", query=expression)["result"])

    def nodes(self, series: str) -> set[str]:
        """Return the nodes that a series is of now: a question without an answer ends one."""
        return {s["metric"]["node"] for s in self.query(series)}

    def targets(self, job: str) -> dict[str, str]:
        """Return the health of a job's targets by node."""
        found = self.ask("targets", state="active")["activeTargets"]
        return {t["labels"]["node"]: t["health"] for t in found if t["labels"]["job"] == job}

    def firing(self, alert: str) -> bool:
        """Tell whether an alert fires."""
        alerts = self.ask("alerts")["alerts"]
        return any(a["labels"]["alertname"] == alert and a["state"] == "firing" for a in alerts)


def up(cli: Cli, spec: Path) -> Changes:
    """Run `up` to its end and return the actions and roles of what it changed."""
    done = cli("up", spec, "--json", timeout=400)
    assert done.returncode == 0, done.stderr
    return [(c["action"], c.get("role")) for c in json.loads(done.stdout)["changes"]]


@contextmanager
def tunnel(cli: Cli, spec: Path) -> Iterator[dict[str, str]]:
    """Run `raycluster tunnel` and yield its addresses by name."""
    with cli.start("tunnel", spec) as process:
        assert process.stdout
        found: dict[str, str] = {}
        for line in process.stdout:
            if match := re.match(r"\W*(\w[\w ]*?)\s+(https?://127\.0\.0\.1:\d+)", line):
                found[match[1]] = match[2]
            if len(found) == len(URLS):
                break
        try:
            yield found
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)


def written(lab: Lab, hosts: Sequence[Host]) -> str:
    """Return the spec for these hosts; the replica of vLLM has room on the head alone."""
    text = cluster_toml(lab, hosts, name=NAME, engine="vllm", extra=SERVICES)
    head, *workers = text.split("[[workers]]\n")
    return "".join([head, *(f"[[workers]]\nnum_cpus = 0\n{worker}" for worker in workers)])


@contextmanager
def watched_cluster(lab: Lab, folder: Path, cli: Cli) -> Iterator[Watched]:
    """Bring the cluster up and send requests until Prometheus knows of them; it is taken down."""
    spec = folder / "cluster.toml"
    hosts = lab.docker_hosts[:2]
    spec.write_text(written(lab, hosts))
    try:
        first = up(cli, spec)
        with (
            tunnel(cli, spec) as urls,
            httpx.Client(base_url=urls["Prometheus"], timeout=30, trust_env=False) as client,
        ):
            running = Watched(lab, hosts, spec, cli, first, urls, client)
            _load(running)
            yield running
    finally:
        for host in hosts:
            with contextlib.suppress(RuntimeError):
                host.heal()
        done = cli("down", spec, "--yes")
        assert done.returncode == 0, done.stderr
    for host in hosts:
        assert host.containers() == []
        assert host.check("docker", "volume", "ls", "-q") == ""
        assert host.processes() == []


def _load(running: Watched) -> None:
    """Send requests until the rates and quantiles of the last minutes are there."""
    key = {"authorization": f"Bearer {KEY}"}
    target = Target(
        f"https://{running.head.address}:{API_PORT}", MODEL, key, ca_file=str(running.ca)
    )

    def there(series: str) -> Callable[[], object]:
        return lambda: running.query(series)

    with SteadyLoad([target], RATE, max_tokens=16) as load:
        wait_for(lambda: sum(a.ok for a in load.answers) > RATE, "the load to be answered", 60)
        for series in (
            "model:requests:rate2m > 0",
            "model:generation_tokens:rate2m > 0",
            "model:time_to_first_token_seconds:p95_5m > 0",
            "application:http_errors:ratio5m",
        ):
            wait_for(there(series), series, 240)
    assert not [a for a in load.answers if not a.ok], load.answers
