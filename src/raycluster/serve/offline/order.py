"""What the laptop and the job leave for each other in a folder on the head; pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from raycluster.serve.asking.result import AskedLine, Fingerprint
from raycluster.serve.asking.retrying_client import Tries

ORDER_FILE = "order.json"
INPUT_FILE = "in.jsonl"
JOB_FILE = "job"
RESULTS_FILE = "out.jsonl"
STATE_FILE = "state.json"
MODULE = "raycluster.serve.offline.job"
NEEDED = ("pyarrow", "pandas")
"""What Ray Data imports beside Ray Serve's own requirements."""

AWAY, NO_ENTRY = "away", "no entry"


@dataclass(frozen=True)
class Order:
    """What is to be asked, and how.

    `port` is that of Serve's HTTP, `head` the head's address among the nodes. `concurrency` is the
    most requests at once, of all nodes together; `last` the highest number of a line.
    """

    fingerprint: Fingerprint
    tries: Tries
    head: str
    port: int
    concurrency: int
    last: int

    def encode(self) -> bytes:
        """Return the order file's content."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, content: bytes) -> Order:
        """Return what `encode` was called on."""
        told: dict[str, Any] = json.loads(content)
        fingerprint, tries = Fingerprint(**told.pop("fingerprint")), Tries(**told.pop("tries"))
        return cls(fingerprint=fingerprint, tries=tries, **told)


@dataclass
class JobState:
    """How far a job is; `error` is what ended it, and `kind` AWAY, NO_ENTRY or nothing."""

    sent: int = 0
    retried: dict[str, int] = field(default_factory=dict)
    error: str = ""
    kind: str = ""
    over: bool = False

    def count(self, sent: int, retried: Mapping[str, int]) -> None:
        """Add what an actor has counted since it told last."""
        self.sent += sent
        for code, number in retried.items():
            self.retried[code] = self.retried.get(code, 0) + number

    def encode(self) -> bytes:
        """Return the state file's content."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, content: bytes) -> JobState:
        """Return what `encode` was called on; of nothing, a job that has not begun."""
        return cls(**json.loads(content)) if content else cls()


def encode_job(job: AskedLine) -> bytes:
    """Return the line of the input file that stands for a request."""
    return json.dumps([job.line, job.custom_id, job.path, job.content.decode()]).encode() + b"\n"


def decode_job(line: bytes) -> AskedLine:
    """Return the request that a line of the input file stands for."""
    number, custom_id, path, content = json.loads(line)
    return AskedLine(number, custom_id, path, content.encode())


@dataclass(frozen=True)
class Shares:
    """How work is dealt: so many actors, each asking `limit` at once, in pieces of `piece` lines.

    An actor has `pieces` at a time. Of four times as many lines as it may ask for, half are
    answered on average, and there are always enough of the others.
    """

    actors: int
    limit: int
    piece: int
    pieces: int

    @classmethod
    def of(cls, nodes: int, concurrency: int) -> Shares:
        """Return the shares of so many nodes."""
        actors = max(1, min(nodes, concurrency))
        limit = -(-concurrency // actors)
        piece = max(1, min(64, limit // 4))
        return cls(actors, limit, piece, -(-4 * limit // piece))


def ranges(lines: Iterable[bytes], piece: int) -> Iterator[tuple[int, int]]:
    """Yield offset and size of every so many lines of a file."""
    begin = size = count = 0
    for line in lines:
        size += len(line)
        count += 1
        if count == piece:
            yield begin, size
            begin, size, count = begin + size, 0, 0
    if size:
        yield begin, size
