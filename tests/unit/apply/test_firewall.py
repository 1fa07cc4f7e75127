"""Firewall rules on a host of two namespaces, with nftables itself: trial, confirmation, boot."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from raycluster.apply import firewall as guarding
from raycluster.apply.context import ApplyContext
from raycluster.core.errors import CommandError, RayclusterError, UnreachableError
from raycluster.core.events import Event
from raycluster.core.interfaces import Completed, Runtime, Secret
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.hosts.transports.local import LocalTransport
from raycluster.observe.listening_ports import read_listeners
from raycluster.plan.actions import ApplyFirewall
from raycluster.services import firewall
from raycluster.services.firewall import (
    Around,
    confirm_script,
    exemptions,
    owned,
    owner_in,
    read_script,
    remove_script,
    ruleset,
    table,
    take_back_script,
    try_script,
)
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets

CLUSTER = "my-qwen"
TABLE = table(CLUSTER)
HOST, FRIEND, STRANGER = "10.9.8.1", "10.9.8.2", "10.9.8.3"
HOST6, FRIEND6, STRANGER6 = "fd09::1", "fd09::2", "fd09::3"
NEIGHBOURS = (FRIEND, FRIEND6, STRANGER, STRANGER6)
FILE, CRON = f"/etc/raycluster/{TABLE}.nft", f"/etc/cron.d/{TABLE}"
UNIT = f"/etc/systemd/system/{TABLE}.service"
WIRING = Wiring({"head": HOST, "b": FRIEND, "c": FRIEND6}, Secret("t"))
SPACES = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
INIT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/up /run/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/up,workdir=/run/work /etc
rm -rf /etc/cron.d/*
ip link set lo up
echo ready
exec sleep infinity
"""
CLEAN = (
    "nft flush ruleset; rm -rf /etc/raycluster* /etc/cron.d/* /run/systemd /run/bin /run/crontab"
)
LISTEN = """
import json, socket, sys
held = []
for kind, family, address, port in json.loads(sys.argv[1]):
    held.append(socket.socket(getattr(socket, family), getattr(socket, kind)))
    if family == "AF_INET6":
        held[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    held[-1].bind((address, port))
    if kind == "SOCK_STREAM":
        held[-1].listen()
print("listening", flush=True)
for held_one in held * 1000:
    if held_one.type == socket.SOCK_DGRAM:
        data, peer = held_one.recvfrom(10)
        held_one.sendto(data, peer)
sys.stdin.read()
"""
MEET = """
import json, socket, sys
for source, target in json.loads(sys.argv[1]):
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET) as probe:
        probe.bind((source, 0))
        probe.connect_ex((target, 1))  # it is refused once both know each other's link
"""
PROBE = """
import json, selectors, socket, sys
found, told = [], selectors.DefaultSelector()
for number, (kind, source, target, port) in enumerate(json.loads(sys.argv[1])):
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    probe = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    probe.bind((source, 0))
    probe.setblocking(False)
    probe.connect_ex((target, port))
    if kind == "udp":
        probe.send(b"a")
    told.register(probe, selectors.EVENT_WRITE if kind == "tcp" else selectors.EVENT_READ, number)
while some := told.select(0.7):
    for key, _ in some:
        if not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            found.append(key.data)
        told.unregister(key.fileobj)
    if not told.get_map():
        break
print(json.dumps(sorted(found)))
"""


class Space(LocalTransport):
    """A host of its own namespaces; `address` is where strangers reach it."""

    def __init__(self, stack: ExitStack) -> None:
        super().__init__("space")
        init = stack.enter_context(
            subprocess.Popen((*SPACES, "sh", "-c", INIT), stdout=subprocess.PIPE)
        )
        stack.callback(init.kill)
        assert init.stdout
        if init.stdout.readline() != b"ready\n":
            pytest.skip("needs namespaces and an overlay over /etc")
        self.pid = Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().strip()

    def enter(self, *argv: str) -> tuple[str, ...]:
        return ("nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", *argv)

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        return super().run(self.enter(*argv), **options)

    def sh(self, script: str, given: str = "", **env: str) -> str:
        done = self.run(("sh", "-c", script), input=given.encode(), env=env)
        assert done.exit_code == 0, done.stderr.decode()
        return done.text

    def python(self, program: str, *words: str) -> str:
        done = self.run(
            (shutil.which("python3", path="/usr/bin:/bin") or "python3", "-c", program, *words)
        )
        assert done.exit_code == 0, done.stderr.decode()
        return done.text


@dataclass
class Lab:
    """A host, and its neighbours behind one cable: a host of the cluster, and a stranger."""

    host: Space
    others: Space
    stack: ExitStack

    def listen(self, *ports: tuple[str, str, str, int]) -> None:
        argv = self.host.enter("/usr/bin/python3", "-c", LISTEN, json.dumps(ports))
        started = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.stack.enter_context(started)
        self.stack.callback(started.kill)
        assert started.stdout
        assert started.stdout.readline() == b"listening\n"

    def reached(self, *tried: tuple[str, str, str, int]) -> list[tuple[str, str, str, int]]:
        """Return those of (protocol, source, target, port) that answer, asked all at once."""
        return [tried[n] for n in json.loads(self.others.python(PROBE, json.dumps(tried)))]

    def ports(self, *ports: int) -> dict[str, list[int]]:
        """Return which TCP ports of the host answer to each neighbour, by its address."""
        pairs = [(s, HOST6 if ":" in s else HOST) for s in NEIGHBOURS]
        found = self.reached(*(("tcp", *pair, port) for pair in pairs for port in ports))
        return {source: [port for _, s, _, port in found if s == source] for source, _ in pairs}

    def table(self) -> str:
        return self.host.run(("nft", "list", "table", "inet", TABLE)).text


@pytest.fixture(scope="module")
def spaces() -> Iterator[tuple[Space, Space]]:
    """Two namespaces that a cable connects."""
    needs = ("nft", "unshare", "nsenter", "ip", "setsid")
    if os.geteuid() or not all(
        shutil.which(n, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") for n in needs
    ):
        pytest.skip(f"needs root, {', '.join(needs)}")
    with ExitStack() as stack:
        host, others = Space(stack), Space(stack)
        cable = ("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        inside = ("nsenter", f"--target={host.pid}", "--net")
        subprocess.run([*inside, *cable, "netns", others.pid], check=True)
        for space, link, addresses in (
            (host, "v0", (HOST, HOST6)),
            (others, "v1", (FRIEND, STRANGER, FRIEND6, STRANGER6)),
        ):
            for address in addresses:
                width, rest = (64, "nodad") if ":" in address else (24, "")
                space.sh(f"ip address add {address}/{width} dev {link} {rest}")
            space.sh(f"ip link set {link} addrgenmode none; ip link set {link} up")  # no DAD
        ways = [(source, HOST6 if ":" in source else HOST) for source in NEIGHBOURS]
        others.python(MEET, json.dumps(ways))
        yield host, others


@pytest.fixture
def lab(spaces: tuple[Space, Space]) -> Iterator[Lab]:
    """A host without rules, where nothing listens."""
    host, others = spaces
    with ExitStack() as stack:
        yield Lab(host, others, stack)
        host.sh(CLEAN)
        others.sh(CLEAN)


def spec_of(**parts: Any) -> ClusterSpec:
    base = {"cluster": {"name": CLUSTER}, "head": {"host": HOST}, "firewall": {"manage": True}}
    workers = [{"host": FRIEND, "name": "b"}, {"host": FRIEND6, "name": "c"}]
    return ClusterSpec.model_validate({**base, "workers": workers, **parts})


def rules(spec: ClusterSpec | None = None, **around: frozenset[int]) -> str:
    spec = spec or spec_of()
    return ruleset(spec, spec.hosts[0], WIRING)[0] + exemptions(CLUSTER, Around(**around))


def digits(lab: Lab) -> str:
    return lab.host.sh(read_script(CLUSTER))


def owner(lab: Lab) -> str:
    return owner_in(lab.host.sh(read_script(CLUSTER)).partition("\n")[2])


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["alice", 'it\'s "$HOME" \\ `id` %s é', ""])
def test_the_rules_tell_whose_they_are(lab: Lab, name: str) -> None:
    assert owner(lab) == ""
    put(lab, rules())
    assert (len(digits(lab)), owner(lab)) == (12, "")
    put(lab, rules() + owned(name))
    assert (len(digits(lab).partition("\n")[0]), owner(lab)) == (12, name)
    lab.host.sh(f"nft delete table inet {TABLE}")  # they are somebody's all the same
    assert (digits(lab).partition("\n")[0], owner(lab)) == ("", name)


def put(lab: Lab, text: str) -> str:
    tag = next(TAGS)
    lab.host.sh(try_script(CLUSTER, tag), text)
    return lab.host.sh(confirm_script(CLUSTER, tag))


TAGS = (f"trial-{number}" for number in itertools.count())
"""One for each trial: what watches an earlier one looks once a second whether it goes on."""


OWN, FOREIGN, LATER, SSHD = 45425, 9999, 9998, 20022


def both(port: int) -> tuple[tuple[str, str, str, int], ...]:
    return (("SOCK_STREAM", "AF_INET", "0.0.0.0", port), ("SOCK_STREAM", "AF_INET6", "::", port))


def test_strangers_reach_what_is_not_the_clusters_and_its_hosts_reach_all(lab: Lab) -> None:
    ports = (OWN, FOREIGN, LATER, SSHD, 20023, 6379, 22)
    lab.listen(*(each for port in ports for each in both(port)))
    for port in (5353, 5354):
        lab.listen(("SOCK_DGRAM", "AF_INET", "0.0.0.0", port))
    put(lab, rules(ssh=frozenset({SSHD}), tcp=frozenset({FOREIGN, 6379}), udp=frozenset({5353})))
    some, every = [FOREIGN, SSHD, 22], list(ports)
    assert lab.ports(*ports) == {FRIEND: every, FRIEND6: every, STRANGER: some, STRANGER6: some}
    asked = [("udp", who, HOST, port) for who in (STRANGER, FRIEND) for port in (5353, 5354)]
    assert lab.reached(*asked) == [asked[0], *asked[2:]]
    more = {"manage": True, "allow_ports": [LATER], "allow_from": [f"{STRANGER}/32"]}
    put(lab, rules(spec_of(firewall=more)))
    assert lab.ports(*ports)[STRANGER] == every
    assert lab.ports(*ports)[STRANGER6] == [LATER, 22]


def test_what_the_host_asks_of_others_is_answered(lab: Lab) -> None:
    """Its own connections, and the answers to what it sends by UDP."""
    put(lab, rules())
    lab.host, lab.others = lab.others, lab.host
    lab.listen(("SOCK_DGRAM", "AF_INET", STRANGER, 53))
    lab.listen(*both(80))
    asked = [("udp", HOST, STRANGER, 53), ("tcp", HOST, STRANGER, 80)]
    assert lab.reached(*asked) == asked


def test_another_cluster_on_the_same_host_goes_on_to_work(lab: Lab) -> None:
    ports = (7379, 18080, 6379, OWN)
    lab.listen(*(each for port in ports for each in both(port)))
    put(lab, rules(tcp=frozenset({OWN})))
    told = {"gcs": 7379, "gateway": 18080}
    base = {"cluster": {"name": "other"}, "head": {"host": HOST}, "ports": told}
    gate = {"api_keys": {"a": "env:A"}}
    other = ClusterSpec.model_validate({**base, "workers": [{"host": STRANGER}], "gateway": gate})
    text, _ = ruleset(other, other.hosts[0], Wiring({"head": HOST, "b": STRANGER}, Secret("t")))
    lab.host.sh(try_script("other", "t"), text)
    lab.host.sh(confirm_script("other", "t"))
    assert lab.ports(*ports) == {
        FRIEND: [18080, 6379, OWN],
        FRIEND6: [18080, 6379, OWN],
        STRANGER: [7379, 18080, OWN],
        STRANGER6: [18080],  # not what one of both kept: it may be the other's
    }


def test_rules_that_nobody_confirms_are_taken_back(lab: Lab) -> None:
    lab.host.sh(try_script(CLUSTER, (tag := next(TAGS)), 1), rules())
    assert "chain id_" in lab.table()
    assert digits(lab) == ""
    wait_for(lambda: not lab.table())
    assert lab.host.run(("sh", "-c", confirm_script(CLUSTER, tag))).exit_code == 1
    assert not lab.table()
    put(lab, rules())
    former = digits(lab)
    lab.host.sh(try_script(CLUSTER, next(TAGS), 1), rules(spec_of(firewall={"allow_ports": [1]})))
    assert digits(lab) == ""
    wait_for(lambda: digits(lab))
    assert digits(lab) == former
    lab.host.sh(
        try_script(CLUSTER, (tag := next(TAGS))), rules(spec_of(firewall={"allow_ports": [1]}))
    )
    lab.host.sh(take_back_script(CLUSTER, tag))
    assert digits(lab) == former


@pytest.mark.parametrize("lost", [FILE, CRON, "table", "others"])
def test_rules_count_only_where_they_are_there_whole(lab: Lab, lost: str) -> None:
    """Killed between two steps, the next run writes them again."""
    put(lab, rules())
    assert digits(lab) == ruleset(spec_of(), spec_of().hosts[0], WIRING)[1]
    if lost == "table":
        lab.host.sh(f"nft delete table inet {TABLE}")
    elif lost == "others":
        lab.host.sh(f"sed -i 's/chain id_/chain id_0/' {FILE}")
    else:
        lab.host.sh(f"rm {lost}")
    assert digits(lab) == ""
    put(lab, rules())
    assert digits(lab)


def test_what_loads_them_at_boot_is_a_file_of_its_own(lab: Lab) -> None:
    assert "after a reboot run `raycluster up`" in put(lab, rules())
    [line] = lab.host.sh(f"cat {CRON}").splitlines()
    when, user, command = line.split(" ", 2)
    assert (when, user) == ("@reboot", "root")
    lab.host.sh(f"nft flush ruleset; sh -c {shlex.quote(command)}")
    assert digits(lab)
    lab.host.sh("mkdir -p /run/systemd/system")
    assert digits(lab) == ""
    assert put(lab, rules()) == ""
    assert digits(lab)
    unit = lab.host.sh(f"cat {UNIT}")
    [command] = [line[10:] for line in unit.splitlines() if line.startswith("ExecStart=")]
    lab.host.sh(f"nft flush ruleset; {command}; ! [ -e {CRON} ]")
    assert digits(lab)
    if lab.host.run(("sh", "-c", "command -v systemd-analyze")).exit_code == 0:
        lab.host.sh(f"systemd-analyze verify {UNIT}")
    assert lab.host.sh(remove_script(CLUSTER)) == "removed"
    assert lab.host.sh(f"ls -d /etc/raycluster* {UNIT} {CRON} 2>/dev/null; true") == ""
    assert lab.host.sh(remove_script(CLUSTER)) == ""
    assert not lab.table()


CRONTAB = """#!/bin/sh
case $1 in
-l) [ -e /run/refuses ] && { echo 'cannot read' >&2; exit 1; }; cat /run/crontab;;
-r) rm /run/crontab;;
-) cat > /run/crontab;;
esac
"""


def test_roots_crontab_loses_the_line_of_earlier_releases_and_no_other(lab: Lab) -> None:
    lines = f"0 1 * * * backup\n@reboot PATH=/usr/sbin nft -f {FILE}\n"
    lab.host.sh("mkdir /run/bin; cat >/run/bin/crontab; chmod +x /run/bin/crontab", CRONTAB)
    lab.host.sh("cat >/run/crontab; touch /run/refuses", lines)
    path = f"/run/bin:{os.environ['PATH']}"
    for script in (confirm_script, lambda cluster, _: remove_script(cluster)):
        lab.host.sh(try_script(CLUSTER, (tag := next(TAGS))), rules())
        lab.host.sh(script(CLUSTER, tag), PATH=path)
        assert lab.host.sh("cat /run/crontab") == lines.strip()
    lab.host.sh("rm /run/refuses")
    lab.host.sh(try_script(CLUSTER, (tag := next(TAGS))), rules())
    lab.host.sh(confirm_script(CLUSTER, tag), PATH=path)
    assert lab.host.sh("cat /run/crontab") == "0 1 * * * backup"


class Held:
    """A runtime whose processes hold these sockets."""

    def __init__(self, inodes: frozenset[int] = frozenset()) -> None:
        self.inodes = inodes

    def sockets(self) -> frozenset[int]:
        return self.inodes


class OneHost:
    """A fleet of one host; `fresh` opens new connections to it."""

    def check(self) -> None:
        """Nobody else has the lock."""

    def __init__(self, connected: Connected, fresh: Callable[[], LocalTransport]) -> None:
        self.connected, self.fresh = connected, fresh

    def each(self, names: Any, work: Any) -> dict[str, Any]:
        results = {}
        for name in names:
            try:
                results[name] = work(self.connected)
            except RayclusterError as error:
                results[name] = error
        return results

    def new_connection(self, name: str) -> LocalTransport:
        return self.fresh()


def run_guard(
    lab: Lab, runtime: Held, fresh: Callable[[], LocalTransport] | None = None
) -> list[Event]:
    spec, said = spec_of(), list[Event]()
    connected = Connected(spec.hosts[0], lab.host, cast(Runtime, runtime))
    fleet = cast(Fleet, OneHost(connected, fresh or (lambda: lab.host)))
    work = ApplyContext(spec, fleet, Secret("t"), Secrets(), said.append)
    text, _ = ruleset(spec, spec.hosts[0], WIRING)
    guarding.guard(work, [ApplyFirewall("head", text, "")])
    return said


def test_up_keeps_what_listens_and_is_not_the_clusters(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the range of Ray's workers, the port of the connection itself is open, and no other."""
    monkeypatch.setenv("SSH_CONNECTION", f"{STRANGER} 50000 {HOST} {SSHD}")
    lab.listen(*both(OWN))
    own = frozenset(each.inode for each in read_listeners(lab.host))
    lab.listen(*both(FOREIGN), *both(SSHD), ("SOCK_STREAM", "AF_INET", "127.0.0.1", LATER))
    run_guard(lab, Held(own))
    lab.listen(("SOCK_STREAM", "AF_INET", HOST, LATER))
    found = lab.ports(OWN, FOREIGN, SSHD, LATER)
    assert found[STRANGER] == found[STRANGER6] == [FOREIGN, SSHD]
    assert found[FRIEND] == [OWN, FOREIGN, SSHD, LATER]


def test_rules_that_keep_new_connections_out_are_taken_back_at_once(lab: Lab) -> None:
    def fresh() -> LocalTransport:
        assert "chain id_" in lab.table()
        raise UnreachableError("timed out", where="head")

    with pytest.raises(CommandError) as caught:
        run_guard(lab, Held(), fresh)
    assert "reverted" in str(caught.value)
    assert not lab.table()
    assert firewall.CONFIRM_S > 10


class Told(LocalTransport):
    """A host that notes the scripts it is asked to run, and may have no rights."""

    def __init__(self, name: str, *, may: bool) -> None:
        super().__init__(name)
        self.may, self.asked = may, list[str]()

    def run(self, argv: Sequence[str], **_: Any) -> Completed:
        self.asked.append(argv[-1])
        return Completed(0) if self.may else Completed(1, b"", b"sudo: a password is required")


def test_no_rules_are_written_anywhere_where_one_host_cannot_have_them() -> None:
    spec, hosts = spec_of(), [Told("a", may=True), Told("b", may=True), Told("c", may=False)]

    class Three:
        def each(self, names: Any, look: Any) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for host in hosts:
                try:
                    found[host.address] = look(Connected(spec.hosts[0], host, cast(Runtime, None)))
                except RayclusterError as error:
                    return {"c": error}
            return found

        def check(self) -> None:
            raise AssertionError("something is about to be written")

    work = ApplyContext(spec, cast(Fleet, Three()), Secret("t"), Secrets(), lambda _: None)
    with pytest.raises(CommandError, match="a password is required"):
        guarding.guard(work, [ApplyFirewall("a", "rules", "")])
    assert [host.asked for host in hosts] == [[firewall.can_script()]] * 3
