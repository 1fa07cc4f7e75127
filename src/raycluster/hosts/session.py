"""A spec that was read, with the connections and secrets that it names."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raycluster.core.printable import printable

if TYPE_CHECKING:
    from raycluster.hosts.fleet import Fleet
    from raycluster.spec import ClusterSpec
    from raycluster.spec.secret_values import Secrets


@dataclass(frozen=True)
class OpenedSpec:
    """A read spec and where it was read from."""

    path: Path
    spec: ClusterSpec

    @contextmanager
    def fleet(self, *, reconnect_in_background: bool = False) -> Iterator[Fleet]:
        """Yield connections to the spec's hosts, closed at the end; see Fleet."""
        from raycluster.hosts.fleet import Fleet

        cluster = self.spec.cluster
        with Fleet(
            cluster.name,
            int(cluster.parallel),
            TerminalPrompt(),
            reconnect_in_background=reconnect_in_background,
        ) as fleet:
            yield fleet

    def secrets(self) -> Secrets:
        """Return the spec's secrets, from where it says. Raises SecretError."""
        from raycluster.spec.secret_sources import resolve_all

        return resolve_all(self.spec, dotenv=self.path.parent / ".env")


def open_session(given: Path | None, named: Path | None = None) -> OpenedSpec:
    """Read the spec that the command line, the environment or the folder names.

    `given` is the argument and `named` the option. Raises UsageError where they differ.
    """
    from raycluster.core.errors import UsageError
    from raycluster.spec import locate, read_spec

    if given and named and given != named:
        raise UsageError(f"{given} and --spec {named}: two specs", hint="give one of them")
    path = locate(given or named)
    return OpenedSpec(path, read_spec(path))


class TerminalPrompt:
    """Asks on the terminal without echo, each question once for all hosts.

    The answer is empty where there is nobody to ask.
    """

    def __init__(self) -> None:
        self._answers: dict[str, str] = {}
        self._lock = threading.Lock()

    def __call__(self, prompt: str) -> str:
        """Return the answer; may be called from any thread."""
        import getpass

        from raycluster.core.console import asked

        if not sys.stdin.isatty():
            return ""
        with self._lock:
            if prompt not in self._answers:
                self._answers[prompt] = asked(lambda: getpass.getpass(printable(prompt)))
            return self._answers[prompt]

    def tell(self, text: str) -> None:
        """Say what is waited for; may be called from any thread."""
        sys.stderr.write(printable(text) + "\n")
