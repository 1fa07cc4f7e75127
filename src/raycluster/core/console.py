"""Rich's console, which writes nothing of others but what is printable: no escapes, no markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TextIO

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
