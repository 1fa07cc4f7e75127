"""HAProxy itself: what begins alike goes to one replica, and not all of it to one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from raycluster.serve.balance import MOST_LOAD, SESSION_HEADER, TOGETHER
from tests.local.cluster import until
from tests.node.ingress import CHAT, REPLICAS, Ingress, opened, taken

pytestmark = [pytest.mark.local, pytest.mark.timeout(120)]

Body = dict[str, Any]
LONG = "a tool that reads files, and says what is in them. " * 20
AGENT = "You are a careful engineer. " * 60
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * 200}}
TOOLS = [{"type": "function", "function": {"name": f"t{n}", "description": LONG}} for n in range(3)]
MANY_TOOLS = TOOLS * 35
"""More than HAProxy keeps of a body."""


def blocks(said: str, kind: str = "text", **more: Any) -> list[Any]:
    return [{"type": kind, "text": said, **more}]


def turn(role: str, content: Any) -> Body:
    return {"role": role, "content": content}


def later(turns: int, *first: Body, content: Callable[[str], Any] = str) -> list[Body]:
    """Return a conversation after so many turns."""
    more = (turn(("assistant", "user")[n % 2], content(f"turn {n} ")) for n in range(turns))
    return [*first, *more]


RESPONSES, MESSAGES, COMPLETIONS = "/v1/responses", "/v1/messages", "/v1/completions"
Shape = Callable[[str, int], Body]
"""Which conversation, and its how manieth request: to a body."""

SHAPES: dict[str, tuple[str, Shape]] = {
    "system and user": (
        CHAT,
        lambda who, n: {"messages": later(n, turn("system", AGENT), turn("user", who))},
    ),
    "no system": (CHAT, lambda who, n: {"messages": later(n, turn("user", who))}),
    "two of the system": (
        CHAT,
        lambda who, n: {
            "messages": later(
                n, turn("developer", AGENT), turn("system", "Today."), turn("user", who)
            )
        },
    ),
    "blocks": (
        CHAT,
        lambda who, n: {
            "messages": later(
                n, turn("system", blocks(AGENT)), turn("user", blocks(who)), content=blocks
            )
        },
    ),
    "now a text and now a block": (
        CHAT,
        lambda who, n: {"messages": later(n, turn("user", blocks(who) if n % 2 else who))},
    ),
    "marks that move": (
        MESSAGES,
        lambda who, n: {
            "messages": later(
                n, turn("user", [{"text": who, **({} if n else {"cache_control": {}})}])
            )
        },
    ),
    "a picture": (
        CHAT,
        lambda who, n: {"messages": later(n, turn("user", [PICTURE, *blocks(who)]))},
    ),
    "content before role": (
        CHAT,
        lambda who, n: {
            "messages": [
                dict(reversed(m.items()))
                for m in later(n, turn("system", AGENT), turn("user", who))
            ]
        },
    ),
    "tools first": (
        CHAT,
        lambda who, n: {"tools": TOOLS, "messages": later(n, turn("user", who))},
    ),
    "other settings each time": (
        CHAT,
        lambda who, n: {"seed": n, "stream": n > 3, "messages": later(n, turn("user", who))},
    ),
    "longer and longer": (
        CHAT,
        lambda who, n: {
            "messages": later(
                n, turn("system", AGENT), turn("user", who), content=lambda said: said * 3000
            )
        },
    ),
    "a first turn that is long": (
        CHAT,
        lambda who, n: {"messages": later(n, turn("user", f"{who} {'word ' * 20_000}"))},
    ),
    "prompt_cache_key": (
        CHAT,
        lambda who, n: {"messages": later(n, turn("user", f"{n}")), "prompt_cache_key": who},
    ),
    "prompt_cache_key after all else": (
        RESPONSES,
        lambda who, n: {"input": f"{n} " * 9000, "prompt_cache_key": who},
    ),
    "responses: a text": (
        RESPONSES,
        lambda who, n: {"input": who, "instructions": AGENT, "temperature": n / 24},
    ),
    "responses: items": (
        RESPONSES,
        lambda who, n: {
            "instructions": AGENT,
            "input": later(n, turn("user", blocks(who, "input_text"))),
        },
    ),
    "responses: instructions tell": (
        RESPONSES,
        lambda who, n: {"input": later(n, turn("user", "hi")), "instructions": who},
    ),
    "messages: system after": (
        MESSAGES,
        lambda who, n: {"messages": later(n, turn("user", "hi")), "system": who},
    ),
    "messages: system in blocks": (
        MESSAGES,
        lambda who, n: {
            "system": [*blocks(f"x-anthropic-billing-header: cch={n};"), *blocks(who)],
            "messages": later(n, turn("user", blocks("hi")), content=blocks),
        },
    ),
    "prompt": (COMPLETIONS, lambda who, n: {"prompt": f"{who} {AGENT} turn {n}"}),
    "token ids": (
        COMPLETIONS,
        lambda who, n: {"prompt": [*map(ord, who), *range(500), n]},
    ),
    "prompts": (COMPLETIONS, lambda who, n: {"prompt": [who, f"{AGENT} {n}"]}),
    "odd text": (
        CHAT,
        lambda who, n: {
            "messages": later(
                n, turn("system", 'a "\\\\\\"messages": [{"'), turn("user", f'"]}} {who}')
            )
        },
    ),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, program: str) -> Iterator[Ingress]:
    """Yield HAProxy with `prefix` for tests that leave it as it is."""
    with opened(tmp_path_factory.mktemp("shared"), program) as made:
        made.start("prefix", made.replicas)
        yield made


def met(ingress: Ingress, path: str, body: Body, session: str = "") -> str:
    """Return which replica a request met."""
    headers = {SESSION_HEADER: session} if session else {}
    answer = ingress.client.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.parametrize("name", SHAPES)
def test_a_conversation_stays_where_it_began_and_others_are_spread(
    shared: Ingress, name: str
) -> None:
    path, shape = SHAPES[name]
    for who in ("first conversation", "second conversation"):
        turns = [shape(who, n) for n in (0, 1, 2, 5, 8)]
        assert len({met(shared, path, {"model": "smol", **body}) for body in turns}) == 1
        if name in ("longer and longer", "prompt_cache_key after all else"):
            continue  # what comes last is then further back than HAProxy reads
        turned = [dict(reversed(body.items())) for body in turns]
        assert len({met(shared, path, {**b, "model": "smol"}) for b in [*turned, *turns]}) == 1
    places = Counter(met(shared, path, shape(f"conversation {n}", n % 5)) for n in range(40))
    assert len(places) == REPLICAS, places


def test_a_session_goes_before_the_prompt_and_a_key_before_the_session(shared: Ingress) -> None:
    def asked(n: int, session: str = "", **more: str) -> str:
        return met(shared, CHAT, {"messages": [turn("user", f"{n}")], **more}, session)

    assert len({asked(n, "mine") for n in range(12)}) == 1
    assert len({asked(1, f"session {n}") for n in range(40)}) == REPLICAS
    assert len({asked(n, f"{n}", prompt_cache_key="mine") for n in range(12)}) == 1
    assert len({asked(n, prompt_cache_key="") for n in range(40)}) == REPLICAS


def test_behind_many_tools_the_conversation_s_beginning_is_not_seen(shared: Ingress) -> None:
    """But what is alike stays together, and a session or a key still tells them apart."""
    bodies = [{"tools": MANY_TOOLS, "messages": [turn("user", f"{n}")]} for n in range(12)]
    assert len(json.dumps(MANY_TOOLS)) > 100_000
    assert len({met(shared, CHAT, body) for body in bodies}) == 1
    assert len({met(shared, CHAT, bodies[0], f"session {n}") for n in range(40)}) == REPLICAS
    keyed = ({"prompt_cache_key": f"{n}", **bodies[0]} for n in range(40))
    assert len({met(shared, CHAT, body) for body in keyed}) == REPLICAS


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/audio/transcriptions", "/tokenize"])
def test_what_has_no_prompt_is_spread(shared: Ingress, path: str) -> None:
    places = Counter(met(shared, path, {"input": "like", "prompt": "like"}) for _ in range(40))
    assert min(places[p] for p in places) >= 3 and len(places) == REPLICAS, places


@pytest.mark.parametrize(
    "body",
    [
        *(
            "",
            "{",
            "[]",
            "null",
            '"',
            '{"messages"',
            '{"messages":',
            '{"messages":[',
            "\\" * 70_000,
        ),
        *(
            '{"messages":[{',
            '{"messages":[{"role"',
            '{"messages":[1',
            '{"messages":[[[[]',
            '{"a" 1}',
        ),
        *(
            '{"input":[{"content":[{"text"',
            '{"prompt":"',
            '{"prompt":[',
            '{"messages":' + "[" * 70_000,
        ),
        *('{"messages":[{"content":"' + '\\"' * 40_000, '{"prompt_cache_key":"', "\0" * 100),
        '{"messages":[' + '{"role":"system","content":"a"},' * 2500,
    ],
)
def test_what_is_no_request_is_passed_on(shared: Ingress, body: str) -> None:
    assert shared.client.post(CHAT, content=body).status_code == 200


def test_prompts_with_one_beginning_go_to_one_replica(shared: Ingress) -> None:
    document = "a long document " * 40
    asked = [{"prompt": f"{document} question {n}"} for n in range(8)]
    assert len({met(shared, COMPLETIONS, body) for body in asked}) == 1
    others = [{"prompt": f"document {n} {document}"} for n in range(40)]
    assert len({met(shared, COMPLETIONS, body) for body in others}) == REPLICAS


@contextmanager
def held(ingress: Ingress, bodies: list[Body]) -> Iterator[Counter[str]]:
    """Keep so many requests at the replicas; yield, and in the end count, who has them."""
    ingress.start("prefix", ingress.replicas)
    for replica in ingress.replicas:
        replica.go.clear()
    before = taken(ingress)
    counted: Counter[str] = Counter()
    with ThreadPoolExecutor(len(bodies)) as pool:
        asked = [pool.submit(met, ingress, CHAT, body) for body in bodies]
        until(lambda: taken(ingress) == before + len(bodies), seconds=20, what="not there")
        yield counted
        for replica in ingress.replicas:
            replica.go.set()
        counted.update(future.result() for future in asked)


def test_a_replica_gets_no_more_than_its_share_for_a_prefix_alone(ingress: Ingress) -> None:
    with held(ingress, [{"prompt": "the same"}] * 6) as places:
        pass
    assert max(places.values()) <= 6 / REPLICAS * MOST_LOAD / 100 + 1


def test_what_many_ask_at_a_time_goes_to_all_replicas(ingress: Ingress) -> None:
    with held(ingress, [{"prompt": "the same"}] * 12 * TOGETHER) as places:
        pass
    assert len(places) == REPLICAS
    assert max(places.values()) < 1.6 * min(places.values()), places


def test_conversations_that_begin_alike_are_told_apart_when_they_are_many(
    ingress: Ingress,
) -> None:
    def body(who: int, n: int = 0) -> Body:
        return {"messages": later(n, turn("system", AGENT), turn("user", f"{LONG} {who}"))}

    with held(ingress, [body(n) for n in range(4 * TOGETHER)]) as places:
        pass
    assert len(places) == REPLICAS
    assert max(places.values()) < places.total() / 2, places
