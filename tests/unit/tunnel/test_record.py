"""Which tunnels are open: told by a lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raycluster.tunnel import record
from raycluster.tunnel.ports import Forward

FORWARDS = [Forward("API", ("127.0.0.1", 8000), 8001, "http://127.0.0.1:{port}/v1")]
HOLD = """
import sys
from raycluster.tunnel.record import noted
with noted("c", "h:22", []):
    print("noted", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "raycluster"


def test_a_tunnel_is_known_while_it_is_open(place: Path) -> None:
    with record.noted("c", "h:22", FORWARDS):
        (tunnel,) = record.opened("c", "h:22")
        assert (tunnel.pid, tunnel.urls) == (os.getpid(), {"API": "http://127.0.0.1:8001/v1"})
        assert record.opened("c", "other:22") == record.opened("d", "h:22") == ()
    assert record.opened("c", "h:22") == ()
    assert list(place.iterdir()) == []


def test_a_killed_one_is_not_open_and_leaves_nothing(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"noted\n"
        assert [tunnel.pid for tunnel in record.opened("c", "h:22")] == [process.pid]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert record.opened("c", "h:22") == ()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", "\0"])
def test_what_is_no_record_is_no_tunnel(place: Path, content: str) -> None:
    place.mkdir(mode=0o700)
    (place / "tunnel-1.json").write_text(content)
    assert record.opened("c", "h:22") == ()


@pytest.mark.parametrize("content", ["[", "[]", '{"pid": "x"}', "[" * 100_000, '{"a": 1e999}'])
def test_what_an_open_one_wrote_may_be_damaged(place: Path, content: str) -> None:
    place.mkdir(mode=0o700)
    with (place / "tunnel-1.json").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(content)
        file.flush()
        assert record.opened("c", "h:22") == ()


def test_a_folder_that_others_may_write_to_is_not_believed(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)
    with record.noted("c", "h:22", FORWARDS):
        assert record.opened("c", "h:22") == ()
    assert list(place.iterdir()) == []


def test_where_nothing_can_be_written_the_tunnel_is_open_all_the_same(place: Path) -> None:
    place.write_text("a file")
    with record.noted("c", "h:22", FORWARDS):
        assert record.opened("c", "h:22") == ()
