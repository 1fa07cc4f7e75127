"""What hosts cost: a default for all, overrides, and what is no price."""

from __future__ import annotations

import pytest

from tests.unit.spec.conftest import Read, Refusal

SPEC = """
[cluster]
name = "q"
price_per_hour = 2.5
{cluster}
[head]
host = "a"
{head}
[[workers]]
host = "b"
"""


def test_every_host_has_the_clusters_price_or_its_own(read: Read) -> None:
    spec = read(SPEC.format(cluster="", head="price_per_hour = 0"))
    assert [host.price_per_hour for host in spec.hosts] == [0, 2.5]
    assert spec.cluster.currency == "USD"


def test_without_prices_hosts_have_none(read: Read) -> None:
    spec = read('[cluster]\nname = "q"\ncurrency = "EUR"\n[head]\nhost = "a"\n')
    assert spec.hosts[0].price_per_hour is None
    assert spec.cluster.currency == "EUR"


@pytest.mark.parametrize(
    ("cluster", "head", "said"),
    [
        ("", "price_per_hour = -0.01", "head.price_per_hour: 0 or more is expected, not -0.01"),
        ("", 'price_per_hour = "2 EUR"', "head.price_per_hour: a number is expected"),
        ("", "price_per_hour = true", "head.price_per_hour: a number is expected, not true"),
        ("", "price_per_hour = inf", "head.price_per_hour: a finite number is expected"),
        ('currency = "eur"', "", "cluster.currency: three capital letters such as `USD` are"),
        ("", 'currency = "EUR"', "head.currency: unknown key"),
    ],
)
def test_what_is_no_price_is_refused(refusal: Refusal, cluster: str, head: str, said: str) -> None:
    assert said in refusal(SPEC.format(cluster=cluster, head=head))
