"""Reaches a host over SSH: one verified connection, which commands, files and streams share."""

from __future__ import annotations

import base64
import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from raycluster.core.errors import (
    CommandError,
    ConnectionLostError,
    ForwardRefusedError,
    HostError,
    NotRunError,
)
from raycluster.core.interfaces import Address, Channel, Completed
from raycluster.core.untrusted import ANSWER_BYTES, too_much
from raycluster.hosts.transports.ssh_options import SshOptions
from raycluster.hosts.transports.ssh_output import BEGIN_SECONDS, CHANNELS, OwnOutput
from raycluster.hosts.transports.ssh_shell import (
    NO_INPUT,
    command_text,
    new_mark,
    put_argv,
    why_refused_argv,
)

if TYPE_CHECKING:
    from raycluster.hosts.transports.ssh_channel import Chan, Session
    from raycluster.hosts.transports.ssh_connect import OpenConnection
    from raycluster.hosts.transports.ssh_system import SystemLink

__all__ = ["SshOptions", "SshTransport", "open_ssh", "pinned_key"]

_OPEN_SECONDS = 10.0
_SLOT_SECONDS = 60.0
_LAST_WORDS = 1.0
_REMEMBERED = 60.0  # seconds: a host may only have been slow
_SLOWEST_PUT = 50_000  # bytes per second


def open_ssh(
    name: str,
    options: SshOptions,
    *,
    ask: Callable[[str], str] | None = None,
) -> SshTransport:
    """Connect, verify the host key and log in; `name` is the host's name in errors.

    `ask` is given a prompt and returns a passphrase; without it, encrypted keys need an agent.
    Raises UnreachableError, HostKeyError, AuthError, SpecError or UsageError.
    """
    from raycluster.hosts.transports.ssh_connect import connect
    from raycluster.hosts.transports.ssh_target import resolve

    return SshTransport(name, connect(resolve(name, options), ask))


def pinned_key(name: str, options: SshOptions, *, ask: Callable[[str], str] | None = None) -> str:
    """Return the host's key, "KIND BASE64", once it was found to be the pinned one.

    Raises what `open_ssh` raises, but asks the host for no login.
    """
    from raycluster.hosts.transports.ssh_connect import host_key
    from raycluster.hosts.transports.ssh_target import resolve

    key = host_key(resolve(name, options), ask)
    return f"{key.kind} {base64.b64encode(key.blob).decode()}"


class SshTransport:
    """A host behind an open connection; every method may be called from any thread."""

    def __init__(self, name: str, link: OpenConnection | SystemLink) -> None:
        from raycluster.hosts.transports.ssh_sessions import Sessions

        self._name = name
        self._link = link
        self._sessions = Sessions(link.connection)
        self._first = threading.Lock()
        self._ran = False
        self._early: bool | None = None  # whether input may be sent with its command
        self._not_run: tuple[float, bool, NotRunError | None] = (0.0, False, None)

    @property
    def address(self) -> str:
        """The peer's IP address; through a jump host, what its name means here."""
        return self._link.address

    @property
    def alive(self) -> bool:
        """Whether the connection is open; a dead peer is noticed within 21 seconds."""
        return self._link.connection.alive

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
    ) -> Completed:
        """Run to the end; see Shell. `env` can be read by others on the host: no secrets in it."""
        if input and self._early:
            try:
                return self._run(argv, input, env, timeout, early=True)
            except NotRunError:  # a start-up file took the first line, and nothing ran
                self._early = False
        with self._remembering(bool(input)):
            done = self._run(argv, input, env, timeout, early=False)
        if input and self._early is None:
            self._early = True
        return done

    @contextlib.contextmanager
    def _remembering(self, waits_for_input: bool) -> Iterator[None]:
        """Raise at once what the host lately said to such a command instead of running it."""
        told, had_input, error = self._not_run
        if error and time.monotonic() - told < _REMEMBERED and waits_for_input >= had_input:
            raise NotRunError(error.what, where=error.where, hint=error.hint)
        try:
            yield
        except NotRunError as error:
            self._not_run = time.monotonic(), waits_for_input, error
            raise

    def _run(
        self,
        argv: Sequence[str],
        content: bytes,
        env: Mapping[str, str] | None,
        timeout: float | None,
        *,
        early: bool,
    ) -> Completed:
        slot = _SLOT_SECONDS if timeout is None else timeout
        session = self._start(argv, env, slot, has_input=bool(content))
        if early:
            _send_beside(session, content)
        parts: dict[Channel, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        try:
            own = self._own(session, argv[0], None if early else content, timeout=timeout)
            for channel, data in own:
                parts[channel] += data
                if sum(map(len, parts.values())) > ANSWER_BYTES:
                    raise too_much(argv[0], self._name, ANSWER_BYTES)
        except queue.Empty as error:
            raise self._too_slow(f"{argv[0]} did not finish within {timeout:g} s") from error
        finally:
            self._sessions.end(session)
        return Completed(session.own_status or 0, bytes(parts["stdout"]), bytes(parts["stderr"]))

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        with self._remembering(False):
            yield from self._stream(argv, env, quiet)

    def _stream(
        self, argv: Sequence[str], env: Mapping[str, str] | None, quiet: float | None
    ) -> Iterator[tuple[Channel, bytes]]:
        session = self._start(argv, env, _SLOT_SECONDS)
        try:
            yield from self._own(session, argv[0], quiet=quiet)
        except queue.Empty as error:
            raise self._too_slow(f"{argv[0]} had no output for {quiet:g} s") from error
        finally:
            self._sessions.end(session)
        if status := session.own_status:
            raise CommandError(f"{argv[0]} ended with {status}", where=self._name, status=status)

    def put(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Write a file whole or not at all; a relative path begins in the home folder."""
        done = self.run(
            put_argv(path, len(content), mode),
            input=content,
            timeout=60 + len(content) / _SLOWEST_PUT,
        )
        if done.exit_code:
            said = done.error_text.splitlines()
            raise HostError(
                f"cannot write {path}: {said[-1] if said else f'ended with {done.exit_code}'}",
                where=self._name,
                hint="check the folder's owner and the free space there",
            )

    def connect(self, address: Address, *, timeout: float = 10.0) -> Chan:
        """Open a stream to an address as the host sees it; says why where that is refused."""
        from raycluster.hosts.transports.ssh_channel import ChannelRefusedError

        try:
            return self._open(address, timeout)
        except ChannelRefusedError as error:
            raise self._refused(address, error) from error

    def close(self) -> None:
        """Close the connection, and those to jump hosts that carried it."""
        self._link.close()

    def _start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None,
        timeout: float,
        *,
        has_input: bool = False,
    ) -> Session:
        from raycluster.hosts.transports.ssh_channel import ChannelRefusedError

        try:
            mark = new_mark()
            command = command_text(argv, env, mark=mark, has_input=has_input)
        except ValueError as error:
            raise HostError(f"cannot run {argv}: {error}", where=self._name) from error
        try:
            session = self._sessions.begin(timeout)
        except ChannelRefusedError as error:
            raise HostError(
                f"sshd does not open another session ({error})",
                where=self._name,
                hint="raise MaxSessions in sshd_config, or stop other commands",
            ) from error
        except TimeoutError as error:
            raise HostError(
                f"sshd did not open a session: {error}",
                where=self._name,
                hint="check the host's load",
            ) from error
        except OSError as error:
            raise self._lost(argv[0]) from error
        session.mark = mark
        try:
            session.execute(command)
        except OSError as error:
            self._sessions.end(session)
            raise self._lost(argv[0]) from error
        return session

    def _own(
        self,
        session: Session,
        program: str,
        content: bytes | None = b"",
        *,
        timeout: float | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        """Yield what the command itself writes; its input is sent once it surely runs.

        None as input was sent already. Raises queue.Empty where the command does not end within
        `timeout` seconds of its start or is `quiet` for so many. It starts within `BEGIN_SECONDS`.
        """
        output = OwnOutput(session.mark)
        if content == b"":
            session.shutdown(socket.SHUT_WR)
        begin, ends, sent = time.monotonic() + BEGIN_SECONDS, 0.0, False
        while not output.ended:
            if output.begun and timeout is not None:
                ends = ends or time.monotonic() + timeout
                quiet = ends - time.monotonic()
            if (piece := self._next(session, output, quiet, begin)) is None:
                break
            own = output.feed(*piece)
            session.begun = output.started
            if output.begun and not sent:
                sent = self._ran = True
                if content:
                    _send_beside(session, content)
            if own:
                yield piece[0], own
        else:
            session.own_status = output.status
            return
        self._check_end(session, output, program)
        for channel in CHANNELS:
            if rest := output.rest(channel):
                yield channel, rest
        session.own_status = session.status

    def _next(
        self, session: Session, output: OwnOutput, patience: float | None, begin: float
    ) -> tuple[Channel, bytes] | None:
        """Return the next piece of all output. Raises queue.Empty, before it begins NotRunError."""
        if output.begun:
            if patience is not None and patience <= 0:  # it may speak without a pause
                raise queue.Empty
            return session.output(patience)
        with contextlib.suppress(queue.Empty):
            if (left := begin - time.monotonic()) > 0:
                return session.output(left)
        session.shutdown(socket.SHUT_WR)  # who waits for input goes on, and may have words
        deadline = time.monotonic() + _LAST_WORDS
        with contextlib.suppress(queue.Empty):
            while (piece := session.output(max(0.0, deadline - time.monotonic()))) is not None:
                output.feed(*piece)
        raise output.did_not_run(self._name, BEGIN_SECONDS)

    def _check_end(self, session: Session, output: OwnOutput, program: str) -> None:
        """Raise where a channel was closed before the command's end was told, but for a signal."""
        if session.refused:
            raise HostError(
                f"sshd refused to run {program}",
                where=self._name,
                hint="check ForceCommand, and the options of the key in authorized_keys",
            )
        if session.status is None and (output.begun or not self.alive):
            raise self._lost(program)
        if not output.begun or session.status == NO_INPUT:
            raise output.did_not_run(self._name)
        if session.status == 0:
            raise HostError(
                f"the output of {program} is incomplete",
                where=self._name,
                hint="check ForceCommand and the start-up files of the login shell",
            )

    def _too_slow(self, what: str) -> HostError:
        return HostError(what, where=self._name, hint="check on the host what it waits for")

    def _lost(self, doing: str) -> ConnectionLostError:
        silent = self._link.connection.fell_silent
        return ConnectionLostError(
            f"the SSH connection {'stopped responding' if silent else 'broke'} during {doing}",
            where=self._name,
            hint="check the host and the network, then run the command again",
        )

    def _open(self, address: Address, timeout: float) -> Chan:
        self._disable_nagle()
        connection = self._link.connection
        try:
            if isinstance(address, str):
                return connection.stream(
                    "direct-streamlocal@openssh.com", address, "", 0, timeout=timeout
                )
            return connection.stream("direct-tcpip", *address, "127.0.0.1", 0, timeout=timeout)
        except TimeoutError as error:
            raise HostError(
                f"cannot connect to {_place(address)}: {error}",
                where=self._name,
                hint="check whether a firewall or router drops packets",
            ) from error
        except OSError as error:
            raise self._lost(f"a connection to {_place(address)}") from error

    def _disable_nagle(self) -> None:
        """Run one command before the first stream: sshd delays small packets until it has."""
        with self._first:
            if not self._ran:
                self.run(("true",))

    def _refused(self, address: Address, error: Exception) -> HostError:
        forbidden, what, hint = self._why_refused(address, error)
        what = f"cannot connect to {_place(address)}: {what}"
        if forbidden:
            return ForwardRefusedError(what, where=self._name, hint=hint)
        return HostError(what, where=self._name, hint=hint)

    def _why_refused(self, address: Address, error: Exception) -> tuple[bool, str, str]:
        """Return whether sshd itself forbids it, what is wrong, and the next step."""
        prohibited = getattr(error, "reason", 0) == 1
        if not isinstance(address, str):
            if prohibited:
                return (
                    True,
                    "sshd forbids forwarding",
                    "set AllowTcpForwarding yes in sshd_config, and check PermitOpen, "
                    "DisableForwarding and the key's options in authorized_keys",
                )
            return False, f"{error}", "check whether something listens there"
        word = self.run(why_refused_argv(address)).text.rpartition("\n")[2]
        known = {
            "missing": ("the socket does not exist", "start the program that listens there"),
            "other": ("it is not a socket", "correct the path"),
            "denied": ("permission denied", "give the login user permission to use it"),
            "stale": ("nothing listens there", "start the program that listens there"),
        }.get(word)
        if known is None:
            return (
                True,
                "sshd forbids forwarding to Unix sockets",
                "set AllowStreamLocalForwarding yes in sshd_config, and check DisableForwarding "
                "and the key's options in authorized_keys",
            )
        return (False, *known)


def _send_beside(session: Session, content: bytes) -> None:
    """Send input while output is read: either side may stop until the other goes on."""
    threading.Thread(target=_send_input, args=(session, content), daemon=True).start()


def _send_input(session: Session, content: bytes) -> None:
    with contextlib.suppress(OSError):  # it ended without reading everything; its status says more
        session.sendall(f"{session.mark}\n".encode())
        session.sendall(content)
    session.shutdown(socket.SHUT_WR)


def _place(address: Address) -> str:
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"
