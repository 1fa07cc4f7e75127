"""The stage of the pipeline that asks: one actor per node, which asks its node's own way in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raycluster.serve.asking.result import Reply, Result, UnansweredError
from raycluster.serve.asking.retrying_client import AwayError, NoEntryError, RetryingClient
from raycluster.serve.asking.sender import RequestSender
from raycluster.serve.offline.order import AWAY, NO_ENTRY, Order, decode_job

if TYPE_CHECKING:
    import pyarrow

TOGETHER_S = 0.5
"""What is answered within so many seconds leaves together: a block of Ray's costs milliseconds."""


class Ways:
    """A connection that goes to the next address when it is refused at one."""

    def __init__(self, addresses: Sequence[str], timeout: float) -> None:
        self._senders = deque(RequestSender(address, timeout) for address in addresses)

    async def post(self, path: str, content: bytes) -> Reply:
        """Send once, never again; raises UnansweredError."""
        try:
            return await self._senders[0].post(path, content)
        except UnansweredError as error:
            if error.code == "connection":
                self._senders.rotate(-1)
            raise

    def close(self) -> None:
        """Drop the connections."""
        for sender in self._senders:
            sender.close()


class TableStage:
    """Takes tables of `lines`, pieces of the input, and yields tables of what `rows` returns."""

    def __init__(self, order: bytes, limit: int) -> None:
        self._order = Order.decode(order)
        self._asker = RetryingClient(self._order.tries, limit)
        self._addresses = addresses(self._order)
        self._idle: list[Ways] = []
        self._sent = 0
        self._retried: Counter[str] = Counter()

    async def __call__(self, table: pyarrow.Table) -> AsyncIterator[pyarrow.Table]:
        """Ask for every line of the table."""
        from pyarrow import table as new

        pieces: list[bytes] = table.column("lines").to_pylist()
        async for block in self.ask(line for piece in pieces for line in piece.splitlines()):
            yield new(block)

    async def ask(self, lines: Iterable[bytes]) -> AsyncIterator[dict[str, Any]]:
        """Yield blocks until each line has its result, or one that says why that cannot be."""
        tasks = {asyncio.ensure_future(self._result(line)) for line in lines}
        try:
            while tasks:
                done, tasks = await asyncio.wait(tasks, timeout=TOGETHER_S)
                try:
                    results = [task.result() for task in done]
                    self._asker.check_patience()
                except NoEntryError as error:
                    yield rows(error=(NO_ENTRY, str(error)))
                    return
                except AwayError as error:
                    yield rows(error=(AWAY, str(error)))
                    return
                if results:
                    fingerprint = self._order.fingerprint
                    yield rows([r.encode(fingerprint) for r in results], counts=self._counted())
        finally:
            for task in tasks:
                task.cancel()

    async def _result(self, line: bytes) -> Result:
        ways = self._idle.pop() if self._idle else Ways(self._addresses, self._order.tries.timeout)
        try:
            return await self._asker.result(ways, decode_job(line))
        finally:
            self._idle.append(ways)

    def _counted(self) -> tuple[int, Mapping[str, int]]:
        """Return what was sent, and sent again, since this was asked last."""
        counts = self._asker.counts
        sent, retried = counts.sent - self._sent, counts.retried - self._retried
        self._sent, self._retried = counts.sent, counts.retried.copy()
        return sent, retried


def rows(
    results: Sequence[bytes] = (),
    *,
    counts: tuple[int, Mapping[str, int]] | None = None,
    error: tuple[str, str] | None = None,
) -> dict[str, list[Any]]:
    """Return a block of `result`, `counts` and `error`: lines of results, and then one row of the
    others as JSON, empty for none."""
    more = [""] * len(results)
    return {
        "result": [*results, b""],
        "counts": [*more, json.dumps(counts) if counts else ""],
        "error": [*more, json.dumps(error) if error else ""],
    }


def addresses(order: Order) -> list[str]:
    """Return where to ask, this node's own way in first; a node without replicas has none."""
    own, head = f"http://127.0.0.1:{order.port}", f"http://{order.head}:{order.port}"
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", order.port), 2).close()
        return [own, head]
    return [head, own]
