"""The installed program, run as a person would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.terminal import Terminal, on_terminal

PROGRAM = Path(sys.executable).with_name("raycluster")


@dataclass
class Cli:
    """The program with a home of its own; `env` is added to an otherwise bare environment.

    `said` is all that it wrote when it was run to its end.
    """

    home: Path
    env: Mapping[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list, repr=False)

    def start(
        self, *args: str | Path, cwd: Path | None = None, background: bool = False
    ) -> subprocess.Popen[str]:
        """Start the program and return at once; in the background of a script it ignores SIGINT."""
        script = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh") if background else ()
        return subprocess.Popen(
            [*script, PROGRAM, *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd or self.home,
            env=self._environment(),
        )

    def on_terminal(self, *args: str | Path) -> Terminal:
        """Start the program on a terminal and return at once."""
        return on_terminal([PROGRAM, *args], env=self._environment(), cwd=self.home)

    def _environment(self) -> dict[str, str]:
        path = f"{PROGRAM.parent}:/usr/local/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", **self.env}

    def __call__(
        self, *args: str | Path, timeout: float = 240, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the program to its end; after `timeout` seconds it is killed and the test fails."""
        with self.start(*args, cwd=cwd) as program:
            try:
                out, err = program.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                program.kill()
                out, err = program.communicate()
                pytest.fail(f"raycluster {args} ran for over {timeout} s\n{out}\n{err}")
        self.said += [out, err]
        return subprocess.CompletedProcess(args, program.returncode, out, err)
