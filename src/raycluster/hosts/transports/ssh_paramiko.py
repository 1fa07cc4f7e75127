"""paramiko, hardened. The only file that uses names which paramiko keeps private.

The names hold for paramiko 5.1; its test, test_ssh_paramiko.py, fails when they move.

Session, Chan   channels: nothing follows our CLOSE (OpenSSH's sshd would drop every channel of
                the connection), no unbounded wait, a broken connection is an error and not an end
Connection      the transport: refusals per channel, fast ciphers, no timer threads, a pulse
Multiplexed     the same channels over the connection of an `ssh` of this machine
"""

# The stubs leave the private names out.
# mypy: disable-error-code="attr-defined,misc,arg-type,override"

from __future__ import annotations

import collections
import contextlib
import logging
import math
import queue
import struct
import threading
import time
from collections.abc import Callable
from typing import Literal, TypeVar

import paramiko
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.poly1305 import Poly1305
from paramiko.agent import (
    ALGORITHM_FLAG_MAP,
    SSH2_AGENT_SIGN_RESPONSE,
    cSSH2_AGENTC_SIGN_REQUEST,
)
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.common import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_OPEN_SUCCESS,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_SUCCESS,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_SERVICE_ACCEPT,
    cMSG_CHANNEL_OPEN,
    cMSG_CHANNEL_REQUEST,
    cMSG_CHANNEL_WINDOW_ADJUST,
    cMSG_GLOBAL_REQUEST,
    cMSG_SERVICE_REQUEST,
    cMSG_USERAUTH_REQUEST,
)
from paramiko.packet import Packetizer

from raycluster.hosts.transports.ssh_socket import SshWire, WatchedSocket

HOLDS_FOR = "5.1"
_PACKET = 32768 - 64
_POLL = 0.2
_LONGEST_PACKET = 1 << 20  # OpenSSH's limit is a quarter of it
_UNASKED = 4  # windows that a peer may send, of which it was given one
_TAG = 16  # bytes
_PIECE_COST = 64  # bytes of memory for a piece, however small
_SIGNALS = {"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "ABRT": 6, "FPE": 8, "KILL": 9}
_SIGNALS |= {"USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15}
_ENDED_ODDLY = 255
_ORPHANS_SECONDS = 5.0
_HANDLERS = {
    MSG_CHANNEL_SUCCESS: "_request_success",
    MSG_CHANNEL_FAILURE: "_request_failed",
    MSG_CHANNEL_DATA: "_feed",
    MSG_CHANNEL_EXTENDED_DATA: "_feed_extended",
    MSG_CHANNEL_WINDOW_ADJUST: "_window_adjust",
    MSG_CHANNEL_REQUEST: "_handle_request",
    MSG_CHANNEL_EOF: "_handle_eof",
    MSG_CHANNEL_CLOSE: "_handle_close",
}


C = TypeVar("C", bound="Chan")

CHACHA = "chacha20-poly1305@openssh.com"
_GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_STANDARD_NAMES = {"curve25519-sha256@libssh.org": "curve25519-sha256"}
"""Of key exchanges that paramiko has by the name from before there was a standard."""
_NO_ALGORITHMS = ("ext-info-", "kex-strict-")
KINDS = ("key exchange", "host key algorithm", "cipher", "MAC")
"""In the order in which they are agreed on."""


class ChannelRefusedError(Exception):
    """The server refused to open a channel; `reason` is the protocol's number for why."""

    PROHIBITED = 1

    def __init__(self, reason: int, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Chan(paramiko.Channel):
    """A stream through the connection; what a socket offers, its errors included."""

    transport: Connection

    def __init__(self, chanid: int) -> None:
        super().__init__(chanid)
        self.decided = threading.Event()
        self.refusal: tuple[int, str] | None = None
        self._wire = threading.RLock()
        self._closed_here = False

    def recv(self, nbytes: int) -> bytes:
        """Return some bytes, none at the end; raises ConnectionResetError when it broke off."""
        try:
            data: bytes = super().recv(nbytes)
        except (EOFError, paramiko.SSHException) as error:
            raise ConnectionResetError("the SSH connection broke") from error
        if not data and nbytes and not self.eof_received and not self._closed_here:
            raise ConnectionResetError("the SSH channel broke off")
        return data

    def sendall(self, s: bytes | bytearray) -> None:
        """Send everything, in pieces that are not copied more than once."""
        rest = memoryview(s)
        while rest:
            rest = rest[self.send(rest[:_PACKET].tobytes()) :]

    def close(self) -> None:
        """Close; nothing is sent on this channel afterwards."""
        self._closed_here = True
        with self._wire, contextlib.suppress(EOFError, paramiko.SSHException):
            super().close()

    def shutdown(self, how: int) -> None:
        """Shut down reading (0), writing (1) or both (2)."""
        with self._wire, contextlib.suppress(EOFError, paramiko.SSHException):
            super().shutdown(how)

    def __del__(self) -> None:
        # The collector may run while this thread holds the lock that sending needs.
        connection = getattr(self, "transport", None)
        if connection is not None and self.active and not self.closed:
            connection.orphans.append(self)

    def _send(self, s: bytes, m: paramiko.Message) -> int:
        with self.lock:
            size = 0 if self.closed else self._wait_for_send_window(len(s))
            m.add_string(s[:size])
        with self._wire:
            if self.closed or not size:
                raise BrokenPipeError("the SSH channel is closed")
            self._put(m)
        return size

    def _put(self, m: paramiko.Message) -> None:
        try:
            self.transport._send_user_message(m)
        except (EOFError, paramiko.SSHException) as error:
            raise ConnectionResetError("the SSH connection broke") from error
        if not self.transport.active:  # paramiko drops what is sent on a dead connection
            raise ConnectionResetError("the SSH connection broke")

    def _handle_close(self, m: paramiko.Message) -> None:
        with self._wire:
            super()._handle_close(m)

    def _request_failed(self, m: paramiko.Message) -> None:
        with self._wire:
            super()._request_failed(m)

    def _set_closed(self) -> None:
        super()._set_closed()
        self.decided.set()

    def _feed(self, m: paramiko.Message | bytes) -> None:
        super()._feed(m)
        self._refuse_flood(len(self.in_buffer))

    def _refuse_flood(self, unread: int) -> None:
        """End a connection whose peer sends on and on without being asked to."""
        if unread > _UNASKED * self.transport.default_window_size:
            self.transport.close()


class Session(Chan):
    """A command on the host; its output comes in one queue, in the order in which it arrived."""

    def __init__(self, chanid: int) -> None:
        super().__init__(chanid)
        self._output: queue.SimpleQueue[tuple[Literal["stdout", "stderr"], bytes] | None]
        self._output = queue.SimpleQueue()
        self.mark = ""
        self.begun = False  # what the command's marks tell
        self.own_status: int | None = None
        self.refused = False
        self.status: int | None = None
        self._came = self._taken = 0  # each counted by one thread alone

    def execute(self, command: str) -> None:
        """Ask for a command without waiting for the answer; a refusal ends the output."""
        request = self._request("exec", want_reply=True)
        request.add_string(command.encode("utf-8", "surrogateescape"))
        self._put(request)

    def signal(self, name: str) -> None:
        """Send a signal ("TERM") to the command's process group; servers may ignore it."""
        request = self._request("signal", want_reply=False)
        request.add_string(name)
        with self._wire, contextlib.suppress(OSError):
            if not self.closed:
                self._put(request)

    def output(self, timeout: float | None) -> tuple[Literal["stdout", "stderr"], bytes] | None:
        """Return the next piece of output, None at the end. Raises queue.Empty after `timeout`."""
        piece = self._output.get(timeout=timeout)
        if piece is not None:
            self._taken += len(piece[1]) + _PIECE_COST
            self._acknowledge(len(piece[1]))
        return piece

    def _request(self, kind: str, *, want_reply: bool) -> paramiko.Message:
        request = paramiko.Message()
        request.add_byte(cMSG_CHANNEL_REQUEST)
        request.add_int(self.remote_chanid)
        request.add_string(kind)
        request.add_boolean(want_reply)
        return request

    def _acknowledge(self, size: int) -> None:
        window = self._check_add_window(size)
        if window > 0:
            adjust = paramiko.Message()
            adjust.add_byte(cMSG_CHANNEL_WINDOW_ADJUST)
            adjust.add_int(self.remote_chanid)
            adjust.add_int(window)
            with contextlib.suppress(OSError):  # the end of the output tells
                self._put(adjust)

    def _feed(self, m: paramiko.Message | bytes) -> None:
        assert isinstance(m, paramiko.Message)  # noqa: S101 - bytes are what paramiko's tests give
        self._take("stdout", m.get_binary())

    def _feed_extended(self, m: paramiko.Message) -> None:
        if m.get_int() == 1:
            self._take("stderr", m.get_binary())

    def _take(self, channel: Literal["stdout", "stderr"], data: bytes) -> None:
        if data:
            self._came += len(data) + _PIECE_COST
            self._output.put((channel, data))
            self._refuse_flood((self._came - self._taken) // 2)

    def _handle_request(self, m: paramiko.Message) -> None:
        kind = m.get_text()
        m.get_boolean()
        if kind == "exit-status":
            self.status = m.get_int()
        elif kind == "exit-signal":
            name = m.get_text()
            self.status = 128 + _SIGNALS[name] if name in _SIGNALS else _ENDED_ODDLY
        self._output.put(("stdout", b""))  # who waits for the end may go on

    def _request_failed(self, m: paramiko.Message) -> None:
        self.refused = True
        super()._request_failed(m)

    def _set_closed(self) -> None:
        super()._set_closed()
        self._output.put(None)


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


class _Packetizer(Packetizer):
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


class _Framed(_Packetizer):
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


class _Login(AuthOnlyHandler):
    """Asks for the login in one way after another; its event stands before the request goes out."""

    took_key = False

    def request(self, user: str, method: str, *fields: bool | str | bytes) -> list[str]:
        """Return the methods that are still wanted. Raises as paramiko's own."""
        self.username, self.auth_method, self.took_key = user, method, False
        self.auth_event = threading.Event()
        self.transport._send_message(_request(user, method, fields))
        left: list[str] = self.wait_for_response(self.auth_event)
        return left

    def _parse_userauth_info_request(self, m: paramiko.Message) -> None:  # noqa: ARG002
        """Take note of SSH_MSG_USERAUTH_PK_OK, whose number is that of another method's request."""
        self.took_key = self.auth_method == "publickey"
        self.abort()


def _request(user: str, method: str, fields: tuple[bool | str | bytes, ...]) -> paramiko.Message:
    message = paramiko.Message()
    message.add_byte(cMSG_USERAUTH_REQUEST)
    for text in (user, "ssh-connection", method):
        message.add_string(text)
    for each in fields:
        if isinstance(each, bool):
            message.add_boolean(each)
        else:
            message.add_string(each)
    return message


class Connection(paramiko.Transport):
    """One SSH connection over a wire; `timeout` in seconds holds for each step of the beginning."""

    _cipher_info = paramiko.Transport._cipher_info | {
        CHACHA: {"class": ChaCha, "block-size": 8, "iv-size": 12, "key-size": 64, "is_aead": True}
    }
    _kex_info = paramiko.Transport._kex_info | {
        new: paramiko.Transport._kex_info[old] for old, new in _STANDARD_NAMES.items()
    }

    def __init__(
        self, wire: SshWire, timeout: float, packets: type[_Packetizer] = _Packetizer
    ) -> None:
        logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)
        self.watched = WatchedSocket(wire)
        super().__init__(self.watched, packetizer_class=packets)
        self.banner_timeout = self.handshake_timeout = self.auth_timeout = timeout
        self.orphans: collections.deque[Chan] = collections.deque()
        self._late: dict[int, Chan] = {}
        self._over = threading.Event()
        self._may_log_in = threading.Event()
        self._handler_table[MSG_SERVICE_ACCEPT] = lambda _: self._may_log_in.set()
        self._channel_handler_table = {kind: _dispatch(name) for kind, name in _HANDLERS.items()}
        options = self.get_security_options()
        options.ciphers = (*_GCM, "aes128-ctr", "aes192-ctr", "aes256-ctr", CHACHA)
        sha2 = ("hmac-sha2-256", "hmac-sha2-512")
        options.digests = (*(f"{name}-etm@openssh.com" for name in sha2), *sha2)
        options.kex = tuple(
            each for name in options.kex for each in (_STANDARD_NAMES.get(name), name) if each
        )
        self.offered: dict[str, tuple[str, ...]] = {}

    @property
    def alive(self) -> bool:
        """Whether the connection is open."""
        return bool(self.active)

    @property
    def fell_silent(self) -> bool:
        """Whether it was ended because the peer gave no sign of life."""
        return self.watched.fell_silent

    @property
    def spoke_ssh(self) -> bool:
        """Whether the peer sent an SSH banner."""
        return bool(self.remote_version)

    @property
    def nothing_in_common(self) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
        """The first kind of algorithm without agreement, the peer's and ours; None before that."""
        ours = (self.preferred_kex, self.preferred_keys, self.preferred_ciphers)
        for (kind, theirs), mine in zip(
            self.offered.items(), (*ours, self.preferred_macs), strict=False
        ):
            if not set(theirs) & set(mine):
                return kind, theirs, tuple(mine)
        return None

    def _really_parse_kex_init(
        self, m: paramiko.Message, ignore_first_byte: bool = False
    ) -> dict[str, list[str]]:
        """Take note of what the peer offers; a MAC matters only beside a cipher that has none."""
        parsed: dict[str, list[str]] = super()._really_parse_kex_init(m, ignore_first_byte)
        lists = ("kex_algo_list", "server_key_algo_list", "server_encrypt_algo_list")
        self.offered = {
            kind: tuple(name for name in parsed[key] if not name.startswith(_NO_ALGORITHMS))
            for kind, key in zip(KINDS, lists, strict=False)
        }
        if not self._authenticates_itself(parsed):
            self.offered[KINDS[-1]] = tuple(parsed["server_mac_algo_list"])
            return parsed
        macs = list(self.preferred_macs)
        return {**parsed, "client_mac_algo_list": macs, "server_mac_algo_list": macs}

    def _authenticates_itself(self, parsed: dict[str, list[str]]) -> bool:
        """Tell whether the ciphers of both ways, as they will be agreed on, need no MAC."""
        ways = ("client_encrypt_algo_list", "server_encrypt_algo_list")
        agreed = [next((c for c in self.preferred_ciphers if c in parsed[w]), "") for w in ways]
        return all(name in (*_GCM, CHACHA) for name in agreed)

    def watch(self, interval: float, silence: float) -> None:
        """Ask for a sign of life every `interval` seconds and close after `silence` without any."""
        self.watched.watch(silence)
        threading.Thread(target=self._pulse, args=(interval,), daemon=True).start()

    def close(self) -> None:
        """Close the connection and everything in it."""
        self._over.set()
        super().close()

    @property
    def signature_algorithms(self) -> tuple[str, ...]:
        """The algorithms of users' signatures that the peer takes, none where it did not say."""
        self._login()
        told: bytes = self.server_extensions.get("server-sig-algs", b"")
        return tuple(told.decode("ascii", "replace").split(",")) if told else ()

    def log_in_without(self, user: str) -> None:
        """Ask for the login with nothing. Raises BadAuthenticationType with what is allowed."""
        self._login().request(user, "none")

    def takes_key(self, user: str, algorithm: str, key: bytes) -> bool:
        """Tell whether the peer would take a key, which signs nothing for that."""
        login = self._login()
        try:
            login.request(user, "publickey", False, algorithm, key)
        except paramiko.BadAuthenticationType:
            raise
        except paramiko.AuthenticationException:
            if not self.alive:
                raise
        return login.took_key

    def log_in_with(
        self, user: str, algorithm: str, key: bytes, sign: Callable[[bytes], bytes]
    ) -> list[str]:
        """Log in with a key; return the methods that the peer wants besides."""
        login = self._login()
        session = paramiko.Message()
        session.add_string(self.session_id)
        signed = _request(user, "publickey", (True, algorithm, key)).asbytes()
        signature = sign(session.asbytes() + signed)
        return login.request(user, "publickey", True, algorithm, key, signature)

    def _login(self) -> _Login:
        """Return what logs in, once the peer lets users do so."""
        if not isinstance(self.auth_handler, _Login):
            request = paramiko.Message()
            request.add_byte(cMSG_SERVICE_REQUEST)
            request.add_string("ssh-userauth")
            self._send_message(request)
            deadline = time.monotonic() + self.auth_timeout
            while not self._may_log_in.wait(_POLL):
                if not self.active or time.monotonic() > deadline:
                    raise paramiko.SSHException("no authentication method is offered")
            self.auth_handler = _Login(self)
        return self.auth_handler

    def stream(self, kind: str, *tail: str | int, timeout: float) -> Chan:
        """Open a forward; `tail` are the fields that its kind asks for. Errors as `session`."""
        return self._opened(Chan, kind, tail, timeout)

    def session(self, timeout: float) -> Session:
        """Open a session. Raises ChannelRefusedError, TimeoutError or ConnectionResetError."""
        return self._opened(Session, "session", (), timeout)

    def _opened(self, make: type[C], kind: str, tail: tuple[str | int, ...], timeout: float) -> C:
        chan = self._registered(make)
        chan._put(self._open_request(chan, kind, tail))
        deadline = time.monotonic() + timeout
        while not chan.decided.wait(min(_POLL, timeout)):
            if not self.active:
                raise ConnectionResetError("the SSH connection broke")
            if time.monotonic() > deadline:
                self._late[chan.chanid] = chan
                raise TimeoutError(f"no response within {timeout:g} s")
        if chan.refusal:
            raise ChannelRefusedError(*chan.refusal)
        if not chan.active:
            raise ConnectionResetError("the SSH connection broke")
        return chan

    def _registered(self, make: type[C]) -> C:
        with self.lock:
            chan = make(self._next_channel())
            self._channels.put(chan.chanid, chan)
            self.channels_seen[chan.chanid] = True
            chan._set_transport(self)
            chan._set_window(self.default_window_size, self.default_max_packet_size)
        return chan

    def _open_request(self, chan: Chan, kind: str, tail: tuple[str | int, ...]) -> paramiko.Message:
        request = paramiko.Message()
        request.add_byte(cMSG_CHANNEL_OPEN)
        request.add_string(kind)
        for part in (chan.chanid, self.default_window_size, self.default_max_packet_size, *tail):
            if isinstance(part, int):
                request.add_int(part)
            else:
                request.add_string(part)
        return request

    def _parse_channel_open_success(self, m: paramiko.Message) -> None:
        chanid, theirs, window, packet = (m.get_int() for _ in range(4))
        chan = self._channels.get(chanid)
        if chan is None:
            return
        with chan.lock:
            chan._set_remote_channel(theirs, window, packet)
        chan.decided.set()
        if self._late.pop(chanid, None):
            chan.close()

    def _parse_channel_open_failure(self, m: paramiko.Message) -> None:
        chanid, reason = m.get_int(), m.get_int()
        chan = self._channels.get(chanid)
        self._late.pop(chanid, None)
        self._channels.delete(chanid)
        if chan is not None:
            chan.refusal = (reason, m.get_text())
            chan.decided.set()

    def _pulse(self, interval: float) -> None:
        with contextlib.suppress(EOFError, paramiko.SSHException):
            while not self._over.wait(interval) and self.active:
                while self.orphans:
                    self.orphans.popleft().close()
                self._beat()

    def _beat(self) -> None:
        beat = paramiko.Message()
        beat.add_byte(cMSG_GLOBAL_REQUEST)
        beat.add_string("keepalive@openssh.com")
        beat.add_boolean(True)
        self._send_user_message(beat)


class Multiplexed(Connection):
    """Channels of a master connection of the system's `ssh`, over its socket in proxy mode.

    `is_silent` tells, once it has ended, whether the peer gave no sign of life.
    """

    def __init__(self, wire: SshWire, is_silent: Callable[[], bool]) -> None:
        super().__init__(wire, 0, _Framed)
        self._is_silent = is_silent
        self._openings = {
            MSG_CHANNEL_OPEN_SUCCESS: self._parse_channel_open_success,
            MSG_CHANNEL_OPEN_FAILURE: self._parse_channel_open_failure,
        }
        self.active = True
        self.clear_to_send.set()
        threading.Thread.start(self)
        self.watch(_ORPHANS_SECONDS, math.inf)

    @property
    def fell_silent(self) -> bool:
        """Whether it was ended because the peer gave no sign of life."""
        return not self.active and self._is_silent()

    def run(self) -> None:
        """Take what comes for the channels until the end."""
        with contextlib.suppress(EOFError, OSError, paramiko.SSHException):
            while self.active:
                self._take(*self.packetizer.read_message())
        self.active = False
        for channel in self._channels.values():
            channel._unlink()
        self.packetizer.close()

    def _take(self, kind: int, message: paramiko.Message) -> None:
        if kind in self._openings:
            self._openings[kind](message)
        elif kind in self._channel_handler_table:
            channel = self._channels.get(message.get_int())
            if channel is not None:
                self._channel_handler_table[kind](channel, message)

    def _beat(self) -> None:
        """Leave signs of life to ssh, which asks for them itself."""


def _dispatch(name: str) -> Callable[[Chan, paramiko.Message], None]:
    """Call a channel's own method; paramiko's table holds those of its base class."""

    def call(chan: Chan, message: paramiko.Message) -> None:
        getattr(chan, name)(message)

    return call


class Agent(paramiko.agent.AgentSSH):
    """The keys of the SSH agent that listens at a Unix socket; connects at once."""

    def __init__(self, wire: SshWire) -> None:
        super().__init__()
        self._wire = wire
        self._connect(wire)

    def sign(self, key: bytes, algorithm: str, data: bytes, seconds: float) -> bytes | None:
        """Return a signature, None where the agent refuses. Raises TimeoutError."""
        request = paramiko.Message()
        request.add_byte(cSSH2_AGENTC_SIGN_REQUEST)
        request.add_string(key)
        request.add_string(data)
        request.add_int(ALGORITHM_FLAG_MAP.get(algorithm, 0))
        self._wire.settimeout(seconds)
        kind, answer = self._send_message(request)
        return answer.get_binary() if kind == SSH2_AGENT_SIGN_RESPONSE else None

    def close(self) -> None:
        """Close the agent's socket."""
        self._close()
