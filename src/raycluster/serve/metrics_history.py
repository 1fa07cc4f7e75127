"""What a replica had counted some seconds ago: one look at it then tells what happened since."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from raycluster.serve.metrics import FIRST_ANSWER, PREFIXES, again_and_again

PERIOD_S = 2.0
SPAN_S = 10.0


class MetricsHistory:
    """Keeps the counters of the last seconds as text, the oldest `SPAN_S` to a period more ago.

    Its series are those of the metrics that are there when it begins.
    """

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chosen = registry.restricted_registry(list(_series(registry)))
        self._clock = clock
        self._kept: deque[tuple[float, bytes]] = deque()

    async def run(self) -> None:
        """Keep for ever, off the event loop."""
        await again_and_again(self.keep, PERIOD_S, "cannot record metrics")

    def keep(self) -> None:
        """Keep the figures of this moment."""
        now = self._clock()
        self._kept.append((now, generate_latest(self._chosen)))
        while len(self._kept) > 1 and self._kept[1][0] <= now - SPAN_S:
            self._kept.popleft()

    def earliest(self) -> tuple[float, bytes] | None:
        """Return how many seconds ago the oldest kept text was true, and the text; None at first.

        The text is in Prometheus's format.
        """
        if not self._kept:
            return None
        at, text = self._kept[0]
        return self._clock() - at, text


def _series(registry: CollectorRegistry) -> Iterator[str]:
    """Yield the names of counters and gauges that are ours or vLLM's, and of few series besides.

    Histograms cost most, in time and text: there is the one that `status` makes percentiles of.
    """
    yield from (f"{FIRST_ANSWER}_bucket", "process_start_time_seconds")
    for metric in registry.collect():
        if metric.name.startswith(PREFIXES) and metric.type in ("counter", "gauge"):
            yield f"{metric.name}_total" if metric.type == "counter" else metric.name
