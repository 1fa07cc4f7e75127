"""Firewall rules over real SSH: the way in stays open, or the rules go."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from raycluster.apply import firewall as guarding
from raycluster.apply.context import ApplyContext
from raycluster.core.errors import CommandError
from raycluster.core.interfaces import Secret
from raycluster.hosts.fleet import Fleet
from raycluster.plan.actions import ApplyFirewall
from raycluster.services.firewall import Around, read_script, ruleset
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from tests.lab.host import Host, wait_for
from tests.lab.hosts import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

SSHD, OUTSIDE = 20022, 30022  # both in a range of the cluster's ports


@pytest.fixture(scope="module")
def odd(lab: Lab) -> Iterator[Host]:
    """A host whose sshd listens where Ray's workers do, and that a router maps to another port."""
    host = lab.add_host("native", ssh_port=SSHD)
    lab.settle([host])
    mapped = f"tcp dport {OUTSIDE} redirect to :{SSHD}"
    host.check("nft", "add table ip router")
    host.check("nft", "add chain ip router pre { type nat hook prerouting priority -100; }")
    host.check("nft", f"add rule ip router pre {mapped}")
    yield host
    lab.remove_host(host)


def work_on(
    lab: Lab, host: Host, port: int, folder: Path, connect_timeout: float = 20
) -> ApplyContext:
    known = folder / "known_hosts"
    known.write_text(host.known_hosts_line.replace(f":{SSHD}", f":{port}"))
    spec = ClusterSpec.model_validate(
        {
            "cluster": {"name": "odd"},
            "ssh": {
                "identity_file": str(lab.key),
                "known_hosts": str(known),
                "connect_timeout": connect_timeout,
            },
            "runtime": {"kind": "native"},
            "head": {"host": host.address, "port": port, "user": "root"},
            "firewall": {"manage": True},
        }
    )
    return ApplyContext(spec, Fleet("odd", 1), Secret("t"), Secrets(), lambda _: None)


def put(work: ApplyContext) -> None:
    [head] = work.spec.hosts
    text, _ = ruleset(work.spec, head, Wiring({"head": head.host}, Secret("t")))
    guarding.guard(work, [ApplyFirewall("head", text, "")])


def tell(work: ApplyContext) -> str:
    """Return what a new connection is told of the rules in force."""
    with closing(work.fleet.new_connection("head")) as fresh:
        return fresh.run(("sh", "-c", read_script("odd"))).text


@pytest.mark.parametrize("port", [SSHD, OUTSIDE])
def test_the_port_of_the_connection_stays_open(
    lab: Lab, odd: Host, port: int, tmp_path: Path
) -> None:
    work = work_on(lab, odd, port, tmp_path)
    with work.fleet:
        connected = work.fleet.open(work.spec.hosts[0])
        put(work)
        assert tell(work)
        with socket.socket() as probe:
            probe.settimeout(5)
            probe.connect((odd.address, SSHD))
        guarding.take_away(connected, "odd")
        assert tell(work) == ""


def test_rules_that_would_lock_out_are_gone_at_once(
    lab: Lab, odd: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_on(lab, odd, OUTSIDE, tmp_path, connect_timeout=3)
    monkeypatch.setattr(guarding, "around", lambda _: Around())
    with work.fleet:
        work.fleet.open(work.spec.hosts[0])
        with pytest.raises(CommandError, match="reverted: they prevented new connections"):
            put(work)
        assert tell(work) == ""
    assert not odd.run(("sh", "-c", "ls -d /etc/raycluster/*; nft list tables | grep odd")).stdout


def test_cron_puts_the_rules_in_force_again_after_a_reboot(
    lab: Lab, odd: Host, tmp_path: Path
) -> None:
    work = work_on(lab, odd, SSHD, tmp_path)
    with work.fleet:
        work.fleet.open(work.spec.hosts[0])
        put(work)
    odd.power_off()
    odd.power_on()
    listed = ("nft", "list", "table", "inet", "raycluster_odd")
    wait_for(lambda: odd.run(listed).returncode == 0, "cron to load the rules", 120)
    again = work_on(lab, odd, SSHD, tmp_path)
    with again.fleet:
        connected = again.fleet.open(again.spec.hosts[0])
        assert tell(again)
        guarding.take_away(connected, "odd")
