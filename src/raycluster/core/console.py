"""The terminal: only what is printable is written to it, and one Ctrl-C ends a question."""

from __future__ import annotations

import contextlib
import sys
import termios
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any, TextIO, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from raycluster.core.printable import printable


class SafeConsole(Console):
    """A console on a stream; where that is no terminal, lines are as long as they are."""

    def __init__(self, stream: TextIO) -> None:
        terminal = stream.isatty()
        super().__init__(
            file=getattr(stream, "raw", stream),  # this class guards what it writes itself
            markup=False,
            emoji=False,
            highlight=False,
            soft_wrap=not terminal,
            width=None if terminal else 1_000_000,  # characters: a program reads whole lines
        )

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401  # as they come
        """Return the text without what a terminal would obey."""
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the parts of what is shown: the console's own commands, and printable text."""
        if isinstance(renderable, Text):
            renderable = _safe(renderable)
        for segment in super().render(renderable, options):
            yield segment if segment.control else _printable(segment)


def _safe(text: Text) -> Text:
    """Return the text, or where it holds what must not be printed another, in one colour."""
    plain = printable(text.plain)
    if plain == text.plain:
        return text
    return Text(
        plain,
        text.style,
        justify=text.justify,
        overflow=text.overflow,
        no_wrap=text.no_wrap,
        end=text.end,
    )


def _printable(segment: Segment) -> Segment:
    """Return the segment without what a terminal would obey, a hidden link among it."""
    style = segment.style
    if style and style.link:
        style = style.update_link(None)
    return Segment(printable(segment.text, None), style)


T = TypeVar("T")
_modes: list[Any] = []


def asked(question: Callable[[], T]) -> T:
    """Return what `question` returns, which another thread waits for.

    A thread that waits for input itself misses a signal that comes just before.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:  # the caller's own
            answer.set_exception(error)

    with contextlib.suppress(termios.error, ValueError):  # no terminal
        _modes[:] = termios.tcgetattr(sys.stdin.fileno())
    threading.Thread(target=ask, daemon=True).start()
    while wait([answer], timeout=1.0).not_done:
        pass  # a signal that comes just before a wait is heeded after it
    _modes.clear()
    return answer.result()


def leave() -> None:
    """Let the terminal show again what is typed, where the program ends at a question."""
    if _modes:
        with contextlib.suppress(termios.error, ValueError):
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, _modes)
