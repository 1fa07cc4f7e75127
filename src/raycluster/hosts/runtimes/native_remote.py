"""Asks a host of the native runtime, one round trip each, by programs that are sent along."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from raycluster.core.errors import AnswerError, HostError, RuntimeUnavailableError
from raycluster.core.interfaces import Transport
from raycluster.core.untrusted import not_understood, read_json

READING = (
    "hosts.runtimes.native_place",
    "hosts.runtimes.native_processes",
    "hosts.runtimes.native_host",
)
MODULES = (
    *READING[:2],
    *(
        "hosts.runtimes.native_crontab",
        "hosts.runtimes.native_systemd",
        "hosts.runtimes.native_needs",
    ),
    READING[2],
)
OLDEST_PYTHON = (3, 8)

_LOADER = """\
import json, sys, types
if sys.version_info < {oldest!r}:
    what = "python3 is %d.%d there" % sys.version_info[:2]
    print(json.dumps({{"error": what, "hint": "install Python %d.%d or newer" % {oldest!r}}}))
    sys.exit()
for name in {packages!r}:
    sys.modules[name] = types.ModuleType(name)
for name, text in json.loads({sources!r}):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.main()
"""


def host_program(command: str) -> bytes:
    """Return the source that `python3 -I -S - COMMAND ARGUMENTS` reads from standard input.

    `observe` gets the modules that it needs and no more: it runs often.
    """
    return _program(READING if command == "observe" else MODULES)


def supervisor_program() -> bytes:
    """Return the source of a host's supervisor.py."""
    return _program((*READING[:2], "core.last_words", "hosts.runtimes.supervisor"))


def _program(names: Sequence[str]) -> bytes:
    """Return one program of modules, of which the last has the `main`."""
    sources = [(f"raycluster.{name}", source(name)) for name in names]
    folders = {name.rpartition(".")[0] for name, _ in sources}
    packages = sorted({"raycluster", "raycluster.hosts"} | folders)
    told = {"packages": packages, "sources": json.dumps(sources)}
    return _LOADER.format(oldest=OLDEST_PYTHON, **told).encode()


def source(module: str) -> str:
    """Return the text of one of our modules."""
    path = f"{module.replace('.', '/')}.py"
    return (resources.files("raycluster") / path).read_text("utf-8")


LONGEST = 4096  # characters of a path, and of a reason
_PLACES = {
    **dict.fromkeys(("root", "temp", "owner", "home", "system_path", "uv"), str),
    **{"environment": dict, "uv_cache": bool, "complete": list},
}
TELLS: Mapping[str, Mapping[str, type]] = {
    "where": _PLACES,
    "stop": _PLACES,
    "needs": {"wrong": list},
    "observe": {"found": list},
    "launch": {"boot": str},
    "describe": {"root": str, "launch": str},
    "logs": {"older": list, "log": str, "begin": int, "end": int},
    "remove": {"removed": list},
    "read": {},
    "sockets": {"inodes": list},
    "neighbours": {"found": list},
}
"""What each command of native_host.py tells at least, and of which kind."""

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

    What any user of a host can read, the words of a command, should hold none of it.
    """
    return ("sh", "-c", _FIND_PYTHON, "raycluster", "-c", _ENTER, launch, *argv)


@dataclass(frozen=True)
class Remote:
    """A cluster's folder on a host; `root` is empty for the usual one."""

    host: str
    cluster: str
    transport: Transport
    root: str = ""

    def ask(self, command: str, timeout: float = 60.0, **arguments: object) -> dict[str, Any]:
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
        try:
            told = read_json(done.text.rpartition("\n")[2], "python3", self.host)
            answer = told.table()
        except AnswerError as error:
            said = done.error_text.splitlines()
            what = said[-1] if said else f"python3 exited with status {done.exit_code}"
            raise HostError(f"the native runtime cannot run: {what}", where=self.host) from error
        if "error" in answer:
            what, hint = told["error"].text(2000), told["hint"].text(2000)
            raise RuntimeUnavailableError(what, where=self.host, hint=hint)
        for name, kind in TELLS.get(command, {}).items():
            if not isinstance(answer.get(name), kind) or not _plain(answer[name]):
                raise not_understood(f"the native runtime ({command}: {name})", self.host)
        return answer


def _plain(value: object) -> bool:
    """Tell whether a text is one for a command, and a table or list of texts holds nothing else."""
    if isinstance(value, str):
        return "\0" not in value and len(value) < LONGEST
    if isinstance(value, dict):
        return all(isinstance(each, str) for each in value.values())
    return True
