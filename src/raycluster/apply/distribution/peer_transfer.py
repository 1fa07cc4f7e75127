"""Hands files on from hosts that hold them to hosts that do not, over the hosts' own network.

On each of them `serve.transfer` runs while this goes on, over the connections that are there. A
token that is made for one exchange, and goes to the hosts by SSH, is what lets hosts take from one
another.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from raycluster.core.errors import CommandError, RayclusterError
from raycluster.core.interfaces import Shell
from raycluster.core.untrusted import Told, lines, not_understood, read_json
from raycluster.serve.rootcause import last_exception

BEGIN_S = 60.0
"""Seconds for those who hold the files to begin to serve."""
PARTING_S = 10.0
QUIET_S = 1200.0
"""Seconds without a word after which a program of `serve/` is given up."""
STUCK_S = 600.0
STEP = 1 << 20
"""An exchange in which not even so many bytes come within STUCK_S has failed."""
_WORDS = 16384  # bytes of what a program says on stderr that are kept, the last ones

Report = Callable[[str, Told], None]
"""Takes a host's name and a line that its program wrote, such as `here` and `total` bytes."""


@dataclass(frozen=True)
class TransferPeer:
    """A host in an exchange: what others dial, where its program runs, and how it is started.

    `deliver` writes the order, which holds the token, where only the program's user reads it.
    """

    name: str
    address: str
    shell: Shell
    argv: tuple[str, ...]
    env: Mapping[str, str]
    deliver: Callable[[bytes], None]


def ways(holders: Sequence[str], takers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return whom each taker asks, the best first.

    The takers stand in one row behind each holder, and each asks the one before it: so every host
    sends about as much as it receives. Holders are asked when that one fails.
    """
    found = {}
    for number, holder in enumerate(holders):
        before = holder
        others = (*holders[number:], *holders[:number])
        for taker in takers[number :: len(holders)]:
            found[taker] = tuple(dict.fromkeys((before, *others)))
            before = taker
    return found


def all_private(addresses: Iterable[str]) -> bool:
    """Tell whether no address is one of the public internet, or a name, which may be."""
    try:
        return all(not ip_address(address).is_global for address in addresses)
    except ValueError:
        return False


def exchange(
    holders: Sequence[TransferPeer],
    takers: Sequence[TransferPeer],
    port: int,
    order: Mapping[str, Any],
    told: Report,
    *,
    feed: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Hand on what `order` names, and return why it failed for those where it did.

    `feed` is called when all have begun: it may append to what a holder has (`grows`).
    """
    run = _Run(port, {**order, "token": secrets.token_hex(32)}, told)
    with run:
        run.begin(holders, {holder.name: () for holder in holders})
        serving = [h for h in holders if run.serves(h.name)]
        if not serving:
            return {
                **dict.fromkeys((t.name for t in takers), "no host provides it"),
                **run.problems,
            }
        addresses = {party.name: party.address for party in (*serving, *takers)}
        found = ways([h.name for h in serving], [t.name for t in takers])
        peers = {name: [(addresses[p], port) for p in way] for name, way in found.items()}
        run.begin(takers, peers)
        feed()
        run.wait_for([h.name for h in serving], [t.name for t in takers])
    return run.problems


class _Run:
    """The programs of one exchange, each with a thread that reads it; ended together."""

    def __init__(self, port: int, order: Mapping[str, Any], told: Report) -> None:
        self.problems: dict[str, str] = {}
        self._port, self._order, self._told = port, order, told
        self._over = threading.Event()
        self._change = threading.Condition()
        self._begun: set[str] = set()
        self._settled: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._here: dict[str, int] = {}

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PARTING_S)

    def begin(self, parties: Sequence[TransferPeer], peers: Mapping[str, Sequence[object]]) -> None:
        """Start the program of each."""
        for party in parties:
            order = {**self._order, "listen": party.address, "port": self._port}
            content = json.dumps({**order, "peers": peers[party.name]}).encode()
            thread = threading.Thread(target=self._attend, args=(party, content), daemon=True)
            thread.start()
            self._threads.append(thread)

    def serves(self, name: str) -> bool:
        """Wait until a holder has begun to serve; False where it does not."""
        with self._change:
            self._change.wait_for(lambda: name in self._begun, BEGIN_S)
            if name not in self._begun:
                self.problems.setdefault(name, f"did not start serving within {BEGIN_S:.0f} s")
            return name not in self.problems

    def wait_for(self, holders: Sequence[str], takers: Sequence[str]) -> None:
        """Return when all of these have everything or have failed, or no holder is left."""
        with self._change:
            before, at = self._came(), time.monotonic()
            while not self._settled.issuperset((*holders, *takers)):
                if self._came() >= before + STEP:
                    before, at = self._came(), time.monotonic()
                elif time.monotonic() - at > STUCK_S:
                    for name in {*holders, *takers} - self._settled:
                        self.problems.setdefault(name, f"no data arrived for {STUCK_S:.0f} s")
                    return
                if all(holder in self.problems for holder in holders):
                    why = f"{holders[0]}: {self.problems[holders[0]]}"
                    for taker in {*takers} - self._settled:
                        self.problems.setdefault(taker, why)
                    return
                self._change.wait(1.0)  # seconds; so that Ctrl-C comes through

    def _came(self) -> int:
        return sum(self._here.values())

    def _attend(self, party: TransferPeer, order: bytes) -> None:
        why = "its output was not read to the end"
        try:
            party.deliver(order)
            self._follow(party)
            why = ""
        except RayclusterError as error:
            why = error.what
        finally:  # whatever it was: who waits for this host must not wait for ever
            if why:
                self.problems.setdefault(party.name, why)
            self._settle(party.name)

    def _follow(self, party: TransferPeer) -> None:
        with contextlib.closing(spoken(party.shell, party.argv, party.env)) as lines:
            for line in lines:
                if "error" in line:
                    self.problems[party.name] = line["error"].text(2000) or "no reason given"
                    return
                self._begin(party.name)
                self._here[party.name] = line["here"].whole() or 0
                if not line["done"].flag() or party.name not in self._settled:
                    self._told(party.name, line)
                if line["done"].flag():
                    self._settle(party.name)
                if self._over.is_set():
                    return
        if party.name not in self._settled:
            self.problems.setdefault(party.name, "its program exited early")

    def _begin(self, name: str) -> None:
        with self._change:
            self._begun.add(name)
            self._change.notify_all()

    def _settle(self, name: str) -> None:
        with self._change:
            self._begun.add(name)
            self._settled.add(name)
            self._change.notify_all()


def spoken(
    shell: Shell, argv: Sequence[str], env: Mapping[str, str]
) -> Generator[Told, None, None]:
    """Yield what a program of `serve/` writes, line by line; closing this ends the program.

    Raises CommandError with its last words if it breaks, AnswerError where a line is none of its.
    """
    said = b""
    stream = shell.stream(argv, env=env, quiet=QUIET_S)

    def out() -> Iterator[bytes]:
        nonlocal said
        for channel, data in stream:
            if channel == "stdout":
                yield data
            else:
                said = (said + data)[-_WORDS:]

    source = "the program that hands files on"
    try:
        for line in lines(out(), source):
            if line.startswith(b"{"):
                told = read_json(line, source)
                if not isinstance(told.value, dict):
                    raise not_understood(source, "", line)
                yield told
    except CommandError as error:
        words = said.decode("utf-8", "replace")
        cause = last_exception(words) or words.strip()[-300:] or error.what
        raise CommandError(cause, where=error.where, status=error.status) from error
    finally:
        if isinstance(stream, Generator):
            stream.close()
