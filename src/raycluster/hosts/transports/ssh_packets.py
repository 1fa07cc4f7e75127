"""Packets of paramiko, with a cipher that it lacks and bounds of our own.

Built on names that paramiko keeps private, as `ssh_paramiko` says.
"""

# The stubs leave the private names out.
# mypy: disable-error-code="attr-defined,misc,arg-type,override"

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable

import paramiko
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.poly1305 import Poly1305
from paramiko import packet

from raycluster.hosts.transports.ssh_socket import WatchedSocket

_LONGEST_PACKET = 1 << 20  # OpenSSH's limit is a quarter of it
_TAG = 16  # bytes

CHACHA = "chacha20-poly1305@openssh.com"


class ChaCha:
    """The cipher chacha20-poly1305@openssh.com of one direction, as paramiko uses AES-GCM.

    Its nonce is the packet's number, and the packet's length is encrypted too, with a key of its
    own: `length` is the last packet's as it goes over the wire. PROTOCOL.chacha20poly1305 of
    OpenSSH describes it.
    """

    def __init__(self, key: bytes) -> None:
        self._main, self._header = key[:32], key[32:]
        self.number: Callable[[], int] = lambda: 0
        self.length = b""

    def encrypt(self, _iv: bytes, rest: bytes, length: bytes) -> bytes:
        """Return the packet behind its length, and the tag of both."""
        self.length = self._stream(self._header).update(length)
        tag_key, stream = self._begun()
        covered = stream.update(rest)
        return covered + Poly1305.generate_tag(tag_key, self.length + covered)

    def uncover(self, length: bytes) -> bytes:
        """Return the length of the packet that is on its way."""
        self.length = length
        return self._stream(self._header).update(length)

    def decrypt(self, _iv: bytes, rest: bytes, _length: bytes) -> bytes:
        """Return the packet behind its length. Raises InvalidSignature."""
        tag_key, stream = self._begun()
        covered, tag = rest[:-_TAG], rest[-_TAG:]
        Poly1305.verify_tag(tag_key, self.length + covered, tag)
        return stream.update(covered)

    def _begun(self) -> tuple[bytes, CipherContext]:
        """Return the tag's key, and the stream from its second block on."""
        stream = self._stream(self._main)
        return stream.update(bytes(64))[:32], stream

    def _stream(self, key: bytes) -> CipherContext:
        nonce = bytes(8) + self.number().to_bytes(8, "big")  # block 0
        return Cipher(ChaCha20(key, nonce), None).encryptor()


class Packetizer(packet.Packetizer):
    """Packets that are encrypted, of a bounded size."""

    # A rekey deadlocks when a channel closes meanwhile (paramiko#822); AES-GCM allows this much.
    REKEY_BYTES = 1 << 35
    REKEY_PACKETS = 1 << 31

    def __init__(self, socket: WatchedSocket) -> None:
        super().__init__(socket)
        self._deadline: float | None = None
        self._line_timeout = 0.0
        self._chacha_out: ChaCha | None = None
        self._chacha_in: ChaCha | None = None

    def set_outbound_cipher(self, block_engine: object, *args: object, **more: object) -> None:
        """Switch the cipher of what is sent."""
        super().set_outbound_cipher(block_engine, *args, **more)
        self._chacha_out = block_engine if isinstance(block_engine, ChaCha) else None
        if self._chacha_out:  # a class of this name shares what the base class keeps to itself
            self._chacha_out.number = lambda: self.__sequence_number_out

    def set_inbound_cipher(self, block_engine: object, *args: object, **more: object) -> None:
        """Switch the cipher of what is received."""
        super().set_inbound_cipher(block_engine, *args, **more)
        self._chacha_in = block_engine if isinstance(block_engine, ChaCha) else None
        if self._chacha_in:
            self._chacha_in.number = lambda: self.__sequence_number_in

    def write_all(self, out: bytes) -> None:
        """Write a packet, whose length paramiko leaves readable."""
        engine = self._chacha_out
        super().write_all(engine.length + memoryview(out)[4:] if engine else out)

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """Read the rest of a packet, or its head; one that nobody may send ends the connection."""
        if n > _LONGEST_PACKET:
            raise paramiko.SSHException(f"a packet of {n} bytes")
        read = bytes(super().read_all(n, check_rekey))
        if self._chacha_in and check_rekey:  # the head, by whose length paramiko reads on
            return self._chacha_in.uncover(read[:4]) + read[4:]
        return read

    def readline(self, timeout: float) -> str:
        """Read a line before the key exchange; paramiko gives the second one 2 seconds."""
        self._line_timeout = max(timeout, self._line_timeout)
        return str(super().readline(self._line_timeout))

    # paramiko starts a timer thread here, which keeps a program alive after a failed handshake.
    def start_handshake(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout

    def handshake_timed_out(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def complete_handshake(self) -> None:
        self._deadline = None


class FramedPacketizer(Packetizer):
    """Packets without encryption, as an `ssh` of this machine takes and gives them."""

    def __init__(self, socket: WatchedSocket) -> None:
        super().__init__(socket)
        self._one_at_a_time = threading.Lock()

    def send_message(self, data: paramiko.Message) -> None:
        payload = data.asbytes()
        with self._one_at_a_time:
            self.write_all(struct.pack(">IB", len(payload) + 1, 0) + payload)

    def read_message(self) -> tuple[int, paramiko.Message]:
        size, _ = struct.unpack(">IB", self.read_all(5))
        if size < 2:
            raise paramiko.SSHException("an empty packet")
        payload = self.read_all(size - 1)
        return payload[0], paramiko.Message(payload[1:])
