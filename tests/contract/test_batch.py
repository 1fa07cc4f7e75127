"""`batch` over a real SSH connection that breaks: the tunnel comes back, and no line fails."""

from __future__ import annotations

import getpass
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.contract.sshd import SSHD, Sshd, wait_for

pytestmark = pytest.mark.skipif(SSHD is None, reason="there is no sshd")

PROGRAM = "import sys; from raycluster.cli import main; sys.argv[0] = 'raycluster'; main()"
CHECKOUT = Path(__file__).parents[2]
COUNT = 1500


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """Yield a server of this test's own."""
    server = Sshd(tmp_path / "sshd").start()
    try:
        yield server
    finally:
        if server.child is not None:
            server.signal_workers(signal.SIGKILL)
        server.stop()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[int]:
    """Yield the port of an endpoint that needs a fiftieth of a second per answer."""
    argv = [sys.executable, "-m", "tests.unit.batch.server", str(tmp_path / "log"), "0", "0.02"]
    with subprocess.Popen(
        argv, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        yield int(child.stdout.readline())
        child.communicate(timeout=20)


def write_spec(path: Path, sshd: Sshd, api: int, *, pinned: bool) -> None:
    pin = f'host_key = "{sshd.fingerprint()}"\n' if pinned else ""
    path.write_text(
        f'[cluster]\nname = "batch"\n[ssh]\nuser = "{getpass.getuser()}"\n'
        f'identity_file = "{sshd.folder / "client"}"\n'
        f'known_hosts = "{sshd.folder / "known_hosts"}"\n'
        f'[head]\nhost = "127.0.0.1"\nport = {sshd.port}\n{pin}'
        f'[runtime]\nkind = "native"\n[[models]]\nname = "tiny"\n[ports]\napi = {api}\n'
    )


@pytest.mark.parametrize("pinned", [False, True], ids=["the system's ssh", "our own channels"])
def test_goes_on_when_the_connection_breaks(
    tmp_path: Path, sshd: Sshd, api: int, pinned: bool
) -> None:
    spec, source, output = (tmp_path / name for name in ("c.toml", "in.txt", "out.jsonl"))
    write_spec(spec, sshd, api, pinned=pinned)
    source.write_text("".join(f"question {n}\n" for n in range(COUNT)))
    argv = [sys.executable, "-c", PROGRAM, "batch", str(source), "-o", str(output)]
    argv += ["--spec", str(spec), "-c", "8"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def written() -> int:
        return output.read_bytes().count(b"\n") if output.exists() else 0

    def reached(wanted: int) -> bool:
        return process.poll() is not None or written() >= wanted

    for wanted in (COUNT // 5, 2 * COUNT // 5):
        wait_for(partial(reached, wanted), f"{wanted} lines")
        assert process.poll() is None and written() < COUNT, process.communicate()
        sshd.signal_workers(signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(r["custom_id"] for r in results) == sorted(f"line-{n + 1}" for n in range(COUNT))
    assert {r["response"]["body"]["model"] for r in results} == {"tiny"}
    assert f"{COUNT:,} of {COUNT:,} lines answered, 0 failed" in out
    assert err.count("connected again") == 2
