"""What every command begins with: the spec, the console, connections, the tone of errors."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import typer

from raycluster.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from raycluster.connect import Fleet
    from raycluster.services.wiring import Secrets
    from raycluster.spec import ClusterSpec

T = TypeVar("T")

SpecPath = Annotated[
    Path | None,
    typer.Argument(
        metavar="SPEC",
        help="The cluster's TOML file. Default: $RAYCLUSTER_SPEC, else ./cluster.toml.",
        show_default=False,
    ),
]
SpecOption = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        "-s",
        help="The cluster's TOML file. Default: $RAYCLUSTER_SPEC, else ./cluster.toml.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@dataclass(frozen=True)
class Session:
    """A read spec and where it was read from."""

    path: Path
    spec: ClusterSpec

    @contextmanager
    def fleet(self, *, beside: bool = False) -> Iterator[Fleet]:
        """Yield connections to the spec's hosts, closed at the end; for `beside` see Fleet."""
        from raycluster.connect import Fleet

        cluster = self.spec.cluster
        with Fleet(cluster.name, int(cluster.parallel), Asker(), beside=beside) as fleet:
            yield fleet

    def secrets(self) -> Secrets:
        """Return the spec's secrets, from where it says. Raises SecretError."""
        from raycluster.secrets import resolve_all

        return resolve_all(self.spec, dotenv=self.path.parent / ".env")


def open_session(given: Path | None, named: Path | None = None) -> Session:
    """Read the spec that the command line, the environment or the folder names.

    `given` is the argument and `named` the option. Raises UsageError where they differ.
    """
    from raycluster.errors import UsageError
    from raycluster.spec import locate, read_spec

    if given and named and given != named:
        raise UsageError(f"{given} and --spec {named}: two specs", hint="give one of them")
    path = locate(given or named)
    return Session(path, read_spec(path))


class Asker:
    """Asks on the terminal without echo, each question once for all hosts.

    The answer is empty where there is nobody to ask.
    """

    def __init__(self) -> None:
        self._answers: dict[str, str] = {}
        self._lock = threading.Lock()

    def __call__(self, prompt: str) -> str:
        """Return the answer; may be called from any thread."""
        import getpass

        if not sys.stdin.isatty():
            return ""
        with self._lock:
            if prompt not in self._answers:
                self._answers[prompt] = getpass.getpass(printable(prompt))
            return self._answers[prompt]

    def tell(self, text: str) -> None:
        """Say what is waited for; may be called from any thread."""
        sys.stderr.write(printable(text) + "\n")


def confirm(question: str, would: str, *, where: str, hint: str) -> None:
    """Return when a person says yes. Raises UsageError where there is nobody to ask."""
    from raycluster.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError(
            f"{would}, but there is no terminal to ask for confirmation", where=where, hint=hint
        )
    typer.confirm(question, abort=True, err=True)


@contextmanager
def ended(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Yield the iterator and close it at the end, also when Ctrl-C came between two items."""
    try:
        yield items
    finally:
        if isinstance(items, Generator):
            items.close()


def out() -> Console:
    """Return the console for results."""
    return _console(sys.stdout)


def err() -> Console:
    """Return the console for progress and errors."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    from raycluster.console import SafeConsole

    return SafeConsole(stream)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object, and nothing else, on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=False) + "\n")
