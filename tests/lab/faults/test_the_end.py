"""`down` after faults, and twice: nothing is left."""

from __future__ import annotations

import pytest

from tests.lab.faults.cluster import Faulty

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

LONG_FAULTS = ("off", "replica", "hang", "head", "gateway", "partition", "reboot", "up")
FAULTS = ["worker", *(pytest.param(fault, marks=pytest.mark.long) for fault in LONG_FAULTS)]


@pytest.mark.parametrize("fault", FAULTS)
def test_down_right_after_a_fault_leaves_nothing(faulty: Faulty, fault: str) -> None:
    if not faulty.healthy():
        faulty.up()
    faulty.spread()
    strike(faulty, fault)
    clean(faulty)


def strike(faulty: Faulty, fault: str) -> None:
    """Break the cluster in one way, and wait for nothing."""
    first, second, _ = faulty.hosts
    match fault:
        case "replica":
            faulty.signal(faulty.running()[-1], "KILL")
        case "hang":
            faulty.signal(faulty.running()[-1], "STOP")
        case "worker":
            faulty.kill_container(second, "worker")
        case "head" | "gateway":
            faulty.kill_container(first, fault)
        case "partition":
            second.partition(peers=[host for host in faulty.hosts if host is not second])
        case "reboot":
            second.power_off()
            second.power_on()
        case "off":
            off(faulty)
        case "up":
            second.check("docker", "rm", "-f", "raycluster-faults-worker")
            program = faulty.cli.start("up", faulty.spec)
            try:
                assert program.stderr
                next(line for line in program.stderr if "start worker" in line)
            finally:
                program.kill()
                program.communicate()


def off(faulty: Faulty) -> None:
    """Take the cluster down while one host has no power: the others are cleaned, it is named."""
    away = faulty.hosts[2]
    away.power_off()
    done = faulty.cli("down", faulty.spec, "--yes", timeout=120)
    assert done.returncode == 1
    assert "docker-3" in done.stderr
    assert [host.containers() for host in faulty.hosts[:2]] == [[], []]
    away.power_on()


def clean(faulty: Faulty) -> None:
    """Take the cluster down twice, and look."""
    try:
        for _ in range(2):
            done = faulty.cli("down", faulty.spec, "--yes", timeout=120)
            assert done.returncode == 0, done.stderr
    finally:
        faulty.hosts[1].heal()
    for host in faulty.hosts:
        assert host.containers() == []
        assert host.processes() == []
        assert host.run(("nft", "list", "table", "inet", "raycluster_faults")).returncode == 1
