"""The SSH agent: which keys it holds, and what it signs, with a person's help where need be."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import paramiko

from raycluster.hosts.transports.ssh_attempt import LoginAttempt, SkippedKeyError
from raycluster.hosts.transports.ssh_key_files import key_kind
from raycluster.hosts.transports.ssh_paramiko import Agent

_AGENT_SECONDS = 10.0
_SIGN_SECONDS = 30.0
"""For a touch or a confirmation; security keys themselves wait as long."""
_QUIET_SECONDS = 1.0
"""After which a person is told what is waited for."""
_touching = threading.Lock()
"""A person touches one key at a time, however many hosts are being reached."""


class LoginAgent:
    """The agent of a target; connected anew after a signature that never came."""

    def __init__(self, attempt: LoginAttempt) -> None:
        self._attempt = attempt
        self._path = attempt.target.agent if hasattr(socket, "AF_UNIX") else None
        self._agent: Agent | None = None
        self.keys = self._connected().get_keys() if self._path else ()

    def _connected(self) -> Agent | _NoAgent:
        if self._agent is None and self._path is not None:
            wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            wire.settimeout(_AGENT_SECONDS)
            try:
                wire.connect(self._path)
                self._agent = Agent(wire)
            except (OSError, paramiko.SSHException, ValueError) as error:
                wire.close()
                why = f"no response within {_AGENT_SECONDS:g} s"
                if not isinstance(error, TimeoutError):
                    why = getattr(error, "strerror", None) or str(error)
                self._attempt.tried.append(f"agent {self._path} ({why})")
                self._path = None
        return self._agent or _NoAgent()

    def sign(self, name: str, blob: bytes, algorithm: str, data: bytes) -> bytes:
        """Return the agent's signature. Raises SkippedKeyError where it gives none."""
        touched = key_kind(blob).startswith("sk-")
        with _touching if touched else contextlib.nullcontext(), self._told(name, touched):
            try:
                agent = self._connected()
                signature = agent.sign(blob, algorithm, data, _SIGN_SECONDS)
            except TimeoutError:
                self._agent, hung = None, self._agent
                if hung:
                    hung.close()
                if self._attempt.agent_hangs:
                    self._path = None
                self._attempt.agent_hangs += 1
                signature, why = None, f"the agent did not sign within {_SIGN_SECONDS:g} s"
            except (OSError, paramiko.SSHException) as error:
                self._agent, why, signature = (
                    None,
                    f"the agent closed the connection: {error}",
                    None,
                )
            else:
                why = "the host accepts it, but the agent did not sign"
        if signature is None:
            raise SkippedKeyError(
                why,
                f"touch or confirm the key {name} when prompted, or unlock the agent (ssh-add -X)",
            )
        return signature

    @contextlib.contextmanager
    def _told(self, name: str, touched: bool) -> Iterator[None]:
        """Say what is waited for, at once where it is surely a person."""
        tell = getattr(self._attempt.ask, "tell", None)
        if tell is None:
            yield
            return
        text = (
            f"{self._attempt.target.name}: waiting up to {_SIGN_SECONDS:g} s for the agent to sign "
            f"with key {name}: touch the security key, or confirm in the agent's prompt"
        )
        timer = threading.Timer(0.0 if touched else _QUIET_SECONDS, tell, (text,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()


class _NoAgent:
    def get_keys(self) -> tuple[paramiko.AgentKey, ...]:
        return ()

    def sign(self, blob: bytes, algorithm: str, data: bytes, seconds: float) -> None:
        """Sign nothing, as an agent that refuses."""
