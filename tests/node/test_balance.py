"""HAProxy itself: sessions, replicas that change, and what it refuses in OpenAI's form."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from raycluster.serve.haproxy import RETRY_S
from tests.local.cluster import until
from tests.node.ingress import BUSY, CHAT, DOWN, DYING, REPLICAS, Ingress, served_by, taken

pytestmark = [pytest.mark.local, pytest.mark.timeout(120)]


def test_a_session_stays_where_it_is(ingress: Ingress) -> None:
    client = ingress.start("sticky", ingress.replicas)
    first = {str(n): served_by(client, {}, str(n)) for n in range(40)}
    assert len(set(first.values())) == REPLICAS
    assert {n: served_by(client, {}, n) for n in first} == first
    assert len({served_by(client, {}) for _ in range(20)}) == REPLICAS


def test_a_replica_that_goes_moves_no_session_but_its_own(ingress: Ingress) -> None:
    client = ingress.start("sticky", ingress.replicas)
    first = {str(n): served_by(client, {}, str(n)) for n in range(40)}
    gone, *left = ingress.replicas
    client = ingress.start("sticky", left)
    after = {n: served_by(client, {}, n) for n in first}
    moved = {n for n in first if after[n] != first[n]}
    assert moved == {n for n, port in first.items() if port == str(gone.server_port)}


def test_a_connection_that_rests_while_replicas_change_leads_to_the_new_ones(
    ingress: Ingress,
) -> None:
    """The former HAProxy knows only replicas that soon end: it lets go of its clients before."""
    old, new, *_ = ingress.replicas
    ingress.start("least-busy", [old])
    limits = httpx.Limits(keepalive_expiry=None)
    with httpx.Client(base_url=ingress.client.base_url, limits=limits, timeout=30) as resting:
        assert served_by(resting, {}) == str(old.server_port)
        with ingress.followed([new]) as former:
            until(lambda: former.poll() is not None, seconds=20, what="its client is still there")
        assert served_by(resting, {}) == str(new.server_port)


def error(answer: httpx.Response) -> tuple[object, ...]:
    assert answer.headers["content-type"] == "application/json", answer.text
    told = answer.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return (answer.status_code, told["type"], told["code"], answer.headers.get("retry-after"))


def test_a_full_queue_is_told_in_openai_s_form(ingress: Ingress) -> None:
    client = ingress.start("least-busy", ingress.replicas)
    assert error(client.post(BUSY, json={})) == (429, "RateLimitError", 429, "7")
    assert client.post(DOWN, json={}).headers["retry-after"] == str(RETRY_S)


def test_a_replica_that_breaks_off_is_told_in_openai_s_form(ingress: Ingress) -> None:
    client = ingress.start("least-busy", ingress.replicas)
    answer = httpx.post(client.base_url.join(DYING), json={})  # in a connection's first request
    assert error(answer) == (502, "BadGatewayError", 502, str(RETRY_S))


def test_no_replica_is_told_in_openai_s_form(ingress: Ingress) -> None:
    client = ingress.start("least-busy", [], at_first=503)
    told = (503, "ServiceUnavailableError", 503, str(RETRY_S))
    assert error(client.post("/v1/completions", json={})) == told


def test_connections_beyond_what_the_node_holds_are_refused_at_once(ingress: Ingress) -> None:
    client = ingress.start("least-busy", ingress.replicas, connections=4)
    client.close()  # it has a connection of its own, which HAProxy counts for a moment more
    url = client.base_url

    def ask() -> httpx.Response:
        while (answer := httpx.post(url.join(CHAT), json={}, timeout=100)).status_code == 503:
            pass
        return answer

    for replica in ingress.replicas:
        replica.go.clear()
    before = taken(ingress)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        until(lambda: taken(ingress) == before + 4, seconds=20, what="not there")
        for _ in range(80):  # more than HAProxy keeps to refuse: it lets go of each
            answer = httpx.post(url.join(CHAT), json={})
            assert error(answer) == (503, "ServiceUnavailableError", 503, str(RETRY_S))
            assert answer.headers["connection"] == "close"
        for replica in ingress.replicas:
            replica.go.set()
        assert [future.result().status_code for future in asked] == [200] * 4

    def lets_go() -> bool:
        return httpx.post(url.join(CHAT), json={}).status_code == 200

    until(lets_go, seconds=20, what="no free place")
