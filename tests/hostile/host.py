"""A host that answers as a real one did, until it is told to answer something else.

It is a Transport as the others are. What a real host said to the same question is the answer; the
`spoil` of a run may change each on its way.
"""

from __future__ import annotations

import base64
import json
import lzma
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from raycluster.core.errors import CommandError, HostError
from raycluster.core.interfaces import Address, ByteStream, Channel, Completed
from raycluster.core.untrusted import ANSWER_BYTES, too_much
from raycluster.tunnel.link import PULSE

ANSWERS = Path(__file__).with_name("answers.json.xz")
FINGERPRINT = "aa15fe9aa024"
"""Stands for the app's code when answers are recorded and since: the real one changes with it."""
Spoil = Callable[[bytes], bytes]
"""Takes what a real host said, and returns what this one says instead."""
BEFORE = ("first-plan", "check", "up")
"""Commands that began before there was a cluster."""
LIKE = 0.75
"""Of the words of two questions, so many have to be the same."""
_CHANGING = re.compile(rb"[0-9a-f]{12,64}|bench-[0-9a-f]{8}|rc-[0-9A-Za-z]{8}|\d{9,}(?:\.\d+)?")


@dataclass(frozen=True)
class Recorded:
    """What was said when each command was run: by host, kind and question."""

    spec: str
    told: Mapping[str, Sequence[Mapping[str, Any]]]


@cache
def recorded() -> Recorded:
    """Return what `record.py` wrote."""
    plain = json.loads(lzma.decompress(ANSWERS.read_bytes()))
    return Recorded(plain["spec"], plain["told"])


@cache
def ray_token() -> str:
    """Return the token that the recorded cluster had."""
    answer = re.compile(rb'([0-9a-f]{64}).{0,20}\{"schema": 1, "members"', re.DOTALL)
    said = (bytes_of(line["said"]) for line in recorded().told["status"] if "said" in line)
    return next(match[1].decode() for each in said if (match := answer.search(each)))


@cache
def neighbours_tokens(command: str) -> dict[str, str]:
    """Return what each host answered the others with while a command ran."""
    asked = ((line["host"], line["asked"]) for line in recorded().told[command])
    return {host: json.loads(a[-1])["token"] for host, a in asked if a[-2:-1] == ["listen"]}


def bytes_of(text: str) -> bytes:
    """Return what `record.text` made a text of."""
    return base64.b64decode(text)


def question(kind: str, asked: Sequence[str]) -> str:
    """Return what makes two questions the same, whatever ids and times are in them."""
    if kind == "connect" and len(asked) > 1:
        head, _, body = bytes_of(asked[1]).partition(b"\r\n\r\n")
        first = head.split(b"\r\n")[0]
        if first.endswith(b"/start HTTP/1.1") or first.startswith(b"PUT "):
            # A command that was told before, by its id; an archive, which holds random keys.
            return f"connect {asked[0]} {first.decode()}"
        words = _CHANGING.sub(b"#", first + b" " + body[:2000] + body[2000:][-300:])
        return f"connect {asked[0]} {words.decode('latin-1')}"
    words = json.dumps([kind, *asked]).encode()
    return _CHANGING.sub(b"#", words).decode()


@dataclass
class Answers:
    """What hosts say in one run of one command, each answer in its turn; the last one stays."""

    command: str
    spoil: Spoil
    by_question: dict[tuple[str, str], list[Mapping[str, Any]]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for key, lines in _sorted(self.command).items():
            self.by_question[key] = list(lines)

    def to(self, host: str, kind: str, asked: Sequence[str]) -> Mapping[str, Any] | None:
        """Return the next answer to a question, None for one that no real host was asked."""
        key = (host, question(kind, asked))
        with self._lock:
            if key not in self.by_question:
                near = _elsewhere(self.command, *key) or _nearest(self.command, *key)
                if near is None:
                    self.unknown.append(key[1][:300])
                    return None
                self.by_question[key] = list(near)
            found = self.by_question[key]
            return found.pop(0) if len(found) > 1 else found[0]

    def refuses(self, host: str, place: str) -> bool:
        """Tell whether nobody listens there: as often as it was so, then somebody does."""
        with self._lock:
            left = self.by_question.get((host, question("connect", [place])))
            if left:
                left.pop()
                return True
            return False


@cache
def _sorted(command: str) -> Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in recorded().told[command]:
        kind = "run" if line["kind"] == "stream" else line["kind"]
        found.setdefault((line["host"], question(kind, line["asked"])), []).append(line)
    return found


@cache
def _elsewhere(command: str, host: str, asked: str) -> Sequence[Mapping[str, Any]] | None:
    """Return what was said to the same question while another command ran."""
    others = (*(BEFORE if command in BEFORE else ()), "status", *recorded().told)
    found = (_sorted(other).get((host, asked)) for other in others)
    return next((lines[-1:] for lines in found if lines), None)


@cache
def _nearest(command: str, host: str, asked: str) -> Sequence[Mapping[str, Any]] | None:
    """Return what was said to nearly the same question: programs that are sent change."""
    words = {*re.findall(r"\w+", asked)}
    best: float = LIKE
    found: Sequence[Mapping[str, Any]] | None = None
    for (other_host, other), lines in _sorted(command).items():
        if other_host == host and other[:20] == asked[:20]:
            others = {*re.findall(r"\w+", other)}
            like = len(words & others) / (len(words | others) or 1)
            if like > best:
                best, found = like, lines
    return found


class FakeHost:
    """A Transport to nowhere."""

    def __init__(self, name: str, address: str, answers: Answers) -> None:
        self._name, self._address, self._answers = name, address, answers
        self._closed = threading.Event()

    @property
    def address(self) -> str:
        """Where it is said to be."""
        return self._address

    @property
    def alive(self) -> bool:
        """True."""
        return True

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
    ) -> Completed:
        """Answer."""
        _refuse_what_no_shell_takes(argv)
        told = self._answers.to(self._name, "run", argv) or NOTHING
        out, err = _written(told)
        out, err = self._answers.spoil(out), self._answers.spoil(err) if err else err
        if len(out) + len(err) > ANSWER_BYTES:
            raise too_much(argv[0], self._name, ANSWER_BYTES)
        return Completed(told["code"], out, err)

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        """Answer in pieces."""
        _refuse_what_no_shell_takes(argv)
        told = self._answers.to(self._name, "run", argv) or NOTHING
        out, err = _written(told)
        said = self._answers.spoil(out)
        for start in range(0, len(said), 4096):
            yield "stdout", said[start : start + 4096]
        if err:
            yield "stderr", self._answers.spoil(err)
        if tuple(argv) == PULSE and said == out:
            self._closed.wait(LONGEST_S)
        if quiet is not None and said.endswith(SILENT):
            raise HostError(f"{argv[0]} had no output for {quiet:g} s", where=self._name)
        if told["code"]:
            raise CommandError("ended", where=self._name, status=told["code"])

    def put(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Take it."""

    def connect(self, address: Address, *, timeout: float = 10.0) -> ByteStream:
        """Open a stream that answers as a program there did."""
        place = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
        if self._answers.refuses(self._name, place):
            raise HostError(f"cannot connect to {place}: refused", where=self._name)
        if self._answers.command == "tunnel":
            return PatientStream(self._name, place, self._answers)
        return FakeStream(self._name, place, self._answers)

    def close(self) -> None:
        """End what goes on."""
        self._closed.set()


NOTHING: Mapping[str, Any] = {"code": 0, "out": "", "err": ""}
SILENT = b"<silent>"
LONGEST_S = 10.0
"""Seconds for which what has no end goes on, where nobody ends it."""


class FakeStream:
    """A connection whose other side says what it said before, or something else."""

    def __init__(self, host: str, place: str, answers: Answers) -> None:
        self._host, self._place, self._answers = host, place, answers
        self._asked, self._said = b"", memoryview(b"")
        self._hijacked = False
        self._open = True

    def sendall(self, data: bytes, /) -> None:
        """Take a question, or a part of it."""
        if not self._hijacked:
            self._asked += bytes(data)

    def recv(self, size: int, /) -> bytes:
        """Answer."""
        if self._asked:
            asked, self._asked = self._asked, b""
            text = base64.b64encode(asked).decode()
            told = self._answers.to(self._host, "connect", [self._place, text])
            said = bytes_of(told["said"]) if told and "said" in told else NOT_FOUND
            self._hijacked = said.startswith(b"HTTP/1.1 101")
            answer = bytes(self._said) + self._answers.spoil(said)
            self._open = self._open and not answer.endswith(SILENT)
            self._said = memoryview(answer.removesuffix(SILENT))
        if not self._said and not self._open:
            raise TimeoutError("timed out")
        data, self._said = bytes(self._said[:size]), self._said[size:]
        return data

    def settimeout(self, seconds: float | None, /) -> None:
        """A timeout of zero asks whether something is there."""
        del seconds

    def shutdown(self, how: int, /) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PatientStream(FakeStream):
    """One that two threads use: who reads waits for a question, and is told the end behind it."""

    def __init__(self, host: str, place: str, answers: Answers) -> None:
        super().__init__(host, place, answers)
        self._began = threading.Event()

    def sendall(self, data: bytes, /) -> None:
        """Take a whole question."""
        super().sendall(data)
        self._began.set()

    def recv(self, size: int, /) -> bytes:
        """Answer, when asked."""
        self._began.wait(LONGEST_S)
        return super().recv(size)

    def close(self) -> None:
        """Let go of who waits."""
        self._began.set()


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def _refuse_what_no_shell_takes(argv: Sequence[str]) -> None:
    """Do what real transports do with a NUL, and with what cannot be encoded."""
    if any("\0" in word for word in argv):
        raise HostError("a command cannot contain a NUL character")
    for word in argv:
        word.encode("utf-8", "surrogateescape")


def _written(told: Mapping[str, Any]) -> tuple[bytes, bytes]:
    if "pieces" not in told:
        return bytes_of(told["out"]), bytes_of(told["err"])
    both: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    for channel, data in told["pieces"]:
        both[channel] += bytes_of(data)
    return both["stdout"], both["stderr"]
