"""The gateway's process as it runs on a host: real nginx."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from raycluster.core.interfaces import ROOT, Process, Secret
from raycluster.services.gateway import gateway
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from tests.ports import free_port

ALICE, BOB = "sk-alice.0123456789", "sk-bob-0123456789ab"
KEYS: dict[str, Any] = {"api_keys": {"alice": "env:A", "bob": "env:B"}}
CONF = "gateway/nginx.conf"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOTH = Secrets(api_keys={"alice": Secret(ALICE), "bob": Secret(BOB)})


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def spec_of(port: int, api: int, models: Sequence[str] = (), **gate: Any) -> ClusterSpec:
    plain = {"cluster": {"name": "q"}, "head": {"host": "h"}, "gateway": gate}
    ports = {"gateway": port, "api": api}
    return ClusterSpec.model_validate(
        {**plain, "ports": ports, "models": [{"name": name} for name in models]}
    )


def process_of(
    spec: ClusterSpec, secrets: Secrets = BOTH, others: Mapping[str, str] | None = None
) -> Process:
    process = gateway(spec, spec.hosts[0], Wiring(others or {}, Secret("t"), secrets))
    assert process
    return process


def lay(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files as runtimes do."""
    for name, content in files.items():
        (folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)


@contextmanager
def running(
    root: Path, api: int, secrets: Secrets | None = None, **gate: Any
) -> Iterator[httpx.Client]:
    """Run the process as a runtime would, and yield a client of it."""
    port = free_port()
    scheme = "https" if gate.get("tls") else "http"
    process = process_of(spec_of(port, api, **gate), secrets or BOTH)
    with served(root, process, {}, port, scheme) as client:
        yield client


@contextmanager
def served(
    root: Path, process: Process, files: Mapping[str, bytes], port: int, scheme: str = "http"
) -> Iterator[httpx.Client]:
    """Run the process, with `files` in place of some of its own, and yield a client of it."""
    lay(root, {**process.live_files, **files})
    argv = [part.replace(ROOT, str(root)) for part in process.argv]
    with (root / "log").open("wb") as log:
        nginx = subprocess.Popen(argv, stdout=log, stderr=log, env={"PATH": PATH})
    try:
        _wait(port, nginx, root / "log")
        with httpx.Client(
            base_url=f"{scheme}://127.0.0.1:{port}", verify=False, trust_env=False, timeout=60
        ) as client:
            yield client
    finally:
        nginx.terminate()
        nginx.wait(60)


def _wait(port: int, nginx: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert nginx.poll() is None, log.read_text()
        with socket.socket() as probe:
            connected = probe.connect_ex(("127.0.0.1", port)) == 0
            if connected and probe.getsockname() != probe.getpeername():
                return  # to a free port, Linux may connect a socket to itself
        time.sleep(0.01)
    raise AssertionError(f"nginx does not listen: {log.read_text()}")
