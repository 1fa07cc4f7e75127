"""Questions on the terminal, which one press of Ctrl-C ends."""

from __future__ import annotations

import contextlib
import sys
import termios
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

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
