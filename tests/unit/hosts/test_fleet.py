"""Many hosts at once, and the end of a run while some of them are still being reached."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from typing import Any

import pytest

from raycluster.core.errors import UnreachableError
from raycluster.core.wait import wait_for
from raycluster.hosts import fleet as connect
from raycluster.hosts.fence import Fenced
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.hosts.transports.local import LocalTransport
from raycluster.spec import ClusterSpec, ResolvedHost

DOCUMENT: dict[str, Any] = {
    "cluster": {"name": "c"},
    "runtime": {"kind": "native", "python": "python3"},
    "head": {"transport": "local"},
    "workers": [{"host": "127.0.0.2", "name": "late"}],
    "models": [{"name": "m"}],
}
SPEC = ClusterSpec.model_validate(DOCUMENT)


def test_what_is_imported_early_is_what_reaches_the_hosts() -> None:
    worker = {"host": "h", "name": "w", "runtime": {"kind": "docker"}}
    spec = ClusterSpec.model_validate({**DOCUMENT, "workers": [worker]})
    names = connect.slow_imports(spec)
    assert [n.removeprefix("raycluster.") for n in names] == [
        *(
            "hosts.transports.local",
            "hosts.transports.ssh_connect",
            "hosts.runtimes.native",
            "hosts.runtimes.docker",
        )
    ]
    assert all(find_spec(name) for name in names)
    assert connect.IMPORTED.keys() == connect.TRANSPORTS.keys()
    assert all(find_spec(f"raycluster.hosts.runtimes.{kind}") for kind in connect.RUNTIMES)


class Meeting(LocalTransport):
    """This machine, under several names: closing the first lets the others be reached."""

    closing = threading.Event()
    reached = threading.Semaphore(0)

    def close(self) -> None:
        """Return when another host was reached since."""
        if not self.closing.is_set():
            self.closing.set()
            assert self.reached.acquire(timeout=20)


class Breaking(LocalTransport):
    """This machine, over a connection that can break, and be refused while `away`."""

    away = threading.Event()
    attempts = 0

    def __init__(self, name: str) -> None:
        super().__init__(name)
        Breaking.attempts += 1
        if self.away.is_set():
            raise UnreachableError("is off", where=name)
        self.whole = True

    @property
    def alive(self) -> bool:
        return self.whole


def reach(host: ResolvedHost, ask: connect.Ask | None) -> Meeting:
    """Reach the head at once, and the others while the head is being closed."""
    if host.role != "head":
        assert Meeting.closing.wait(20)
    return Meeting(host.name)


def test_hosts_that_are_still_being_reached_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "TRANSPORTS", {"local": reach, "ssh": reach})
    spec = SPEC

    def interrupt(fleet: Fleet) -> None:
        with fleet:
            fleet.open(spec.hosts[0])
            threading.Thread(target=fleet.reach, args=(spec.hosts, note), daemon=True).start()
            raise KeyboardInterrupt

    def note(connected: connect.Connected) -> None:
        if connected.host.name == "late":
            Meeting.reached.release()

    with pytest.raises(KeyboardInterrupt):
        interrupt(Fleet("c", 4))


@pytest.mark.parametrize("reconnect_in_background", [False, True])
def test_a_host_that_was_away_is_reached_again(
    monkeypatch: pytest.MonkeyPatch, reconnect_in_background: bool
) -> None:
    monkeypatch.setattr(connect, "TRANSPORTS", {"local": lambda host, _: Breaking(host.name)})
    monkeypatch.setattr(Breaking, "attempts", 0)
    Breaking.away.clear()
    head = SPEC.hosts[:1]

    def reached(fleet: Fleet) -> Connected | Exception:
        return fleet.reach(head, lambda connected: connected)["head"]

    def comes_back(fleet: Fleet) -> bool:
        return isinstance(reached(fleet), Connected)

    with Fleet("c", 4, reconnect_in_background=reconnect_in_background) as fleet:
        first = reached(fleet)
        assert isinstance(first, Connected)
        assert reached(fleet) is first
        assert isinstance(first.transport, Fenced)
        assert isinstance(first.transport.transport, Breaking)
        Breaking.away.set()
        first.transport.transport.whole = False
        for _ in range(3):
            assert isinstance(reached(fleet), UnreachableError)
        Breaking.away.clear()
        assert wait_for(lambda: comes_back(fleet) or None, timeout=20, interval=0.01)
        assert fleet["head"] is not first
        assert Breaking.attempts >= 3
