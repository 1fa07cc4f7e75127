"""A Ray head of a test's own on this machine, and what the tests of the app do with it."""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from raycluster.core.interfaces import ROOT as PLACE
from raycluster.core.interfaces import file_mode
from raycluster.serve.rootcause import MARK
from raycluster.serve.settings import HOST_LABEL, ModelSettings, applications
from raycluster.services.data_path import data_path
from raycluster.services.node_files import code_files, haproxy_file
from raycluster.spec.models import Ports
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
Answer = TypeVar("Answer")
PORT_OPTIONS = (
    *("port", "node-manager-port", "object-manager-port", "dashboard-agent-grpc-port"),
    *("dashboard-agent-listen-port", "runtime-env-agent-port", "metrics-export-port"),
    *("ray-client-server-port", "dashboard-port"),
)


def serve_env(node: str, folder: Path) -> dict[str, str]:
    """Return what `up` would tell Ray's processes of Serve, with ports that are free."""
    names = ("ingress_metrics", "ingress_stats", "ingress_fallback")
    ports = Ports(**dict(zip(names, free_ports(len(names)), strict=True)))
    for name, content in code_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        (folder / name).chmod(file_mode(content))
    told = {name: value.replace(PLACE, str(folder)) for name, value in data_path(ports).items()}
    path = f"{node}/bin:{os.environ['PATH']}"
    ours = {"RAYCLUSTER_ROOT": str(folder), "PYTHONPATH": str(folder / "code"), "PATH": path}
    return {**told, **ours}


def until(ask: Callable[[], Answer], *, seconds: float, what: str) -> Answer:
    """Ask until the answer is true, and return it; a pause is as long as it took to ask."""
    end = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if answer := ask():
            return answer
        now = time.monotonic()
        assert now < end, f"{what} after {seconds} s"
        time.sleep(min(max(0.2, now - began), 2))


LABEL = "127.0.0.1"
"""By which a model is placed on the only node."""


def made_by(script: str) -> str:
    """Run one of the scripts that make what tests need; its last line is a path."""
    done = subprocess.run(
        [ROOT / "scripts" / script], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.split("\n")[-2]


@functools.cache
def vllm_cache() -> str:
    """Make the folder of vLLM's caches for all tests of this run; it is removed in the end.

    There vLLM keeps what it learns of a model's class, in a process of its own that imports all of
    vLLM: ten seconds of a processor for each start with an empty folder.
    """
    folder = tempfile.mkdtemp(prefix="rc-vllm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@dataclass
class Cluster:
    """A Ray head of our own; `api` is Ray's REST API, `http` Serve's proxy."""

    process: subprocess.Popen[bytes]
    folder: Path
    api: httpx.Client
    http: httpx.Client

    def alive(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return self.api.get("/api/serve/applications/").status_code == 200
        except httpx.TransportError:
            return False

    def put(self, *models: ModelSettings) -> dict[str, Any]:
        body = applications(
            models,
            code_path=str(self.folder / "code"),
            fingerprint="test",
            port=int(self.http.base_url.port or 0),
        )
        for name, content in haproxy_file(body).items():
            (self.folder / name).write_bytes(content)
        answer = self.api.put("/api/serve/applications/", json=body)
        assert answer.status_code == 200, answer.text
        return body

    def details(self) -> dict[str, Any]:
        """Return what Serve tells; a dashboard that is busy is asked again."""

        def told() -> dict[str, Any] | None:
            try:
                answer = self.api.get("/api/serve/applications/")
            except httpx.TransportError:
                return None
            return dict(answer.json()) if answer.status_code == 200 else None

        return until(told, seconds=120, what="the dashboard tells nothing") or {}

    def running(self) -> bool:
        """Tell whether all applications run, and HAProxy, which learns it later, knows the way."""
        apps = self.details()["applications"].values()
        failed = [json.dumps(app) for app in apps if app["status"] == "DEPLOY_FAILED"]
        assert not failed, failed
        runs = bool(apps) and all(app["status"] == "RUNNING" for app in apps)
        return runs and self._replica_ids(apps) <= self._listed()

    def _replica_ids(self, apps: Iterable[Mapping[str, Any]]) -> set[str]:
        replicas = [r for a in apps for d in a["deployments"].values() for r in d["replicas"]]
        return {r["replica_id"] for r in replicas if r["state"] == "RUNNING"}

    def _listed(self) -> set[str]:
        """Return the replicas that the HAProxy of now sends requests to."""
        rows = self.haproxy_rows()
        up = [row["svname"] for row in rows if row["status"].startswith(("UP", "no check"))]
        return {name.rpartition("-")[2] for name in up}

    def haproxy_rows(self) -> list[dict[str, str]]:
        """Return the statistics of the HAProxy that took over last; none while there is none."""
        try:
            [path] = (self.folder / "h").rglob("haproxy.cfg")
            [place] = re.findall(r"stats socket (\S+)", path.read_text())
            with socket.socket(socket.AF_UNIX) as asked:
                asked.connect(str(self.folder / place.removeprefix("unix@")))
                asked.sendall(b"show stat\n")
                text = b"".join(iter(lambda: asked.recv(65536), b"")).decode()
        except (OSError, ValueError):
            return []
        return list(csv.DictReader(text.removeprefix("# ").splitlines()))

    def failure(self, name: str) -> str:
        """Return what the deployment says of a replica that did not start, or ""."""
        app = self.details()["applications"].get(name, {"deployments": {}})
        messages = [d["message"] for d in app["deployments"].values()]
        return next((m for m in messages if MARK in m), "")

    def replicas(self) -> list[int]:
        """Return the replicas' processes and the processes of their engines."""
        return [*self.pids(*self.details()["applications"].values())]

    def pids(self, *apps: Mapping[str, Any]) -> set[int]:
        """Return the processes of replicas of these applications, and of their engines."""
        deployments = [d for app in apps for d in app["deployments"].values()]
        pids = [replica["pid"] for d in deployments for replica in d["replicas"]]
        return {*pids, *(below for pid in pids for below in descendants(pid))}


def descendants(pid: int) -> list[int]:
    """Return the processes below this one."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def gone(pids: Iterable[int]) -> bool:
    """Tell whether none of these processes lives; one that only waits to be reaped does not."""
    return not any(map(_lives, pids))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


STARTS = 4
"""How often Ray may begin, as with `up`: it gives up after 30 s, which a busy machine can take."""
OWN = "RAYCLUSTER_TEST"
"""The variable that the processes of a cluster have, with its folder."""


def left(folder: Path) -> list[int]:
    """Return the processes of a Ray that gave up its start; they have no parent any more."""
    mark = f"{OWN}={folder}\0".encode()
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environ.read_bytes():
                found.append(int(environ.parent.name))
    return found


def kill(pids: Iterable[int]) -> None:
    """Kill these processes, and return when none lives."""
    pids = list(pids)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pids), seconds=60, what="processes of Ray are left")


@contextmanager
def open_cluster() -> Iterator[Cluster]:
    """Start Ray; end it and all of its processes afterwards."""
    node = made_by("node-env")
    folder = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))  # sockets allow only short paths
    ports = free_ports(len(PORT_OPTIONS) + 1)
    options = [f"--{name}={port}" for name, port in zip(PORT_OPTIONS, ports, strict=False)]
    options += ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
    # Ray believes in these GPUs: enough to see where it puts what asks for some.
    options += ["--object-store-memory=100000000", "--num-cpus=4", "--num-gpus=4"]
    options += [f"--labels={HOST_LABEL}={LABEL}"]
    env = {
        **os.environ,
        **serve_env(node, folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # else a token in the user's home turns it on
        OWN: str(folder),
        "VLLM_CACHE_ROOT": vllm_cache(),
    }

    def start() -> subprocess.Popen[bytes]:
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                [f"{node}/bin/ray", "start", "--head", "--block", *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,  # HAProxy's files lie where Ray works
                env=env,
            )

    api = httpx.Client(base_url=f"http://127.0.0.1:{ports[-2]}", timeout=120)
    http = httpx.Client(base_url=f"http://127.0.0.1:{ports[-1]}", timeout=60)
    cluster = Cluster(start(), folder, api, http)
    again = iter(range(1, STARTS))

    def alive() -> bool:
        if cluster.process.poll() is not None and next(again, 0):
            kill(left(folder))
            cluster.process = start()
        return cluster.alive()

    try:
        until(alive, seconds=360, what="no Ray")
        yield cluster
    finally:
        api.close()
        http.close()
        below = descendants(cluster.process.pid)
        cluster.process.kill()  # on SIGTERM Ray drains its node, which takes 30 s
        cluster.process.wait()
        kill(below)  # the next cluster measures the memory that is free
        shutil.rmtree(folder, ignore_errors=True)
