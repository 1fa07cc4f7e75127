"""Doubles of a host's Docker and of the fleet that leads to it, for what reads images of hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, cast

from raycluster.core.errors import RayclusterError
from raycluster.core.interfaces import Found, PrepareForecast, Process
from raycluster.hosts.fleet import Fleet


class Docker:
    """A runtime that keeps images: what a host says of those that it has, and of its registry's.

    `layers` are those of the image `name`; an error is raised where they are asked for. `answer` is
    what the registry says of a pull; with None the image is held, and with `stale` an older one is.
    """

    def __init__(
        self,
        name: str,
        layers: tuple[str, ...] | RayclusterError = (),
        *,
        answer: bool | RayclusterError | None = False,
        stale: bool = False,
    ) -> None:
        self.name, self.held, self.answer, self.stale = name, layers, answer, stale

    def outlook(self, process: Process, _paths: object) -> PrepareForecast:
        held = self.answer is None
        size = 1 if held or self.stale else None
        what = f"image {process.image}"
        return PrepareForecast(what, held, image=process.image, held_bytes=size)

    def pullable(self, process: Process) -> bool:
        assert process.image == self.name
        if isinstance(self.answer, RayclusterError):
            raise self.answer
        return bool(self.answer)

    def layers(self, image: str, digest: str = "") -> tuple[str, ...]:
        if isinstance(self.held, RayclusterError):
            raise self.held
        return self.held if (image, digest) == (self.name, "") else ()

    def socket_path(self) -> str:
        return ""

    def digest(self, _image: str) -> str:
        return ""

    def registry_digest(self, _image: str, _login: object) -> str:
        return ""

    def observe(self) -> tuple[Found, ...]:
        return ()

    def save(self, _image: str) -> None: ...
    def load(self, _archive: object) -> None: ...


def fleet_of(connected: Mapping[str, object]) -> Fleet:
    """Return a fleet of these hosts, which it has reached."""

    def each(names: Iterable[str], work: Callable[[Any], Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in names:
            try:
                found[name] = work(connected[name])
            except RayclusterError as error:
                found[name] = error
        return found

    return cast(Fleet, SimpleNamespace(each=each))
