"""Lets an `ssh` that has no terminal ask a function of this process (SSH_ASKPASS)."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from raycluster.hosts.transports.ssh_attempt import Ask
from raycluster.hosts.transports.ssh_master import short_folder

_LONGEST_PROMPT = 4096
_READ_SECONDS = 5.0
_NOTICE = "none"  # nothing is asked: a key wants to be touched

_HELPER = """
import os, socket, sys
wire = socket.socket(socket.AF_UNIX)
wire.connect(sys.argv[1])
wire.sendall("\\0".join((os.environ.get("SSH_ASKPASS_PROMPT", ""), *sys.argv[2:3])).encode())
wire.shutdown(socket.SHUT_WR)
answer = wire.makefile("rb").read()
sys.stdout.buffer.write(answer)
sys.exit(not answer)
"""


class Askpass:
    """A context manager: inside it, what an ssh with its `environment` asks goes to `ask`.

    An empty answer is none. `tell` of `ask`, where it has that, is told that a key wants a touch.
    """

    OPTIONS: Mapping[str, str] = {"BatchMode": "no", "NumberOfPasswordPrompts": "1"}

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._open = 0
        self._resources = contextlib.ExitStack()
        self.environment: Mapping[str, str] = {}

    @property
    def asking(self) -> bool:
        """Whether an answer is waited for."""
        return self._open > 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix="rca-", dir=short_folder())
            folder = Path(stack.enter_context(made))
            self._server = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._server.bind(str(folder / "ask"))
            self._server.listen()
            words = (sys.executable, "-I", "-S", "-c", _HELPER, str(folder / "ask"))
            helper = folder / "askpass"
            helper.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$1"\n')
            helper.chmod(0o700)
            stack.callback(self._server.shutdown, socket.SHUT_RDWR)  # wakes the thread
            self.environment = {
                "SSH_ASKPASS": str(helper),
                "SSH_ASKPASS_REQUIRE": "force",
                "DISPLAY": os.environ.get("DISPLAY", ":"),  # before OpenSSH 8.4 it has to be set
            }
            threading.Thread(target=self._serve, daemon=True).start()
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._server.accept()
                threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            peer.settimeout(_READ_SECONDS)
            said = b""
            while len(said) < _LONGEST_PROMPT and (part := peer.recv(_LONGEST_PROMPT)):
                said += part
            kind, _, prompt = said.decode("utf-8", "replace").partition("\0")
            if kind == _NOTICE:
                getattr(self._ask, "tell", lambda _: None)(prompt)
            elif not kind:
                peer.sendall(self._asked(prompt).encode("utf-8", "surrogateescape"))

    def _asked(self, prompt: str) -> str:
        self._open += 1
        try:
            return self._ask(prompt)
        finally:
            self._open -= 1
