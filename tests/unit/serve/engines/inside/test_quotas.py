"""What keys use of their limits, on one replica and on several, without engines."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from raycluster.serve import shared_quotas
from raycluster.serve.engines.inside import quotas
from raycluster.serve.engines.inside.quotas import (
    BUSY_S,
    DAY,
    UNTOLD,
    Asked,
    Limits,
    Quotas,
    Refusal,
    Turns,
    expected_of,
    limits_of,
)
from raycluster.serve.shared_quotas import SharedQuotas

NOON = 1000 * DAY + DAY / 2


class Clock:
    """The time that a test says."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taken(asked: Asked | Refusal, tokens: int = 0) -> Asked:
    """Have a request that was let in take tokens, and end."""
    assert isinstance(asked, Asked)
    asked.took(tokens)
    asked.end()
    return asked


def refused(asked: Asked | Refusal) -> Refusal:
    assert isinstance(asked, Refusal)
    return asked


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("", Limits()),
        ("tokens_per_minute=7,priority=low", Limits(tokens_per_minute=7, priority=1)),
        ("tokens_per_day=9,requests_per_minute=2", Limits(None, 9, 2)),
        ("priority=high", Limits(priority=-1)),
        (
            "priority=highest,x=1,tokens_per_day=-1,tokens_per_minute=" + "9" * 5000,
            Limits(tokens_per_minute=int("9" * 15), priority=-1),
        ),
        ("tokens_per_minute=\u00b2", Limits()),
    ],
)
def test_limits_are_read_from_the_gateway_s_header(text: str, limits: Limits) -> None:
    assert limits_of(text) == limits


@pytest.mark.parametrize(
    ("limits", "later", "of"),
    [
        (Limits(tokens_per_minute=100), 60, 100),
        (Limits(tokens_per_day=100), DAY // 2, 100),
        (Limits(tokens_per_minute=100, tokens_per_day=1000), 60, 100),
        (Limits(tokens_per_minute=50, tokens_per_day=100), DAY // 2, 100),
    ],
)
def test_a_key_is_let_in_until_its_tokens_are_used_and_again_in_the_next_span(
    clock: Clock, limits: Limits, later: int, of: int
) -> None:
    made = Quotas(clock)
    first = taken(made.ask("a", limits), 120)
    assert dict(first.headers)[b"x-ratelimit-limit-tokens"] == b"%d" % min(
        x for x in (limits.tokens_per_minute, limits.tokens_per_day) if x
    )
    told = refused(made.ask("a", limits))
    assert told.later == later
    assert dict(told.over.headers) == {
        b"x-ratelimit-limit-tokens": b"%d" % of,
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"%ds" % later,
    }
    assert "120 are used" in told.message
    assert isinstance(made.ask("b", limits), Asked)
    clock.now += later
    taken(made.ask("a", limits))


def test_requests_are_counted_with_those_of_other_replicas(clock: Clock) -> None:
    made, limits = Quotas(clock), Limits(requests_per_minute=3)
    made.exchange(json.dumps({"a": [int(NOON // 60), 0, 2, int(NOON // DAY), 0, 0]}).encode())
    taken(made.ask("a", limits))
    told = refused(made.ask("a", limits))
    assert (told.over.kind, told.later) == ("requests", 60)
    assert b"x-ratelimit-limit-requests" not in dict(told.over.headers)  # the gateway's own
    clock.now += 60
    taken(made.ask("a", limits))


def test_what_runs_holds_what_it_may_take(clock: Clock) -> None:
    """Of a flood at one moment as many run as there are tokens for."""
    made, limits = Quotas(clock), Limits(tokens_per_minute=1000)
    asked = [made.ask("a", limits, 300, 250) for _ in range(20)]
    running = [each for each in asked if isinstance(each, Asked)]
    assert len(running) == 4
    told = refused(asked[-1])
    assert (told.later, told.over.used, told.over.held) == (BUSY_S, 0, 1200)
    for each in running:
        taken(each, 20)
    assert dict(taken(made.ask("a", limits, 300, 250)).headers) == {
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"620",
        b"x-ratelimit-reset-tokens": b"60s",
    }


def test_sequences_count_while_they_run_and_when_they_are_given_up(clock: Clock) -> None:
    made, limits = Quotas(clock), Limits(tokens_per_minute=1000)
    asked = made.ask("a", limits, 5000, 400)
    assert isinstance(asked, Asked)
    tokens = {"x": 0, "y": 0}
    asked.begins("x", 100, 10_000, lambda: tokens["x"])
    asked.begins("y", 100, 10_000, lambda: tokens["y"])
    assert asked.held == 1000
    tokens["x"] = 150
    assert asked.held == 850
    clock.now += 60
    asked.took(160, "x")
    asked.end()  # the client left
    assert asked.held == 0
    assert isinstance(made.ask("a", limits), Asked)
    tokens["y"] = 990
    asked.took(990, "y")  # and the engine let go of it later
    assert refused(made.ask("a", limits)).over.used == 1150


def test_tokens_are_of_the_minute_in_which_they_come(clock: Clock) -> None:
    made, limits = Quotas(clock), Limits(tokens_per_minute=100, tokens_per_day=1000)
    asked = made.ask("a", limits)
    assert isinstance(asked, Asked)
    now = [90]
    asked.begins("x", 0, 0, lambda: now[0])
    made.exchange(b"{}")
    clock.now += 60
    now[0] = 130
    told = json.loads(made.exchange(b"{}"))
    assert told["limited"] is True
    assert told["used"]["a"] == [int(clock.now // 60), 40, 0, int(NOON // DAY), 130, 0]


@pytest.mark.parametrize("said", [b"[]", b'{"a": 5}', b'{"a": [1, 2]}', b'{"a": [1,1,1,1,1,true]}'])
def test_what_is_not_understood_of_others_is_nothing(clock: Clock, said: bytes) -> None:
    made = Quotas(clock)
    assert json.loads(made.exchange(said)) == {"limited": False, "used": {}}


def test_a_clock_that_goes_back_forgets_nothing(clock: Clock) -> None:
    made, limits = Quotas(clock), Limits(tokens_per_minute=10)
    taken(made.ask("a", limits), 10)
    clock.now -= 61
    refused(made.ask("a", limits))


def test_owners_beyond_the_bound_are_one(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "MOST_OWNERS", 2)
    made = Quotas(clock)
    for owner in "abcd":
        taken(made.ask(owner, Limits()), 1)
    used = json.loads(made.exchange(b"{}"))["used"]
    assert {owner: each[1] for owner, each in used.items()} == {"a": 1, "b": 1, "other": 2}


@pytest.mark.parametrize(
    ("body", "expected", "most"),
    [
        ({"max_tokens": 10}, 10, 10),
        ({"max_completion_tokens": 7, "max_tokens": 10, "n": 3}, 21, 7),
        ({"max_output_tokens": 5}, 5, 5),
        ({"max_tokens": None}, UNTOLD, UNTOLD),
        ({"max_tokens": True, "n": "x"}, UNTOLD, UNTOLD),
        ({"max_tokens": -1, "n": 0}, UNTOLD, UNTOLD),
        ([], UNTOLD, UNTOLD),
        (None, UNTOLD, UNTOLD),
    ],
)
def test_what_a_request_may_take(body: object, expected: int, most: int) -> None:
    text = json.dumps(body).encode()
    assert expected_of(text, 400) == (expected + 100, most)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_is_taken_for_an_ordinary_one(body: bytes) -> None:
    assert expected_of(body, 0) == (UNTOLD, UNTOLD)


class Memory:
    """Stands for the store of Ray's head."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.away = False
        self.puts = 0

    def put(self, name: bytes, record: bytes) -> None:
        self._look()
        self.puts += 1
        self.records[name] = record

    def all(self) -> Mapping[bytes, bytes]:
        self._look()
        return dict(self.records)

    def remove(self, name: bytes) -> None:
        self._look()
        del self.records[name]

    def _look(self) -> None:
        if self.away:
            raise ConnectionError("away")


class Replica:
    """An engine's figures, and their part in those of all."""

    def __init__(self, store: Memory, clock: Clock, name: bytes) -> None:
        self.quotas = Quotas(clock)

        async def tell(others: bytes) -> bytes:
            return self.quotas.exchange(others)

        self.shared = SharedQuotas(tell, store, clock, name)

    def look(self) -> None:
        asyncio.run(self.shared.once())


def test_replicas_keep_a_limit_together_and_a_dead_one_s_tokens_count(clock: Clock) -> None:
    store, limits = Memory(), Limits(tokens_per_minute=100, tokens_per_day=500)
    one, two = (Replica(store, clock, name) for name in (b"one", b"two"))
    for each in (one, two):
        taken(each.quotas.ask("a", limits), 60)
    for each in (one, two, one, two):
        each.look()
    assert {refused(each.quotas.ask("a", limits)).over.used for each in (one, two)} == {120}
    clock.now += 60
    three = Replica(store, clock, b"three")
    taken(three.quotas.ask("a", limits), 90)
    for _ in range(2):
        three.look()
    limits = Limits(tokens_per_day=210)
    assert refused(three.quotas.ask("a", limits)).over.used == 210
    clock.now += DAY / 2
    taken(three.quotas.ask("a", limits))
    clock.now += 3 * DAY
    three.look()
    assert set(store.records) == {b"three"}


def test_what_a_dead_replica_held_back_is_free_again(clock: Clock) -> None:
    store, limits = Memory(), Limits(tokens_per_minute=100)
    dead, other = (Replica(store, clock, name) for name in (b"dead", b"other"))
    dead.quotas.ask("a", limits, 500, 500)
    taken(other.quotas.ask("a", limits))
    for each in (dead, other, other):
        each.look()
    assert refused(other.quotas.ask("a", limits)).over.held == 500
    clock.now += quotas.FRESH_S + 1
    other.look()
    taken(other.quotas.ask("a", limits))


def test_nothing_is_written_while_nothing_is_asked(clock: Clock) -> None:
    store = Memory()
    one = Replica(store, clock, b"one")
    one.look()
    assert store.puts == 0
    taken(one.quotas.ask("a", Limits()), 5)
    for _ in range(3):
        one.look()
    assert store.puts == 1


def test_while_the_store_is_away_each_keeps_to_what_it_knows(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_quotas, "PERIOD_S", 0)
    store, limits = Memory(), Limits(tokens_per_minute=100)
    one, two = (Replica(store, clock, name) for name in (b"one", b"two"))
    for each in (one, two):
        taken(each.quotas.ask("a", limits), 45)
    for each in (one, two, one, two):
        each.look()
    store.away = True

    async def look_for_a_while() -> None:
        task = asyncio.ensure_future(one.shared.run())
        while len(caplog.records) < 1:
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        task.cancel()

    taken(one.quotas.ask("a", limits), 5)
    asyncio.run(look_for_a_while())
    assert len(caplog.records) == 1  # it is said once
    taken(one.quotas.ask("a", limits), 5)
    refused(one.quotas.ask("a", limits))
    taken(two.quotas.ask("a", limits), 5)  # of which it does not know
    store.away = False
    for each in (one, two):
        each.look()
    refused(two.quotas.ask("a", limits))


def test_records_that_are_none_are_passed_over(clock: Clock) -> None:
    store = Memory()
    one = Replica(store, clock, b"one")
    taken(one.quotas.ask("a", Limits(tokens_per_day=5)))
    one.look()
    store.records |= {b"x": b"{", b"y": b"[]", b"z": b'{"at": 1e18, "used": 5}'}
    one.look()
    assert set(store.records) == {b"one", b"z"}


def flood(seed: int) -> Iterator[tuple[int, int, int]]:
    """Yield the limit, what was used in a minute, and what may be used at the most."""
    made = random.Random(seed)
    store, clock, limit = Memory(), Clock(), made.randint(500, 5000)
    replicas = [Replica(store, clock, b"%d" % n) for n in range(made.randint(1, 4))]
    limits = Limits(tokens_per_minute=limit)
    largest, under_way, used = 600, [], 0
    for step in range(110):
        for each in replicas:
            for _ in range(made.randint(0, 8)):
                most = made.randint(1, 500)
                asked = each.quotas.ask("a", limits, 100 + most, most)
                if isinstance(asked, Asked):
                    takes = made.randint(0, 100 + most)
                    under_way.append((step + made.randint(0, 9), asked, takes))
        for _, asked, takes in [x for x in under_way if x[0] <= step]:
            taken(asked, takes)
            used += takes
        under_way = [x for x in under_way if x[0] > step]
        for each in replicas:
            each.look()
        clock.now += shared_quotas.PERIOD_S
    used += sum(takes for _, _, takes in under_way)
    yield limit, used, limit + largest * len(replicas) * (1 + 2)


@pytest.mark.parametrize("seed", range(20))
def test_a_flood_takes_no_more_than_the_limit_and_what_two_looks_let_in(seed: int) -> None:
    for limit, used, most in flood(seed):
        assert 0 < used <= most
        assert used > 0.3 * limit


NUMBERS = itertools.count(1000)


def served(turns: Turns, sent: list[tuple[str, int]], slots: int, steps: int) -> dict[str, int]:
    """Return what owners had after so many steps of an engine with so many places.

    `sent` has each owner with as many sequences as he keeps there, of 100 tokens each.
    """
    had = dict.fromkeys(dict(sent), 0)
    waiting: list[tuple[int, int, str, Any]] = []
    running: list[tuple[int, str, Any]] = []

    def come(owner: str) -> None:
        number = next(NUMBERS)
        sequence = SimpleNamespace(is_prefilling=True)
        turn = turns.take(owner, str(number), sequence, 50, 1000)
        waiting.append((turn, number, owner, sequence))

    for owner, many in sent:
        for _ in range(many):
            come(owner)
    for _ in range(steps):
        while len(running) < slots and waiting:
            first = min(waiting, key=lambda each: each[:2])
            waiting.remove(first)
            first[3].is_prefilling = False
            running.append((first[1], first[2], first[3]))
        ended, owner, _sequence = running.pop(0)
        turns.give(str(ended), 50)
        had[owner] += 1
        come(owner)
    for number in [*(each[1] for each in waiting), *(each[0] for each in running)]:
        turns.give(str(number), 0)
    return had


def test_keys_share_evenly_whatever_they_send() -> None:
    turns = Turns()
    served(turns, [("first", 8)], slots=8, steps=50)  # by which it learns how much is generated
    had = served(turns, [("heavy", 200), ("middle", 50), ("other", 40)], slots=8, steps=600)
    assert max(had.values()) < 1.3 * min(had.values()), had


def test_one_with_few_requests_has_them_served_at_once() -> None:
    turns = Turns()
    served(turns, [("heavy", 100)], slots=8, steps=300)
    sequence = SimpleNamespace(is_prefilling=True)
    light = turns.take("light", "x", sequence, 50, 1000)
    heavy = turns.take("heavy", "y", SimpleNamespace(is_prefilling=True), 50, 1000)
    assert light < heavy
    had = served(turns, [("light", 1)], slots=1, steps=1)
    assert had == {"light": 1}


def test_one_who_comes_back_has_no_more_than_his_share() -> None:
    turns = Turns()
    served(turns, [("early", 1)], slots=1, steps=1)
    served(turns, [("heavy", 20)], slots=4, steps=500)
    had = served(turns, [("heavy", 20), ("early", 20)], slots=4, steps=400)
    assert abs(had["heavy"] - had["early"]) < 60, had


def test_an_owner_s_sequences_keep_their_order() -> None:
    turns, made = Turns(), random.Random(1)
    told = []
    for number in range(300):
        sequence = SimpleNamespace(is_prefilling=made.random() < 0.5)
        told.append(turns.take("a", str(number), sequence, made.randint(1, 900), 500))
        if made.random() < 0.5:
            turns.give(str(made.randint(0, number)), made.randint(0, 500))
    assert told == sorted(set(told))
