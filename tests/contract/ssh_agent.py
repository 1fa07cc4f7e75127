"""An SSH agent of the tests' own, whose keys sign, refuse or keep silent as a test wants."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

REFUSED = b"\x05"


@dataclass
class HeldKey:
    """A key as the agent lists it; `private` None refuses to sign, `hangs` never answers."""

    blob: bytes
    comment: str
    private: paramiko.PKey | None = None
    hangs: bool = False


@dataclass
class FakeAgent:
    """The agent's socket, and the comments of the keys that were asked to sign."""

    path: str
    keys: list[HeldKey]
    asked: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: bytes) -> bytes:
        """Return the answer to a list (11) or sign request (13)."""
        if request[0] == 11:
            listed = b"".join(_string(k.blob) + _string(k.comment.encode()) for k in self.keys)
            return b"\x0c" + struct.pack(">I", len(self.keys)) + listed
        message = paramiko.Message(request[1:])
        blob, data, flags = message.get_binary(), message.get_binary(), message.get_int()
        key = next(key for key in self.keys if key.blob == blob)
        self.asked.append(key.comment)
        if key.hangs:
            self.over.wait()
        if key.private is None:
            return REFUSED
        algorithm = {2: "rsa-sha2-256", 4: "rsa-sha2-512"}.get(flags, key.private.get_name())
        return b"\x0e" + _string(key.private.sign_ssh_data(data, algorithm).asbytes())


@contextlib.contextmanager
def fake_agent(path: Path, *keys: HeldKey) -> Iterator[FakeAgent]:
    """Yield an agent that listens at a path."""
    agent = FakeAgent(str(path), list(keys))
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(agent.path)
        server.listen()
        threading.Thread(target=_accept, args=(server, agent), daemon=True).start()
        try:
            yield agent
        finally:
            agent.over.set()


def _accept(server: socket.socket, agent: FakeAgent) -> None:
    with contextlib.suppress(OSError):
        while True:
            peer, _ = server.accept()
            threading.Thread(target=_serve, args=(peer, agent), daemon=True).start()


def _serve(peer: socket.socket, agent: FakeAgent) -> None:
    with peer, contextlib.suppress(OSError), peer.makefile("rb") as requests:
        while size := requests.read(4):
            request = requests.read(struct.unpack(">I", size)[0])
            peer.sendall(_string(agent.answer(request)))


def _string(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content
