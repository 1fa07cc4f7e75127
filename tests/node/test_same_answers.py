"""One model or several, by HAProxy or the gateway: the same requests have the same answers.

Real nginx and HAProxy, the router, replicas, and servers with vLLM's endpoints; see `row`.
"""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest

from tests.contract.nginx import ALICE, bearer
from tests.node.endpoints import FORMS, POSTS
from tests.node.test_paths import LARGE, Row, standing

pytestmark = [pytest.mark.local, pytest.mark.timeout(300)]

NAMES = {"org-tiny": "org/tiny", "other": "other"}
ID = "my-id-1"
PREFLIGHT = {"Origin": "http://x", "Access-Control-Request-Method": "POST"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Row]]:
    with ExitStack() as all_of_them:
        yield {
            of: all_of_them.enter_context(
                standing(tmp_path_factory.mktemp("row"), slugs, straight=True, names=NAMES)
            )
            for of, slugs in (("one", ["org-tiny"]), ("several", list(NAMES)))
        }


@pytest.fixture(params=["haproxy", "gateway"])
def ways(request: pytest.FixtureRequest, rows: Mapping[str, Row]) -> Iterator[list[httpx.Client]]:
    """Clients of the one model, and of several."""
    with ExitStack() as open_:
        yield [
            open_.enter_context(
                httpx.Client(
                    base_url=f"http://127.0.0.1:{getattr(row, request.param)}",
                    headers={**bearer(ALICE), "X-Request-Id": ID},
                    timeout=60,
                )
            )
            for row in rows.values()
        ]


def multipart(model: str | None, *, last: bool = False) -> dict[str, Any]:
    """Return a form as clients send it, with a file that HAProxy does not look behind."""
    file = ("file", ("a.wav", b"\r\n--x\0" * (LARGE // 6), "audio/wav"))
    field = [("model", (None, model))] if model is not None else []
    return {"files": [file, *field] if last else [*field, file]}


def with_json(model: object = "org/tiny", size: int = 0, **more: object) -> dict[str, Any]:
    return {"json": {"pad": "x" * size, "model": model, **more}}


REQUESTS: list[tuple[str, str, dict[str, Any], int]] = [
    *(("POST", path, with_json(), 200) for path in POSTS),
    *(
        ("POST", path, multipart("org/tiny", last=last), 200)
        for path in FORMS
        for last in (False, True)
    ),
    ("POST", FORMS[0], multipart("nope"), 404),
    ("POST", FORMS[0], {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
    ("POST", "/v1/completions", with_json(size=LARGE), 200),
    ("POST", "/v1/completions", with_json("nope"), 404),
    ("POST", "/v1/completions", with_json("nope", LARGE), 404),
    ("POST", "/v1/completions", {"content": b'{"model": "org\\/tiny"}'}, 200),
    ("POST", "/v1/completions", {"content": b'{"model": '}, 400),
    ("POST", "/v1/completions", {"content": b""}, 400),
    ("POST", "/v1/completions", {"content": b"[1]"}, 400),
    ("POST", "/v1/completions/", with_json(), 200),
    ("POST", "/v1/completions/?a=1", with_json(size=LARGE), 200),
    (
        "POST",
        "/v1/completions",
        {"content": gzip.compress(b"{}"), "headers": {"content-encoding": "gzip"}},
        415,
    ),
    *(
        ("POST", "/v1/completions", {**with_json(), "headers": {"content-encoding": coding}}, told)
        for coding, told in (("identity", 200), ("", 200), ("identity, gzip", 415), ("zstd", 415))
    ),
    ("POST", "/v1/nothing", with_json(), 404),
    ("GET", "/v1/nothing", {}, 404),
    *((method, "/v1/completions", {}, 405) for method in ("GET", "PUT", "DELETE", "PATCH")),
    ("DELETE", "/v1/completions", with_json(), 405),
    ("DELETE", "/v1/models/org/tiny", {}, 404),
    *((method, "/v1/completions", with_json(), 405) for method in ("FOO", "PROPFIND")),
    ("HEAD", "/v1/completions", {}, 405),
    ("OPTIONS", "/v1/completions", {}, 204),
    ("GET", "/version", {"headers": {f"x-{n}": "" for n in range(200)}}, 200),
    ("GET", "/health", {}, 200),
    ("HEAD", "/health", {}, 200),
    ("HEAD", "/v1/models", {}, 200),
    ("GET", "/v1/models/org/tiny", {}, 200),
    ("GET", "/v1/models/org%2Ftiny", {}, 200),
    ("HEAD", "/v1/models/org/tiny", {}, 200),
    ("GET", "/v1/models/org/tiny/", {}, 200),
    ("GET", "/v1/models/nope", {}, 404),
    ("GET", "/v1/responses/resp_nope", {}, 404),
    ("POST", "/v1/responses/resp_nope/cancel", {}, 404),
    ("POST", "/v1/responses", with_json(previous_response_id="resp_nope"), 404),
    ("GET", "/version", {}, 200),
    ("GET", "/ping", {}, 200),
    ("POST", "/ping", {}, 200),
]


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    REQUESTS,
    ids=[f"{n} {method} {path}" for n, (method, path, *_) in enumerate(REQUESTS)],
)
def test_the_same_answer(
    ways: list[httpx.Client], method: str, path: str, sent: dict[str, Any], status: int
) -> None:
    one, several = (client.request(method, path, **sent) for client in ways)
    assert (one.status_code, several.status_code) == (status, status), (one.text, several.text)
    if status < 400:
        assert several.content == one.content
    elif method != "HEAD":
        assert one.json()["error"]["message"], one.text
        assert several.json()["error"]["message"], several.text
    for answer in (one, several):
        assert answer.headers.get_list("x-request-id") == [ID]
        assert len(answer.headers.get_list("date")) <= 1
        assert "location" not in answer.headers


@pytest.mark.parametrize("model", [{}, {"model": None}], ids=["absent", "null"])
@pytest.mark.parametrize("form", [False, True], ids=["json", "form"])
def test_a_model_need_be_named_where_there_are_several(
    ways: list[httpx.Client], model: dict[str, Any], form: bool
) -> None:
    sent = multipart(None) if form else {"json": model}
    path = FORMS[0] if form else POSTS[0]
    one, several = (client.post(path, **sent) for client in ways)
    assert one.status_code == 200
    assert several.status_code == 400
    assert several.json()["error"]["param"] == "model"
    assert "org/tiny, other" in several.json()["error"]["message"]
    named = ways[1].post(path, params={"model": "other"}, **sent)
    assert named.status_code == 200, named.text


def test_models_are_listed_with_a_slash_too(ways: list[httpx.Client]) -> None:
    for client, names in zip(ways, (["org/tiny"], ["org/tiny", "other"]), strict=True):
        for path in ("/v1/models", "/v1/models/"):
            assert [card["id"] for card in client.get(path).json()["data"]] == names


def test_figures_are_those_of_a_model_that_is_named(ways: list[httpx.Client]) -> None:
    one, several = (client.get("/load") for client in ways)
    assert (one.status_code, several.status_code) == (200, 400)
    assert ways[1].get("/load?model=org%2Ftiny").content == one.content


def test_who_keeps_an_answer_is_found(ways: list[httpx.Client]) -> None:
    """By each of many at once; a further turn goes to it too."""
    _, several = ways

    def ask(number: int) -> None:
        name = list(NAMES.values())[number % 2]
        first = several.post(
            "/v1/responses", json={"model": name}, headers={"x-request-id": f"{id(ways)}-{number}"}
        ).json()["id"]
        assert several.get(f"/v1/responses/{first}").json() == {"model": name, "id": first}
        assert several.post(f"/v1/responses/{first}/cancel").json()["model"] == name
        more = several.post("/v1/responses", json={"model": name, "previous_response_id": first})
        assert more.json()["model"] == name, more.text

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(100)))


@pytest.mark.parametrize("query", ["", "?model=nope", "?model=org%2Ftiny"])
def test_websockets_reach_the_model_that_is_named(ways: list[httpx.Client], query: str) -> None:
    for client, named in zip(ways, (True, query.endswith("tiny")), strict=True):
        said = raw(client, f"GET /v1/realtime{query}", UPGRADE)
        if named:
            assert said.startswith(b"HTTP/1.1 101 ")
            assert b'"org/tiny"' in said
        else:
            assert said.startswith(b"HTTP/1.1 400 ")
            assert b'"error"' in said


UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n"
)
BEARER = f"Authorization: Bearer {ALICE}\r\n"


def raw(client: httpx.Client, begin: str, more: str) -> bytes:
    """Send a request as it is; return what comes until the other end closes, or a frame's end."""
    with socket.create_connection((client.base_url.host, client.base_url.port), 10) as one:
        with suppress(OSError):  # it may be refused before its end
            one.sendall(f"{begin} HTTP/1.1\r\nHost: x\r\n{BEARER}{more}\r\n".encode())
        said = b""
        with suppress(OSError):
            while b"}" not in said and (got := one.recv(1 << 16)):
                said += got
            one.settimeout(0.2)
            while got := one.recv(1 << 16):
                said += got
        return said


@pytest.mark.parametrize(
    ("ways", "status"), [("haproxy", 200), ("gateway", 405)], indirect=["ways"]
)
def test_the_gateway_lets_pages_ask_that_are_allowed_alone(
    ways: list[httpx.Client], status: int
) -> None:
    answers = [client.options("/v1/completions", headers=PREFLIGHT) for client in ways]
    assert [answer.status_code for answer in answers] == [status, status]


@pytest.mark.parametrize("where", ["url", "header"])
def test_a_long_head_is_read(ways: list[httpx.Client], where: str) -> None:
    long = "x" * 20_000
    for client in ways:
        url = "/v1/models" + (f"?a={long}" if where == "url" else "")
        answer = client.get(url, headers={"x-more": long} if where == "header" else {})
        assert answer.json()["data"], answer.text


@pytest.mark.parametrize(
    ("ways", "more"),
    [
        ("gateway", "".join(f"X-{n}: {'x' * 30_000}\r\n" for n in range(3))),
        ("gateway", UPGRADE.replace("Sec-WebSocket-Key", "X")),
        ("gateway", UPGRADE.replace("x3JJ", "")),
        ("haproxy", UPGRADE),
        ("gateway", UPGRADE),
    ],
    ids=["long", "no key", "bad key", "no websocket", "no websocket at the gateway"],
    indirect=["ways"],
)
def test_what_is_refused_on_the_way_is_told_in_openai_s_form(
    ways: list[httpx.Client], more: str
) -> None:
    for client in ways:
        said = raw(client, "GET /v1/nothing?model=org%2Ftiny", more)
        head, _, body = said.partition(b"\r\n\r\n")
        assert 400 <= int(head.split()[1]) < 500
        assert json.loads(body)["error"]["message"], said


def test_two_keys_are_refused_in_openai_s_form(ways: list[httpx.Client]) -> None:
    """Only who asks for keys minds."""
    for client in ways:
        said = raw(client, "GET /v1/models", BEARER)
        head, _, body = said.partition(b"\r\n\r\n")
        if head.split()[1] != b"200":
            assert json.loads(body)["error"]["message"], said


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, 'a"b', "<script>"])
def test_a_bad_id_is_replaced(ways: list[httpx.Client], bad: str) -> None:
    for client in ways:
        for path in ("/v1/models", "/v1/nothing"):
            [given] = client.get(path, headers={"x-request-id": bad}).headers.get_list(
                "x-request-id"
            )
            assert given != bad
            assert len(given) >= 32
