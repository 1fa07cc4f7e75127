"""Which endpoints a cluster has, and where a person opens them."""

from __future__ import annotations

from raycluster.tunnel.ports import describe
from raycluster.tunnel.run import endpoints


def test_only_what_exists_is_forwarded_in_a_fixed_order() -> None:
    forwards = endpoints({"grafana": 3000, "api": 8000, "node_manager": 6380})
    assert describe(forwards, "head") == (
        "API      http://127.0.0.1:8000/v1  ->  head:127.0.0.1:8000",
        "Grafana  http://127.0.0.1:3000     ->  head:127.0.0.1:3000",
    )


def test_the_gateways_scheme_and_the_heads_address_are_kept() -> None:
    forwards = endpoints({"api": 8000, "gateway": 8443}, address="10.0.0.1", scheme="https")
    assert [(f.address, f.remote) for f in forwards] == [
        ("http://127.0.0.1:8000/v1", ("10.0.0.1", 8000)),
        ("https://127.0.0.1:8443/v1", ("10.0.0.1", 8443)),
    ]
