"""One run of a command against hostile hosts, in this process, and all that may not happen."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import tarfile
import threading
import time
import tomllib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from unittest import mock

import httpx
import typer.main

import raycluster.core.wait
import raycluster.spec
from raycluster import cli
from raycluster.apply import applications
from raycluster.apply.distribution import peer_transfer
from raycluster.apply.preconditions import connectivity
from raycluster.batch import head_session, online
from raycluster.batch.head_session import Open
from raycluster.bench import server_metrics
from raycluster.hosts import fleet
from raycluster.observe import replica_endpoints
from raycluster.serve.asking import retrying_client
from raycluster.serve.asking.retrying_client import Tries
from tests.hostile.host import (
    FINGERPRINT,
    Answers,
    FakeHost,
    Spoil,
    neighbours_tokens,
    ray_token,
    recorded,
)
from tests.hostile.visitor import visited

REAL_S = 60
"""Seconds that a run may take in truth."""
FASTER = 40
"""Waiting takes no time, and time goes on by so many times as much."""
CODES = (0, 1, 2, 3, 4, 5)
KEY, TOKEN = "sk-hostile-key-0123456789", "hf_hostile9876543210"
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "check": ("check", "SPEC"),
    "first-plan": ("plan", "SPEC"),
    "up": ("up", "SPEC"),
    "status": ("status", "SPEC", "--json"),
    "plan": ("plan", "SPEC"),
    "logs": ("logs", "all", "--spec", "SPEC"),
    "support-bundle": ("support-bundle", "-o", "bundle.tar.gz", "--spec", "SPEC"),
    "tunnel": ("tunnel", "SPEC"),
    "deploy": ("deploy", "SPEC"),
    "bench": (
        *("bench", "--from", "head", "-n", "4", "-c", "2", "-o", "figures"),
        *("--prompts", "prompts.txt", "--spec", "SPEC"),
    ),
    "down": ("down", "--yes", "SPEC"),
}
_AT = ("--url", "URL", "--api-key", "env:HOSTILE_KEY", "--timeout", "SECONDS")
OF_ENDPOINTS: Mapping[str, tuple[str, ...]] = {
    "bench-url": (
        *("bench", *_AT, "-m", "m", "-n", "4", "-c", "2", "--warmup", "1", "--no-calibrate"),
        *("-o", "figures", "--prompts", "prompts.txt"),
    ),
    "bench-embeddings": (
        *("bench", *_AT, "-m", "m", "-n", "4", "-c", "2", "--warmup", "1", "--no-calibrate"),
        *("--endpoint", "embeddings", "--json", "--prompts", "prompts.txt"),
    ),
    "batch": (
        *("batch", "prompts.txt", *_AT, "-m", "m", "-o", "answers.jsonl", "-c", "2"),
        *("--max-retries", "2", "--line-time", "0.5", "--patience", "0.5"),
    ),
}
OFFLINE = "batch-offline"
"""The words of a batch whose lines a job on the head sends."""
_OFFLINE = (
    *("batch", "prompts.txt", "--offline", "--spec", "SPEC", "-o", "answers.jsonl", "-c", "2"),
    *("--timeout", "20", "--line-time", "20", "--patience", "20"),
)
MADE: Mapping[str, frozenset[str]] = {
    "support-bundle": frozenset({"work/bundle.tar.gz"}),
    "bench": frozenset({"work/figures"}),
    "tunnel": frozenset({"run/raycluster"}),
    "bench-url": frozenset({"work/figures"}),
    "batch": frozenset({"work/answers.jsonl"}),
    OFFLINE: frozenset({"work/answers.jsonl"}),
}
"""What a command may write, below the folder of the runs."""
PRINTS_JSON = ("status", "bench-embeddings")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code, what it wrote, questions that no real host was asked, and
    what came through a tunnel."""

    code: int
    out: str
    err: str
    unknown: tuple[str, ...] = ()
    heard: bytes = b""


_OBEYED = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal does more with than show it."""


class HangError(BaseException):
    """A run took longer than it may."""


@dataclass
class Stage:
    """Where runs happen: a home, a working folder and a folder for temporary files, all watched."""

    folder: Path

    def __post_init__(self) -> None:
        for name in ("home/.ssh", "work", "tmp", "run"):
            (self.folder / name).mkdir(parents=True)
        self.put("home/.ssh/authorized_keys", "ssh-ed25519 AAAA me\n")
        self.put("home/.bashrc", "true\n")
        self.put("work/cluster.toml", recorded().spec)
        self.put("work/prompts.txt", "one\ntwo\nthree\nfour\n")
        self.before = self._files()

    def put(self, name: str, content: str) -> None:
        """Write a file."""
        (self.folder / name).write_text(content)

    def _files(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in self.folder.rglob("*"):
            stat = path.lstat()
            place = str(path.relative_to(self.folder))
            size = 0 if path.is_dir() else stat.st_size
            found[place] = (stat.st_mode, size, 0 if path.is_dir() else stat.st_mtime_ns)
        return found

    def written(self, command: str) -> bytes:
        """Return the content of all that a command wrote; lines of JSON have to be that."""
        whole = b""
        for made in MADE.get(command, ()):
            path = self.folder / made
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                content = file.read_bytes() if file.is_file() else b""
                if file.suffix in (".json", ".jsonl"):
                    for line in content.split(b"\n") if file.suffix == ".jsonl" else (content,):
                        json.loads(line or b"0", parse_constant=_refuse)
                whole += content
        return whole

    def changes(self, command: str) -> list[str]:
        """Return what was changed that may not be, and take all of it back."""
        now, allowed = self._files(), MADE.get(command, frozenset())
        changed = [n for n in {*now, *self.before} if now.get(n) != self.before.get(n)]
        for name in sorted(changed, reverse=True):
            path = self.folder / name
            if name not in self.before:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        return [n for n in changed if not any(n == a or n.startswith(f"{a}/") for a in allowed)]


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """Yield a stage on which commands reach hostile hosts, and time is quick."""
    stage = Stage(folder)
    work = folder / "work"
    env = {
        **{"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "LANG": "C.UTF-8"},
        **{"TMPDIR": str(folder / "tmp"), "XDG_RUNTIME_DIR": str(folder / "run")},
        **{"HOSTILE_KEY": KEY, "HOSTILE_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"},
    }
    monotonic, ahead, lock = time.monotonic, [0.0], threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            ahead[0] += max(seconds, 0.01) * FASTER

    def now() -> float:
        return monotonic() + ahead[0]

    before = Path.cwd()
    os.chdir(work)
    try:
        with (
            mock.patch.dict(os.environ, env, clear=True),
            mock.patch("tempfile.tempdir", str(folder / "tmp")),
            mock.patch("time.sleep", sleep),
            mock.patch("time.monotonic", now),
            mock.patch.dict(
                raycluster.core.wait.wait_for.__kwdefaults__, {"clock": now, "sleep": sleep}
            ),
            mock.patch.multiple(peer_transfer, BEGIN_S=0.2, PARTING_S=0.2, STUCK_S=0.2),
            # the lock is a living conversation
            mock.patch("raycluster.apply.converge.locked", lambda *_: nullcontext()),
            mock.patch("raycluster.apply.host_removal.locked", lambda *_: nullcontext()),
            mock.patch("raycluster.spec.read_spec", cache(raycluster.spec.read_spec)),
            mock.patch("typer.main.get_command", cache(typer.main.get_command)),
            mock.patch("httpx.create_ssl_context", cache(httpx.create_ssl_context)),
            mock.patch("gc.collect", lambda: 0),  # before each level of a load
        ):
            yield stage
    finally:
        os.chdir(before)


def addresses() -> Mapping[str, str]:
    """Return where the hosts of the recorded spec are."""
    spec = tomllib.loads(recorded().spec)
    return {
        **{"head": spec["head"]["host"]},
        **{worker["name"]: worker["host"] for worker in spec.get("workers", ())},
    }


def attempt(stage: Stage, command: str, spoil: Spoil, *, patience: float = 0.5) -> Outcome:
    """Run a command. Raises AssertionError, and what the command let through.

    `patience` are the seconds for which somebody at a tunnel waits.
    """
    answers = Answers(command, spoil)
    known = addresses()

    def reach(host: Any, ask: object) -> FakeHost:
        return FakeHost(host.name, known[host.name], answers)

    with (
        mock.patch.dict(fleet.TRANSPORTS, {"ssh": reach, "local": reach}),
        mock.patch.object(
            connectivity,
            "new_tokens",
            lambda names: dict.fromkeys(names, "0") | neighbours_tokens(command),
        ),
        mock.patch.object(applications, "app_fingerprint", lambda *_: FINGERPRINT),
    ):
        if command == "tunnel":
            with visited(opens=patience, answers=patience) as heard:
                outcome = _run(stage, command, COMMANDS[command])
            outcome = replace(outcome, heard=b"".join(heard))
        else:
            outcome = _run(stage, command, COMMANDS[command])
    return replace(outcome, unknown=tuple(answers.unknown))


def attempt_at(stage: Stage, command: str, url: str, *, seconds: float = 0.2) -> Outcome:
    """Run a command against an endpoint, with so long for a request. Raises as `attempt` does."""
    given = {"URL": url, "SECONDS": str(seconds)}
    words = [given.get(word, word) for word in OF_ENDPOINTS[command]]
    with (
        mock.patch.object(retrying_client, "Tries", partial(Tries, backoff=0.01, max_backoff=0.02)),
        mock.patch.multiple(
            retrying_client, _AWAY_BACKOFF_SECONDS=0.02, _FIRST_PATIENCE_SECONDS=0.5
        ),
        mock.patch.multiple(online, _TICK_SECONDS=0.05),
        mock.patch.multiple(server_metrics, _TIMEOUT_S=0.1),
        mock.patch.multiple(replica_endpoints, METRICS_S=0.2),
    ):
        return _run(stage, command, words)


def attempt_offline(stage: Stage, head: Open) -> Outcome:
    """Run a batch by a job on a head. Raises as `attempt` does."""
    with mock.patch.object(head_session, "site", lambda _: head):
        return _run(stage, OFFLINE, _OFFLINE)


def _run(stage: Stage, command: str, words: Sequence[str]) -> Outcome:
    words = ["raycluster", *("cluster.toml" if word == "SPEC" else word for word in words)]
    out, err = _Stream(), _Stream()
    crashed: list[str] = []

    def crash(told: threading.ExceptHookArgs) -> None:
        if told.exc_type is not HangError:
            crashed.append("".join(traceback.format_exception(told.exc_value)))

    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.object(sys, "stdout", out),
        mock.patch.object(sys, "stderr", err),
        mock.patch.object(threading, "excepthook", crash),
        mock.patch.object(cli, "_end", _end),
        in_time(),
    ):
        cli._open_streams()
        try:
            code = cli._run()
        except _EndedError as ended:
            code = ended.code
    said, told = out.text(), err.text()
    assert not crashed, crashed[0]
    assert code in CODES, (code, told)
    assert "Traceback" not in told
    shown = told if command == "logs" else said + told
    assert not (obeyed := _OBEYED.findall(shown)), obeyed
    bundle = stage.folder / "work" / "bundle.tar.gz"
    if bundle.exists():
        _check_bundle(bundle)
    written = stage.written(command) if command in (*OF_ENDPOINTS, OFFLINE) else b""
    changed = stage.changes(command)
    assert not changed, changed
    for secret in (KEY, TOKEN, ray_token()):
        assert secret not in said + told
        assert secret.encode() not in written
    if command in PRINTS_JSON and said:
        json.loads(said, parse_constant=_refuse)
    return Outcome(code, said, told)


class _Stream(io.TextIOWrapper):
    """A standard stream that takes what a terminal of UTF-8 takes, and nothing else."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)

    def text(self) -> str:
        """Return all; `logs` writes what it was given, in whatever encoding."""
        return bytes(self.buffer.getvalue()).decode(errors="replace")  # type: ignore[attr-defined]

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


class _EndedError(BaseException):
    """The program ends at once, threads or no."""

    def __init__(self, code: int) -> None:
        self.code = code


def _end(code: int) -> NoReturn:
    assert code != cli.INTERRUPTED, "it ends as if somebody had interrupted it"
    raise _EndedError(code)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def _check_bundle(path: Path) -> None:
    assert path.stat().st_size < 8 << 20
    size = 0
    with tarfile.open(path) as tar:
        for member in tar:
            assert member.isreg(), member.name
            assert ".." not in member.name.split("/"), member.name
            assert not member.name.startswith("/"), member.name
            size += member.size
            content = tar.extractfile(member)
            data = content.read() if content else b""
            for secret in (KEY, TOKEN, ray_token()):
                assert secret.encode() not in data, member.name
    assert size < 64 << 20


@contextmanager
def in_time() -> Iterator[None]:
    """Raise HangError in the main thread where the body takes too long."""

    def hang(_number: int, frame: FrameType | None) -> None:
        others = "".join(
            "".join(traceback.format_stack(each)) for each in sys._current_frames().values()
        )
        raise HangError(f"{''.join(traceback.format_stack(frame))}\n{others}")

    former = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, REAL_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
