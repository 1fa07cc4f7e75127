"""The gateway before browsers and agents: real nginx."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.nginx import ALICE, BOB, KEYS, PATH, bearer, running
from tests.contract.sshd import wait_for
from tests.contract.test_gateway import Api, api
from tests.ports import free_port

__all__ = ["api"]

pytestmark = pytest.mark.skipif(not shutil.which("nginx", path=PATH), reason="needs nginx")

PAGE, OTHER = "https://chat.example.com", "https://chat.example.com.evil.net"
MAY = "access-control-allow-origin"
ASKS = {"Access-Control-Request-Method": "POST"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all gateways of this file."""
    return tmp_path_factory.mktemp("clients")


@contextmanager
def gate(root: Path, name: str, api: int, **more: Any) -> Iterator[httpx.Client]:
    folder = root / name
    folder.mkdir()
    with running(folder, api, **{**KEYS, **more}) as client:
        yield client


@pytest.fixture(scope="module")
def paged(root: Path, api: int) -> Iterator[httpx.Client]:
    """A gateway that two pages may ask."""
    allowed = [PAGE, "http://localhost:3000"]
    with gate(root, "paged", api, allowed_origins=allowed, max_body="100k") as client:
        yield client


@pytest.fixture(scope="module")
def plain(root: Path, api: int) -> Iterator[httpx.Client]:
    """A gateway that no page may ask."""
    with gate(root, "plain", api) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health", "/nowhere"])
@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_a_browser_s_question_needs_no_key(paged: httpx.Client, path: str, origin: str) -> None:
    wanted = "authorization, content-type, x-stainless-os, anthropic-version"
    asks = {"Origin": origin, **ASKS, "Access-Control-Request-Headers": wanted}
    answer = paged.options(path, headers=asks)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers.get_list(MAY) == [origin]
    assert answer.headers["access-control-allow-headers"] == wanted
    assert "POST" in answer.headers["access-control-allow-methods"].split(", ")
    assert int(answer.headers["access-control-max-age"]) > 0
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("wanted", [None, "a\tb", "x" * 300 + ";", "é".encode().decode("latin-1")])
def test_headers_that_are_none_are_not_sent_back(paged: httpx.Client, wanted: str | None) -> None:
    asks = {"Origin": PAGE, **ASKS}
    if wanted is not None:
        asks["Access-Control-Request-Headers"] = wanted
    answer = paged.options(
        "/v1/x", headers=[(k.encode(), v.encode("latin-1")) for k, v in asks.items()]
    )
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-headers"].startswith("Authorization, ")


def answers_of(client: httpx.Client, origin: str) -> dict[int, httpx.Response]:
    """Return answers by status: of the API, and of the gateway itself."""
    asks = {"Origin": origin, **bearer(ALICE)}
    got = [
        client.get("/v1/x", headers=asks),
        client.get("/v1/x", headers={"Origin": origin}),
        client.get("/nowhere", headers=asks),
        client.post("/v1/x", headers=asks, content=b"x" * 200_000),
        *(client.get(f"/v1/say/{code}", headers=asks) for code in (400, 422, 429, 500, 502, 504)),
    ]
    return {answer.status_code: answer for answer in got}


def test_a_page_can_read_every_answer(paged: httpx.Client) -> None:
    got = answers_of(paged, PAGE)
    assert set(got) == {200, 401, 404, 413, 400, 422, 429, 500, 502, 504}
    for answer in got.values():
        assert answer.headers.get_list(MAY) == [PAGE]
        assert answer.headers.get_list("vary") == ["Origin"]
        exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert {"x-request-id", "retry-after", "x-ratelimit-remaining-requests"} <= set(exposed)
        assert "access-control-allow-credentials" not in answer.headers


def test_a_page_can_read_that_nobody_is_there(root: Path) -> None:
    with gate(root, "absent", free_port(), allowed_origins=["*"], rate_limit=1) as client:
        asks = {"Origin": OTHER, **bearer(ALICE)}
        answers = [client.get("/v1/x", headers=asks)]
        while answers[-1].status_code != 429:
            assert len(answers) < 500
            answers.append(client.get("/v1/x", headers=asks))
        assert {answer.status_code for answer in answers} == {503, 429}
        assert {(*answer.headers.get_list(MAY),) for answer in answers} == {("*",)}
        assert client.options("/v1/x", headers={"Origin": OTHER, **ASKS}).status_code == 204
        assert MAY not in client.get("/v1/x", headers=bearer(ALICE)).headers


@pytest.mark.parametrize(
    "origin", [OTHER, "https://chat-example.com", "http://chat.example.com", PAGE + ":8443", "null"]
)
def test_other_pages_can_read_nothing(paged: httpx.Client, origin: str) -> None:
    for answer in answers_of(paged, origin).values():
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers.get_list("vary") == ["Origin"]
    assert paged.options("/v1/x", headers={"Origin": origin, **ASKS}).status_code == 401


def test_without_the_setting_no_page_can(plain: httpx.Client) -> None:
    for answer in answers_of(plain, PAGE).values():
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert "vary" not in answer.headers
    assert plain.options("/v1/x", headers={"Origin": PAGE, **ASKS}).status_code == 401


def test_what_a_server_says_to_browsers_is_not_passed_on(plain: httpx.Client) -> None:
    answer = plain.get("/v1/browser", headers={"Origin": PAGE, **bearer(ALICE)})
    assert MAY not in answer.headers
    assert "Origin" not in answer.json()["headers"]


def test_a_page_s_stream_comes_as_it_is_made(paged: httpx.Client) -> None:
    Api.go_on.clear()
    asks = {"Origin": PAGE, **bearer(ALICE)}
    with paged.stream("GET", "/v1/stream", headers=asks) as answer:
        chunks = answer.iter_raw()
        assert next(chunks) == b"first"
        assert answer.headers[MAY] == PAGE
        Api.go_on.set()
        assert b"".join(chunks) == b"second"


@pytest.mark.parametrize(
    ("headers", "status", "owner"),
    [
        ({"X-Api-Key": BOB}, 200, "bob"),
        ({"X-Api-Key": BOB, **bearer(ALICE)}, 200, "alice"),
        ({"X-Api-Key": "wrong", **bearer(ALICE)}, 200, "alice"),
        ({"X-Api-Key": BOB, **bearer("wrong")}, 401, ""),
        ({"X-Api-Key": BOB, "Authorization": "Basic eA=="}, 401, ""),
        ({"X-Api-Key": f"Bearer {BOB}"}, 401, ""),
        ({"X-Api-Key": BOB + "x"}, 401, ""),
        ({"X-Api-Key": BOB.upper()}, 401, ""),
        ({"X-Api-Key": ""}, 401, ""),
        ({"X_Api_Key": BOB}, 401, ""),
        ({"Api-Key": BOB}, 200, "bob"),
        ({"Api-Key": "wrong", "X-Api-Key": BOB}, 200, "bob"),
        ({"Api-Key": BOB, "X-Api-Key": "wrong"}, 401, ""),
        ({"Api-Key": BOB, **bearer(ALICE)}, 200, "alice"),
    ],
)
def test_a_key_may_come_as_anthropic_s_and_azure_s_clients_send_it(
    plain: httpx.Client, root: Path, headers: dict[str, str], status: int, owner: str
) -> None:
    answer = plain.post("/v1/messages", headers=headers, content=b"{}")
    assert answer.status_code == status
    log = root / "plain/log"
    mine = answer.headers["x-request-id"]
    wait_for(lambda: mine in log.read_text().rpartition("\n")[0], "the request's line")
    [line] = [json.loads(line) for line in log.read_text().splitlines() if mine in line]
    assert line["owner"] == owner
    assert BOB not in log.read_text()
    if status == 200:
        assert not {"Api-Key", "X-Api-Key", "Authorization"} & set(answer.json()["headers"])


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/"])
def test_anthropic_s_clients_get_errors_in_their_form(paged: httpx.Client, path: str) -> None:
    assert paged.post(path, content=b"{}").json() == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "Incorrect API key provided."},
    }
    large = paged.post(path, headers={"X-Api-Key": ALICE}, content=b"x" * 200_000)
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    assert "type" not in paged.post("/v1/messagesx", content=b"{}").json()


@pytest.mark.parametrize("name", ["my-id-1", "a" * 128, "run:1/step@2"])
def test_a_request_keeps_the_name_that_its_client_gave(
    plain: httpx.Client, root: Path, name: str
) -> None:
    answer = plain.get("/v1/x", headers={**bearer(ALICE), "X-Request-Id": name})
    assert answer.headers.get_list("x-request-id") == [name]
    assert answer.json()["headers"]["X-Request-Id"] == name
    log = root / "plain/log"
    wait_for(lambda: f'"request":"{name}"' in log.read_text(), "the request's line")
    assert plain.get("/v1/x", headers={"X-Request-Id": name}).headers["x-request-id"] == name
