"""The program that reads replicas' files inside a node, run as it is there."""

from __future__ import annotations

import inspect
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raycluster.logs import on_node
from raycluster.logs.on_node import since_offset, stamp, tail_offset

ALL: dict[str, Any] = {"app": "", "replica": "", "ids": {}}


def at(seconds: float, form: str = "%Y-%m-%d %H:%M:%S", *, now: float | None = None) -> str:
    """Return the moment that many seconds before now, as logs write it."""
    return time.strftime(form, time.localtime((now or time.time()) - seconds))


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """The folder of a session's logs, with a replica of `tiny` and another process."""
    folder = tmp_path / "ray/session_1/logs"
    folder.mkdir(parents=True)
    (tmp_path / "ray/session_latest").symlink_to("session_1")
    begin = ":job_id:02000000\n:actor_name:ServeReplica:tiny:Model\n"
    said = f"INFO {at(600)},001 tiny_Model abcd1234 -- begins\nplain\n"
    said += f"(EngineCore pid=9) INFO {at(60, '%m-%d %H:%M:%S')} [core.py:1] goes on\nlast"
    (folder / "worker-aa-02000000-11.err").write_text(begin + said)
    (folder / "worker-aa-02000000-11.out").write_text(begin)
    (folder / "worker-bb-02000000-12.err").write_text(":job_id:02000000\nno replica's\n")
    return folder


def ask(logs: Path, **more: Any) -> list[str]:
    """Return what the program writes of the folder's replicas."""
    asked: dict[str, Any] = {"follow": False, "tail": None, "since": None, **ALL}
    done = subprocess.run(
        [sys.executable, "-c", inspect.getsource(on_node), json.dumps({**asked, **more})],
        env={"RAY_TMPDIR": str(logs.parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def shown(lines: list[str]) -> list[str]:
    """Return the lines of logs alone, by their last words."""
    return [line.split()[-1] for line in lines if line.startswith("-")]


def test_a_replica_is_named_and_its_lines_follow(logs: Path) -> None:
    first, *lines = ask(logs)
    assert first.startswith("=0 ")
    assert json.loads(first[3:]) == {"app": "tiny", "pid": 11, "replica": "abcd1234"}
    assert shown(lines) == ["begins", "plain", "on", "last"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tail": 2}, ["on", "last"]),
        ({"tail": 0}, []),
        ({"since": 120}, ["on", "last"]),
        ({"since": 1200}, ["begins", "plain", "on", "last"]),
        ({"since": 30}, []),
        ({"since": 120, "tail": 1}, ["last"]),
        ({"app": "other"}, []),
        ({"app": "tiny"}, ["begins", "plain", "on", "last"]),
        ({"replica": "abcd"}, ["begins", "plain", "on", "last"]),
        ({"replica": "bcd"}, []),
        ({"replica": "zz", "ids": {"11": "zz999999"}}, ["begins", "plain", "on", "last"]),
    ],
)
def test_what_is_asked_for_is_shown(logs: Path, more: dict[str, Any], words: list[str]) -> None:
    assert shown(ask(logs, **more)) == words


def test_a_file_without_times_is_shown_and_said_to_be(logs: Path) -> None:
    begin = ":job_id:02000000\n:actor_name:ServeReplica:tiny:Model\n"
    file = logs / "worker-cc-02000000-13.out"
    file.write_text(begin + "no time\n")
    lines = ask(logs, since=30)
    assert [line for line in lines if line.startswith("!")] == [
        "!1 worker-cc-02000000-13.out has no timestamps: showing it from the beginning"
    ]
    assert shown(lines) == ["time"]
    past = time.time() - 60
    os.utime(file, (past, past))
    assert [line for line in ask(logs, since=30) if not line.startswith("=")] == []


def test_a_node_without_a_session_is_told_by_the_status(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", inspect.getsource(on_node), "{}"]
    done = subprocess.run(argv, env={"RAY_TMPDIR": str(tmp_path)}, check=False)
    assert done.returncode == 3


@pytest.mark.timeout(60)
def test_following_takes_up_new_lines_and_new_replicas_and_ends_with_its_reader(
    logs: Path,
) -> None:
    asked: dict[str, Any] = {"follow": True, "tail": 0, "since": None, **ALL}
    argv = [sys.executable, "-u", "-c", inspect.getsource(on_node), json.dumps(asked)]
    with subprocess.Popen(
        argv, env={"RAY_TMPDIR": str(logs.parents[2])}, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout
        assert program.stdout.readline().startswith("=0 ")
        assert program.stdout.readline() == "\n"  # it has begun to wait
        with (logs / "worker-aa-02000000-11.err").open("a") as file:
            file.write(" one\nhalf")
        begin = ":actor_name:ServeReplica:new:Model\n"
        (logs / "worker-dd-02000000-14.err").write_text(begin + "another\n")
        lines = (line.strip() for line in program.stdout)
        heard = [next(line for line in lines if line) for _ in range(3)]
        assert heard[0] == "-0  one"  # --tail 0: nothing of what was there, its last word neither
        assert json.loads(heard[1][3:])["app"] == "new"
        assert heard[2] == "-1 another"
        program.stdout.close()
        assert program.wait(10) == 0


def test_the_reason_of_a_failed_start_is_found_with_its_replica(logs: Path) -> None:
    with (logs / "worker-aa-02000000-11.err").open("a") as file:
        file.write("\nWARNING raycluster: vllm cannot start: ValueError: first\n")
        file.write("WARNING raycluster: vllm cannot start: ValueError: too little memory\n")
    done = subprocess.run(
        [sys.executable, "-c", inspect.getsource(on_node), '{"causes": true}'],
        env={"RAY_TMPDIR": str(logs.parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    [cause] = json.loads(done.stdout)
    assert (cause["app"], cause["pid"], cause["replica"]) == ("tiny", 11, "abcd1234")
    assert cause["cause"] == "ValueError: too little memory"


def test_a_time_without_a_year_is_the_last_one() -> None:
    moment = time.mktime((2026, 1, 1, 12, 0, 0, 0, 0, -1))
    assert stamp(b"INFO 12-31 12:00:00 x", moment) == moment - 86400
    assert stamp(b"INFO 2025-12-31 12:00:00,5 x", moment) == moment - 86400
    assert stamp(b"step 10-40 of 99:99:99", moment) is None
    assert stamp(b"nothing", moment) is None


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 5000, 20_000, 30_000])
def test_the_last_lines_of_a_long_file(count: int, ended: bool) -> None:
    lines = [b"line %d" % number for number in range(20_000)]
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    offset = tail_offset(io.BytesIO(data), len(data), count)
    assert data[offset:].splitlines() == lines[max(0, len(lines) - count) :]


@pytest.mark.parametrize("first", [0, 1, 9_999, 19_999])
def test_the_first_young_line_of_a_long_file(first: int) -> None:
    now = time.time()
    lines = [f"{at(20_000 - n, now=now)} {n}".encode() for n in range(20_000)]
    data = b"\n".join(lines) + b"\n"
    moment = float(int(now)) - (20_000 - first)
    offset = since_offset(io.BytesIO(data), len(data), moment, now)
    assert offset is not None
    assert data[offset:].splitlines()[0].split()[-1] == str(first).encode()
