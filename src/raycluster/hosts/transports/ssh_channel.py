"""Channels of paramiko, hardened: nothing follows our CLOSE, and no wait is without an end.

OpenSSH's sshd would drop every channel of a connection for that. A broken connection is an error
and not an end. Built on names that paramiko keeps private, as `ssh_paramiko` says.
"""

# The stubs leave the private names out.
# mypy: disable-error-code="attr-defined,misc,arg-type,override"

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

import paramiko
from paramiko.common import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_SUCCESS,
    MSG_CHANNEL_WINDOW_ADJUST,
    cMSG_CHANNEL_REQUEST,
    cMSG_CHANNEL_WINDOW_ADJUST,
)

if TYPE_CHECKING:
    from raycluster.hosts.transports.ssh_paramiko import Connection
_PACKET = 32768 - 64
_UNASKED = 4  # windows that a peer may send, of which it was given one
_PIECE_COST = 64  # bytes of memory for a piece, however small
_SIGNALS = {"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "ABRT": 6, "FPE": 8, "KILL": 9}
_SIGNALS |= {"USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15}
_ENDED_ODDLY = 255
HANDLERS = {
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


def dispatch(name: str) -> Callable[[Chan, paramiko.Message], None]:
    """Call a channel's own method; paramiko's table holds those of its base class."""

    def call(chan: Chan, message: paramiko.Message) -> None:
        getattr(chan, name)(message)

    return call
