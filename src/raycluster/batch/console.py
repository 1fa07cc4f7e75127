"""Says what happens on standard error: a live line on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from raycluster.batch.run import BatchConsole

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_SECONDS = 5.0


@contextmanager
def batch_console(out: TextIO, console: Console) -> Iterator[BatchConsole]:
    """Yield where a run's words go; plain lines of progress are five seconds apart."""

    def tell(line: str) -> None:
        console.print(line, markup=False)

    if not console.is_terminal:
        last = time.monotonic()

        def progress(line: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _PLAIN_SECONDS:
                last = time.monotonic()
                tell(line)

        yield BatchConsole(out, tell, progress)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, transient=True, auto_refresh=False) as live:
        yield BatchConsole(out, tell, lambda line: live.update(Text(line), refresh=True))
