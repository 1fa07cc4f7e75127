"""`status --watch`: one look after the other, in place, until Ctrl-C."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from raycluster.core.errors import RayclusterError
from raycluster.status.view import status_view

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from raycluster.status.ask import Standing

_TICK_S = 1.0


class Ages:
    """Says how old what is shown is, and why a refresh failed; times on the monotonic clock."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._began = 0.0
        self._seen: float | None = None
        self._error = ""

    def begins(self, now: float) -> None:
        """Note that a look begins."""
        self._began = now

    def seen(self) -> None:
        """Note that the look that began last is shown."""
        self._seen, self._error = self._began, ""

    def failed(self, why: str) -> None:
        """Note that it failed."""
        self._error = why

    def line(self, now: float, *, looking: bool) -> Text:
        """Return one line."""
        from rich.text import Text

        age = None if self._seen is None else now - self._seen
        parts = [f"every {self._every:g} s, Ctrl-C to stop"]
        late = age is not None and age >= self._every + 2 * _TICK_S
        if late:
            parts.insert(0, f"as of {age:.0f} s ago")
        if self._error:
            parts.insert(0, f"the refresh failed: {self._error}")
        elif looking and late:
            parts.insert(1, f"watching for {now - self._began:.0f} s")
        style = "bold red" if self._error else "yellow" if late else "dim"
        return Text("; ".join(parts), style=style, no_wrap=True, overflow="ellipsis")


def watch(look: Callable[[], Standing], console: Console, every: float) -> None:
    """Show look after look, `every` so many seconds, until Ctrl-C; an error does not end it."""
    from rich.live import Live
    from rich.text import Text

    ages = Ages(every)
    shown: Standing | None = None
    wake = threading.Event()
    pool = ThreadPoolExecutor(1, "look")
    looking: Future[Standing] | None = None
    begins = time.monotonic()
    try:
        with Live(
            Text("reading the cluster's state ..."),
            console=console,
            screen=True,
            auto_refresh=False,
        ) as live:
            while True:
                now = time.monotonic()
                if looking is None and now >= begins:
                    ages.begins(now)
                    begins = now + every
                    looking = pool.submit(look)
                    looking.add_done_callback(lambda _: wake.set())
                if looking is not None and looking.done():
                    try:
                        shown = looking.result()
                        ages.seen()
                    except Exception as error:  # whatever it is: the next look may succeed
                        ages.failed(_why(error))
                    looking = None
                line = ages.line(time.monotonic(), looking=looking is not None)
                live.update(status_view(shown, line, screen=True) if shown else line, refresh=True)
                left = _TICK_S if looking else max(0.0, begins - time.monotonic())
                wake.wait(min(_TICK_S, left))
                wake.clear()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def print_each(look: Callable[[], Standing], console: Console, every: float) -> None:
    """Print look after look below each other, where nobody looks on; until Ctrl-C."""
    while True:
        try:
            console.print(status_view(look()))
        except RayclusterError as error:
            console.print(f"the refresh failed: {_why(error)}", markup=False)
        time.sleep(every)


def _why(error: Exception) -> str:
    if isinstance(error, RayclusterError):
        return error.what
    return f"{type(error).__name__}: {error}"
