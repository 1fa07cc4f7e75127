"""Where the processes of a real engine listen, on a host that has another address besides loopback.

The host is a network namespace of its own, with a name that leads to an address.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local.cluster import made_by

pytestmark = pytest.mark.local

ROOT = Path(__file__).parents[2]
ENGINE = Path(__file__).with_name("listening_engine.py")
ADDRESS, LOOPBACK = "10.9.9.9", "127.0.0.1"
HOST = f"""
set -e
mount --make-rprivate /
ip link set lo up
ip link add v0 type veth peer name v1
ip addr add {ADDRESS}/24 dev v0
ip link set v0 up
ip link set v1 up
ip route add default via 10.9.9.1
hostname of-tests
mount --bind "$1" /etc/hosts
shift
exec "$@"
"""
ARGS = {"max_model_len": 256, "enforce_eager": True, "tensor_parallel_size": 2}
DATA_PARALLEL = {"max_model_len": 256, "enforce_eager": True, "data_parallel_size": 2}
OVER_HOSTS = {"engine_args": ARGS, "spread": 2}


def _lacks() -> Iterator[str]:
    if os.geteuid() != 0:
        yield "needs root, for a network namespace"
    if not all(map(shutil.which, ("unshare", "ip", "ss", "mount", "hostname", "timeout"))):
        yield "needs unshare, ip, ss, mount, hostname and timeout"


@pytest.mark.parametrize(
    ("told", "env", "name_at", "expected"),
    [
        pytest.param({"engine_args": ARGS}, {}, ADDRESS, LOOPBACK, id="one host"),
        pytest.param(
            *({"engine_args": DATA_PARALLEL}, {}, ADDRESS, LOOPBACK),
            id="several engines",
            marks=pytest.mark.long,
        ),
        pytest.param(
            *({"engine_args": ARGS}, {"GLOO_SOCKET_IFNAME": "v0"}, LOOPBACK, ADDRESS),
            id="what the environment says goes first",
            marks=pytest.mark.long,
        ),
        pytest.param(
            *(OVER_HOSTS, {}, LOOPBACK, ADDRESS), id="several hosts", marks=pytest.mark.long
        ),
    ],
)
def test_where_an_engines_processes_meet(
    tmp_path: Path, told: dict[str, Any], env: dict[str, str], name_at: str, expected: str
) -> None:
    for reason in _lacks():
        pytest.skip(reason)
    hosts, script = tmp_path / "hosts", tmp_path / "host.sh"
    hosts.write_text(f"{LOOPBACK} localhost\n{name_at} of-tests\n")
    script.write_text(HOST)
    python = f"{made_by('node-env')}/bin/python"
    done = subprocess.run(
        [
            *("timeout", "--kill-after=5", "200"),
            *("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child"),
            *("--mount-proc", "sh", str(script), str(hosts)),
            *(python, str(ENGINE), made_by("tiny"), json.dumps(told)),
        ],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "PYTHONPATH": str(ROOT / "src"),
            "HF_HUB_OFFLINE": "1",
            "RAYCLUSTER_ADDRESS": ADDRESS,
            **env,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-3000:]
    [printed] = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    listening = json.loads(printed)  # an engine that ends may write behind it
    stored = told == OVER_HOSTS or told["engine_args"] == DATA_PARALLEL
    everywhere = {"*"} if stored else set()  # torch's store
    if expected == LOOPBACK:
        assert {address for address, _ in listening} - everywhere == {LOOPBACK}
    else:
        meeting = {address for address, program in listening if "Worker" in program}
        assert meeting - everywhere == {expected}
