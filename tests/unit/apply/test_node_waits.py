"""A wait ends at once with an error that stays, and goes on over one that may pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from raycluster.apply import node_waits
from raycluster.apply.applications import _wait_for_router, _wait_until_running
from raycluster.apply.smoke_test import _complete
from raycluster.core.errors import (
    AppError,
    AuthError,
    ForwardRefusedError,
    HostError,
    UnreachableError,
)
from raycluster.core.wait import raise_lasting
from raycluster.hosts.http import http_client
from raycluster.observe.liveness import watched

FORBIDDEN = ForwardRefusedError("cannot connect: sshd forbids forwarding", where="head", hint="do")


class Way:
    """A transport on which connections end so."""

    def __init__(self, error: HostError) -> None:
        self.error, self.asked = error, 0

    def connect(self, address: object, *, timeout: float = 10.0) -> Any:
        self.asked += 1
        raise self.error


class Runs:
    """A runtime whose head does so."""

    def __init__(self, health: str, log: bytes = b"") -> None:
        self.health, self.log = health, log

    def observe(self) -> tuple[Any, ...]:
        return (SimpleNamespace(role="head", health=self.health),)

    def logs(self, role: str, **_: object) -> Any:
        return iter([self.log])


def work_of(way: Way, runtime: Runs) -> Any:
    head = SimpleNamespace(host=SimpleNamespace(name="head"), transport=way, runtime=runtime)
    spec = SimpleNamespace(
        ports=SimpleNamespace(gcs=6379), cluster=SimpleNamespace(node_timeout=180)
    )
    return SimpleNamespace(fleet={"head": head}, head=SimpleNamespace(name="head"), spec=spec)


def test_the_wait_for_a_head_ends_where_its_way_is_closed() -> None:
    way = Way(FORBIDDEN)
    with pytest.raises(ForwardRefusedError) as caught:
        node_waits.wait_for_head(work_of(way, Runs("running")))
    assert (caught.value, way.asked) == (FORBIDDEN, 1)


def test_the_wait_for_a_head_ends_where_it_listens_and_is_not_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_waits, "read_listening", lambda _: frozenset({6379}))
    monkeypatch.setattr(node_waits, "FORWARD_TRIES", 2)
    way = Way(HostError("cannot connect to 127.0.0.1:6379: Connect failed"))
    with pytest.raises(HostError, match="Connect failed"):
        node_waits.wait_for_head(work_of(way, Runs("running")))
    assert way.asked == 3


def test_a_head_that_ended_is_told_with_an_error_of_its_log() -> None:
    log = b"ERROR scripts.py:1 -- Failed to start GCS\n\x1b[32mINFO scripts.py:2 -- bye\x1b[0m\n"
    with pytest.raises(HostError) as caught:
        node_waits.wait_for_head(work_of(Way(HostError("not yet")), Runs("restarting", log)))
    assert caught.value.what == (
        "the head does not stay up: ERROR scripts.py:1 -- Failed to start GCS"
    )


def test_an_error_that_led_to_another_is_seen() -> None:
    try:
        try:
            raise FORBIDDEN
        except HostError as error:
            raise httpx.ConnectError("no") from error
    except httpx.ConnectError as error:
        with pytest.raises(ForwardRefusedError):
            raise_lasting(error)
    raise_lasting(UnreachableError("for now"))
    raise_lasting(None)


def test_the_wait_for_a_router_ends_where_the_way_is_closed() -> None:
    way = Way(FORBIDDEN)
    with http_client(cast("Any", way), 8000, timeout=5) as http, pytest.raises(ForwardRefusedError):
        _wait_for_router(http)
    assert way.asked == 1


def test_a_completion_is_asked_for_again_while_haproxy_begins_and_is_followed() -> None:
    told: list[Any] = [
        httpx.ConnectError("nobody listens"),
        httpx.ReadError("closed"),
        httpx.Response(503),
        httpx.Response(200, json={"choices": [{"text": " Paris"}]}),
        httpx.Response(200, json={"seconds": {}}),
    ]

    def answer(_: httpx.Request) -> httpx.Response:
        if isinstance(one := told.pop(0), Exception):
            raise one
        return cast("httpx.Response", one)

    model = cast("Any", SimpleNamespace(name="m", engine="vllm"))
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x") as client:
        assert _complete(client, model, 5).text == " Paris"
        told[:] = [httpx.ReadTimeout("slow")]
        with pytest.raises(AppError, match="no response to a completion request: slow"):
            _complete(client, model, 5)


class Dashboard:
    """Ray's API, which cannot be asked."""

    def apps(self) -> Any:
        raise HostError("Ray's dashboard does not respond")


def test_the_wait_for_replicas_ends_where_the_head_is_gone() -> None:
    head = cast("Any", SimpleNamespace(host=SimpleNamespace(name="head"), runtime=Runs("stopped")))
    alive = watched(head, "head", patience=-1)
    with pytest.raises(HostError, match="the head does not stay up"):
        _wait_until_running(cast("Any", Dashboard()), {"m"}, print, 600, alive=alive)


def test_a_head_that_is_started_again_in_time_is_waited_for() -> None:
    runtime = Runs("restarting")
    head = cast("Any", SimpleNamespace(host=SimpleNamespace(name="head"), runtime=runtime))
    alive = watched(head, "head", patience=3600)
    alive()
    runtime.health = "running"
    alive()


def test_a_login_that_is_refused_stays_refused() -> None:
    with pytest.raises(AuthError):
        raise_lasting(AuthError("no", where="w"))
