"""One Ray head on this machine with Serve's settings as `up` makes them, for what serves on it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from raycluster.services.node_files import haproxy_file
from tests.local.cluster import PORT_OPTIONS, descendants, made_by, serve_env
from tests.ports import free_ports


def until(ask: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Return when the answer is true; end the program with `what` when it takes too long."""
    end = time.monotonic() + seconds
    while not ask():
        if time.monotonic() > end:
            raise SystemExit(f"{what} after {seconds:.0f} s")
        time.sleep(0.3)


@dataclass(frozen=True)
class Node:
    """A Ray head; `http` is the URL of Serve, `api` of Ray's REST API."""

    python: str
    api: str
    http: str
    http_port: int
    folder: Path

    def put(self, body: Mapping[str, Any]) -> None:
        """Deploy, and let HAProxy know of it as `deploy` does."""
        for name, content in haproxy_file(body).items():
            (self.folder / name).write_bytes(content)
        url = f"{self.api}/api/serve/applications/"
        httpx.put(url, json=dict(body), timeout=60).raise_for_status()

    def replicas(self) -> list[Mapping[str, Any]]:
        """Return the replicas that run."""
        url = f"{self.api}/api/serve/applications/"
        apps = httpx.get(url, timeout=60).json()["applications"].values()
        found = [r for app in apps for d in app["deployments"].values() for r in d["replicas"]]
        return [replica for replica in found if replica["state"] == "RUNNING"]

    def running(self) -> bool:
        """Tell whether all applications run; end the program when one cannot."""
        url = f"{self.api}/api/serve/applications/"
        apps = httpx.get(url, timeout=60).json()["applications"].values()
        for app in apps:
            if app["status"] == "DEPLOY_FAILED":
                raise SystemExit(f"{app['name']}: {app['message']} {app['deployments']}")
        return bool(apps) and all(app["status"] == "RUNNING" for app in apps)


@contextmanager
def open_node(folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Node]:
    """Start Ray, yield it, end it with all its processes."""
    environment = made_by("node-env")
    ports = free_ports(len(PORT_OPTIONS) + 1)
    options = [f"--{name}={port}" for name, port in zip(PORT_OPTIONS, ports, strict=False)]
    with (folder / "ray.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(f"{environment}/bin/ray", "start", "--head", "--block", "--num-cpus=8"),
                *options,
                *("--node-ip-address=127.0.0.1", f"--temp-dir={folder}/ray"),
                "--object-store-memory=100000000",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,  # HAProxy's files lie where Ray works
            env={
                **os.environ,
                **serve_env(environment, folder),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_AUTH_MODE": "disabled",  # else a token in the user's home turns it on
                **(env or {}),
            },
        )
    api = f"http://127.0.0.1:{ports[-2]}"
    http = f"http://127.0.0.1:{ports[-1]}"
    node = Node(f"{environment}/bin/python", api, http, ports[-1], folder)
    try:
        until(lambda: _alive(api), seconds=180, what="no Ray")
        yield node
    finally:
        below = descendants(process.pid)
        process.kill()  # on SIGTERM Ray drains its node, which takes 30 s
        process.wait()
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _alive(api: str) -> bool:
    try:
        return httpx.get(f"{api}/api/serve/applications/", timeout=10).status_code == 200
    except httpx.TransportError:
        return False
