"""Shows events while they happen: a live line per host on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raycluster.core.events import Event, Listener

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

_MARKS = {"step": "·", "done": "✓", "failed": "✗", "note": "!"}
_STYLES = {"step": "dim", "done": "green", "failed": "red", "note": "yellow"}


@contextmanager
def progress(console: Console) -> Iterator[Listener]:
    """Yield a listener, safe to call from any thread, that shows events on `console`."""
    try:
        with _shown(console) as listen:
            yield listen
    except KeyboardInterrupt:
        console.out("interrupted; run `raycluster up` or `down` to continue from here")
        raise


@contextmanager
def _shown(console: Console) -> Iterator[Listener]:
    if not console.is_terminal:
        lock = threading.Lock()

        def say(event: Event) -> None:
            with lock:
                console.out(f"{event.subject}: {event.text}", highlight=False)

        yield say
        return
    from rich.live import Live

    board = _Board()
    with Live(board, console=console, refresh_per_second=8, transient=True):
        try:
            yield lambda event: board.take(console, event)
        finally:
            board.finish(console)


class _Board:
    """The latest line of each subject, with the seconds since it came."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[Event, float]] = {}
        self._lock = threading.Lock()

    def take(self, console: Console, event: Event) -> None:
        from rich.text import Text

        with self._lock:
            self._lines[event.subject] = (event, time.monotonic())
        if event.kind == "note":
            console.print(Text(f"! {event.subject}: {event.text}", style=_STYLES["note"]))

    def finish(self, console: Console) -> None:
        for event, _ in self._lines.values():
            if event.kind != "note":
                console.print(_line(event, ""))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            lines = list(self._lines.values())
        now = time.monotonic()
        for event, since in lines:
            seconds = f"  {now - since:.0f} s" if event.kind == "step" and now - since > 1 else ""
            yield _line(event, seconds)


def _line(event: Event, seconds: str) -> Text:
    from rich.text import Text

    style = _STYLES[event.kind]
    line = Text.assemble(
        (f"{_MARKS[event.kind]} ", style), (f"{event.subject:<12} ", "bold"), event.text
    )
    line.append(seconds, style="dim")
    line.no_wrap, line.overflow = True, "ellipsis"
    return line
