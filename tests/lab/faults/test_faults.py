"""What clients see of each fault: 20 short requests a second through the gateways, none fails."""

from __future__ import annotations

import json

import httpx
import pytest

from raycluster.drill.load import SteadyLoad
from tests.lab.faults.cluster import (
    KEY,
    NAME,
    Faulty,
    failures,
    seconds_until,
    told,
)
from tests.lab.host import Host, wait_for
from tests.lab.specs import TINY

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

LONG_DRILLS = (("replica", 120), ("hang", 240), ("worker", 240), ("head", 240), ("partition", 240))
DRILLS = [
    ("gateway", 10),
    *(pytest.param(*drill, marks=pytest.mark.long) for drill in LONG_DRILLS),
]

START_S = 60.0
"""Seconds for an engine to start here, where everything shares two cores."""


@pytest.mark.long
def test_the_cluster_is_whole(faulty: Faulty) -> None:
    faulty.spread()
    assert faulty.up() == []
    assert faulty.healthy()


def test_a_replica_is_killed(faulty: Faulty) -> None:
    victim = faulty.running()[-1]
    with faulty.load() as load:
        since = load.now()
        faulty.signal(victim, "KILL")
        struck = since, load.now()
        wait_for(lambda: not faulty.has(victim), "Serve to notice", 60)
        back = seconds_until(faulty.whole, load, since, 60 + START_S)
    told("replica killed", load, since, back=back)
    assert failures(load, struck) == []


@pytest.mark.long
def test_a_replica_hangs(faulty: Faulty) -> None:
    victim = faulty.running()[-1]
    gateway = next(h for h in faulty.hosts if h.address != victim["node_ip"])
    with faulty.load(gateway) as load:
        since = load.now()
        faulty.signal(victim, "STOP")
        out = seconds_until(lambda: _quick(load, since), load, since, 15)
        wait_for(lambda: not faulty.has(victim), "Serve to end it", 180)
        back = seconds_until(faulty.whole, load, since, 240 + START_S)
    told("replica hangs", load, since, out_of_rotation=out, back=back)
    assert failures(load) == []


@pytest.mark.long
def test_a_workers_container_is_killed(faulty: Faulty) -> None:
    faulty.spread()
    host = faulty.hosts[2]
    with faulty.load() as load:
        since = load.now()
        faulty.kill_container(host, "worker")
        struck = since, load.now()
        wait_for(lambda: not faulty.whole(), "Serve to notice", 90)
        back = seconds_until(lambda: faulty.whole() and faulty.healthy(), load, since, 150)
    told("worker's container killed", load, since, back=back)
    assert failures(load, struck) == []


@pytest.mark.long
def test_a_workers_host_loses_power(faulty: Faulty) -> None:
    faulty.spread()
    host = faulty.hosts[2]
    with faulty.load() as load:
        since = load.now()
        host.power_off()
        struck = since, load.now()
        out = seconds_until(lambda: _quick(load, since), load, since, 10)
        wait_for(lambda: not faulty.whole(), "Ray to notice", 90)
        back = seconds_until(faulty.whole, load, since, 120 + START_S)
        returned = load.now()
        host.power_on()
        rejoined = seconds_until(faulty.healthy, load, returned, 90)
    told("worker off", load, since, rerouted=out, replaced=back, rejoined=rejoined)
    assert failures(load, struck) == []
    assert faulty.whole()
    # These hosts run no cron, which would load the rules again at boot.
    assert {c["action"] for c in faulty.up()} == {"guard"}


@pytest.mark.long
def test_a_worker_is_cut_off(faulty: Faulty) -> None:
    faulty.spread()
    host = faulty.hosts[1]
    with faulty.load() as load:
        since = load.now()
        host.partition(peers=[h for h in faulty.hosts if h is not host])
        out = seconds_until(lambda: _quick(load, since), load, since, 10)
        wait_for(lambda: not faulty.whole(), "Ray to notice", 120)
        back = seconds_until(faulty.whole, load, since, 180 + START_S)
        returned = load.now()
        host.heal()
        rejoined = seconds_until(faulty.healthy, load, returned, 90)
    told("worker cut off", load, since, rerouted=out, replaced=back, rejoined=rejoined)
    assert failures(load) == []
    wait_for(faulty.whole, "no replica twice", 60)


@pytest.mark.long
def test_the_heads_container_is_killed(faulty: Faulty) -> None:
    faulty.spread()
    there = list(faulty.hosts[1:])
    before = {r["replica_id"]: r["pid"] for r in faulty.running() if _on(r, there)}
    with faulty.load(there[0]) as load:
        since = load.now()
        faulty.kill_container(faulty.hosts[0], "head")
        struck = since, load.now()
        back = seconds_until(lambda: faulty.whole() and faulty.healthy(), load, since, 180)
    told("head's container killed", load, since, back=back)
    assert failures(load, struck) == []
    after = {r["replica_id"]: r["pid"] for r in faulty.running()}
    assert before.items() <= after.items()


@pytest.mark.long
def test_the_head_is_away_for_a_minute(faulty: Faulty) -> None:
    head, *there = faulty.hosts
    before = {r["replica_id"]: r["pid"] for r in faulty.running() if _on(r, there)}
    with faulty.load(there[0]) as load:
        since = load.now()
        head.check("docker", "stop", "-t", "1", f"raycluster-{NAME}-head")
        struck = since, load.now()
        wait_for(lambda: load.now() - since > 60, "a minute to pass", 90)
        head.check("docker", "start", f"raycluster-{NAME}-head")
        returned = load.now()
        back = seconds_until(lambda: faulty.whole() and faulty.healthy(), load, returned, 180)
        done = faulty.cli("deploy", faulty.spec)
        deployed = load.now() - returned
    told("head away for a minute", load, since, back=back, deployed=deployed)
    assert failures(load, struck) == []
    assert done.returncode == 0, done.stderr
    after = {r["replica_id"]: r["pid"] for r in faulty.running()}
    assert before.items() <= after.items()


def test_a_gateway_is_killed(faulty: Faulty) -> None:
    first, second = faulty.hosts[:2]
    with faulty.load(first, second) as load:
        since = load.now()
        faulty.kill_container(first, "gateway")
        struck = since, load.now()
        back = seconds_until(lambda: _open(first), load, since, 5)  # alone on the machine: 0.7
    told("gateway killed", load, since, back=back)
    assert failures(load, struck) == []


@pytest.mark.long
def test_a_host_reboots(faulty: Faulty) -> None:
    host = faulty.hosts[0]
    with faulty.load(faulty.hosts[1]) as load:
        since = load.now()
        host.power_off()
        host.power_on()
        back = seconds_until(lambda: faulty.whole() and faulty.healthy(), load, since, 300)
    told("head's host rebooted", load, since, back=back)
    assert failures(load) == []


@pytest.mark.parametrize(("fault", "recover"), DRILLS)
def test_a_drill_tells_the_same(faulty: Faulty, fault: str, recover: int) -> None:
    wait_for(lambda: faulty.whole() and faulty.healthy(), "the cluster to be whole", 120)
    options = ("--fault", fault, "--assert", "failed==0", "--assert", f"recover<{recover}s")
    done = faulty.cli("drill", faulty.spec, *options, "--yes", "--json", timeout=400)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["fault"], report["failed"]) == (fault, 0)
    # Only streams that had begun when the fault struck.
    assert all(f["after_fault_s"] <= report["inject_s"] for f in report["failures"])
    assert len(report["failures"]) == report["truncated"]
    assert report["requests"] > 50
    assert report["detect_s"] <= report["recover_s"]


def test_a_drill_asks_first_and_wants_a_fault_that_there_is(faulty: Faulty) -> None:
    refused = faulty.cli("drill", faulty.spec)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    unknown = faulty.cli("drill", faulty.spec, "--fault", "flood", "--yes")
    assert unknown.returncode == 2
    assert "one of replica, hang, worker, head, gateway, partition" in unknown.stderr


def _on(replica: dict[str, object], hosts: list[Host]) -> bool:
    return replica["node_ip"] in {host.address for host in hosts}


def _quick(load: SteadyLoad, since: float) -> bool:
    """Tell whether all that was sent in a whole second after the fault was soon answered."""
    first, last = load.now() - 2.5, load.now() - 1.5
    window = [a for a in list(load.answers) if first < a.at < last]
    late = [at for at in list(load.waiting.values()) if first < at < last]
    return (
        first > since and bool(window) and not late and all(a.ok and a.seconds < 1 for a in window)
    )


def _open(host: Host) -> bool:
    try:
        headers = {"authorization": f"Bearer {KEY}"}
        url = f"http://{host.address}:8080/v1/models"
        answer = httpx.get(url, headers=headers, timeout=2, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.is_success and TINY in answer.text
