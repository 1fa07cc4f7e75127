"""The program in the background of a script, where SIGINT is ignored."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mock_server import MockServer, Script

PROGRAM = Path(sys.executable).with_name("raycluster")
BEHIND = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")


@pytest.fixture
def _hangups_count() -> Iterator[None]:
    """Who starts the tests may ignore hangups, as `nohup` does, and so would what they start."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.usefixtures("_hangups_count")
@pytest.mark.parametrize(("number", "processes"), [(signal.SIGHUP, 1), (signal.SIGTERM, 2)])
def test_a_request_to_end_does_what_ctrl_c_does(number: signal.Signals, processes: int) -> None:
    with MockServer(lambda _: Script()) as server:
        load = ("--synthetic", "prompt=8,output=4", "-c", "2", "--duration", "600")
        more = ("--model", "tiny", "--no-calibrate", "--processes", str(processes))
        argv = (*BEHIND, PROGRAM, "bench", "--url", server.base_url, *load, *more)
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True) as program:
            assert program.stderr
            assert "0 failed" in program.stderr.readline()
            program.send_signal(signal.SIGINT)
            assert "0 failed" in program.stderr.readline()  # it goes on
            program.send_signal(number)
            out, err = program.communicate(timeout=60)
    assert program.returncode == 130
    assert "interrupted before the end" in out
    assert "Traceback" not in err
