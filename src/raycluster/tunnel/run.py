"""Forwards the head's endpoints until Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread
from types import FrameType

from raycluster.core.interfaces import Tell
from raycluster.tunnel.keep import Route, keep
from raycluster.tunnel.ports import LOOPBACK, Forward, choose_ports

ENDPOINTS = {
    "api": ("API", "http://127.0.0.1:{port}/v1"),
    "gateway": ("gateway", "http://127.0.0.1:{port}/v1"),
    "dashboard": ("Ray dashboard", "http://127.0.0.1:{port}"),
    "prometheus": ("Prometheus", "http://127.0.0.1:{port}"),
    "grafana": ("Grafana", "http://127.0.0.1:{port}"),
}
"""Name under `[ports]` -> what it is called and where its interesting path is."""

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 3.0
"""Seconds to take leave of the host after Ctrl-C; ssh ends with this process in any case."""


def endpoints(
    ports: Mapping[str, int], *, address: str = LOOPBACK, scheme: str = "http"
) -> tuple[Forward, ...]:
    """Return the forwards for those `ports` that have a place in ENDPOINTS, in its order.

    `address` is where they listen as the head sees it; `scheme` is the gateway's.
    """
    return tuple(
        Forward(
            label,
            (address, ports[name]),
            url=url.replace("http:", f"{scheme}:") if name == "gateway" else url,
        )
        for name, (label, url) in ENDPOINTS.items()
        if name in ports
    )


Note = Callable[[Sequence[Forward]], AbstractContextManager[None]]


def run(
    route: Route,
    forwards: Sequence[Forward],
    tell: Tell,
    note: Note = lambda _: nullcontext(),
) -> None:
    """Forward until Ctrl-C or a request to end, which is the normal way out; raises HostError.

    `note` is entered for that time with what is forwarded, where there is anything to forward.
    """
    chosen = tuple(forwards) if route.local else choose_ports(forwards)
    events: SimpleQueue[Exception | None] = SimpleQueue()
    stop = Event()

    def work() -> None:
        try:
            keep(route, chosen, tell, stop)
        except Exception as error:
            events.put(error)
        else:
            events.put(None)

    worker = Thread(target=work, daemon=True)
    with _ends_reported_to(events), nullcontext() if route.local else note(chosen):
        worker.start()
        outcome = _first(events)
        stop.set()
        worker.join(PATIENCE)
    if outcome is not None:
        raise outcome


def _first(events: SimpleQueue[Exception | None]) -> Exception | None:
    while True:
        with suppress(Empty):
            return events.get(timeout=1.0)  # a signal just before a wait is heeded after it


@contextmanager
def _ends_reported_to(events: SimpleQueue[Exception | None]) -> Iterator[None]:
    def note(_number: int, _frame: FrameType | None) -> None:
        events.put(None)  # unlike an Event, this queue may be used where a signal interrupts it

    heeded = [n for n in ENDS if signal.getsignal(n) is not signal.SIG_IGN]  # `nohup` ignores one
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
