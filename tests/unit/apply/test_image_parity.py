"""One name, several images: said by the run that prepares a host, whatever was there before."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import cast

import pytest

from raycluster.apply import image_parity
from raycluster.apply.context import ApplyContext
from raycluster.apply.image_parity import tell_other_images
from raycluster.core.errors import HostError
from raycluster.core.events import Event
from raycluster.core.interfaces import Process
from raycluster.plan.actions import Start
from raycluster.state.cluster import ClusterState, HostState
from tests.unit.docker_double import Docker, fleet_of

IMAGE = "vllm/vllm-openai:v1"


def told(
    monkeypatch: pytest.MonkeyPatch,
    held: dict[str, tuple[str, ...] | None],
    started: Iterable[str],
    image: str = IMAGE,
) -> list[Event]:
    monkeypatch.setattr(image_parity, "facts_of", lambda _: SimpleNamespace(machine="x86_64"))
    connected = {
        name: SimpleNamespace(
            runtime=Docker(IMAGE, HostError("is gone") if layers is None else layers),
            host=SimpleNamespace(name=name),
        )
        for name, layers in held.items()
    }

    said: list[Event] = []
    hosts = [SimpleNamespace(name=name, image=image) for name in held]
    work = SimpleNamespace(
        spec=SimpleNamespace(hosts=hosts), fleet=fleet_of(connected), listen=said.append
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
