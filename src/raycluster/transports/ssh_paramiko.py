"""paramiko, hardened. The only file that uses names which paramiko keeps private.

The names hold for paramiko 5.1; tests/unit/transports/test_ssh_paramiko.py fails when they move.

Session, Chan   channels: nothing follows our CLOSE (OpenSSH's sshd would drop every channel of
                the connection), no unbounded wait, a broken connection is an error and not an end
Connection      the transport: refusals per channel, fast ciphers, no timer threads, a pulse
Multiplexed     the same channels over the connection of an `ssh` of this machine
"""

# The stubs leave the private names out.
# mypy: disable-error-code="attr-defined,misc,arg-type"

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
    cMSG_CHANNEL_OPEN,
    cMSG_CHANNEL_REQUEST,
    cMSG_CHANNEL_WINDOW_ADJUST,
    cMSG_GLOBAL_REQUEST,
)
from paramiko.packet import Packetizer

from raycluster.transports.ssh_socket import WatchedSocket, Wire

HOLDS_FOR = "5.1"
_PACKET = 32768 - 64
_POLL = 0.2
_LONGEST_PACKET = 1 << 20  # OpenSSH's limit is a quarter of it
_UNASKED = 4  # windows that a peer may send, of which it was given one
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


class _Packetizer(Packetizer):
    # A rekey deadlocks when a channel closes meanwhile (paramiko#822); AES-GCM allows this much.
    REKEY_BYTES = 1 << 35
    REKEY_PACKETS = 1 << 31

    def __init__(self, socket: WatchedSocket) -> None:
        super().__init__(socket)
        self._deadline: float | None = None

    # paramiko starts a timer thread here, which keeps a program alive after a failed handshake.
    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """Read the rest of a packet; one that nobody may send ends the connection."""
        if n > _LONGEST_PACKET:
            raise paramiko.SSHException(f"a packet of {n} bytes")
        return bytes(super().read_all(n, check_rekey))

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


class Connection(paramiko.Transport):
    """One SSH connection over a wire; `timeout` in seconds holds for each step of the beginning."""

    def __init__(
        self, wire: Wire, timeout: float, packets: type[_Packetizer] = _Packetizer
    ) -> None:
        logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)
        self.watched = WatchedSocket(wire)
        super().__init__(self.watched, packetizer_class=packets)
        self.banner_timeout = self.handshake_timeout = self.auth_timeout = timeout
        self.orphans: collections.deque[Chan] = collections.deque()
        self._late: dict[int, Chan] = {}
        self._over = threading.Event()
        self._channel_handler_table = {kind: _dispatch(name) for kind, name in _HANDLERS.items()}
        options = self.get_security_options()
        gcm = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
        options.ciphers = (*gcm, "aes128-ctr", "aes192-ctr", "aes256-ctr")
        sha2 = ("hmac-sha2-256", "hmac-sha2-512")
        options.digests = (*(f"{name}-etm@openssh.com" for name in sha2), *sha2)

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

    def watch(self, interval: float, silence: float) -> None:
        """Ask for a sign of life every `interval` seconds and close after `silence` without any."""
        self.watched.watch(silence)
        threading.Thread(target=self._pulse, args=(interval,), daemon=True).start()

    def close(self) -> None:
        """Close the connection and everything in it."""
        self._over.set()
        super().close()

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
                raise TimeoutError(f"no answer within {timeout:g} s")
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

    def __init__(self, wire: Wire, is_silent: Callable[[], bool]) -> None:
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

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._connect(wire)

    def close(self) -> None:
        """Close the agent's socket."""
        self._close()
