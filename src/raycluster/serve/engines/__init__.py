"""The engines: one file each, one protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from raycluster.serve.settings import ModelSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]

Count = Callable[[int, int], None]
"""Takes the tokens of a request: of its prompt, and generated."""


class EngineError(Exception):
    """The engine refuses what it was asked for; the message is the root cause for the user."""


class Engine(Protocol):
    """One way to serve a model with OpenAI's API, in this process.

    `phases` maps the parts of the start to seconds, `versions` packages to versions; `tasks` are
    vLLM's names for what a started engine can do.
    """

    @property
    def name(self) -> str: ...
    @property
    def phases(self) -> Mapping[str, float]: ...
    @property
    def versions(self) -> Mapping[str, str]: ...

    @property
    def tasks(self) -> Sequence[str]: ...

    async def start(self, settings: ModelSettings, count: Count) -> ASGI:
        """Load the model and return the application; raises whatever the engine raises.

        An engine that keeps no figures of its own calls `count` at the end of each request.
        """
        ...

    async def check(self) -> None:
        """Raise when the engine cannot serve any more."""
        ...

    async def stop(self) -> None:
        """End the engine's processes and free its memory; may be called twice."""
        ...


def make(name: str) -> Engine:
    """Return the engine of this name, not started; its packages are imported by its `start`."""
    if name == "vllm":
        from raycluster.serve.engines.vllm import VllmEngine

        return VllmEngine()
    if name == "transformers":
        from raycluster.serve.engines.transformers import TransformersEngine

        return TransformersEngine()
    raise EngineError(f"no engine is called {name!r}")
