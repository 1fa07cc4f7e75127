"""An SSH agent of the tests' own, whose keys sign, refuse or keep silent as a test wants."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

REFUSED = b"\x05"


class TokenKey:
    """What a security key does, in software: a key of the kind sk-ssh-ed25519@openssh.com."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        public = self._private.public_key().public_bytes_raw()
        self.blob = _string(self.get_name().encode()) + _string(public) + _string(b"ssh:")

    @property
    def public(self) -> str:
        """The line of authorized_keys."""
        return f"{self.get_name()} {base64.b64encode(self.blob).decode()}\n"

    def file(self) -> str:
        """Return the private key's file, whose private part is of no use without the token."""
        parts = (b"none", b"none", b"")
        content = b"openssh-key-v1\0" + b"".join(map(_string, parts)) + struct.pack(">I", 1)
        encoded = base64.b64encode(content + _string(self.blob) + _string(bytes(64))).decode()
        kind = "OPENSSH PRIVATE KEY"
        return f"-----BEGIN {kind}-----\n{encoded}\n-----END {kind}-----\n"

    def get_name(self) -> str:
        """Return the kind of key."""
        return "sk-ssh-ed25519@openssh.com"

    def sign_ssh_data(self, data: bytes, algorithm: str) -> paramiko.Message:
        """Sign as a token that was touched."""
        told = b"\x01" + struct.pack(">I", 7)  # touched, seven times
        digest = hashlib.sha256
        signed = digest(b"ssh:").digest() + told + digest(data).digest()
        signature = _string(self._private.sign(signed))
        return paramiko.Message(_string(algorithm.encode()) + signature + told)


@dataclass
class HeldKey:
    """A key as the agent lists it; `private` None refuses to sign, `hangs` never answers."""

    blob: bytes
    comment: str
    private: paramiko.PKey | TokenKey | None = None
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
