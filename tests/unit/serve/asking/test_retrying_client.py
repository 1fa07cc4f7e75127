"""How often an endpoint with a limit is asked: simulated ones, on a clock that costs no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from raycluster.serve.asking.result import AskedLine, Reply, Result
from raycluster.serve.asking.retrying_client import RetryingClient, Tries

GOOD = Reply(200, b'{"choices": []}')


class Clock(asyncio.SelectorEventLoop):
    """An event loop in which to wait takes no time, but the clock goes on."""

    def __init__(self) -> None:
        super().__init__(_Nothing(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Nothing(selectors.SelectSelector):
    def __init__(self, loop: Clock) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        self._loop.now += timeout or 0.0
        return []


class Limit(Protocol):
    def takes(self, now: float) -> bool: ...


@dataclass
class Bucket:
    """As nginx's limit_req: so many a second, and a burst beyond it."""

    rate: float
    burst: float
    _level: float = 0.0
    _last: float = 0.0

    def takes(self, now: float) -> bool:
        self._level = max(0.0, self._level - (now - self._last) * self.rate)
        self._last = now
        if self._level > self.burst:
            return False
        self._level += 1
        return True


@dataclass
class Window:
    """So many in each window of seconds, which begin by the clock."""

    count: int
    seconds: float
    _number: int = -1
    _taken: int = 0

    def takes(self, now: float) -> bool:
        if int(now // self.seconds) != self._number:
            self._number, self._taken = int(now // self.seconds), 0
        self._taken += 1
        return self._taken <= self.count


@dataclass
class Endpoint:
    """Answers after `latency`; what the limit does not take is a 429 with these headers."""

    limit: Limit
    latency: float = 0.05
    headers: dict[str, str] = field(default_factory=dict)
    asked: int = 0

    async def post(self, path: str, content: bytes) -> Reply:
        self.asked += 1
        good = self.limit.takes(asyncio.get_running_loop().time())
        await asyncio.sleep(self.latency if good else 0.005)
        return GOOD if good else Reply(429, b"slow down", self.headers)

    def close(self) -> None: ...


def ask(
    monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, lines: int, slots: int = 64
) -> tuple[float, RetryingClient]:
    """Have every line answered; return how long that took, and who asked."""
    loop = Clock()
    monkeypatch.setattr("raycluster.serve.asking.retrying_client.time.monotonic", loop.time)
    asker = RetryingClient(Tries(), min(slots, lines))
    left = iter(range(lines))

    async def slot() -> None:
        for line in left:
            result = await asker.result(endpoint, AskedLine(line, str(line), "/", b"{}"))
            assert isinstance(result, Result) and result.error is None, result

    async def run() -> None:
        await asyncio.gather(*(slot() for _ in range(min(slots, lines))))

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())
    return loop.now, asker


def test_a_server_that_asks_for_more_than_a_line_has_is_asked_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Clock()
    monkeypatch.setattr("raycluster.serve.asking.retrying_client.time.monotonic", loop.time)

    class Server:
        asked = 0

        async def post(self, path: str, content: bytes) -> Reply:
            self.asked += 1
            return Reply(408, b"", {"retry-after": "3000"})

        def close(self) -> None: ...

    server, line = Server(), AskedLine(1, "1", "/", b"{}")
    client = RetryingClient(Tries(line_time=60.0), 1)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(client.result(server, line))
    assert result.error and result.error[0] == "http_408"
    assert server.asked == 2 and 60 <= loop.now < 70


@pytest.mark.parametrize("headers", [{}, {"retry-after": "1"}])
@pytest.mark.parametrize(
    ("limit", "lines", "best", "most"),
    [
        (lambda: Bucket(2, 5), 30, 12, 70),
        (lambda: Bucket(1, 0), 30, 30, 75),
        (lambda: Bucket(10, 20), 300, 28, 370),
        (lambda: Bucket(100, 0), 1000, 15, 1100),
        (lambda: Window(10, 60), 30, 120, 90),
        (lambda: Window(600, 60), 1200, 60, 1350),
    ],
)
def test_a_limit_of_requests_costs_few_attempts_and_little_time(  # noqa: PLR0917  # cases
    monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str],
    limit: Callable[[], Limit],
    lines: int,
    best: float,
    most: int,
) -> None:
    endpoint = Endpoint(limit(), headers=headers)
    took, asker = ask(monkeypatch, endpoint, lines)
    assert lines <= endpoint.asked == asker.counts.sent <= most
    assert took < 1.7 * best + 15


def test_refusals_that_are_nobodys_fault_do_not_stop_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Chance:
        def __init__(self) -> None:
            self.count = 0

        def takes(self, now: float) -> bool:
            self.count += 1
            return self.count % 25 != 0

    took, asker = ask(monkeypatch, Endpoint(Chance()), 2000)
    assert asker.counts.retried["http_429"] < 100
    assert took < 120


def test_without_refusals_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    took, asker = ask(monkeypatch, Endpoint(Bucket(1e9, 1e9), latency=1.0), 640)
    assert asker.counts.sent == 640 and took < 12
