"""What a long operation says while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["step", "done", "failed", "note"]


@dataclass(frozen=True)
class Event:
    """One line about one host, or about the app."""

    subject: str
    text: str
    kind: Kind = "step"


Listener = Callable[[Event], None]
