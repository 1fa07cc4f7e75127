"""Makes one program of the modules that run on hosts, so that it can be sent as standard input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources

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
