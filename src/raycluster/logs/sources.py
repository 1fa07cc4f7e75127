"""What lines come from: a process by its runtime, and replicas by a program inside their node."""

from __future__ import annotations

import inspect
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast

from raycluster.core.accelerators.values import clean
from raycluster.core.errors import AnswerError, CommandError
from raycluster.core.interfaces import PYTHON, Channel
from raycluster.core.untrusted import Told, read_json, too_much
from raycluster.hosts.fleet import Connected
from raycluster.logs import on_node
from raycluster.logs.choose import ReplicaChoice
from raycluster.logs.lines import Whole
from raycluster.logs.read import Line, LogRequest

MOST_LABELS = 10_000
_NO_SESSION = 3  # what on_node ends with where Ray has written nothing


@dataclass(frozen=True)
class ProcessSource:
    """What one of our processes wrote, as its runtime keeps it."""

    connected: Connected
    role: str

    @property
    def label(self) -> str:
        """The host's name, and the role where that is not its node of Ray."""
        host = self.connected.host
        return host.name if self.role == host.role else f"{host.name}/{self.role}"

    def lines(self, asked: LogRequest) -> Iterator[Line | None]:
        """Yield whole lines; None for each chunk that had none."""
        whole = Whole()
        chunks = self.connected.runtime.logs(
            self.role, follow=asked.follow, tail=asked.tail, since=asked.since
        )
        with closing(cast("Generator[bytes, None, None]", chunks)):
            for chunk in chunks:
                lines = whole.feed(chunk)
                yield from (Line(self.label, line) for line in lines)
                if not lines:
                    yield None
        yield from (Line(self.label, line) for line in whole.end())


@dataclass(frozen=True)
class ReplicaSource:
    """What replicas on one node wrote; `ids` are those that run there, by process id."""

    connected: Connected
    wanted: ReplicaChoice
    models: Mapping[str, str]
    ids: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The host's name, for what is not about one replica."""
        return self.connected.host.name

    def lines(self, asked: LogRequest) -> Iterator[Line | None]:
        """Yield the lines of all replicas there, each labelled HOST/MODEL:ID."""
        ask = {
            "follow": asked.follow,
            "tail": asked.tail,
            "since": asked.since,
            "app": self.wanted.app,
            "replica": self.wanted.replica,
            "ids": dict(self.ids),
        }
        whole, labels = Whole(), dict[bytes, str]()
        stream = inside(self.connected, ask)
        try:
            with closing(stream):
                for channel, chunk in stream:
                    for line in whole.feed(chunk) if channel == "stdout" else ():
                        yield self._line(line, labels)
        except CommandError as error:
            if error.status != _NO_SESSION:
                raise

    def _line(self, line: bytes, labels: dict[bytes, str]) -> Line | None:
        kind = line[:1]
        number, _, rest = line[1:].partition(b" ")
        if kind == b"=":
            try:
                labels[number] = self._name(read_json(rest, "the log reader"))
            except AnswerError:
                return None  # its lines come under the host's name
            if len(labels) > MOST_LABELS:
                raise too_much("the log reader", self.label, MOST_LABELS)
            return None
        if kind not in (b"-", b"!"):
            return None
        return Line(labels.get(number, self.label), rest, note=kind == b"!")

    def _name(self, told: Told) -> str:
        app = clean(told["app"].text(), 100)
        replica = clean(told["replica"].text(), 100) or told["pid"].whole()
        return f"{self.connected.host.name}/{self.models.get(app, app)}:{replica}"


def inside(
    connected: Connected, ask: Mapping[str, Any]
) -> Generator[tuple[Channel, bytes], None, None]:
    """Run the program on a node, which is asked this. Raises HostError."""
    argv = (*PYTHON, "-u", "-c", inspect.getsource(on_node), json.dumps(dict(ask)))
    stream = connected.runtime.inside(connected.host.role).stream(argv)
    return cast("Generator[tuple[Channel, bytes], None, None]", stream)
