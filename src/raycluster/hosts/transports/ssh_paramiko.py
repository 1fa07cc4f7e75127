"""paramiko, hardened. This file, `ssh_channel` and `ssh_packets` use names that it keeps private.

The names hold for paramiko 5.1; their test, test_ssh_paramiko.py, fails when they move.

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
import threading
import time
from collections.abc import Callable

import paramiko
from paramiko.agent import (
    ALGORITHM_FLAG_MAP,
    SSH2_AGENT_SIGN_RESPONSE,
    cSSH2_AGENTC_SIGN_REQUEST,
)
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.common import (
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_OPEN_SUCCESS,
    MSG_SERVICE_ACCEPT,
    cMSG_CHANNEL_OPEN,
    cMSG_GLOBAL_REQUEST,
    cMSG_SERVICE_REQUEST,
    cMSG_USERAUTH_REQUEST,
)

from raycluster.hosts.transports.ssh_channel import (
    HANDLERS,
    C,
    Chan,
    ChannelRefusedError,
    Session,
    dispatch,
)
from raycluster.hosts.transports.ssh_packets import CHACHA, ChaCha, FramedPacketizer, Packetizer
from raycluster.hosts.transports.ssh_socket import SshWire, WatchedSocket

HOLDS_FOR = "5.1"
_POLL = 0.2
_ORPHANS_SECONDS = 5.0
_GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_STANDARD_NAMES = {"curve25519-sha256@libssh.org": "curve25519-sha256"}
"""Of key exchanges that paramiko has by the name from before there was a standard."""
_NO_ALGORITHMS = ("ext-info-", "kex-strict-")
KINDS = ("key exchange", "host key algorithm", "cipher", "MAC")
"""In the order in which they are agreed on."""


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
        self, wire: SshWire, timeout: float, packets: type[Packetizer] = Packetizer
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
        self._channel_handler_table = {kind: dispatch(name) for kind, name in HANDLERS.items()}
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
        super().__init__(wire, 0, FramedPacketizer)
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
