"""Whom the kernel ends where memory is used up: what serves a model, not what keeps the rest."""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.contract.cgroups import limited

LIMIT = 400 << 20
KEEPER = "x = bytearray(200 << 20); print('up', flush=True); input()"
ENGINE = "x = bytearray(150 << 20); y = bytearray(150 << 20); input()"
REPLICA = """
import subprocess, sys
from raycluster.serve.first_to_go import go_first
go_first()
ended = subprocess.run([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE)
sys.exit(ended.returncode % 256)
"""
NODE = f"""
import subprocess, sys
input()
pipes = {{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}}
keeper = subprocess.Popen([sys.executable, "-c", {KEEPER!r}], **pipes)
keeper.stdout.readline()
replica = subprocess.run([sys.executable, "-c", {REPLICA!r}, {ENGINE!r}], stdin=subprocess.PIPE)
print(replica.returncode, keeper.poll(), flush=True)
keeper.kill()
"""


def test_the_kernel_ends_a_replica_s_engine_and_not_what_keeps_the_rest() -> None:
    """The engine was started by what had asked to go first, and inherited that."""
    pipe = subprocess.PIPE
    with (
        subprocess.Popen([sys.executable, "-c", NODE], stdin=pipe, stdout=pipe) as node,
        limited(node.pid, memory=LIMIT, quota_us=-1),
    ):
        told, _ = node.communicate(b"\n", timeout=60)
    killed = {-signal.SIGKILL, -signal.SIGKILL % 256}
    code, keeper = told.decode().split()
    assert int(code) in killed
    assert keeper == "None"
