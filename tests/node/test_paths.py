"""Which paths come through the gateway, as the last server in the row reads them.

Real nginx, HAProxy with the configuration that Serve writes, the router, replicas, and servers with
the routing of vLLM's; see `row`.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from itertools import product
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import pytest

from tests.contract.nginx import ALICE, KEYS, bearer, running
from tests.local.cluster import ROOT, made_by
from tests.ports import free_ports

pytestmark = [pytest.mark.local, pytest.mark.timeout(300)]

OFFSET = 700
LARGE = 70_000
"""Bytes that HAProxy, which looks for the model's name, does not wait for."""

ALLOWED = ("/v1/models", "/v1/chat/completions", "/v1/models/org%2Fname", "/v1/x", "/health")
CLOSED = (
    *("/metrics", "/tokenize", "/version", "/raycluster/engine", "/invocations", "/start_profile"),
    *("/m/one/metrics", "/m/one/v1/models", "/v1/load_lora_adapter", "/collective_rpc", "/docs"),
)
DOTS = (
    *("..", "%2e%2e", ".%2E", "%2e.", "%252e%252e", "%25252e%25252e", "..;", "..;x", "..%00"),
    *("%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae", "%uff0e%uff0e", "\uff0e\uff0e", "..%20", "..%09", "."),
    *("%2e", "...", "..%ef%bb%bf", "%ff"),
)
SEPARATORS = (
    *("/", "%2f", "%2F", "%252f", "\\", "%5c", "%255c", "//", "/./", "%c0%af", "%e0%80%af", ";/"),
    *("/;x/", "%u2215", "\u2215", "%00/", "%0a/", "?/", "%3f/", "#/", "%23/"),
)
BEFORE = ("/", "http://x", "//x", "/m/one", "/m/two", "\\", "%2f", "/%2e", "/v1/models/..", "*")
AFTER = (
    "?",
    "#",
    "%23",
    "%3f",
    ";",
    "%00",
    "%0a",
    "/",
    "//",
    "%20",
    " ",
    "?x=/../",
    "/.",
    "%",
    "&",
)


def paths() -> Sequence[str]:
    """Return what might be read as another path than what it is taken for, the same each time."""
    chance = random.Random(0)
    pairs = [*product(ALLOWED, CLOSED), *((b, a) for a, b in product(ALLOWED, CLOSED))]
    made = {
        first + sep + (dots + sep) * n + last[1:]
        for (first, last), n in zip(
            [("/v1/models", "/tokenize"), ("/metrics", "/health"), ("/m/one/metrics", "/health")],
            (1, 1, 3),
            strict=True,
        )
        for sep, dots in product(SEPARATORS, DOTS)
    }
    while len(made) < 2500:
        (first, last), n = chance.choice(pairs), chance.randrange(5)
        sep, other, dots = (chance.choice(x) for x in (SEPARATORS, SEPARATORS, DOTS))
        before = chance.choice(BEFORE) if chance.random() < 0.2 else ""
        after = chance.choice(AFTER) if chance.random() < 0.3 else ""
        made.add(before + first + sep + (dots + other) * n + last[1:] + after)
    return [*CLOSED, *sorted(made)]


@dataclass(frozen=True)
class Said:
    """An answer: what each server has read, the last one first."""

    path: str
    status: int
    read: tuple[str, ...]
    body: bytes


def ask(port: int, path: str, method: str, headers: dict[str, str], body: bytes = b"") -> Said:
    """Send a path as it is; status 0 where there is no answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
        more = {"Host": "x", "Connection": "close", "Content-Length": str(len(body)), **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in more.items()), "", ""]
        with suppress(OSError):  # it may have been refused before its end
            one.sendall("\r\n".join(lines).encode() + body)
        answer = HTTPResponse(one, method=method)
        try:
            answer.begin()
            return Said(
                path, answer.status, tuple(answer.headers.get_all("x-read", ())), answer.read()
            )
        except (HTTPException, OSError):
            return Said(path, 0, (), b"")


def asked(
    port: int, method: str, headers: dict[str, str], body: bytes = b"", every: int = 1
) -> list[Said]:
    """Send one of so `every` paths."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda p: ask(port, p, method, headers, body), paths()[::every]))


@dataclass(frozen=True)
class Row:
    """Where the gateway and HAProxy listen, and what gets HAProxy's log.

    It is asked for one of so `every` paths.
    """

    gateway: int
    haproxy: int
    log: socket.socket
    every: int


@contextmanager
def standing(
    folder: Path, slugs: Sequence[str], *, straight: bool, **more: object
) -> Iterator[Row]:
    ports = free_ports(5 + len(slugs))
    told = {"folder": str(folder), "slugs": slugs, "ports": ports, "offset": OFFSET, **more}
    program = [f"{made_by('node-env')}/bin/python", "-m", "tests.node.row"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    taker = socket.socket(type=socket.SOCK_DGRAM)
    taker.bind(("127.0.0.1", ports[4]))
    with (folder / "log").open("wb") as log:
        row = subprocess.Popen(
            [*program, json.dumps({**told, "straight": straight})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
        )
    try:
        assert row.stdout
        assert row.stdout.readline() == b"ready\n", (folder / "log").read_text()
        gate = {**KEYS, "paths": ["/"]} if "names" in more else KEYS
        with running(folder, ports[0], **gate) as client:
            yield Row(client.base_url.port or 0, ports[0], taker, 1 if straight else 5)
    finally:
        taker.close()
        row.communicate(timeout=60)


@pytest.fixture(
    scope="module",
    params=[(["one"], True), (["one", "two"], True), (["one", "two"], False)],
    ids=["one model", "several", "several by their replicas"],
)
def row(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Row]:
    slugs, straight = request.param
    with standing(tmp_path_factory.mktemp("row"), slugs, straight=straight) as made:
        yield made


def body(size: int = 0) -> bytes:
    return json.dumps({"pad": "x" * size, "model": "one"}).encode()


def on_the_list(read: str) -> bool:
    """Tell whether a path, as a server has read it, is one that the gateway lets through."""
    path = unquote(read.partition(" ")[2])
    if not re.fullmatch(r"(/[\w~-][\w.~:@+,=-]*)+/?", path, re.ASCII):
        return False
    if path.startswith(("/v1/load_lora_adapter", "/v1/unload_lora_adapter")):
        return False
    return path == "/health" or path.startswith("/v1/")


REQUESTS = {
    "without a body": ("GET", b""),
    "small": ("POST", body()),
    "large": ("POST", body(LARGE)),
}


@pytest.mark.parametrize(("method", "sent"), REQUESTS.values(), ids=REQUESTS)
def test_what_comes_through_is_on_the_list(row: Row, method: str, sent: bytes) -> None:
    for headers in ({}, bearer(ALICE)):
        for said in asked(row.gateway, method, headers, sent, row.every):
            # The replica has the route of its model before the path, where it has one.
            read = [r for r in said.read if not r.startswith("replica ")]
            assert all(map(on_the_list, read)), said
            assert headers or all(r.endswith(" /health") for r in read), said
            assert b"# HELP" not in said.body, said


def test_what_clients_ask_for_comes_through(row: Row) -> None:
    for path, read in [
        ("/v1/models", "/v1/models"),
        ("/v1/files/one", "/v1/files/one"),
        ("/health", "/health"),
    ]:
        said = ask(row.gateway, path, "GET", bearer(ALICE))
        assert {r.partition(" ")[2] for r in said.read} >= {read}, said
    encoded = ask(row.gateway, "/v1/models/org%2Fname-1.5%3Av2?a=%2e", "GET", bearer(ALICE))
    assert b"nothing at this path" not in encoded.body
    for path in ("/v1/chat/completions", "/v1/responses/resp_1a-b/cancel?x=1", "/v1/a/b.c"):
        for size in (0, LARGE):
            said = ask(row.gateway, path, "POST", bearer(ALICE), body(size))
            assert said.read[0] == f"engine {path.partition('?')[0]}", said
            assert said.status == 200
    assert ask(row.gateway, "/health", "GET", {}).status == 200


def test_behind_the_gateway_nobody_decodes_again(row: Row) -> None:
    """Asked without nginx, the last one reads what the first one does."""
    for size in (0, LARGE):
        for said in asked(row.haproxy, "POST", {}, body(size), every=5):
            sent = re.split(r"[?#]", said.path.rstrip(), maxsplit=1)[0]
            if sent.startswith("/"):
                once = unquote_to_bytes(sent.rstrip("/") or "/").decode(errors="replace")
                assert {without_route(unquote(r.partition(" ")[2])) for r in said.read} <= {
                    without_route(once)
                }, said


def without_route(path: str) -> str:
    """Return the path without the routes of models before it."""
    return re.sub("^(/m/[^/]+(?=/))+", "", path)


def test_haproxy_logs_paths_alone(row: Row) -> None:
    row.log.setblocking(False)
    with suppress(BlockingIOError):
        while True:  # what it logged before
            row.log.recv(1 << 16)
    row.log.settimeout(20)
    headers = {"Referer": "hidden", "User-Agent": "hidden"}
    ask(row.haproxy, "/v1/last?api_key=hidden", "GET", headers)
    line = ""
    while "/v1/last" not in line:
        line = row.log.recv(1 << 16).decode()
    assert re.search(r"GET (/m/one)?/v1/last ", line)
    assert "hidden" not in line
