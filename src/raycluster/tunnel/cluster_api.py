"""The endpoint that `bench` and `batch` send to: an address given, or the cluster's own API."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from raycluster.core.errors import HostError, UsageError
from raycluster.hosts.session import OpenedSpec, TerminalPrompt
from raycluster.openai_client.target import Target, wrong_address

if TYPE_CHECKING:
    from raycluster.core.interfaces import Tell
    from raycluster.hosts.fleet import Fleet
    from raycluster.spec import ResolvedHost
    from raycluster.tunnel.keep import Route
    from raycluster.tunnel.ports import Forward

_CONNECT_SECONDS = 60.0
_LEAVE_SECONDS = 5.0
_TICK = 0.1

Check = Callable[[], None]
"""Raises HostError when the way to the endpoint is gone for good."""


def given(url: str, model: str, headers: dict[str, str], ca_file: str) -> Target:
    """Return the endpoint that `--url` names. Raises UsageError."""
    if wrong := wrong_address(url):
        raise UsageError(wrong, where="--url", hint="http://127.0.0.1:8000")
    return Target(url, model, headers, ca_file)


def served_model(opened: OpenedSpec, model: str) -> str:
    """Return `model`, or the spec's first one for none. Raises UsageError when it is not there."""
    known = [name for served in opened.spec.models for name in served.names]
    if model and model not in known:
        raise UsageError(
            f"{model!r} is not in the spec", where="--model", hint=f"one of {', '.join(known)}"
        )
    return model or known[0]


def key_headers(source: str, url: str) -> dict[str, str]:
    """Return the header that carries the API key from `source`. Raises SecretError.

    Without `url` there is nobody who needs it, and somebody might listen where a forward broke:
    raises UsageError.
    """
    if not source:
        return {}
    if not url:
        raise UsageError(
            "the cluster's own API does not use a key",
            where="--api-key",
            hint="omit it, or name the gateway with --url",
        )
    from raycluster.spec.secret_sources import bearer, resolve

    return bearer("--api-key", resolve({"--api-key": source})["--api-key"])


def route(host: ResolvedHost) -> Route:
    """Return how forwards may reach the host: the system's ssh, and our own way."""
    from raycluster.hosts.fleet import TRANSPORTS, ssh_options
    from raycluster.tunnel.keep import Route

    if host.transport != "ssh":
        return Route(host.name)
    from raycluster.hosts.transports.ssh_command import command_line

    options = ssh_options(host)
    asker = TerminalPrompt()
    return Route(
        host.name,
        () if options.host_key else command_line(options),  # ssh knows no pinned fingerprint
        lambda: TRANSPORTS["ssh"](host, asker),
    )


def _forward(opened: OpenedSpec) -> Forward:
    from raycluster.tunnel.ports import LOOPBACK, Forward

    return Forward("API", (LOOPBACK, opened.spec.ports.api))


@contextmanager
def once(opened: OpenedSpec, fleet: Fleet) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Yield the address of the cluster's API, over the fleet's connection to the head.

    Beside it stands a function that tells whether this connection still stands.
    """
    from raycluster.observe.liveness import ours
    from raycluster.tunnel.channels import ChannelForwarder
    from raycluster.tunnel.ports import choose_ports

    api = _forward(opened)
    head = ours(opened.spec, fleet.open(opened.spec.head_host))
    if head.host.transport == "local":
        yield api.address, lambda: True
        return
    chosen = choose_ports([api])
    with ChannelForwarder(head.transport, chosen):
        yield chosen[0].address, lambda: head.transport.alive


@contextmanager
def kept(opened: OpenedSpec, tell: Tell) -> Iterator[tuple[str, Check]]:
    """Yield the address of the cluster's API, on a connection that is made again when it breaks.

    Raises HostError when the first connection fails; the check does when a later one may not be.
    """
    from raycluster.observe.liveness import check_ours
    from raycluster.tunnel.keep import keep
    from raycluster.tunnel.ports import choose_ports

    check_ours(opened.spec)
    way, api = route(opened.spec.head_host), _forward(opened)
    if way.local:
        yield api.address, lambda: None
        return
    (chosen,) = choose_ports([api])
    stop, errors = Event(), list[Exception]()

    def work() -> None:
        try:
            keep(way, [chosen], tell, stop)
        except Exception as error:
            errors.append(error)

    def check() -> None:
        if errors:
            raise errors[0]

    keeper = Thread(target=work, daemon=True)
    keeper.start()
    try:
        _await(chosen, check, way.host)
        yield chosen.address, check
    finally:
        stop.set()
        keeper.join(_LEAVE_SECONDS)


def _await(forward: Forward, check: Check, host: str) -> None:
    """Return when something listens on the forward's local port."""
    from raycluster.tunnel.ports import LOOPBACK

    deadline = time.monotonic() + _CONNECT_SECONDS
    while time.monotonic() < deadline:
        check()
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, forward.port)) == 0:
                return
        time.sleep(_TICK)
    raise HostError("no connection within the timeout", where=host, hint="raycluster check")
