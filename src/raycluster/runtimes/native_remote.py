"""Asks a host of the native runtime, one round trip each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from raycluster.contracts import Health, Transport, Versions
from raycluster.decode import MOST, decode, unread
from raycluster.errors import HostError, RecordError, RuntimeUnavailableError
from raycluster.runtimes.native_program import host_program

T = TypeVar("T")

# the system's own interpreter first: one that a version manager picks is slower and may change
_FIND_PYTHON = (
    "for p in /usr/bin/python3 python3; do"
    ' command -v $p >/dev/null 2>&1 && exec $p -I -S "$@"; done; exit 127'
)

_ENTER = """
import json, os, sys
with open(sys.argv[1]) as file:
    launch = json.load(file)
try:
    os.chdir(launch["cwd"])
    os.execvpe(sys.argv[2], sys.argv[2:], {**os.environ, **launch["env"]})
except OSError as error:
    print("%s: %s" % (sys.argv[2], error.strerror), file=sys.stderr)
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
"""


def entering(launch: str, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs `argv` with the environment in a launch.json, read there.

    What any user of a host can read, the words of a command, shall hold none of it.
    """
    return ("sh", "-c", _FIND_PYTHON, "raycluster", "-c", _ENTER, launch, *argv)


@dataclass(frozen=True)
class _Problem:
    error: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Place:
    """Where a cluster's things are on a host, and what is there."""

    root: str
    temp: str
    owner: str
    home: str
    environment: dict[str, str]
    system_path: str
    uv: str
    uv_cache: bool
    complete: list[str]
    amd: bool = False


@dataclass(frozen=True)
class Seen:
    """A role as it was found."""

    role: str
    fingerprint: str
    health: Health
    detail: str
    versions: Versions = field(default_factory=Versions)
    started: str = ""


@dataclass(frozen=True)
class Observed:
    """All roles that were found."""

    found: list[Seen]


@dataclass(frozen=True)
class Launched:
    """Why it will not start at boot, or empty."""

    boot: str


@dataclass(frozen=True)
class Described:
    """Where the root and a role's launch.json are."""

    root: str
    launch: str


@dataclass(frozen=True)
class Logged:
    """A role's logs, the oldest first, and what bytes of the last one are asked for."""

    older: list[str]
    log: str
    begin: int
    end: int


@dataclass(frozen=True)
class Content:
    """A file's content, in hexadecimal."""

    content: str


@dataclass(frozen=True)
class Removed:
    """What was removed."""

    removed: list[str]


@dataclass(frozen=True)
class Remote:
    """A cluster's folder on a host; `root` is empty for the usual one."""

    host: str
    cluster: str
    transport: Transport
    root: str = ""

    def ask(self, command: str, kind: type[T], timeout: float = 60.0, **arguments: object) -> T:
        """Run a command of native_host.py there; raises HostError with what it has to say."""
        question = json.dumps({"cluster": self.cluster, "root": self.root, **arguments})
        argv = ("sh", "-c", _FIND_PYTHON, "raycluster", "-", command, question)
        done = self.transport.run(argv, input=host_program(command), timeout=timeout)
        if done.exit_code == 127:
            raise RuntimeUnavailableError(
                "there is no python3",
                where=self.host,
                hint="install Python 3.8 or newer there (apt install python3), or use Docker",
            )
        lines = done.stdout.splitlines()
        try:
            problem = decode(
                lines[-1] if lines else b"", _Problem, what="the host's answer", most=4 * MOST
            )
        except RecordError as error:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            what = said[-1] if said else f"python3 ended with {done.exit_code}"
            raise HostError(f"the native runtime cannot work: {what}", where=self.host) from error
        if problem.error:
            raise RuntimeUnavailableError(problem.error, where=self.host, hint=problem.hint)
        answer: T = decode(
            lines[-1], kind, what="the host's answer", where=self.host, most=4 * MOST
        )
        return answer

    def read(self, path: str) -> bytes:
        """Return a file under the root. Raises RecordError where it is large or was not told."""
        told = self.ask("read", Content, path=path).content
        try:
            content = bytes.fromhex(told)
        except ValueError:
            content = bytes(MOST + 1)
        if len(content) > MOST:
            raise unread(path, f"longer than {MOST} bytes", self.host)
        return content
