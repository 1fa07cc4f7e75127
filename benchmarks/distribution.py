"""Times a model and an image on their way to 1 host and to 8.

    python -m benchmarks.distribution [--hosts 8] [--outside 50] [--between 400] [--size 150]

The hosts are namespaces of this machine, each with its own sshd and dockerd. What comes from
outside of them, which is the hub for a model and the laptop for an image, shares a way of so many
megabits a second; each host has a cable of another speed to the others. Without these limits all of
them would share two cores and no network, and the figure would be that of the cores. The time ends
when all hosts have it, checked. Ends with 1 when 8 hosts take more than twice as long as 1.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, cast

from benchmarks.figures import Limit, keep
from raycluster.apply.context import ApplyContext
from raycluster.apply.distribution.images import bring_images
from raycluster.apply.distribution.models import bring
from raycluster.core.events import Event
from raycluster.core.interfaces import Process, Runtime, Secret, Transport
from raycluster.hosts import fleet as connect
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.remote_files import push_files
from raycluster.serve.settings import ModelSettings
from raycluster.services import node_files
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.secret_values import Secrets
from tests.lab.hosts import Host, Lab, open_lab
from tests.lab.network import sh
from tests.node.hub import Hub, open_hub
from tests.node.nodes import Inside, Nodes, state_of

MOST = 2.0
"""What 8 hosts may take of the time of 1."""
IMAGE = "acme/large:1"
NODE = "/root/node"


def spec_of(lab: Lab, hosts: Sequence[Host], archive: Path) -> ClusterSpec:
    """Return a spec for these hosts."""
    places = [{"host": host.address, "port": host.ssh_port, "gpus": 0} for host in hosts]
    login = {"user": "root", "identity_file": str(lab.key), "known_hosts": str(lab.known_hosts)}
    table = {
        "cluster": {"name": "lab"},
        "ssh": login,
        "runtime": {"image": IMAGE, "archive": str(archive)},
        "head": places[0],
        "workers": [{"name": h.name, **p} for h, p in zip(hosts[1:], places[1:], strict=True)],
    }
    return ClusterSpec.model_validate(table)


@contextmanager
def working(spec: ClusterSpec, told: list[Event]) -> Iterator[ApplyContext]:
    """Yield connections to the hosts: those are not part of the time."""
    with Fleet(spec.cluster.name, 16) as fleet:
        connect.all_or_raise(fleet.reach(spec.hosts, lambda connected: connected.address))
        yield ApplyContext(spec, fleet, Secret("t"), Secrets(), told.append)


def an_image(spec: ClusterSpec, told: list[Event]) -> float:
    """Return the seconds in which the hosts' Dockers have the image."""
    with working(spec, told) as work:
        wanted = {host.name: [Process(host.role, (), image=IMAGE)] for host in spec.hosts}
        begun = time.monotonic()
        bring_images(work, wanted)
        return time.monotonic() - begun


def a_model(spec: ClusterSpec, told: list[Event], hub: Hub, python: str) -> float:
    """Return the seconds in which the hosts' hub caches have the model."""
    settings = ModelSettings(hub.repo, hub.repo, secrets_path="$RAYCLUSTER_ROOT/secrets.json")
    body = {"applications": [{"args": {"model": settings.to_json()}}]}
    env = {
        "PATH": f"{Path(python).parent}:/usr/bin:/bin",
        "PYTHONPATH": f"{NODE}/code",
        "RAYCLUSTER_ROOT": NODE,
        "HF_HOME": f"{NODE}/cache",
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
    }

    def nodes(host: ResolvedHost, cluster: str, transport: Transport) -> Runtime:  # noqa: ARG001
        return cast(Runtime, Nodes(Inside(transport, env)))

    known, connect.RUNTIMES = connect.RUNTIMES, {**connect.RUNTIMES, "docker": nodes}
    try:
        with working(spec, told) as work:
            files = {**node_files.code_files(), "secrets.json": b"{}"}
            for host in spec.hosts:
                shell = work.fleet[host.name].runtime.inside("")
                shell.run(("mkdir", "-p", NODE))
                push_files(shell, files)
            begun = time.monotonic()
            bring(work, state_of(work), body)
            return time.monotonic() - begun
    finally:
        connect.RUNTIMES = known


def make_archive(host: Host, size: int, file: Path) -> None:
    """Write a file of `docker save` with an image of random bytes."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        info = tarfile.TarInfo("weights")
        info.size = size
        tar.addfile(info, io.BytesIO(os.urandom(size)))
    done = host.run(("docker", "import", "-", IMAGE), stdin=made.getvalue())
    if done.returncode:
        raise RuntimeError(done.stderr)
    host.check("docker", "save", "-o", "/tmp/image.tar", IMAGE)
    file.write_bytes((host.folder / "disk/tmp/image.tar").read_bytes())
    host.check("rm", "/tmp/image.tar")


def limit_links(lab: Lab, outside: int, between: int) -> None:
    """Give the way from outside a speed, and every host's cable one each way."""

    def shape(mbit: int) -> tuple[str, ...]:
        return ("root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms")

    sh("tc", "qdisc", "replace", "dev", lab.network.tag, *shape(outside))
    for host in lab.hosts:
        name = lab.network.name(host.number)
        sh("tc", "qdisc", "replace", "dev", name, *shape(between))
        sh("tc", "-n", name, "qdisc", "replace", "dev", "eth0", *shape(between))


def clean(hosts: Sequence[Host]) -> None:
    """Take both off the hosts again."""
    for host in hosts:
        host.run(("docker", "rmi", IMAGE))
        host.run(("rm", "-rf", NODE))


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--outside", type=int, default=50, help="megabits a second")
    parser.add_argument("--between", type=int, default=400, help="megabits a second; 0: no limits")
    parser.add_argument("--size", type=int, default=150, help="megabytes")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    size = options.size * 1_000_000
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as made,
        open_lab(Path(made) / "lab", docker=0, native=0) as lab,
    ):
        for _ in range(options.hosts):
            lab.add_host("docker")
        lab.settle()
        archive = Path(made) / "image.tar"
        make_archive(lab.hosts[0], size, archive)
        if options.between:
            limit_links(lab, options.outside, options.between)
        half = random.Random(1).randbytes(size // 2)
        weights = {f"model-{n}.safetensors": bytes([n]) + half for n in (1, 2)}
        files = {"config.json": b"{}", **weights}
        with open_hub(Hub("acme/large", files), lab.network.ipv4(1)) as hub:
            for turn in range(options.rounds):
                for count in (1, options.hosts)[:: 1 if turn % 2 == 0 else -1]:
                    rows += measured(lab, lab.hosts[:count], archive, hub)
    figures = {
        (what, count): median(
            r["seconds"] for r in rows if (r["what"], r["hosts"]) == (what, count)
        )
        for what in ("image", "model")
        for count in (1, options.hosts)
    }
    for (what, count), seconds in figures.items():
        print(f"{what} to {count} hosts: {seconds:.1f} s")
    shown = {**vars(options), "per host MB": size / 1e6}
    limits = [
        Limit(
            f"{w} to {options.hosts} hosts / to 1", figures[w, options.hosts] / figures[w, 1], MOST
        )
        for w in ("image", "model")
    ]
    keep("distribution", [shown, *rows], limits)


def measured(lab: Lab, hosts: Sequence[Host], archive: Path, hub: Hub) -> list[dict[str, Any]]:
    """Bring both to these hosts, and return a row for each."""
    spec, rows = spec_of(lab, hosts, archive), []
    ways: dict[str, Callable[[list[Event]], float]] = {
        "image": lambda told: an_image(spec, told),
        "model": lambda told: a_model(spec, told, hub, lab.node_python),
    }
    for what, way in ways.items():
        clean(hosts)
        hub.sent.clear()
        told: list[Event] = []
        cpu = time.process_time()
        seconds = way(told)
        row = {"what": what, "hosts": len(hosts), "seconds": round(seconds, 2)}
        row["own_cpu_seconds"] = round(time.process_time() - cpu, 2)
        row["notes"] = [f"{e.subject}: {e.text}" for e in told if e.kind == "note"]
        if what == "model":
            row["hub_megabytes"] = round(sum(hub.sent.values()) / 1e6, 1)
        rows.append(row)
        print(row, flush=True)
    clean(hosts)
    return rows


if __name__ == "__main__":
    main()
