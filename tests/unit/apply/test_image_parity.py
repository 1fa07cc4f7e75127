"""One name, several images: said by the run that prepares a host, whatever was there before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raycluster.apply import image_parity
from raycluster.apply.context import ApplyContext
from raycluster.apply.image_parity import tell_other_images
from raycluster.core.errors import HostError, RayclusterError
from raycluster.core.events import Event
from raycluster.core.interfaces import Process
from raycluster.plan.actions import Start
from raycluster.state.cluster import ClusterState, HostState

IMAGE = "vllm/vllm-openai:v1"


class Docker:
    """A runtime that keeps images."""

    def __init__(self, layers: tuple[str, ...] | None) -> None:
        self._layers = layers

    def layers(self, image: str, digest: str = "") -> tuple[str, ...]:
        if self._layers is None:
            raise HostError("is gone")
        return self._layers if (image, digest) == (IMAGE, "") else ()

    def digest(self, image: str) -> str:
        return ""

    def registry_digest(self, image: str, login: object) -> str:
        return ""

    def socket_path(self) -> str:
        return ""

    def pullable(self, process: object) -> bool:
        return False

    def save(self, image: str) -> None: ...
    def load(self, archive: object) -> None: ...


def told(
    monkeypatch: pytest.MonkeyPatch,
    held: dict[str, tuple[str, ...] | None],
    started: Iterable[str],
    image: str = IMAGE,
) -> list[Event]:
    monkeypatch.setattr(image_parity, "facts_of", lambda _: SimpleNamespace(machine="x86_64"))
    connected = {
        name: SimpleNamespace(runtime=Docker(layers), host=SimpleNamespace(name=name))
        for name, layers in held.items()
    }

    def each(names: Iterable[str], work: Callable[[Any], Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in names:
            try:
                found[name] = work(connected[name])
            except RayclusterError as error:
                found[name] = error
        return found

    said: list[Event] = []
    hosts = [SimpleNamespace(name=name, image=image) for name in held]
    work = SimpleNamespace(
        spec=SimpleNamespace(hosts=hosts), fleet=SimpleNamespace(each=each), listen=said.append
    )
    state = ClusterState({name: HostState(name) for name in held})
    starts = [Start(name, Process("worker", (), image=image), "") for name in started]
    tell_other_images(cast(ApplyContext, work), state, starts)
    return said


def test_a_tag_that_moved_before_a_host_was_added_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    (event,) = told(monkeypatch, {"head": ("1",), "old": ("1",), "new": ("2",)}, ["new"])
    assert (event.subject, event.kind) == ("new", "note")
    assert f"{IMAGE} is not the image that head has" in event.text


@pytest.mark.parametrize(
    ("held", "started", "image"),
    [
        ({"head": ("1",), "new": ("1",)}, ["new"], IMAGE),
        ({"head": ("1",), "new": ("2",)}, [], IMAGE),
        ({"head": ("1",), "new": None}, ["new"], IMAGE),
        ({"head": (), "new": ("2",)}, ["new"], IMAGE),
        ({"head": ("1",), "new": ("2",)}, ["new"], f"{IMAGE}@sha256:{'0' * 64}"),
        ({"head": ("1",)}, ["head"], IMAGE),
    ],
)
def test_what_is_one_image_needs_no_word(
    monkeypatch: pytest.MonkeyPatch,
    held: dict[str, tuple[str, ...] | None],
    started: list[str],
    image: str,
) -> None:
    assert told(monkeypatch, held, started, image) == []
