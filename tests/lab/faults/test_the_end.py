"""After all of the faults: `down`, twice."""

from __future__ import annotations

import pytest

from tests.lab.faults.cluster import Faulty

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


def test_down_cleans_the_hosts_that_can_be_reached_and_names_the_others(faulty: Faulty) -> None:
    away = faulty.hosts[2]
    away.power_off()
    done = faulty.cli("down", faulty.spec, "--yes", timeout=120)
    assert done.returncode == 1
    assert "docker-3" in done.stderr
    assert [host.containers() for host in faulty.hosts[:2]] == [[], []]
    away.power_on()


def test_down_leaves_nothing(faulty: Faulty) -> None:
    for _ in range(2):
        done = faulty.cli("down", faulty.spec, "--yes")
        assert done.returncode == 0, done.stderr
    for host in faulty.hosts:
        assert host.containers() == []
        assert host.processes() == []
        assert host.run(("nft", "list", "table", "inet", "raycluster_faults")).returncode == 1
