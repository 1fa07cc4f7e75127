"""The cluster that the faults befall: a gateway and replicas on each of three hosts."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycluster.drill.load import DrillRequest, SteadyLoad
from raycluster.openai_client.target import Target
from tests.lab.host import Host, wait_for
from tests.lab.hosts import Lab
from tests.lab.image import IMAGE
from tests.lab.program import Cli
from tests.lab.specs import TINY, cluster_toml

NAME, KEY = "faults", "sk-faults-0123456789abcdef"
GATEWAYS = f"""
[firewall]
manage = true
check = "always"

[gateway]
on = "all"
image = "{IMAGE}"
api_keys = {{ tests = "env:FAULTS_KEY" }}
"""
RATE = 20.0
APPLICATIONS = "http://127.0.0.1:8265/api/serve/applications/"


@dataclass
class Faulty:
    """A running cluster, and what tests see of it past the program."""

    lab: Lab
    hosts: Sequence[Host]
    spec: Path
    cli: Cli

    def up(self, *options: str, timeout: float = 400) -> list[dict[str, Any]]:
        """Run `up` to its end and return what it changed."""
        done = self.cli("up", self.spec, "--json", *options, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["changes"])

    def status(self) -> tuple[int, dict[str, Any]]:
        """Return the exit code and what `status` says."""
        done = self.cli("status", self.spec, "--json")
        return done.returncode, json.loads(done.stdout)

    def healthy(self) -> bool:
        """Tell whether `status` finds nothing wrong."""
        return self.status()[0] == 0

    def replicas(self) -> list[dict[str, Any]]:
        """Return the replicas as Ray's head tells, or none while it is away."""
        done = self.hosts[0].run(("docker", "exec", f"raycluster-{NAME}-head", "sh", "-c", _ASK))
        if done.returncode:
            return []
        apps = json.loads(done.stdout)["applications"].values()
        deployments = [d for app in apps for d in app["deployments"].values()]
        return [replica for d in deployments for replica in d["replicas"]]

    def running(self) -> list[dict[str, Any]]:
        """Return the replicas that run."""
        return [r for r in self.replicas() if r["state"] == "RUNNING"]

    def whole(self, count: int = 3) -> bool:
        """Tell whether exactly so many replicas are there, and all of them run."""
        return [r["state"] for r in self.replicas()] == ["RUNNING"] * count

    def spread(self) -> None:
        """See to it that each host has a replica: where there are two, one is killed."""
        for _ in range(8):
            wait_for(self.whole, "three replicas", 180)
            counts = Counter(r["node_ip"] for r in self.running())
            if len(counts) == len(self.hosts):
                return
            crowded = counts.most_common(1)[0][0]
            victim = next(r for r in self.running() if r["node_ip"] == crowded)
            self.signal(victim, "KILL")
            wait_for(lambda: not self.has(victim), "Serve to notice", 60)  # noqa: B023
        raise AssertionError("Serve leaves a host without a replica")

    def has(self, replica: Mapping[str, Any]) -> bool:
        """Tell whether Serve still counts the replica."""
        return replica["replica_id"] in {r["replica_id"] for r in self.replicas()}

    def host_of(self, replica: Mapping[str, Any]) -> Host:
        """Return where a replica runs."""
        return next(h for h in self.hosts if h.address == replica["node_ip"])

    def container(self, host: Host) -> str:
        """Return the name of the host's node of Ray."""
        return f"raycluster-{NAME}-{'head' if host is self.hosts[0] else 'worker'}"

    def signal(self, replica: Mapping[str, Any], name: str) -> None:
        """Send a signal to a replica's process; after KILL it is gone."""
        host, pid = self.host_of(replica), str(replica["pid"])
        inside = ("docker", "exec", self.container(host), "kill")
        host.check(*inside, f"-{name}", pid)
        if name == "KILL":
            wait_for(lambda: host.run((*inside, "-0", pid)).returncode, "its end", 30)

    def kill_container(self, host: Host, role: str) -> None:
        """Kill a container's first process from outside, as the kernel does out of memory.

        With it go all its others, and when this returns they are gone.
        """
        name = f"raycluster-{NAME}-{role}"
        pid = host.check("docker", "inspect", "-f", "{{.State.Pid}}", name).strip()
        host.check("kill", "-9", pid)
        wait_for(lambda: host.run(("kill", "-0", pid)).returncode, "its end", 30)

    @contextmanager
    def load(self, *hosts: Host, rate: float = RATE) -> Iterator[SteadyLoad]:
        """Send requests to the gateways of these hosts, the first one first."""
        targets = [
            Target(f"http://{h.address}:8080", TINY, {"authorization": f"Bearer {KEY}"})
            for h in hosts or self.hosts[:1]
        ]
        with SteadyLoad(targets, rate) as load:
            wait_for(lambda: sum(a.ok for a in load.answers) > rate, "the load to be answered", 60)
            yield load


_ASK = (
    'python -c "import os,urllib.request as u;'
    "print(u.urlopen(u.Request('" + APPLICATIONS + "',headers={'Authorization':"
    "'Bearer '+open('/raycluster/token').read()}),timeout=5).read().decode())\""
)


def failures(load: SteadyLoad, struck: tuple[float, float] | None = None) -> list[DrillRequest]:
    """Return what got no whole answer.

    Streams that were under way while a fault struck, between two times on the load's clock, are
    left out: they end with what carries them, and what has begun is never asked for again.
    """
    return [a for a in load.answers if not a.ok and not (struck and _carried_away(a, *struck))]


def _carried_away(answer: DrillRequest, since: float, until: float) -> bool:
    return answer.cut and answer.at <= until and answer.at + answer.seconds >= since


def told(name: str, load: SteadyLoad, since: float, **figures: float | None) -> None:
    """Print the figures of a fault, for whoever reads the log of the tests."""
    during = sorted(a.seconds for a in load.answers if a.at >= since and a.ok)
    p99 = during[int(0.99 * (len(during) - 1))] if during else float("nan")
    retried = sum(a.retried or a.tried > 1 for a in load.answers)
    cut = sum(a.cut for a in load.answers)
    more = ", ".join(f"{k} {v:.1f} s" for k, v in figures.items() if v is not None)
    print(
        f"{name}: {len(load.answers)} requests, {len(failures(load)) - cut} failed, "
        f"{cut} streams cut, {retried} retried, "
        f"p99 {p99:.2f} s, slowest {max(during, default=float('nan')):.2f} s; {more}"
    )


def seconds_until(
    condition: Callable[[], object], load: SteadyLoad, since: float, limit: float
) -> float:
    """Return the seconds from `since`, on the load's clock, until the condition held.

    Raises TimeoutError when that took more than `limit`.
    """
    wait_for(condition, "the cluster to be whole again", limit - (load.now() - since))
    return load.now() - since


@contextmanager
def faulty_cluster(lab: Lab, folder: Path, cli: Cli) -> Iterator[Faulty]:
    """Bring the cluster up; it is taken down in any case."""
    spec = folder / "cluster.toml"
    hosts = lab.docker_hosts
    spec.write_text(
        cluster_toml(
            lab, hosts, name=NAME, replicas=3, tiny=True, engine="transformers", extra=GATEWAYS
        )
    )
    running = Faulty(lab, hosts, spec, cli)
    try:
        running.up()
        yield running
    finally:
        for host in hosts:
            if host.process is None:
                host.power_on()
            with contextlib.suppress(RuntimeError):
                host.heal()
        done = cli("down", spec, "--yes")
        assert done.returncode == 0, done.stderr
