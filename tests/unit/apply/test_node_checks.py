"""A node on its host's loopback: Ray has to listen where it is looked for."""

from __future__ import annotations

from typing import Any, cast

import pytest

from raycluster.apply.node_checks import check_loopback
from raycluster.core.errors import HostError
from raycluster.core.interfaces import Completed, Runtime, Transport
from raycluster.hosts.fleet import Connected
from raycluster.spec import ClusterSpec

BOTH, SIX = b"::1 STREAM localhost\n127.0.0.1 STREAM localhost\n", b"::1 STREAM localhost\n"


class Resolver:
    """A host whose name service says this of its loopback."""

    def __init__(self, said: bytes, status: int) -> None:
        self.said, self.status = said, status
        self.address = "127.0.0.1"

    def run(self, argv: Any) -> Completed:
        assert tuple(argv) == ("getent", "ahosts", "localhost")
        return Completed(self.status, self.said, b"")


def check(said: bytes, status: int = 0, **head: Any) -> None:
    table = {"cluster": {"name": "q"}, "head": {"transport": "local", **head}}
    [host] = ClusterSpec.model_validate(table).hosts
    check_loopback(
        Connected(host, cast("Transport", Resolver(said, status)), cast("Runtime", None))
    )


def test_a_host_without_ipv4_is_refused_with_the_cure() -> None:
    with pytest.raises(HostError, match="no IPv4 address besides loopback") as caught:
        check(SIX)
    assert "private_address" in caught.value.hint


def test_others_are_not() -> None:
    check(BOTH)
    check(b"", status=127)  # without getent nobody knows
    check(SIX, private_address="fd00::1")


@pytest.mark.parametrize(
    ("private", "found"), [("::1", "127.0.0.1"), ("fd00::1", "fd00::1"), (None, "127.0.0.1")]
)
def test_a_node_on_loopback_has_the_address_that_ray_gives_it(
    private: str | None, found: str
) -> None:
    table = {"transport": "local", **({"private_address": private} if private else {})}
    [host] = ClusterSpec.model_validate({"cluster": {"name": "q"}, "head": table}).hosts
    transport = cast("Transport", Resolver(b"", 0))
    assert Connected(host, transport, cast("Runtime", None)).address == found
