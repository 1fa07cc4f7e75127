"""What an engine's own server counts: its load, and its figures in the words that are ours.

The text is in Prometheus's format. Our names stay where clients of the server are counted by the
server itself: they are made from its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Protocol

from raycluster.serve.metrics import FIRST_ANSWER

PERIOD_S = 2.0
SPAN_S = 10.0
"""How long ago the earlier figures are, to a period more."""

LOAD = re.compile(r"(?m)^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$")
"""What the engine works on, and what waits in it."""

_LINE = re.compile(r"^(\w[\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_STATUS = {"1xx": "100", "2xx": "200", "3xx": "300", "4xx": "400", "5xx": "500"}
"""vLLM's server counts by hundreds; ours stood for single ones."""

_HIDDEN = ("python_", "http_request_size", "http_response_size", "http_request_duration_highr")

logger = logging.getLogger("ray.serve")


class Asked(Protocol):
    """What the figures are asked of."""

    async def get(self, path: str) -> str: ...


class Figures:
    """The newest figures of a server, and those of some seconds ago.

    `also` returns what is to be told beside each, of which the argument is the server's.
    """

    def __init__(self) -> None:
        self.server: Asked | None = None
        self.also: Callable[[str], str] = lambda _: ""
        self._kept: deque[tuple[float, str]] = deque()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except Exception as error:
                logger.warning("raycluster: the engine's metrics are not available: %r", error)
            await asyncio.sleep(PERIOD_S)

    async def look(self) -> str:
        """Ask the server, and return and keep what it said."""
        if self.server is None:
            return ""
        text = kept(await self.server.get("/metrics"))
        now = time.monotonic()
        self._kept.append((now, text + self.also(text)))
        while len(self._kept) > 1 and self._kept[1][0] <= now - SPAN_S:
            self._kept.popleft()
        return text

    async def load(self) -> float:
        """Return how many requests the engine has now, those that wait included."""
        return load(await self.look())

    @property
    def last(self) -> str:
        """The newest figures, or ""."""
        return self._kept[-1][1] if self._kept else ""

    async def newest(self) -> str:
        """Return the figures of this moment, or the last ones."""
        with suppress(Exception):
            await asyncio.wait_for(self.look(), PERIOD_S)
        return self.last

    def earliest(self) -> tuple[float, str] | None:
        """Return how many seconds ago the oldest kept figures were true, and these."""
        if not self._kept:
            return None
        at, text = self._kept[0]
        return time.monotonic() - at, text


def load(text: str) -> float:
    """Return the requests in the engine, running and waiting, of all its ranks."""
    return sum(float(value) for value in LOAD.findall(text))


def kept(text: str) -> str:
    """Return the figures that are worth passing on."""
    lines = text.splitlines(keepends=True)
    return "".join(
        x
        for x in lines
        if not x.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(_HIDDEN)
    )


def ours(text: str, model: str, engine: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of our figures, from the server's own."""
    own = {"model": model, "engine": engine}
    for name, labels, value in parsed(text):
        if name == "http_requests_total":
            status = _STATUS.get(labels["status"], labels["status"])
            endpoint = labels["handler"] if labels["handler"] != "none" else "other"
            yield (
                "raycluster_requests_total",
                {**own, "endpoint": endpoint, "status": status},
                value,
            )
        elif name.startswith("http_request_duration_seconds_") and "created" not in name:
            part = name.removeprefix("http_request_duration_seconds_")
            bound = {"le": labels["le"]} if "le" in labels else {}
            told = {**own, "endpoint": labels["handler"], **bound}
            yield f"raycluster_request_duration_seconds_{part}", told, value
        elif name.startswith("vllm:time_to_first_token_seconds_") and "created" not in name:
            part = name.removeprefix("vllm:time_to_first_token_seconds_")
            bound = {"le": labels["le"]} if "le" in labels else {}
            yield f"{FIRST_ANSWER}_{part}", {**own, "endpoint": "all", **bound}, value


def parsed(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of each sample."""
    for line in text.splitlines():
        if found := _LINE.match(line):
            yield found[1], dict(_LABEL.findall(found[2] or "")), float(found[3])


def written(samples: Iterable[tuple[str, dict[str, str], float]]) -> str:
    """Return the samples as text."""
    lines = []
    for name, labels, value in samples:
        told = ",".join(f'{key}="{text}"' for key, text in labels.items())
        lines.append(f"{name}{{{told}}} {value}\n")
    return "".join(lines)
