"""The engines: one file each, one protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from raycluster.serve.settings import ModelSettings

if TYPE_CHECKING:
    from raycluster.serve.engines.server import Place
    from raycluster.serve.figures import Figures

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]

Count = Callable[[int, int], None]
"""Takes the tokens of a request: of its prompt, and generated."""


class EngineError(Exception):
    """The engine refuses what it was asked for; the message is the root cause for the user."""


class Engine(Protocol):
    """One way to serve a model with OpenAI's API.

    `phases` maps the parts of the start to seconds, `versions` packages to versions; `figures` is
    of an engine that has a server of its own, None where it is an application in this process.
    """

    @property
    def name(self) -> str: ...
    @property
    def phases(self) -> Mapping[str, float]: ...
    @property
    def versions(self) -> Mapping[str, str]: ...
    @property
    def figures(self) -> Figures | None: ...

    async def start(self, settings: ModelSettings, count: Count) -> ASGI:
        """Load the model and return the application; raises whatever the engine raises.

        An engine that keeps no figures of its own calls `count` at the end of each request.
        """
        ...

    async def check(self) -> None:
        """Raise when the engine cannot serve any more."""
        ...

    async def quotas(self, others: bytes) -> bytes:
        """Tell what keys have used elsewhere, and return what they have used here; see `Quotas`."""
        ...

    async def stop(self) -> None:
        """End the engine's processes and free its memory; may be called twice."""
        ...


def make(name: str, place: Place) -> Engine:
    """Return the engine of this name, not started; its packages are imported by its `start`.

    One with a server of its own has it listen at `place`.
    """
    if name == "vllm":
        from raycluster.serve.engines.vllm import VllmEngine

        return VllmEngine(place)
    if name == "transformers":
        from raycluster.serve.engines.transformers import TransformersEngine

        return TransformersEngine()
    raise EngineError(f"there is no engine {name!r}")
