"""Makes one program of the modules that run on hosts, so that it can be sent as standard input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources

READING = ("runtimes.native_place", "runtimes.native_processes", "runtimes.native_host")
MODULES = (
    *READING[:2],
    *("runtimes.native_crontab", "runtimes.native_systemd", "runtimes.native_needs"),
    READING[2],
)
OLDEST_PYTHON = (3, 8)

_LOADER = """\
import json, sys, types
if sys.version_info < {oldest!r}:
    what = "python3 is %d.%d there" % sys.version_info[:2]
    print(json.dumps({{"error": what, "hint": "install Python %d.%d or newer" % {oldest!r}}}))
    sys.exit()
for name in ("raycluster", "raycluster.runtimes"):
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
    return _program((*READING[:2], "last_words", "runtimes.supervisor"))


def _program(names: Sequence[str]) -> bytes:
    """Return one program of modules, of which the last has the `main`."""
    sources = [(f"raycluster.{name}", source(name)) for name in names]
    return _LOADER.format(oldest=OLDEST_PYTHON, sources=json.dumps(sources)).encode()


def source(module: str) -> str:
    """Return the text of one of our modules."""
    path = f"{module.replace('.', '/')}.py"
    return (resources.files("raycluster") / path).read_text("utf-8")
