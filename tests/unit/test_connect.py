"""Many hosts at once, and the end of a run while some of them are still being reached."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from raycluster import connect
from raycluster.connect import Fleet
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.transports.local import LocalTransport


class Meeting(LocalTransport):
    """This machine, under several names: closing the first lets the others be reached."""

    closing = threading.Event()
    reached = threading.Semaphore(0)

    def close(self) -> None:
        """Return when another host was reached since."""
        if not self.closing.is_set():
            self.closing.set()
            assert self.reached.acquire(timeout=20)


def reach(host: ResolvedHost, ask: connect.Ask | None) -> Meeting:
    """Reach the head at once, and the others while the head is being closed."""
    if host.role != "head":
        assert Meeting.closing.wait(20)
    return Meeting(host.name)


def test_hosts_that_are_still_being_reached_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "TRANSPORTS", {"local": reach, "ssh": reach})
    document: dict[str, Any] = {
        "cluster": {"name": "c"},
        "runtime": {"kind": "native"},
        "head": {"transport": "local"},
        "workers": [{"host": "127.0.0.2", "name": "late"}],
        "models": [{"name": "m"}],
    }
    spec = ClusterSpec(**document)

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
