"""Nothing is done on any host without the lease of the run."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raycluster.apply.applications import _write
from raycluster.apply.context import ApplyContext, record, wiring
from raycluster.apply.firewall import guard
from raycluster.apply.host_removal import drain, forget
from raycluster.apply.nodes import _reload, _start, _take_off, refresh
from raycluster.core.errors import LockedError
from raycluster.core.events import Event
from raycluster.core.interfaces import Process, Secret, Transport
from raycluster.hosts.fence import Fenced
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.transports.local import LocalTransport
from raycluster.plan.actions import EVERYTHING, ApplyFirewall, Reload, Remove, Start
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from raycluster.state.cluster import ClusterState, HostState
from raycluster.state.members import Former, Member

SPEC = ClusterSpec(
    **{  # type: ignore[arg-type]  # pydantic makes values of it
        "cluster": {"name": "c"},
        "runtime": {"kind": "native", "python": "/nowhere"},
        "head": {"transport": "local"},
    }
)
STATE = ClusterState({"head": HostState("head", address="127.0.0.1")})
PROCESS = Process("head", ("true",))
CUT = "another run may have taken the lock"


class Ended:
    """A lease that ended, as the host that keeps it says, or as anybody can tell."""

    def __init__(self, *, known: bool) -> None:
        self.known = known

    def valid(self) -> None:
        """Raise where it is known."""
        if self.known:
            raise LockedError(CUT)

    def check(self) -> None:
        """Raise."""
        raise LockedError(CUT)


Act = Callable[[Transport, Path], object]
ACTS: dict[str, Act] = {
    "a command": lambda host, file: host.run(("touch", str(file))),
    "a command whose output is read": lambda host, file: list(host.stream(("touch", str(file)))),
    "a file": lambda host, file: host.put(str(file), b""),
    "a stream": lambda host, file: host.connect(str(file)),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_nothing_is_begun_after_a_lease_ended(act: Act, tmp_path: Path) -> None:
    host = Fenced(LocalTransport("here"), Ended(known=True).valid)
    with pytest.raises(LockedError, match=CUT):
        act(host, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_nothing_is_sent_over_an_open_stream(tmp_path: Path) -> None:
    lease = Ended(known=False)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        stream = Fenced(LocalTransport("here"), lease.valid).connect(str(tmp_path / "s"))
        there, _ = server.accept()
        stream.sendall(b"before")
        lease.known = True
        with pytest.raises(LockedError, match=CUT):
            stream.sendall(b"after")
        there.sendall(b"heard")
        assert stream.recv(9) == b"heard"
        stream.close()
        assert there.recv(99) == b"before"
        there.close()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApplyContext]:
    """A run that has reached its host, and whose lease has ended since."""
    monkeypatch.setenv("HOME", str(tmp_path))
    events: list[Event] = []
    with Fleet("c", 2) as fleet:
        fleet.open(SPEC.hosts[0])
        with fleet.under(Ended(known=False)):
            yield ApplyContext(SPEC, fleet, Secret("t"), Secrets(), events.append)
    assert events == []
    assert list(tmp_path.iterdir()) == []


FORMER = [Former(Member(name="head", host="", kind="native"), "head", SPEC.hosts[0])]
STAGES: dict[str, Callable[[ApplyContext], object]] = {
    "firewall": lambda work: guard(work, [ApplyFirewall("head", "rules", "new")]),
    "stop": lambda work: _take_off(work, [Remove("head", "head", "gone")]),
    "start": lambda work: _start(work, [Start("head", PROCESS, "new")], {}, {}),
    "reload": lambda work: _reload(work, [Reload("head", PROCESS, "new")]),
    "files": lambda work: refresh(work, wiring(work, STATE), EVERYTHING),
    "members": lambda work: record(work, STATE, ()),
    "drain": lambda work: drain(work, FORMER, spare=()),
    "forget": lambda work: forget(work, FORMER),
    "app": lambda work: _write(work, STATE, {"code/app.py": b""}),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_every_stage_makes_sure_of_the_lease(
    stage: Callable[[ApplyContext], object], work: ApplyContext
) -> None:
    with pytest.raises(LockedError, match=CUT):
        stage(work)
