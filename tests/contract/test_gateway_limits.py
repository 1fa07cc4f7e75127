"""What the gateway lets a client take: bodies, connections, time, lines of the log."""

from __future__ import annotations

import re
import resource
import shutil
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from raycluster.services import gateway as gateway_service
from tests.contract.gateway_api import api, processes, root
from tests.contract.nginx import (
    ALICE,
    CONF,
    KEYS,
    PATH,
    bearer,
    process_of,
    running,
    served,
    spec_of,
)
from tests.contract.sshd import wait_for
from tests.ports import free_port, free_ports

__all__ = ["api", "root"]

pytestmark = pytest.mark.skipif(not shutil.which("nginx", path=PATH), reason="needs nginx")


def begun(client: httpx.Client, path: str, key: str, size: int, more: str = "") -> socket.socket:
    """Begin a request with a body of `size` bytes, of which the last one is not sent."""
    one = socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=20)
    auth = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{auth}{more}Content-Length: {size}\r\n\r\n"
    with suppress(OSError):  # nginx may refuse it at once
        one.sendall(head.encode() + b"x" * (size - 1))
    return one


def memory(root: Path) -> int:
    """Return the bytes that nginx's processes have."""
    pages = [int((each / "statm").read_text().split()[1]) for each in processes(root)]
    return sum(pages) * resource.getpagesize()


def on_disk(root: Path) -> int:
    """Return the bytes in files of requests, which have no names."""
    size = 0
    for fd in [fd for each in processes(root) for fd in (each / "fd").iterdir()]:
        with suppress(FileNotFoundError):  # closed meanwhile
            size += fd.stat().st_size if "/temp/body/" in str(fd.readlink()) else 0
    return size


def begun_in_chunks(client: httpx.Client, path: str, key: str, size: int) -> socket.socket:
    """Begin a request whose body has no length before it, and leave its end out."""
    one = socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=20)
    auth = f"Authorization: Bearer {key}\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{auth}Transfer-Encoding: chunked\r\n\r\n"
    with suppress(OSError):  # nginx may refuse it at once
        one.sendall(f"{head}{size:x}\r\n".encode() + b"x" * (size - 1))
    return one


SIZE, MANY = 8 << 20, 20


@pytest.mark.parametrize(("path", "key"), [("/health", ""), ("/v1/x", ""), ("/v1/x", ALICE)])
def test_unfinished_bodies_take_no_memory(root: Path, api: int, path: str, key: str) -> None:
    folder = root / f"memory-{path[1:3]}-{bool(key)}"
    folder.mkdir()
    with running(folder, api, **KEYS) as client, ExitStack() as held:
        before = memory(folder)
        for _ in range(MANY):
            held.enter_context(begun(client, path, key, SIZE))
        if key:
            wait_for(lambda: on_disk(folder) > MANY * (SIZE - (1 << 20)), "bodies on the disk")
            whole = client.post(path, headers=bearer(key), content=b"x" * SIZE)
            assert whole.status_code == 200
        else:
            assert on_disk(folder) == 0
        assert memory(folder) - before < MANY << 20


@pytest.mark.parametrize("sized", [True, False])
def test_bodies_cannot_fill_the_disk(
    root: Path, api: int, monkeypatch: pytest.MonkeyPatch, sized: bool
) -> None:
    """Whoever has a key: no more than a few bodies of each size are on the disk at once."""
    monkeypatch.setattr(gateway_service, "BODIES_BYTES", 4 * 10**7)
    folder = root / f"disk-{sized}"
    folder.mkdir()

    def status(client: httpx.Client, size: int) -> int:
        body = b"x" * size if sized else iter([b"x" * size])
        answer = client.post("/v1/x", headers=bearer(ALICE), content=body)
        assert (answer.status_code == 429) == ("retry-after" in answer.headers)
        return answer.status_code

    with running(folder, api, max_body="10m", **KEYS) as client, ExitStack() as held:
        for _ in range(12):
            begin = begun if sized else begun_in_chunks
            held.enter_context(begin(client, "/v1/x", ALICE, SIZE))
        most = 4 if sized else 3  # of 10 MB, and of the largest
        wait_for(lambda: on_disk(folder) > most * (SIZE - (1 << 20)), "bodies on the disk")
        assert status(client, SIZE) == 429
        assert on_disk(folder) <= most * SIZE
        assert client.post("/v1/x", headers=bearer(ALICE), content=b"{}").status_code == 200
        if sized:
            assert status(client, 200_000) == 200
        held.close()
        wait_for(lambda: status(client, SIZE) == 200, "room for another body")


def test_who_sends_slowly_is_not_waited_for(root: Path, api: int) -> None:
    folder = root / "slow"
    folder.mkdir()
    port = free_port()
    spec = spec_of(port, api, **KEYS)
    process = process_of(spec)
    quick = re.sub(
        rb"(client_(?:header|body)_timeout) [0-9]+s", rb"\1 1s", process.live_files[CONF]
    )
    assert quick != process.live_files[CONF]
    with served(folder, process, {CONF: quick}, port) as client, ExitStack() as held:
        header = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        header.sendall(b"GET /health HTTP/1.1\r\nHost: ")
        for one in (header, held.enter_context(begun(client, "/v1/x", ALICE, 9))):
            with suppress(ConnectionResetError):
                assert b" 200 " not in one.recv(4096)


def test_requests_of_one_address_at_once_are_bounded(root: Path, api: int) -> None:
    folder = root / "many"
    folder.mkdir()
    with running(folder, api, **KEYS, max_connections=3) as client, ExitStack() as held:
        for _ in range(3):
            held.enter_context(begun(client, "/v1/x", ALICE, 9))

        def refused() -> bool:
            if client.get("/v1/x", headers=bearer(ALICE)).status_code == 429:
                return True
            # It came before one of those that were begun, which was refused in its place.
            held.enter_context(begun(client, "/v1/x", ALICE, 9))
            return False

        wait_for(refused, "a bound")
        said = client.get("/v1/x", headers=bearer(ALICE))
        assert (said.status_code, said.headers["retry-after"]) == (429, "1")
        assert said.json()["error"]["code"] == "rate_limit_exceeded"
        elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(base_url=client.base_url, transport=elsewhere) as other:
            assert other.get("/v1/x", headers=bearer(ALICE)).status_code == 200


def test_no_log_has_what_a_client_sent_beside_the_path(root: Path, api: int) -> None:
    """Answers that nginx makes itself, and those for which the API's server is not there."""
    folder = root / "logs"
    folder.mkdir()
    hidden = {"Host": "hidden", "Referer": "http://hidden", "X-A": "hidden", "User-Agent": "hidden"}
    port, api = free_ports(2)
    spec = spec_of(port, api, **KEYS, rate_limit=1, max_body="1k", max_connections=1)
    with served(folder, process_of(spec), {}, port) as client, ExitStack() as held:
        for headers in ({**bearer(ALICE), **hidden}, {**bearer("hidden"), **hidden}):
            for path in ("/v1/x", "/health", "/nowhere"):
                for size in (0, 2000):
                    client.post(f"{path}?api_key=hidden", headers=headers, content=b"x" * size)
        held.enter_context(begun(client, "/v1/x?hidden", ALICE, 9, "X-B: hidden\r\n"))
        client.post("/v1/x?hidden", headers=bearer(ALICE), content="hidden")
        for wrong in (
            b"GET /v1/x?hidden HTTP/9\r\n\r\n",
            b"GET /?hidden HTTP/1.1\r\nhidden\r\n\r\n",
        ):
            one = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            one.sendall(wrong)
            one.recv(1000)
        last = client.get("/v1/last", headers=bearer(ALICE)).headers["x-request-id"]
        wait_for(lambda: last in (folder / "log").read_text(), "the last line")
    assert "hidden" not in (folder / "log").read_text()
