"""What a host stores is read by the real program over real SSH, and hurts nothing of the laptop's.

The cluster's one host, its laptop and another machine are an sshd or a home folder each.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raycluster.apply.context import ApplyContext
from raycluster.apply.converge import preview
from raycluster.apply.host_removal import down, leave, make_way
from raycluster.core.errors import HostError, NewerRecordError, RayclusterError
from raycluster.core.events import Event
from raycluster.core.interfaces import Process, Secret, Versions
from raycluster.hosts.fleet import Fleet
from raycluster.observe.cluster import observe
from raycluster.observe.health import look
from raycluster.plan.planner import moved_hosts, removed_hosts, stranded_hosts
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from tests.contract.pythons import python_with_ray
from tests.contract.sshd import SSHD, Sshd

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd: apt install openssh-server")

TOKEN, OTHER_TOKEN = "a" * 64, "b" * 64
NO_SECRETS = Secrets()


@dataclass
class Places:
    """A host of the cluster, another machine that admits the same key, and the laptop's home."""

    host: Sshd
    other: Sshd
    laptop: Path
    name: str
    told: list[Event] = field(default_factory=list)

    @property
    def python(self) -> str:
        return str(python_with_ray(self.laptop.parent / "python"))

    @property
    def spec(self) -> ClusterSpec:
        table = {
            "cluster": {"name": self.name},
            "ssh": {
                "user": getpass.getuser(),
                "identity_file": str(self.host.folder / "client"),
                "known_hosts": str(self.laptop / "known_hosts"),
            },
            "head": {"host": "127.0.0.1", "port": self.host.port},
            "runtime": {"kind": "native", "python": self.python, "start_on_boot": False},
        }
        return ClusterSpec.model_validate(table)

    def folder(self, home: Path) -> Path:
        return home / ".raycluster" / self.name

    def begin(self, members: bytes) -> None:
        """Start something as the head, with a record of members beside its token."""
        with self.fleet() as fleet:
            runtime = fleet.open(self.spec.hosts[0]).runtime
            process = Process("head", ("sleep", "600"))
            files = {"token": TOKEN.encode(), "members.json": members}
            runtime.start(process, Versions(), files, lambda _: None)

    def fleet(self) -> Fleet:
        return Fleet(self.name, 4)

    def down(self) -> str:
        """Run `down`; return what it could not do."""
        with self.fleet() as fleet:
            try:
                down(self.spec, fleet, self.told.append)
            except HostError as error:
                return str(error)
        return ""

    def safe(self) -> dict[str, object]:
        """Return all that nobody may change."""
        every = [*self.laptop.rglob("*"), *(self.other.folder / "home").rglob("*")]
        return {str(path): path.read_bytes() for path in every if path.is_file()}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sshd, Sshd]]:
    made = []
    for name in ("host", "other"):
        folder = tmp_path_factory.mktemp(name)
        (folder / "home").mkdir()
        made.append(Sshd(folder, f"SetEnv HOME={folder}/home").start())
    host, other = made
    with (other.folder / "authorized_keys").open("ab") as file:
        file.write((host.folder / "client.pub").read_bytes())
    yield host, other
    for each in made:
        each.stop()


@pytest.fixture
def places(
    machines: tuple[Sshd, Sshd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Places]:
    host, other = machines
    laptop = tmp_path / "laptop"
    (laptop / ".ssh").mkdir(parents=True)
    (laptop / ".ssh/authorized_keys").write_text("ssh-ed25519 AAAA mine\n")
    (laptop / ".ssh/config").write_text("")
    known = [(each.folder / "known_hosts").read_text() for each in machines]
    (laptop / "known_hosts").write_text("".join(known))
    monkeypatch.setenv("HOME", str(laptop))
    made = Places(host, other, laptop, f"r{tmp_path.name[-20:]}".replace("_", "-").lower())
    for home in (laptop, other.folder / "home"):
        made.folder(home).mkdir(parents=True)
        (made.folder(home) / "token").write_text(OTHER_TOKEN)
        (made.folder(home) / "precious").write_text("data")
    yield made
    made.down()
    assert not made.folder(host.folder / "home").exists()


def old(host: str, port: int | None, transport: str = "ssh", **ssh: object) -> dict[str, Any]:
    """A host as it was recorded before schema numbers, with how to log in."""
    return {
        "name": "gone",
        "host": host,
        "transport": transport,
        "ssh": {"port": port, "user": getpass.getuser(), **ssh},
        "runtime": {"kind": "native"},
    }


def hostile(places: Places) -> list[dict[str, Any]]:
    keys = str(places.laptop / ".ssh/authorized_keys")
    login = {"known_hosts": keys, "host_keys": "accept-new"}
    return [
        old("", None, "local"),
        old("127.0.0.1", places.other.port),
        old("localhost", places.other.port, **login),
    ]


def test_what_a_host_says_of_members_changes_nothing_elsewhere(places: Places) -> None:
    before = places.safe()
    places.begin(json.dumps(hostile(places)).encode())
    with places.fleet() as fleet:
        state = observe(places.spec, fleet)
        assert state.token == Secret(TOKEN)
        left, stranded = (f(places.spec, state) for f in (removed_hosts, stranded_hosts))
        assert [len(left), len(stranded)] == [2, 1]
        work = ApplyContext(places.spec, fleet, Secret(TOKEN), NO_SECRETS, places.told.append)
        assert leave(work, state, left) == (left, ())
    assert places.safe() == before
    said = places.down()
    assert "3 hosts could not be cleaned up" in said
    assert "does not have this cluster's token" in said
    assert "was the machine that ran" in said
    assert "localhost" in said  # it has no line in known_hosts, and gets none
    assert places.safe() == before


def test_a_local_host_of_the_spec_loses_nothing_to_a_record_of_another_runtime(
    places: Places,
) -> None:
    before = places.safe()
    record = places.host.folder / "home/.raycluster" / places.name / "members.json"
    local = {"transport": "local", "name": "me", "runtime": {"kind": "docker"}}
    table = {**places.spec.model_dump(by_alias=True, exclude_unset=True), "workers": [local]}
    spec = ClusterSpec.model_validate(table)
    places.begin(json.dumps([old("", None, "local")]).encode())
    with places.fleet() as fleet:
        state = observe(spec, fleet)
        assert record.exists()
        moved = moved_hosts(spec, state)
        assert [(f.member.kind, f.host and f.host.transport) for f in moved] == [
            ("native", "local")
        ]
        work = ApplyContext(spec, fleet, Secret(TOKEN), NO_SECRETS, places.told.append)
        with pytest.raises(HostError, match="does not have this cluster's token"):
            make_way(work, moved)
    assert places.safe() == before


def test_a_former_host_with_the_clusters_token_is_cleaned(places: Places) -> None:
    folder = places.folder(places.other.folder / "home")
    (folder / "token").write_text(TOKEN)
    places.begin(json.dumps([old("127.0.0.1", places.other.port)]).encode())
    assert places.down() == ""
    assert not folder.exists()
    assert places.folder(places.laptop).exists()


def test_a_former_host_with_nothing_of_the_cluster_is_done_with(places: Places) -> None:
    folder = places.folder(places.other.folder / "home")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    places.begin(json.dumps([old("127.0.0.1", places.other.port)]).encode())
    assert places.down() == ""


@pytest.mark.parametrize("content", [b"[", b'{"schema": 1, "members": [{}]}'])
def test_a_damaged_record_is_said_and_hosts_of_the_spec_are_cleaned(
    places: Places, content: bytes
) -> None:
    places.begin(content)
    with places.fleet() as fleet:
        seen = look(places.spec, fleet)
        assert seen.state.token == Secret(TOKEN)
        [problem] = [p for p in seen.problems if "record" in p.what]
        assert problem.hint
        _, forecast = preview(places.spec, fleet, NO_SECRETS)
        assert [
            w
            for w in forecast.warnings
            if "that were removed from the spec are not known" in w.what
        ]
    said = places.down()
    assert "cannot be read" in said
    assert "next: " in said
    assert not places.folder(places.host.folder / "home").exists()
    assert places.down() == ""


def test_a_newer_record_is_not_overwritten_and_down_cleans(places: Places) -> None:
    places.begin(b'{"schema": 99}')
    with places.fleet() as fleet, pytest.raises(NewerRecordError, match="schema 99"):
        preview(places.spec, fleet, NO_SECRETS)
    assert "schema 99" in places.down()
    assert not places.folder(places.host.folder / "home").exists()


def test_a_damaged_token_is_said(places: Places) -> None:
    places.begin(b"[]")
    (places.folder(places.host.folder / "home") / "token").write_bytes(b"\x1b]52;c;\n")
    with places.fleet() as fleet:
        seen = look(places.spec, fleet)
    assert seen.state.token is None
    assert [p for p in seen.problems if "Ray's token cannot be read" in p.what]


DAMAGED = (
    *(b"", b"[", b"[" * 100_000, b"null", b'{"schema": 1}', b"\xff", b'{"files": [{}, 1]}'),
    b'{"schema": 1, "fingerprint": {}, "versions": {"ray": []}, "detail": 7, "started": [],'
    b' "boot": "x", "supervisor": ["x"], "child": [], "session": ["x"], "restarts": "many"}',
    b'{"files": ["/etc/passwd", "../../precious"], "argv": [], "env": []}',
)


@pytest.mark.parametrize("file", ["state.json", "launch.json"])
def test_damaged_records_of_a_role(places: Places, file: str) -> None:
    folder = places.folder(places.host.folder / "home") / "roles/gateway"
    with places.fleet() as fleet:
        runtime = fleet.open(places.spec.hosts[0]).runtime
        for content in DAMAGED:
            folder.mkdir(parents=True)
            (folder / file).write_bytes(content)
            [found] = runtime.observe() or [None]
            assert found is None or found.health == "stopped"
            with suppress(RayclusterError):
                runtime.inside("gateway").run(("true",))
            assert runtime.remove("gateway") == ("process gateway",)
            assert runtime.observe() == ()
