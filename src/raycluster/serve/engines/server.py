"""An engine's own server as a process of its own, as a replica looks after it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import aiohttp

from raycluster.serve.capture import Capture
from raycluster.serve.rootcause import ELSEWHERE

KEEPER = Path(__file__).with_name("keeper.py")
HEALTH = "/health"
PAUSE_S = 0.1
ASK_S = 10.0
STOP_S = 20.0
"""Seconds for the keeper to have ended everything, after which it is killed, and all with it."""


@dataclass(frozen=True)
class Place:
    """Where an engine's server listens, and nobody else does; it answers below `root` too."""

    host: str
    port: int
    root: str = ""

    @property
    def url(self) -> str:
        """The base of its URLs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


class ServerEndedError(Exception):
    """The server is not there any more; `code` is that of a shell: 128 and a signal's number."""

    def __init__(self, code: int, written: str) -> None:
        code = 128 - code if code < 0 else code  # the keeper's own end
        self.code, self.written = code, written
        self.signal = code - 128 if code > 128 else 0
        super().__init__(f"the engine's server {_how(code)}: {ELSEWHERE}")


class Server:
    """One process group; its output goes where this process's own goes."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], place: Place) -> None:
        self.place = place
        self._argv, self._env = tuple(argv), dict(env)
        self._capture = Capture()
        self._keeper: asyncio.subprocess.Process | None = None
        self._pipe = -1
        self._http: aiohttp.ClientSession | None = None

    @property
    def http(self) -> aiohttp.ClientSession:
        """A client of the server, made on the event loop that uses it."""
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=ASK_S)
            many = aiohttp.TCPConnector(limit=0)
            self._http = aiohttp.ClientSession(self.place.url, timeout=timeout, connector=many)
        return self._http

    async def run(self) -> None:
        """Start one that answers nobody; raises ServerEndedError when it ends."""
        await self._begin()
        while True:
            self.living()
            await asyncio.sleep(PAUSE_S)

    async def start(self) -> None:
        """Start it, and return when it answers.

        Raises ServerEndedError.
        """
        await self._begin()
        await self.answers()
        self._tell_keeper()

    async def answers(self) -> None:
        """Return when it answers.

        Raises ServerEndedError.
        """
        while True:
            self.living()
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self.http.get(HEALTH) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(PAUSE_S)

    async def _begin(self) -> None:
        theirs, self._pipe = os.pipe()
        try:
            self._keeper = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", *keeper(), str(theirs), "--", *self._argv),
                env=self._env,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        finally:
            os.close(theirs)

    def _tell_keeper(self) -> None:
        """Say that the server answers: its engine's end is its own from now on."""
        with suppress(OSError):
            os.write(self._pipe, b"u")

    def living(self) -> None:
        """Raise ServerEndedError when it has ended."""
        if self._keeper is None:
            raise ServerEndedError(0, "")
        if (code := self._keeper.returncode) is not None:
            self._end_all()
            raise ServerEndedError(code, self._capture.text())

    async def check(self) -> None:
        """Raise when it has ended, or says that it cannot serve.

        One that is too busy to say anything is well: who ends those is asked elsewhere.
        """
        self.living()
        with suppress(TimeoutError, aiohttp.ClientError):
            async with self.http.get(HEALTH) as answer:
                if answer.status >= 500:
                    raise RuntimeError(f"{HEALTH} answered {answer.status}: {ELSEWHERE}")
        self.living()

    async def get(self, path: str) -> str:
        """Return what it answers; raises aiohttp.ClientError and TimeoutError."""
        async with self.http.get(path) as answer:
            answer.raise_for_status()
            return await answer.text()

    async def post(self, path: str, body: bytes) -> bytes:
        """Return what it answers; raises aiohttp.ClientError and TimeoutError."""
        async with self.http.post(path, data=body) as answer:
            answer.raise_for_status()
            return await answer.read()

    def written(self) -> str:
        """Return what its processes, and this one, have written since the start."""
        return self._capture.text()

    async def stop(self) -> None:
        """End it now, without waiting for its requests; may be called twice."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()
        pipe, self._pipe = self._pipe, -1
        if pipe >= 0:
            os.close(pipe)
        if self._keeper is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._keeper.wait(), STOP_S)
            self._end_all()

    def _end_all(self) -> None:
        """Kill what is left where the keeper itself was killed: it is the leader of them all."""
        with suppress(ProcessLookupError):
            os.killpg(self._keeper.pid, signal.SIGKILL)  # type: ignore[union-attr]


def keeper() -> tuple[str, ...]:
    """Return the keeper as Python's words: its file, or its text where that lies in an archive."""
    if KEEPER.exists():
        return (str(KEEPER),)
    return ("-c", resources.files(__package__).joinpath(KEEPER.name).read_text())


def _how(code: int) -> str:
    if code <= 128:
        return f"exited with code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(code - 128).name}"
    return f"was killed by signal {code - 128}"
