"""Lets as many requests pass as pace and rate allow, in turn, and none during a pause."""

from __future__ import annotations

import asyncio
from collections import deque

from raycluster.serve.asking.adaptive_limiter import AdaptiveLimiter
from raycluster.serve.asking.rate import Rate


class RequestGate:
    """An async context manager around one attempt; lives in one event loop."""

    def __init__(self, pace: AdaptiveLimiter, rate: Rate) -> None:
        self.in_flight = 0
        self._pace = pace
        self._rate = rate
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed_until = 0.0

    async def __aenter__(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            raise

    async def __aexit__(self, *_error: object) -> None:
        self._leave()

    def pause(self, seconds: float) -> None:
        """Let nothing pass for so long; a longer pause stands."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if until > self._closed_until:
            self._closed_until = until
            loop.call_at(until, self._admit)

    def _leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._waiting and self.in_flight < int(self._pace.limit):
            if now < self._closed_until:
                return
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
                if gap := self._rate.gap:
                    self.pause(gap)
