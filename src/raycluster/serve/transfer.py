"""Hands files from host to host: each takes from the one before it, and serves while it takes.

It needs a Python 3.8 and its standard library, so that it runs on hosts as well as in nodes:
`python3 transfer.py ORDER`, with ORDER a file of JSON that is removed once it was read: `token`,
`listen`, `port`, `items` (path, size, digest) and `peers` (address and port, the best first; none
where all items are here, or come as `grows` says: somebody appends to them). Every line of the
output is JSON: `here` and `total` bytes, `done`, or `error`; lines go on until nobody reads them,
or nobody takes anything any more.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import shutil
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHUNK = 1 << 20
AT_ONCE = 4
"""Files that are taken side by side."""
STALL_S = 20.0
"""Seconds without a byte after which a peer is given up for another."""
CONNECT_S = 5.0
PATIENCE_S = 30.0
"""Seconds in which no peer answers, after which a transfer has failed."""
EARLY_S = 5.0
"""Seconds in which the best peer is asked again: it may not have begun to serve yet."""
IDLE_S = 120.0
"""Seconds without a taker after which a sender that nobody ended ends by itself."""
EVERY_S = 0.5
GROW_S = 600.0
"""Seconds in which nothing is appended to an item that grows, after which it is given up."""
PART = ".raycluster-part"


class TransferError(Exception):
    """What kept the files from coming."""


@dataclass(frozen=True)
class Item:
    """A file: where it lies here, its bytes, and its SHA-256 (or git's SHA-1)."""

    path: Path
    size: int
    digest: str

    @property
    def part(self) -> Path:
        """Where it lies until it is whole and right."""
        return self.path.with_name(self.path.name + PART)

    @property
    def partial(self) -> int:
        """How many bytes an earlier run left there."""
        return self.part.stat().st_size if self.part.exists() else 0

    @property
    def whole(self) -> bool:
        """Whether it is there: it gets its name when it was found right."""
        return self.path.exists() and self.path.stat().st_size == self.size


def digest_of(like: str, size: int) -> Any:  # noqa: ANN401  # hashlib has no public type for it
    """Return a new digest of the kind of `like`: SHA-256, or git's SHA-1 of a file."""
    if len(like) == 40:  # hexadecimal digits
        return hashlib.sha1(b"blob %d\0" % size)  # noqa: S324  # what git names files by
    return hashlib.sha256()


@dataclass
class Shelf:
    """How many bytes of each item are here; those who serve wait for more."""

    items: Sequence[Item]
    here: list[int] = field(init=False)
    turn: list[int] = field(init=False)
    change: threading.Condition = field(default_factory=threading.Condition)
    used: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.here = [0] * len(self.items)
        self.turn = [0] * len(self.items)

    @property
    def total(self) -> int:
        """Bytes of all items."""
        return sum(item.size for item in self.items)

    def set(self, index: int, here: int) -> None:
        """Note how much is here; less than before begins a new turn, and ends what was served."""
        with self.change:
            if here < self.here[index]:
                self.turn[index] += 1
            self.here[index] = here
            self.change.notify_all()

    def beyond(self, index: int, offset: int, turn: int) -> int:
        """Wait for bytes beyond `offset` and return how many are here; 0 for none any more."""
        with self.change:
            self.change.wait_for(
                lambda: self.here[index] > offset or self.turn[index] != turn, STALL_S
            )
            return self.here[index] if self.turn[index] == turn else 0


class _Handler(BaseHTTPRequestHandler):
    """GET /INDEX with a proof of the token and a range that begins anywhere and has no end."""

    protocol_version = "HTTP/1.1"
    server_version = "raycluster"
    sys_version = ""
    timeout = STALL_S
    shelf: Shelf
    token: str
    place: tuple[str, int]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "").encode()
        wanted = proof(self.token, self.place, self.path, self._range)
        if not hmac.compare_digest(given, wanted.encode()):
            return self._refuse(401)
        name, begin = self.path[1:], self._range[6:-1]
        if not name.isdecimal() or int(name) >= len(self.shelf.items) or not begin.isdecimal():
            return self._refuse(404)
        index, offset = int(name), int(begin)
        size = self.shelf.items[index].size
        if offset > size:
            return self._refuse(416)
        self.send_response(206)
        self.send_header("Content-Length", str(size - offset))
        self.send_header("Content-Range", f"bytes {offset}-{size - 1}/{size}")
        self.end_headers()
        try:
            self._send(index, offset)
        except OSError:  # the taker is gone
            self.close_connection = True
        return None

    @property
    def _range(self) -> str:
        return self.headers.get("Range", "bytes=0-")

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def _send(self, index: int, offset: int) -> None:
        """Send what is here, and what comes, by the kernel alone; cut it short where no more is."""
        shelf, item = self.shelf, self.shelf.items[index]
        turn = shelf.turn[index]
        file: BinaryIO | None = None
        try:
            while offset < item.size:
                here = shelf.beyond(index, offset, turn)
                if here <= offset:
                    self.close_connection = True
                    return
                if file is None:
                    file = opened(item)
                while offset < here:
                    count = min(here - offset, 8 * CHUNK)
                    sent = self.connection.sendfile(file, offset, count)
                    if not sent:
                        raise OSError("the file has been truncated")
                    offset += sent
                    shelf.used = time.monotonic()
        finally:
            if file is not None:
                file.close()


def opened(item: Item) -> BinaryIO:
    """Open an item, whole or not yet."""
    try:
        return item.part.open("rb")
    except FileNotFoundError:
        return item.path.open("rb")


def proof(token: str, address: Sequence[object], path: str, wanted: str) -> str:
    """Return what shows that who asks this address for this has the token, which is not sent.

    Whoever holds the port of a host that does not serve learns nothing that others would take.
    """
    what = json.dumps([*map(str, address), path, wanted])
    return "HMAC " + hmac.new(token.encode(), what.encode(), hashlib.sha256).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    allow_reuse_address = True


def serve(shelf: Shelf, token: str, listen: str, port: int) -> ThreadingHTTPServer:
    """Begin to serve what is on the shelf, on this address alone. Raises OSError."""
    of_this = {"shelf": shelf, "token": token, "place": (listen, port)}
    handler = type("Handler", (_Handler,), of_this)
    six = {"address_family": socket.AF_INET6} if ":" in listen else {}
    server: ThreadingHTTPServer = type("Server", (_Server,), six)((listen, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@dataclass
class Taker:
    """Takes what is not here from peers, the best first, and checks it."""

    shelf: Shelf
    peers: Sequence[tuple[str, int]]
    token: str
    heard: float = field(default_factory=time.monotonic)
    failed: threading.Event = field(default_factory=threading.Event)

    def take(self) -> None:
        """Bring every item. Raises TransferError and OSError."""
        self._refuse_without_room()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(self._take, range(len(self.shelf.items))):
                pass

    def _refuse_without_room(self) -> None:
        needed: dict[Path, int] = {}
        for item in self.shelf.items:
            folder = item.path.parent
            folder.mkdir(parents=True, exist_ok=True)
            if not item.whole:
                needed[folder] = needed.get(folder, 0) + item.size - item.partial
        for folder, size in needed.items():
            free = shutil.disk_usage(folder).free
            if size > free:
                raise TransferError(
                    f"{size / 1e9:.1f} GB are needed in {folder}, but {free / 1e9:.1f} are free"
                )

    def _take(self, index: int) -> None:
        """Bring one item; the others are given up where it does not come."""
        try:
            self._bring(index, self.shelf.items[index])
        except (TransferError, OSError):
            self.failed.set()
            raise

    def _bring(self, index: int, item: Item) -> None:
        """Bring one item; what came wrong is brought once more, from those who had it first."""
        if item.whole:
            self.shelf.set(index, item.size)
            return
        for peers in (self.peers, self.peers[::-1]):
            if self._received(index, item, peers) == item.digest:
                item.part.replace(item.path)
                return
            self.shelf.set(index, 0)
            item.part.unlink()
        raise TransferError(f"{item.path.name} was received with a wrong SHA-256, twice")

    def _received(self, index: int, item: Item, peers: Sequence[tuple[str, int]]) -> str:
        """Bring what is missing of an item and return the digest of the whole."""
        digest = digest_of(item.digest, item.size)
        with item.part.open("ab+", buffering=0) as part:
            here = self._resumed(item, part, digest)
            self.shelf.set(index, here)
            self.heard = time.monotonic()  # reading what was there may have taken long
            turn, begun, why = 0, self.heard, ""
            while here < item.size:
                peer, before = peers[turn % len(peers)], here
                try:
                    for data in self._stream(peer, index, here):
                        _write(part, data)
                        digest.update(data)
                        here += len(data)
                        self.shelf.set(index, here)
                        begun = time.monotonic()
                except (OSError, http.client.HTTPException) as error:
                    if isinstance(error, OSError) and error.errno == 28:  # no space left
                        raise
                    why = f"{peer[0]}:{peer[1]}: {error or type(error).__name__}"
                if here < item.size:
                    silent = time.monotonic() - self.heard > PATIENCE_S
                    if silent or self.failed.is_set():
                        raise TransferError(f"no host provides the missing files ({why})")
                    turn += here == before and time.monotonic() - begun > EARLY_S
                    time.sleep(0.1)
        return str(digest.hexdigest())

    @staticmethod
    def _resumed(item: Item, part: BinaryIO, digest: Any) -> int:  # noqa: ANN401
        """Return how much an earlier run has brought, and put it into the digest."""
        if item.partial > item.size:
            part.truncate(0)
        part.seek(0)
        here = 0
        while data := part.read(CHUNK):
            digest.update(data)
            here += len(data)
        return here

    def _stream(self, peer: tuple[str, int], index: int, offset: int) -> Iterator[memoryview]:
        """Yield what a peer sends of an item, from `offset` on; it may end early."""
        connection = http.client.HTTPConnection(*peer, timeout=CONNECT_S)
        buffer = memoryview(bytearray(CHUNK))
        try:
            connection.connect()
            connection.sock.settimeout(STALL_S)
            path, wanted = f"/{index}", f"bytes={offset}-"
            headers = {"Authorization": proof(self.token, peer, path, wanted), "Range": wanted}
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            if answer.status != 206:
                raise http.client.HTTPException(f"answers {answer.status}")
            self.heard = time.monotonic()
            left = self.shelf.items[index].size - offset
            while count := answer.readinto(buffer):
                if count > left:  # whatever it said before: no more than the file has is kept
                    raise http.client.HTTPException("sent more data than the file size")
                left -= count
                yield buffer[:count]
        finally:
            connection.close()


def grow(shelf: Shelf) -> None:
    """Follow items that somebody else appends to, and check them. Raises TransferError, OSError."""
    for index, item in enumerate(shelf.items):
        if not item.whole:
            _follow(shelf, index, item)
        shelf.set(index, item.size)


def _follow(shelf: Shelf, index: int, item: Item) -> None:
    digest, here, end = digest_of(item.digest, item.size), 0, time.monotonic() + GROW_S
    item.part.touch()
    with item.part.open("rb", buffering=0) as part:
        while here < item.size:
            data = part.read(CHUNK)
            digest.update(data)
            here += len(data)
            shelf.set(index, here)
            if data:
                end = time.monotonic() + GROW_S
            elif time.monotonic() > end:
                raise TransferError(f"nothing more of {item.path.name} comes")
            else:
                time.sleep(0.02)
    if here != item.size or digest.hexdigest() != item.digest:
        item.part.unlink()
        raise TransferError(f"{item.path.name} was received with a wrong SHA-256 or size")
    item.part.replace(item.path)


def _write(part: BinaryIO, data: memoryview) -> None:
    while data:  # a raw file may take a part alone
        data = data[part.write(data) :]


def run(
    order: dict[str, Any],
    items: Sequence[Item],
    say: Callable[[dict[str, Any]], None],
    settle: Callable[[], None],
) -> None:
    """Serve the items, after bringing those that are missing; `settle` puts them to use.

    Ends when `say` raises OSError, for nobody reads it any more, or when nobody takes anything.
    """
    shelf = Shelf(items)
    peers = [(str(host), int(port)) for host, port in order["peers"]]
    failed: list[str] = []
    try:
        server = serve(shelf, order["token"], order["listen"], order["port"])
    except OSError as error:
        what = error.strerror or str(error)
        say({"error": f"cannot listen on {order['listen']}:{order['port']}: {what}"})
        return
    over = threading.Event()

    def bring() -> None:
        try:
            if order.get("grows"):
                grow(shelf)
            elif peers:
                Taker(shelf, peers, order["token"]).take()
            else:
                for index, item in enumerate(items):
                    shelf.set(index, item.size)
            settle()
        except (TransferError, OSError) as error:
            failed.append(str(error))
        over.set()

    threading.Thread(target=bring, daemon=True).start()
    try:
        while not over.wait(EVERY_S):
            say({"here": sum(shelf.here), "total": shelf.total})
        if failed:
            say({"error": failed[0]})
            return
        shelf.used = time.monotonic()
        while time.monotonic() - shelf.used < IDLE_S:
            say({"done": True, "here": shelf.total, "total": shelf.total})
            time.sleep(EVERY_S)
    except OSError:
        pass  # nobody reads any more: the laptop is done, or gone
    finally:
        server.shutdown()


def read_order(path: str) -> dict[str, Any]:
    """Return an order, and remove its file: it holds the token."""
    file = Path(path)
    order: dict[str, Any] = json.loads(file.read_text())
    file.unlink()
    return order


def say(line: dict[str, Any]) -> None:
    """Write one line. Raises OSError where nobody reads."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    os.umask(0o077)
    order = read_order(sys.argv[1])
    items = [Item(Path(i["path"]), i["size"], i["digest"]) for i in order["items"]]
    run(order, items, say, lambda: None)


if __name__ == "__main__":
    main()
