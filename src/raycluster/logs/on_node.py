"""Runs inside a node: writes what the replicas there wrote, each line with its replica's number.

    python -c PROGRAM '{"follow": false, "tail": 100, "since": null, "app": "", "replica": ""}'

`since` is in seconds before now. What goes out begins with `=` for a new replica (a number and a
JSON object), `-` for a line of its log (the number, a space, the line) and `!` for a note on it. An
empty line every second shows that somebody is there. Standard library alone, Python 3.8.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

BLOCK, LONGEST, HEAD = 65536, 1_000_000, 262144  # bytes
MARKS = (b":job_id:", b":actor_name:", b":task_name:")
LOOK_S, FIND_S = 0.25, 1.0

_NAME = re.compile(rb"^:actor_name:ServeReplica:([^:\n]+):", re.MULTILINE)
_PID = re.compile(r"-(\d+)\.(?:out|err)$")
_REPLICA = re.compile(rb"^[A-Z]+ \d{4}-\d\d-\d\d [\d:,]+ \S+ ([a-z0-9]{6,12}) ", re.MULTILINE)
_CAUSE = re.compile(rb"raycluster(?: root cause)?: (?:\w+ cannot start: )?(.+)")
_WHY = re.compile(rb"raycluster root cause: |raycluster: \w+ cannot start: ")
_TIME = re.compile(rb"(?:(\d{4})-)?\b(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)")


def stamp(line: bytes, now: float) -> float | None:
    """Return when a line says that it was written, in this machine's time zone, or None."""
    found = _TIME.search(line[:200])
    if not found:
        return None
    year, *rest = found.groups()
    month, day, hour, minute, second = map(int, rest)
    this = int(year) if year else time.localtime(now).tm_year
    try:
        at = time.mktime((this, month, day, hour, minute, second, 0, 0, -1))
        if not year and at > now + 86400:  # vLLM names no year
            at = time.mktime((this - 1, month, day, hour, minute, second, 0, 0, -1))
    except (ValueError, OverflowError):
        return None
    return at


def since_offset(file: BinaryIO, size: int, moment: float, now: float) -> int | None:
    """Return where the first line of `moment` or later begins; None where no line has a time.

    A line without a time is as old as the one before it.
    """
    begin, seen, found = size, False, size
    while begin:
        start = max(0, begin - BLOCK)
        file.seek(start)
        if start:
            file.readline()  # its beginning is in the block before
        at = file.tell()
        older = False
        first: int | None = None
        while at < begin:
            line = file.readline(LONGEST)
            if not line:
                break
            when = stamp(line, now)
            if when is not None:
                seen = True
                if when < moment:
                    older, first = True, None
                elif first is None:
                    first = at
            at += len(line)
        if first is not None:
            found = first
        if older:
            return found
        begin = start
    return 0 if seen else None


def tail_offset(file: BinaryIO, size: int, count: int) -> int:
    """Return where the last `count` lines begin."""
    if count == 0:
        return size
    begin, newlines = size, 0
    while begin:
        start = max(0, begin - BLOCK)
        file.seek(start)
        block = file.read(begin - start)
        if begin == size and block.endswith(b"\n"):
            newlines -= 1
        newlines += block.count(b"\n")
        if newlines >= count:
            at = -1
            for _ in range(newlines - count + 1):
                at = block.find(b"\n", at + 1)
            return start + at + 1
        begin = start
    return 0


class Output:
    """One file of a replica's process."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        self.file = path.open("rb")
        self.rest = bytearray()
        self.looked = 0  # how far there is no line end in it

    def begin(self, ask: dict[str, Any], now: float) -> str:
        """Go to where reading begins; return what a person should know of that, or ""."""
        size = os.fstat(self.file.fileno()).st_size
        start, note = 0, ""
        if ask["since"] is not None:
            moment = now - ask["since"]
            offset = since_offset(self.file, size, moment, now)
            if offset is not None:
                start = offset
            elif size and self.path.stat().st_mtime < moment:
                start = size
            elif size and not self._empty():
                note = f"{self.path.name} has no timestamps: showing it from the beginning"
        if ask["tail"] is not None:
            start = max(start, tail_offset(self.file, size, ask["tail"]))
        self.file.seek(start)
        return note

    def _empty(self) -> bool:
        """Tell whether there is nothing but what Ray writes first."""
        self.file.seek(0)
        return all(line.startswith(MARKS) for line in self.file.read(BLOCK).splitlines())

    def read(self) -> bool:
        """Take what came since; tell whether there was anything."""
        if os.fstat(self.file.fileno()).st_size < self.file.tell():
            self.file.seek(0)  # it was begun anew
        data = self.file.read(BLOCK)
        self.rest += data
        return bool(data)

    def lines(self, last: bool) -> list[bytes]:
        """Return the whole lines that were read; with `last` what has no end as well."""
        end = self.rest.rfind(b"\n", self.looked) + 1
        whole = bytes(self.rest[:end]).split(b"\n")[:-1]
        del self.rest[:end]
        if self.rest and (last or len(self.rest) > LONGEST):
            whole.append(bytes(self.rest))
            self.rest.clear()
        self.looked = len(self.rest)
        return [line for line in whole if not line.startswith(MARKS)]


class SessionReplicas:
    """The replicas of the newest session of Ray here, the ended ones too."""

    def __init__(self, folder: Path, ask: dict[str, Any]) -> None:
        self.folder, self.ask = folder, ask
        self.known: set[str] = set()
        self.numbers: dict[str, int] = {}
        self.outputs: list[Output] = []

    def find(self, begun: bool) -> None:
        """Take up files that are new; with `begun` they are read from where `ask` says."""
        for path in sorted(self.folder.glob("worker-*.[oe][ur][tr]")):
            if path.name in self.known:
                continue
            with path.open("rb") as file:
                head = file.read(HEAD)
            if not head:
                continue
            named, pid = _NAME.search(head), _PID.search(path.name)
            if not named or not pid:
                if len(head) > 4096:
                    self.known.add(path.name)  # another kind of worker
                continue
            self.known.add(path.name)
            told = {"app": named[1].decode("utf-8", "replace"), "pid": int(pid[1])}
            told["replica"] = self.ask["ids"].get(pid[1]) or self._id(pid[1])
            if self._wanted(told):
                self._take(path, told, begun)

    def _id(self, pid: str) -> str:
        for end in ("err", "out"):
            for path in self.folder.glob(f"worker-*-{pid}.{end}"):
                with path.open("rb") as file:
                    if found := _REPLICA.search(file.read(HEAD)):
                        return found[1].decode()
        return ""

    def _wanted(self, told: dict[str, Any]) -> bool:
        wanted = self.ask["app"] in ("", told["app"])
        return wanted and told["replica"].startswith(self.ask["replica"])

    def _take(self, path: Path, told: dict[str, Any], begun: bool) -> None:
        key = str(told["pid"])
        if key not in self.numbers:
            self.numbers[key] = len(self.numbers)
            write(b"=%d " % self.numbers[key] + json.dumps(told).encode())
        output = Output(path, self.numbers[key])
        self.outputs.append(output)
        if begun and (note := output.begin(self.ask, time.time())):
            write(b"!%d " % output.number + note.encode())

    def show(self, last: bool) -> bool:
        """Write what is new; tell whether there may be more."""
        more = False
        for output in self.outputs:
            more = output.read() or more
            for line in output.lines(last):
                if line:
                    write(b"-%d " % output.number + line)
        sys.stdout.buffer.flush()
        return more


def write(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")


def causes(folder: Path) -> list[dict[str, Any]]:
    """Return, for every replica that said why it cannot start, that and what tells it."""
    found = []
    for path in sorted(folder.glob("worker-*.[oe][ur][tr]")):
        with path.open("rb") as file:
            data = file.read(HEAD * 16)
        named, pid = _NAME.search(data), _PID.search(path.name)
        said = [line for line in data.split(b"\n") if _WHY.search(line)]
        if named and pid and said:
            cause = _CAUSE.search(said[-1])
            replica = _REPLICA.search(data)
            found.append(
                {
                    "app": named[1].decode("utf-8", "replace"),
                    "pid": int(pid[1]),
                    "replica": replica[1].decode() if replica else "",
                    "at": path.stat().st_mtime,
                    "cause": cause[1].decode("utf-8", "replace").strip() if cause else "",
                }
            )
    return found


def main() -> None:
    ask = json.loads(sys.argv[1])
    temp = os.environ.get("RAY_TMPDIR") or "/tmp"  # noqa: S108 - where Ray puts it
    session = Path(temp) / "ray" / "session_latest" / "logs"
    if not session.is_dir():
        sys.exit(3)
    folder = session.resolve()
    if ask.get("causes"):
        print(json.dumps(causes(folder)))  # noqa: T201 - the answer
        return
    replicas = SessionReplicas(folder, ask)
    replicas.find(begun=True)
    if not ask["follow"]:
        while replicas.show(last=False):
            pass
        replicas.show(last=True)
        return
    beat = time.monotonic()
    while True:
        more = replicas.show(last=False)
        if time.monotonic() - beat >= FIND_S:
            beat = time.monotonic()
            replicas.find(begun=False)
            write(b"")
            sys.stdout.buffer.flush()
        if not more:
            time.sleep(LOOK_S)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        os._exit(0)
