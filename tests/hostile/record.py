"""Records what real hosts answer to every command, as what the fake ones begin from.

`python -m tests.hostile.record` builds a lab (root), brings a small cluster up and down in it, and
writes `answers.json.xz` beside this file.
"""

from __future__ import annotations

import base64
import json
import lzma
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

from raycluster import cli
from raycluster.apply import applications
from raycluster.core.errors import RayclusterError
from raycluster.core.interfaces import Address, ByteStream, Channel, Completed, Transport
from raycluster.hosts import fleet
from tests.hostile.host import FINGERPRINT, question
from tests.hostile.visitor import visited
from tests.lab.hosts import open_lab
from tests.lab.image import IMAGE
from tests.lab.specs import cluster_toml

ANSWERS = Path(__file__).with_name("answers.json.xz")
LONGEST = 96 * 1024
"""Bytes of an answer that are kept: its beginning."""
MOST = 12
"""Answers to one question that are kept of one command: the first ones, and the last."""
EXTRA = f"""
[gateway]
image = "{IMAGE}"
api_keys = {{ alice = "env:HOSTILE_KEY" }}

[monitoring]
image = "{IMAGE}"

[secrets]
HF_TOKEN = "env:HOSTILE_TOKEN"
"""
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "check": ("check",),
    "first-plan": ("plan",),
    "up": ("up",),
    "bench": ("bench", "--from", "head", "-n", "8", "-c", "2", "-o", "figures"),
    "status": ("status", "--json"),
    "plan": ("plan",),
    "tunnel": ("tunnel",),
    "logs": ("logs", "all"),
    "support-bundle": ("support-bundle", "--force", "-o", "bundle.tar.gz"),
    "deploy": ("deploy",),
    "down": ("down", "--yes"),
}


OPEN: list[Talk] = []


class Recorder:
    """Takes down each question to a host with its answer."""

    def __init__(self) -> None:
        self.told: dict[str, list[dict[str, Any]]] = {}
        self.command = ""
        self._lock = threading.Lock()

    def note(self, host: str, kind: str, asked: Sequence[str], answer: Mapping[str, Any]) -> None:
        """Keep one answer."""
        with self._lock:
            lines = self.told.setdefault(self.command, [])
            lines.append({"host": host, "kind": kind, "asked": list(asked), **answer})


def text(data: bytes) -> str:
    """Return bytes as JSON can hold them."""
    return base64.b64encode(data[:LONGEST]).decode()


class Recording:
    """A transport that works as another one does, and tells a recorder."""

    def __init__(self, name: str, inner: Transport, recorder: Recorder) -> None:
        self._name, self._inner, self._recorder = name, inner, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, argv: Sequence[str], **more: Any) -> Completed:
        done = self._inner.run(argv, **more)
        answer = {"code": done.exit_code, "out": text(done.stdout), "err": text(done.stderr)}
        self._recorder.note(self._name, "run", argv, answer)
        return done

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        pieces: list[tuple[Channel, str]] = []
        status = 0
        try:
            with closing(self._inner.stream(argv, env=env, quiet=quiet)) as stream:  # type: ignore[type-var]
                for channel, data in stream:
                    pieces.append((channel, text(data)))
                    yield channel, data
        except RayclusterError as error:
            status = getattr(error, "status", 1)
            raise
        finally:
            self._recorder.note(self._name, "stream", argv, {"code": status, "pieces": pieces})

    def connect(self, address: Address, *, timeout: float = 10.0) -> ByteStream:
        place = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
        try:
            stream = self._inner.connect(address, timeout=timeout)
        except RayclusterError:
            self._recorder.note(self._name, "connect", [place], {"refused": True})
            raise
        return Talk(stream, lambda asked, said: self._said(place, asked, said))

    def _said(self, place: str, asked: bytes, said: bytes) -> None:
        self._recorder.note(self._name, "connect", [place, text(asked)], {"said": text(said)})


class Talk:
    """A stream whose questions and answers are told in turn."""

    def __init__(self, inner: ByteStream, told: Callable[[bytes, bytes], None]) -> None:
        self._inner, self._told = inner, told
        self._asked, self._said = b"", b""
        OPEN.append(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def sendall(self, data: bytes) -> None:
        if self._said and not self._said.startswith(b"HTTP/1.1 101"):  # there input is no question
            self._end()
        if len(self._asked) < LONGEST:
            self._asked += bytes(data)
        self._inner.sendall(data)

    def recv(self, size: int) -> bytes:
        data = self._inner.recv(size)
        if len(self._said) < LONGEST:
            self._said += data
        return data

    def close(self) -> None:
        self._end()
        self._inner.close()

    def _end(self) -> None:
        """Tell of a question and its answer; some connections are never closed."""
        if self._asked:
            self._told(self._asked, self._said)
        self._asked, self._said = b"", b""


def record(folder: Path) -> dict[str, Any]:
    """Run every command on a lab's hosts, and return the spec and what was said."""
    recorder = Recorder()
    real = dict(fleet.TRANSPORTS)

    def reach(host: Any, ask: Any) -> Any:
        return Recording(host.name, real[host.transport](host, ask), recorder)

    with open_lab(folder / "lab", docker=1, native=1) as lab:
        spec = folder / "cluster.toml"
        hosts = [*lab.docker_hosts, *lab.native_hosts]
        spec.write_text(cluster_toml(lab, hosts, name="hostile", tiny=True, extra=EXTRA))
        prompts = folder / "prompts.txt"
        prompts.write_text("one\ntwo\nthree\nfour\n")
        os.environ.update(
            HOSTILE_KEY="sk-hostile-key-0123456789", HOSTILE_TOKEN="hf_hostile9876543210"
        )
        os.chdir(folder)
        with (
            mock.patch.dict(fleet.TRANSPORTS, {"ssh": reach}),
            mock.patch.object(applications, "app_fingerprint", lambda *_: FINGERPRINT),
            visited(opens=60.0, answers=30.0),
        ):
            for name, words in COMMANDS.items():
                recorder.command = name
                more = ("--prompts", str(prompts)) if name == "bench" else ()
                at = (
                    ("--spec", str(spec))
                    if name in ("logs", "support-bundle", "bench")
                    else (str(spec),)
                )
                sys.argv = ["raycluster", *words, *more, *at]
                print("==", *sys.argv, flush=True)
                OPEN.clear()
                try:
                    print("code", cli._run(), flush=True)
                except Exception as error:
                    print("failed", repr(error), flush=True)
                for talk in OPEN:
                    talk._end()
        return {"spec": spec.read_text(), "told": recorder.told}


def shortened(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the answers without those that only say once more what was said."""
    by_question: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        key = line["host"] + question(line["kind"], line["asked"])
        by_question.setdefault(key, []).append(number)
    kept = {n for numbers in by_question.values() for n in (*numbers[: MOST - 1], numbers[-1])}
    return [line for number, line in enumerate(lines) if number in kept]


def main() -> None:
    """Record, and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        found = record(Path(folder))
    found["told"] = {name: shortened(lines) for name, lines in found["told"].items()}
    ANSWERS.write_bytes(lzma.compress(json.dumps(found).encode()))
    print(ANSWERS, ANSWERS.stat().st_size)


if __name__ == "__main__":
    main()
